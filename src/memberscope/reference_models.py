"""The reference models of an audit: where their bank lies, what they cost here, and what an insider sees of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import presets, seeds
from memberscope.events import Events
from memberscope.pipeline import reference_accuracies
from memberscope.training.recipe import Recipe

if TYPE_CHECKING:
    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.evidence import Evidence
    from memberscope.membership import Split
    from memberscope.training.model_bank import ModelBank

_ALIKE = 0.1
"""Reference models that learn a share of records this far from the target's are warned about."""


def queries_of(recipe: Recipe) -> tuple[str, ...]:
    """What models are asked about each record: the record itself, and its mirror image if training mirrored."""
    return ("none", *(q for q in recipe.augmentation if q == "flip"))


def open_bank(
    config: AuditConfig, dataset: Dataset, split: Split, tied: NDArray[np.int64] | None = None
) -> ModelBank | None:
    """Open the bank of this audit, or begin it; None where no reference models are asked for.

    The pool of the reference models is the audited records and the canaries, so that each is a member of half of them,
    copies of a canary together (`tied`). Validation
    records stay out: they are the stranger's population, of whom nobody may have learnt. The target's membership plays
    no part, so several targets share a bank.

    Raises
    ------
    ModelError
        The folder given with ``--bank`` holds the models of another recipe, dataset, pool or seed.
    """
    if not config.n_shadows:
        return None
    from memberscope.training.model_bank import ModelBank

    recipe = config.recipe
    return ModelBank.open(
        config.bank or _folder(config, dataset, split),
        recipe=recipe,
        dataset=dataset,
        pool=split.pool,
        validation=split.validation if recipe.needs_validation and split.validation.any() else None,
        tied=tied,
        queries=queries_of(recipe),
        seed=int(seeds.sequence(config.seed, "references").generate_state(1, np.uint64)[0] >> 1),
        keep_weights=True,
    )


def announce(config: AuditConfig, dataset: Dataset, split: Split, bank: ModelBank | None, events: Events) -> None:
    """Say what the audit will cost on this machine, by a measurement of seconds, and what may be claimed then."""
    trained = config.targets if config.weights is None else 0
    parts = []
    if trained:
        seconds = _target_seconds(config, dataset, split)
        parts.append(f"{_count(trained, 'target')}: {_about(None if seconds is None else trained * seconds)}")
    if bank is not None:
        parts.append(_cost_of(config, dataset, split, bank))
    for part in parts:
        events.detail(part)
    events.detail(f"What this supports: {presets.claim(config.n_shadows)}.")
    for note in notes(config, split) if bank is not None else ():
        events.note(note)


def grow(config: AuditConfig, bank: ModelBank, events: Events) -> int:
    """Train what is missing of the reference models; returns how many that were."""
    wanted = config.n_shadows + config.n_shadows % 2
    before = len(_there(bank, wanted))
    try:
        bank.grow(
            config.n_shadows,
            workers=_workers(config),
            device=config.device,
            compiled=config.compile,
            progress=events.references(models=wanted, there=before),
        )
    except KeyboardInterrupt as stop:
        told = str(stop) or "interrupted"
        again = "" if config.weights is not None else ", and with --resume it does not train the target again"
        raise KeyboardInterrupt(told + again) from None
    finally:
        events.references_trained()
    return wanted - before


def notes(config: AuditConfig, split: Split) -> list[str]:
    """What a reader must know about reference models under this protocol."""
    told = []
    members, each = int(split.member.sum()), int(split.pool.sum()) // 2
    if abs(each / members - 1) > _ALIKE:
        told.append(
            f"The target learnt {members:,} records and each reference model learns {each:,}, half of those audited. "
            "Models that learn fewer records generalise worse and remember more, so these attacks may find less than "
            "they could. Where you can, --protocol random-half trains all alike."
        )
    if config.weights is not None:
        recipe = config.recipe
        told.append(
            f"Reference models are trained by the recipe that you state ({recipe.model}, {recipe.epochs} epochs, "
            f"{recipe.optimizer}, ...), which need not be the one that the model in {config.weights.name} was trained "
            "by. The further they differ, the less the attacks find; different augmentation costs most."
        )
    return told


def seen(bank: ModelBank, split: Split, index: NDArray[np.int64], *, population: bool) -> dict[str, Any]:
    """The part of the evidence that reference models give: answers, left on disk, membership, and their weights."""
    from memberscope.training.gradients import reference_white_box
    from memberscope.training.probing import ModelOracle

    x = bank.dataset.x
    told: dict[str, Any] = {
        "reference_logits": bank.logits(index),
        "reference_membership": bank.membership[:, index],
        "reference_white_box": reference_white_box(bank.model, x, bank.dataset.y, index),
        "reference_oracle": lambda k: ModelOracle(bank.model(k), x, index),
    }
    if population:
        told["population_reference_logits"] = bank.logits(split.validation)
    return told


