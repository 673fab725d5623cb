"""The target: trained now, loaded from an earlier run, or brought by the user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope import seeds
from memberscope.defenses.registry import in_force, trainings
from memberscope.errors import ConfigError, ModelError
from memberscope.events import Events

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.evidence import Evidence
    from memberscope.membership import Split
    from memberscope.training.trained_model import TrainedModel

_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class Target:
    """The model under audit.

    Parameters
    ----------
    model
        Answers queries.
    origin
        Where it came from, as a sentence.
    trained
        True where this run trained it.
    folder
        Where its weights lie.
    """

    model: TrainedModel
    origin: str
    trained: bool
    folder: Path


def obtain(config: AuditConfig, dataset: Dataset, split: Split, events: Events, number: int = 0) -> Target:
    """Load or train a target, as the settings say.

    With `config.load`, a model that an earlier run trained with the same settings is loaded if it fits; else the
    reason is said and it is trained, as the original project did. With `config.resume` what an interrupted run finished
    is loaded too.

    Parameters
    ----------
    number
        Of several targets of one audit: each is trained with a seed of its own.
    """
    if config.weights is not None:
        return _brought(config, dataset)
    folder = model_folder(config, dataset, split, number)
    if config.load or (config.resume and (folder / "model.json").is_file()):
        loaded = _load(config, dataset, split, folder, events)
        if loaded is not None:
            return loaded
    return _train(config, dataset, split, folder, events, number)


def model_folder(config: AuditConfig, dataset: Dataset, split: Split, number: int = 0) -> Path:
    """Where a model of these settings lies: readable name, and a hash of all that determines it."""
    recipe = config.recipe
    parts = [recipe.digest, dataset.fingerprint, hashlib.sha256(np.packbits(split.member).tobytes()).hexdigest()]
    parts += [str(config.seed), *([f"target {number}"] if number else [])]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return config.model_dir / f"{_prefix(config, dataset)}{digest}"


def facts(
    target: Target, dataset: Dataset, split: Split, evidence: Evidence, member: NDArray[np.bool_]
) -> dict[str, Any]:
    """Accuracies and description of the target for the report, from the answers that the attacks were given."""
    model = target.model
    train = float(evidence.signals.correct[member].mean())
    test = float(evidence.signals.correct[~member].mean())
    val = None
    if evidence.population_logits is not None:
        val = float((evidence.population_logits[0].argmax(axis=1) == evidence.population_labels).mean())
    elif split.validation.any():
        val = model.accuracy(dataset.x[split.validation], dataset.y[split.validation])
    recipe = model.recipe
    return {
        "model": recipe.model,
        "epochs": recipe.epochs,
        "recipe": recipe.to_dict(),
        "trained": target.trained,
        "origin": target.origin,
        "train_acc": train,
        "val_acc": val,
        "test_acc": test,
        "generalization_gap": train - test,
        # Of answers that a defense altered, the loss is not that of the training curves.
        "test_loss": float(evidence.signals.loss[~member].mean()) if evidence.has_logits else None,
        "weights_sha256": model.weights_sha256,
        "parameters": model.parameters,
        "precision": model.precision,
        "device": model.device,
        "images_per_second": model.images_per_second,
        "defenses": [defense.name for defense in in_force(recipe)],
        "privacy": model.privacy,
        "history": list(model.history),
    }


def _prefix(config: AuditConfig, dataset: Dataset) -> str:
    recipe = config.recipe
    model = "".join(c if c.isalnum() or c in "-_" else "-" for c in recipe.model)
    return f"{dataset.name}_{model}_epoch{recipe.epochs}_seed{config.seed}_"


def _training_seed(seed: int, number: int) -> int:
    name = f"target {number}" if number else ""
    return int(seeds.sequence(seed, "training", name).generate_state(1, np.uint64)[0] >> 1)


def _train(config: AuditConfig, dataset: Dataset, split: Split, folder: Path, events: Events, number: int) -> Target:
    from memberscope.training.model_files import save
    from memberscope.training.train_target import fit

    members = int(split.member.sum())
    watcher = events.training(
        model=config.recipe.model, records=members, epochs=config.recipe.epochs * trainings(config.recipe)
    )
    try:
        model = fit(
            config.recipe,
            dataset.x,
            dataset.y,
            split.member,
            validation=split.validation if split.validation.any() else None,
            n_classes=dataset.n_classes,
            seed=_training_seed(config.seed, number),
            device=config.device,
            threads=config.threads,
            compiled=config.compile,
            progress=watcher,
            checkpoint=folder / "checkpoint",
            resume=config.resume,
        )
    finally:
        events.trained()
    save(model, folder, membership=split.member, dataset_name=dataset.name, dataset_fingerprint=dataset.fingerprint)
    return Target(model, "trained in this run", True, folder)


def _load(config: AuditConfig, dataset: Dataset, split: Split, folder: Path, events: Events) -> Target | None:
    from memberscope.training.model_files import load

    if not (folder / "model.json").is_file():
        events.note(_why_not(config, dataset))
        return None
    try:
        model = load(
            folder,
            recipe=config.recipe,
            membership=split.member,
            dataset_fingerprint=dataset.fingerprint,
            device=config.device,
            threads=config.threads,
        )
    except ModelError as error:
        events.note(f"The model in {folder} cannot be used: {error.problem}. Training it anew.")
        return None
    return Target(model, f"loaded, trained earlier ({folder.name})", False, folder)


def _why_not(config: AuditConfig, dataset: Dataset) -> str:
    prefix = _prefix(config, dataset)
    near = sorted(path.name for path in config.model_dir.glob(f"{prefix}*") if (path / "model.json").is_file())
    if near:
        return (
            f"{len(near)} saved model(s) of {prefix.rstrip('_')} were trained with other settings, records or "
            f"membership ({', '.join(near[:_SHOWN_DIFFERENCES])}). Training one that fits."
        )
    return f"No saved model of {prefix.rstrip('_')} in {config.model_dir}. Training it."


def _brought(config: AuditConfig, dataset: Dataset) -> Target:
    from memberscope.training.model_files import wrap

    assert config.weights is not None
    channels = dataset.input_shape[0]
    for name, values in (("mean", config.mean), ("std", config.std)):
        if values and len(values) not in (1, channels):
            raise ConfigError(
                f"--{name} has {len(values)} numbers for {channels} channels", f"give one number, or {channels}"
            )
    model = wrap(
        config.recipe,
        config.weights,
        input_shape=dataset.input_shape,
        n_classes=dataset.n_classes,
        mean=config.mean,
        std=config.std,
        device=config.device,
        threads=config.threads,
    )
    return Target(model, f"brought by the user ({config.weights.name})", False, config.weights)
