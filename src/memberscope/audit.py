"""The audit: records, membership, training, evidence, attacks, evaluation, one after the other."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import data_loader, document, environment, membership, reference_models, seeds
from memberscope.attacks.registry import HEADLINE
from memberscope.attacks.runner import check_names, run_attacks, select
from memberscope.audit_bounds import bounds_of_audit, claim_of
from memberscope.canary_audit import attack_canaries, put_in
from memberscope.checks import Context, Finding, check_codes, run_checks
from memberscope.config import AuditConfig, from_settings
from memberscope.defenses.registry import labels_only, outputs
from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.evidence import Evidence, from_logits
from memberscope.most_exposed import most_exposed
from memberscope.pipeline import Clock, beside_references, finish, judge_records, run_facts, scarcer_side
from memberscope.policy import read_policy
from memberscope.records.subset import take
from memberscope.result import Audit
from memberscope.several_targets import SeveralTargets, TargetResult, audit_further
from memberscope.statistics.blind import blind_baseline, content_features, duplicates, label_p_value
from memberscope.target import Target, facts, obtain

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.audit_bounds import AuditBounds
    from memberscope.canaries import Canaries
    from memberscope.data_loader import Dataset
    from memberscope.membership import Split
    from memberscope.risk import RecordRisk
    from memberscope.training.model_bank import ModelBank


def audit(config: AuditConfig | None = None, /, *, events: Events | None = None, **settings: Any) -> Audit:
    """Train (or load) a model, attack it, and say what each adversary achieves.

    Parameters
    ----------
    config
        The settings; keyword arguments change single ones, those of the recipe among them
        (``audit(dataset="digits", epochs=20, dropout=0.5)``).
    events
        Listens to progress.

    Returns
    -------
    The audit; nothing is written but the trained model, until ``.save(folder)``.

    Raises
    ------
    MemberscopeError
        Settings, data or model that cannot be used; the message says what to do.
    """
    config = from_settings(settings, config) if settings or config is None else config
    events = events or Events()
    check_codes(config.ignore)
    check_names(config.attacks)
    policy = None if config.policy is None else read_policy(config.policy)
    clock = Clock()

    events.stage("Reading the records")
    records = load_records(config)
    split = draw_membership(config, records)
    dataset, split, canaries = put_in(config, records, split)
    bank = reference_models.open_bank(config, dataset, split, None if canaries is None else canaries.tied(dataset.n))
    clock.lap("data")
    if bank is not None or config.preset is not None or config.targets > 1:
        events.stage("What this will take")
        reference_models.announce(config, dataset, split, bank, events)
        clock.lap("planning")

    events.stage("Obtaining the target")
    target = obtain(config, dataset, split, events)
    clock.lap("training")
    trained = 0
    if bank is not None:
        events.stage("Training the reference models")
        trained = reference_models.grow(config, bank, events)
        clock.lap("reference models")

    events.stage("Asking the target")
    index = np.flatnonzero(split.audited)
    evidence = observe(target, dataset, split, index, bank)
    member = split.member[index]

    events.stage("Attacking")
    chosen = select(config.attacks, evidence)
    results = run_attacks(
        chosen,
        evidence,
        member,
        class_names=dataset.classes,
        seed=config.seed,
        folds=config.folds,
        confidence=config.confidence,
        on_start=events.attack,
    )
    clock.lap("attacks")
    worst = None
    if canaries is not None:
        events.stage("Attacking the canaries")
        seen = observe(target, dataset, split, canaries.index, bank)
        worst = attack_canaries(config, chosen, seen, canaries, split, results, class_names=dataset.classes)
        clock.lap("canaries")
    calibrated, risk = judge_records(
        results, evidence, member, prior=config.prior, seed=config.seed, confidence=config.confidence
    )
    clock.lap("records")

    several = None
    if config.targets > 1:
        first = TargetResult.of(target, member, results, evidence)
        others = audit_further(
            config,
            dataset,
            further_memberships(config, records, canaries),
            chosen,
            obtain=lambda split, number: obtain(config, dataset, split, events, number),
            observe=lambda target, split: observe(target, dataset, split, index, bank),
            events=events,
        )
        several = SeveralTargets((first, *others), None if risk is None else risk.attack)
        clock.lap("further targets")

    events.stage("Doubting the audit")
    description = facts(target, dataset, split, evidence, member)
    proven = bounds_of_audit(
        results,
        member,
        coins=config.membership is None and config.protocol == "random-half",
        fixed=HEADLINE,
        canaries=worst,
        claim=claim_of(description),
        confidence=config.confidence,
        seed=config.seed,
    )
    findings = doubt(config, dataset, split, index, results, evidence, proven, several)
    clock.lap("checks")

    assembled = document.assemble(
        kind="audit",
        dataset=_dataset_facts(dataset),
        records=_record_facts(config, dataset, split),
        target=description,
        references=None
        if bank is None
        else reference_models.facts(
            config, bank, split, evidence, trained=trained, seconds=clock.seconds["reference models"]
        ),
        results=results,
        calibrated=calibrated,
        risk=risk,
        member=member,
        findings=findings,
        settings=config.to_dict(),
        environment=environment.describe(description["device"]),
        run=run_facts(clock, config.to_command(), config.seed),
        policy=None,
        top_records=_pictures(config, dataset, results, risk, index, member),
        reproduce=["memberscope audit --config config.toml"],
        confidence=config.confidence,
        seed=config.seed,
        canaries=None if worst is None else worst.to_dict(),
        bounds=None if proven is None else proven.to_dict(),
        targets=None if several is None else several.to_dict(config.confidence),
    )
    return finish(
        assembled,
        results,
        findings,
        index,
        evidence,
        member,
        policy,
        config.confidence,
        canaries=worst,
        risk=risk,
        targets=several,
    )


def load_records(config: AuditConfig) -> Dataset:
    """All records of the dataset, or those of the subset that is asked for."""
    dataset = data_loader.load(config.dataset, config.data_dir, unverified=config.unverified_data)
    return dataset if config.subset is None else take(dataset, config.subset, seeds.generator(config.seed, "subset"))


def draw_membership(config: AuditConfig, dataset: Dataset, number: int = 0) -> Split:
    """Who is in: drawn by the protocol, or stated by the user with the weights.

    Each of several targets has a membership of its own; all set the same validation records apart.
    """
    if config.membership is None:
        return membership.draw(
            config.protocol,
            dataset.y,
            dataset.is_train,
            seeds.generator(config.seed, "membership", f"target {number}" if number else ""),
            validation_fraction=config.validation_fraction,
            validation_rng=seeds.generator(config.seed, "membership") if number else None,
        )
    try:
        mask = np.load(config.membership, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot read the membership {config.membership}: {error}", "save a bool array with numpy.save"
        ) from None
    if not isinstance(mask, np.ndarray):
        raise ConfigError(f"{config.membership} is an .npz archive, expected one array", "save it with numpy.save")
    return membership.given(mask, dataset.n, source=str(config.membership))


def further_memberships(config: AuditConfig, records: Dataset, canaries: Canaries | None) -> list[Split]:
    """Membership of each target after the first, canaries by coins of their own."""
    splits = [draw_membership(config, records, number) for number in range(1, config.targets)]
    if canaries is None:
        return splits
    names = [f"coins {number}" for number in range(1, config.targets)]
    coins = [canaries.coins(seeds.generator(config.seed, "canaries", name)) for name in names]
    return [canaries.admit(split, thrown) for split, thrown in zip(splits, coins, strict=True)]


def observe(
    target: Target, dataset: Dataset, split: Split, index: NDArray[np.int64], bank: ModelBank | None = None
) -> Evidence:
    """Ask the target about the audited records, under the queries of its own training augmentation.

    Querying a model trained without augmentation by mirrored records weakens attacks (Carlini et al. 2022, table III
    gains by it only for augmented training), so the queries follow the recipe. Validation records, which nothing was
    trained on, serve as the stranger's population unless early stopping or another defense used them. What the
    reference models answer stays on disk until an attack reads it.
    """
    from memberscope.training.gradients import white_box
    from memberscope.training.probing import ModelOracle
    from memberscope.training.workshop import RecipeWorkshop

    model = target.model
    queries = reference_models.queries_of(model.recipe)
    logits = model.query(dataset.x[index], augmentations=queries)
    population = split.validation.any() and not model.recipe.needs_validation
    more: dict[str, Any] = {
        "record_features": content_features(dataset.x[index]),
        "oracle": ModelOracle(model, dataset.x, index),
        "white_box": white_box(model, dataset.x[index], dataset.y[index]),
        "workshop": RecipeWorkshop(
            model.recipe,
            dataset.x,
            dataset.y,
            index,
            population=np.flatnonzero(split.validation) if population else None,
            n_classes=dataset.n_classes,
            queries=queries,
            device=model.device,
            threads=model.threads,
        ),
    }
    if population:
        more["population_logits"] = target.model.query(dataset.x[split.validation], augmentations=queries)
        more["population_labels"] = dataset.y[split.validation]
        more["population_features"] = content_features(dataset.x[split.validation])
    if bank is not None:
        more |= reference_models.seen(bank, split, index, population="population_logits" in more)
    more["has_logits"] = not outputs(target.model.recipe)
    more["has_probabilities"] = not labels_only(target.model.recipe)
    return from_logits(logits, dataset.y[index], queries=queries, **more)


def doubt(
    config: AuditConfig,
    dataset: Dataset,
    split: Split,
    index: NDArray[np.int64],
    results: list[AttackResult],
    evidence: Evidence,
    proven: AuditBounds | None = None,
    several: SeveralTargets | None = None,
) -> list[Finding]:
    """The coded checks of this audit, the blind baseline among them."""
    x, y, member = dataset.x[index], dataset.y[index], split.member[index]
    context = Context(
        results=results,
        member=member,
        class_mix_difference=membership.class_mix_difference(dataset.y, split, dataset.n_classes),
        label_p_value=label_p_value(y, member, dataset.n_classes),
        blind=blind_baseline(x, y, member, dataset.n_classes, rng=seeds.generator(config.seed, "blind")),
        duplicates=duplicates(x, member, index),
        verified=dataset.verified,
        source=dataset.source,
        randomised=config.membership is None,
        claim=None if proven is None else proven.comparison,
        reference_counts=scarcer_side(evidence),
        reference_accuracy=beside_references(evidence, member),
        target_accuracies=() if several is None else tuple(one.test_acc for one in several.targets),
        target_aucs=() if several is None else several.aucs(),
        confidence=config.confidence,
    )
    return run_checks(context, config.ignore)


def _dataset_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "verified": dataset.verified,
        "fingerprint": dataset.fingerprint,
        "n_records": dataset.n,
        "n_classes": dataset.n_classes,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
    }


def _record_facts(config: AuditConfig, dataset: Dataset, split: Split) -> dict[str, Any]:
    return {
        "protocol": "given" if config.membership is not None else config.protocol,
        "members": int((split.member & split.audited).sum()),
        "nonmembers": int(split.nonmember.sum()),
        "validation": int(split.validation.sum()),
        "class_mix_difference": membership.class_mix_difference(dataset.y, split, dataset.n_classes),
    }


def _pictures(
    config: AuditConfig,
    dataset: Dataset,
    results: list[AttackResult],
    risk: RecordRisk | None,
    index: NDArray[np.int64],
    member: NDArray[np.bool_],
) -> list[dict[str, Any]] | None:
    if not config.pictures or risk is None:
        return None
    scores = next(r.scores for r in results if r.name == risk.attack)
    assert scores is not None
    return most_exposed(dataset, index, member, scores, risk, config.pictures)