def facts(
    config: AuditConfig, bank: ModelBank, split: Split, evidence: Evidence, *, trained: int, seconds: float
) -> dict[str, Any]:
    """What the report tells of the reference models, their accuracy on the audited records; JSON-able."""
    inside, outside = reference_accuracies(evidence) or (None, None)
    return {
        "models": bank.size,
        "folder": bank.folder.name,
        "trained_in_this_run": trained,
        "seconds": round(seconds, 3),
        "records_each": int(split.pool.sum()) // 2,
        "accuracy_members": inside,
        "accuracy_others": outside,
        "claim": presets.claim(bank.size),
        "notes": notes(config, split),
    }


def _folder(config: AuditConfig, dataset: Dataset, split: Split) -> Path:
    """Where the bank of these settings lies: readable name, and a hash of all that determines it."""
    recipe = config.recipe
    pool = hashlib.sha256(np.packbits(split.pool).tobytes()).hexdigest()
    parts = [recipe.answers_digest, dataset.fingerprint, pool, config.seed, queries_of(recipe)]
    if recipe.needs_validation:
        parts.append(hashlib.sha256(np.packbits(split.validation).tobytes()).hexdigest())
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    model = "".join(c if c.isalnum() or c in "-_" else "-" for c in recipe.model)
    name = f"{dataset.name}_{model}_epoch{recipe.epochs}_seed{config.seed}_{digest}"
    return config.model_dir / "banks" / name


def _workers(config: AuditConfig) -> int | str:
    """Models at once. Threads that the user allows are shared out one to a model: that is how they train fastest."""
    if config.workers == "auto" and config.threads is not None:
        return config.threads
    return int(config.workers) if config.workers.isdecimal() else config.workers


def _there(bank: ModelBank, wanted: int) -> list[int]:
    from memberscope.training.bank_files import model_path

    return [k for k in range(wanted) if model_path(bank.folder, k).is_file()]


def _cost_of(config: AuditConfig, dataset: Dataset, split: Split, bank: ModelBank) -> str:
    from memberscope.report.wording import size
    from memberscope.training import bank_plan

    plan = bank.plan(config.n_shadows, workers=_workers(config), device=config.device)
    wanted, missing = config.n_shadows + config.n_shadows % 2, len(plan.missing)
    where = f"in {bank.folder}"
    if not missing:
        return f"{_count(wanted, 'reference model')}: all there {where}"
    seconds = plan.seconds
    members = int(split.pool.sum()) // 2
    if seconds is None and plan.device == "cpu":  # the layout was given, so nothing was measured for it
        work = bank_plan.records_computed(config.recipe, members, len(bank.queries) * dataset.n)
        rate = _rate(config, dataset, split, plan.layout.threads)
        seconds = bank_plan.seconds(bank_plan.Choice(plan.layout, rate * plan.layout.processes, ""), missing, work)
    head = _count(wanted, "reference model")
    if missing < wanted:
        head += f", {missing} of them missing"
    at_once = f", {plan.layout.describe()}" if plan.device == "cpu" else f" on {plan.device}"
    return f"{head}: {_about(seconds)}{at_once}; {size(plan.file_bytes)} {where}".replace("\N{NO-BREAK SPACE}", " ")


def _target_seconds(config: AuditConfig, dataset: Dataset, split: Split) -> float | None:
    """Seconds of training one target here; None on a device that was not measured."""
    from memberscope.training import bank_plan
    from memberscope.training.hardware import resolve_device

    if resolve_device(config.device).type != "cpu":
        return None
    import torch

    work = bank_plan.records_computed(config.recipe, int(split.member.sum()), int(split.pool.sum()))
    return work / _rate(config, dataset, split, config.threads or torch.get_num_threads())


def _rate(config: AuditConfig, dataset: Dataset, split: Split, threads: int) -> float:
    """Records a second in training steps, measured now."""
    from memberscope.training.layout import Trial, speed_here

    arrays = {"x": dataset.x, "y": dataset.y, "pool": split.pool}
    return max(speed_here(Trial(config.recipe, dataset.n_classes, threads), arrays), 1e-9)


def _about(seconds: float | None) -> str:
    from memberscope.report.wording import duration

    if seconds is None:
        return "a time that is known when the first model is trained"
    return f"about {duration(max(1, round(seconds)))}".replace("\N{NO-BREAK SPACE}", " ")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
