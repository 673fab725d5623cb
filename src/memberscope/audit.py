"""The audit: records, membership, training, evidence, attacks, evaluation, one after the other."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import data_loader, document, environment, membership, seeds
from memberscope.attacks.runner import run_attacks, select
from memberscope.checks import Context, Finding, check_codes, run_checks
from memberscope.config import AuditConfig, from_settings
from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.evidence import Evidence, from_logits
from memberscope.pipeline import Clock, finish, run_facts
from memberscope.policy import read_policy
from memberscope.result import Audit
from memberscope.statistics.blind import blind_baseline, content_features, duplicates, label_p_value
from memberscope.target import Target, facts, obtain

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.data_loader import Dataset
    from memberscope.membership import Split


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
    policy = None if config.policy is None else read_policy(config.policy)
    clock = Clock()

    events.stage("Reading the records")
    dataset = data_loader.load(config.dataset, config.data_dir, unverified=config.unverified_data)
    split = draw_membership(config, dataset)
    clock.lap("data")

    events.stage("Obtaining the target")
    target = obtain(config, dataset, split, events)
    clock.lap("training")

    events.stage("Asking the target")
    index = np.flatnonzero(split.audited)
    evidence = observe(target, dataset, split, index)
    member = split.member[index]

    events.stage("Attacking")
    results = run_attacks(
        select(config.attacks, evidence),
        evidence,
        member,
        class_names=dataset.classes,
        seed=config.seed,
        folds=config.folds,
        confidence=config.confidence,
        on_start=events.attack,
    )
    clock.lap("attacks")

    events.stage("Doubting the audit")
    findings = doubt(config, dataset, split, index, results)
    clock.lap("checks")

    description = facts(target, dataset, split, evidence, member)
    assembled = document.assemble(
        kind="audit",
        dataset=_dataset_facts(dataset),
        records=_record_facts(config, dataset, split),
        target=description,
        results=results,
        member=member,
        findings=findings,
        settings=config.to_dict(),
        environment=environment.describe(description["device"]),
        run=run_facts(clock, f"memberscope audit --dataset {config.dataset}", config.seed),
        policy=None,
        top_records=_top_records(config, dataset, results, index, member),
        reproduce=["memberscope audit --config config.toml"],
        confidence=config.confidence,
        seed=config.seed,
    )
    return finish(assembled, results, findings, index, evidence, member, policy, config.confidence)


def draw_membership(config: AuditConfig, dataset: Dataset) -> Split:
    """Who is in: drawn by the protocol, or stated by the user with the weights."""
    if config.membership is None:
        rng = seeds.generator(config.seed, "membership")
        return membership.draw(
            config.protocol, dataset.y, dataset.is_train, rng, validation_fraction=config.validation_fraction
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


def observe(target: Target, dataset: Dataset, split: Split, index: NDArray[np.int64]) -> Evidence:
    """Ask the target about the audited records, under the queries of its own training augmentation.

    Querying a model trained without augmentation by mirrored records weakens attacks (Carlini et al. 2022, table III
    gains by it only for augmented training), so the queries follow the recipe. Validation records, which nothing was
    trained on, serve as the stranger's population unless early stopping or another defense used them.
    """
    from memberscope.training.gradients import white_box
    from memberscope.training.probing import ModelOracle

    queries = ("none", *(q for q in target.model.recipe.augmentation if q == "flip"))
    logits = target.model.query(dataset.x[index], augmentations=queries)
    more: dict[str, Any] = {
        "record_features": content_features(dataset.x[index]),
        "oracle": ModelOracle(target.model, dataset.x, index),
        "white_box": white_box(target.model, dataset.x[index], dataset.y[index]),
    }
    if split.validation.any() and not target.model.recipe.needs_validation:
        more["population_logits"] = target.model.query(dataset.x[split.validation], augmentations=queries)
        more["population_labels"] = dataset.y[split.validation]
        more["population_features"] = content_features(dataset.x[split.validation])
    return from_logits(logits, dataset.y[index], queries=queries, **more)


def doubt(
    config: AuditConfig, dataset: Dataset, split: Split, index: NDArray[np.int64], results: list[AttackResult]
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


def _top_records(
    config: AuditConfig,
    dataset: Dataset,
    results: list[AttackResult],
    index: NDArray[np.int64],
    member: NDArray[np.bool_],
) -> list[dict[str, Any]] | None:
    if not config.pictures:
        return None
    from memberscope.ladder import lowest_supported_fpr, strongest

    best = strongest(results, lowest_supported_fpr(int((~member).sum())))
    if best is None or best.scores is None:
        return None
    order = np.argsort(-best.scores, kind="stable")[: config.pictures]
    return [
        {
            "index": int(index[row]),
            "class": dataset.classes[dataset.y[index[row]]],
            "score": float(best.scores[row]),
            "member": bool(member[row]),
            "png_base64": _thumbnail(dataset.x[index[row]]),
        }
        for row in order
    ]


def _thumbnail(record: NDArray[np.generic]) -> str | None:
    import base64
    import io

    from PIL import Image

    if record.ndim != 3 or record.shape[0] not in (1, 3):
        return None
    pixels = record[0] if record.shape[0] == 1 else np.moveaxis(record, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
