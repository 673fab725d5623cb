"""Models on disk: weights as safetensors, with recipe and membership beside them; and weights that others wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from memberscope.environment import describe
from memberscope.errors import ConfigError, ModelError
from memberscope.files import replacing, write_json
from memberscope.training.batches import Normalisation
from memberscope.training.hardware import resolve_device
from memberscope.training.models import build_for
from memberscope.training.recipe import OF_ANSWERS, Recipe
from memberscope.training.stages import remove
from memberscope.training.trained_model import TrainedModel, place, plain_state
from memberscope.training.weight_files import load_weights

_FORMAT = "memberscope model 1"
WEIGHTS, ABOUT, MEMBERSHIP = "model.safetensors", "model.json", "membership.npy"
GUARD = "guard.safetensors"
"""What a defense of the answers learnt; only where one learns."""


def save(
    trained: TrainedModel,
    folder: Path,
    *,
    membership: NDArray[np.bool_],
    dataset_name: str,
    dataset_fingerprint: str,
) -> None:
    """Write a model to a folder: model.safetensors, membership.npy and, last, model.json that vouches for both.

    The checkpoint of its training is removed: it has done its work.

    Raises
    ------
    MemberscopeError
        The disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    folder = Path(folder)
    (folder / ABOUT).unlink(missing_ok=True)  # no old description beside new weights, at any moment
    with replacing(folder / WEIGHTS) as temporary:
        save_file(plain_state(trained.module), temporary, metadata={"format": _FORMAT})
    with replacing(folder / MEMBERSHIP) as temporary, temporary.open("wb") as file:
        np.save(file, membership, allow_pickle=False)
    (folder / GUARD).unlink(missing_ok=True)
    if trained.guard:
        with replacing(folder / GUARD) as temporary:
            save_arrays(trained.guard, temporary)
    write_json(folder / ABOUT, _about(trained, membership, dataset_name, dataset_fingerprint))
    if trained.checkpoint is not None:
        remove(trained.checkpoint)
        trained.checkpoint = None


def load(
    folder: Path,
    *,
    recipe: Recipe | None = None,
    membership: NDArray[np.bool_] | None = None,
    dataset_fingerprint: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> TrainedModel:
    """Read a model that `save` wrote.

    Parameters
    ----------
    folder
        Where it lies.
    recipe, membership, dataset_fingerprint
        What it must have been trained with; None: whatever it was.
    device, threads
        Where it will answer.

    Raises
    ------
    ModelError
        A file is missing or damaged, or the model was trained otherwise than asked; names which.
    """
    folder = Path(folder)
    about = _read_about(folder)
    try:
        kept = Recipe.from_dict(about["recipe"])
        shape, n_classes = tuple(about["input_shape"]), about["n_classes"]
        normalisation = Normalisation(*(_channelwise(name, about[name], shape[0]) for name in ("mean", "std")))
        trained_on = (about["dataset_name"], about["dataset_fingerprint"], about["membership_sha256"])
        rest = {name: about[name] for name in ("precision", "seed", "images_per_second", "stopped_epoch", "best_epoch")}
        history = tuple(about["history"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelError(f"{folder / ABOUT} is damaged: {type(error).__name__}: {error}", "train again") from error
    if recipe is not None and recipe.digest != kept.digest:
        raise ModelError(f"the model in {folder} was trained by another recipe: {_differences(kept, recipe)}")
    if dataset_fingerprint is not None and dataset_fingerprint != trained_on[1]:
        raise ModelError(f"the model in {folder} was trained on other records (of {trained_on[0]!r})")
    if membership is not None and _digest(membership) != trained_on[2]:
        raise ModelError(f"the model in {folder} was trained on other members of the same records")
    if _digest(_read_membership(folder)) != trained_on[2]:
        raise ModelError(f"{folder / MEMBERSHIP} is not the membership that {ABOUT} was written with", "train again")
    if recipe is not None:  # what is answered is no part of the training
        kept = replace(kept, **{name: getattr(recipe, name) for name in OF_ANSWERS})
    where = resolve_device(device)
    module = _build(kept, shape, n_classes)
    load_weights(folder / WEIGHTS, module)
    module.eval()
    trained = TrainedModel(
        module=module,
        recipe=kept,
        normalisation=normalisation,
        input_shape=shape,
        n_classes=n_classes,
        device=str(where),
        channels_last=place(module, shape, where),
        history=history,
        privacy=about.get("privacy"),
        guard=_read_guard(folder) if kept.memguard else {},
        threads=threads,
        **rest,
    )
    if trained.weights_sha256 != about.get("weights_sha256"):
        raise ModelError(f"{folder / WEIGHTS} does not hold the weights that {ABOUT} was written with", "train again")
    return trained


def wrap(
    recipe: Recipe,
    weights: Path,
    *,
    input_shape: tuple[int, ...],
    n_classes: int,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    device: str = "auto",
    threads: int | None = None,
) -> TrainedModel:
    """Make a model that was trained elsewhere ready to be asked.

    Parameters
    ----------
    recipe
        Its `model` names the architecture, as in `models.build`.
    weights
        File for `load_weights`.
    input_shape
        Shape of one record: (C, H, W) or (d,).
    n_classes
        Number of classes.
    mean, std
        What its inputs are normalised with, after pixels were scaled to 0..1: a number a channel (or feature), or one
        for all; empty: not normalised.
    device, threads
        Where it will answer.

    Raises
    ------
    ModelError
        The weights cannot be read or do not fit.
    ConfigError
        Mean or std have another length.
    """
    normalisation = Normalisation(
        _channelwise("mean", mean or (0.0,), input_shape[0]), _channelwise("std", std or (1.0,), input_shape[0])
    )
    where = resolve_device(device)
    module = _build(recipe, tuple(input_shape), n_classes)
    load_weights(weights, module)
    module.eval()
    return TrainedModel(
        module=module,
        recipe=recipe,
        normalisation=normalisation,
        input_shape=tuple(input_shape),
        n_classes=n_classes,
        device=str(where),
        channels_last=place(module, tuple(input_shape), where),
        precision="fp32",
        threads=threads,
    )


def _about(
    trained: TrainedModel, membership: NDArray[np.bool_], dataset_name: str, dataset_fingerprint: str
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "dataset_name": dataset_name,
        "dataset_fingerprint": dataset_fingerprint,
        "membership_sha256": _digest(membership),
        "members": int(membership.sum()),
        "recipe": trained.recipe.to_dict(),
        "seed": trained.seed,
        "input_shape": list(trained.input_shape),
        "n_classes": trained.n_classes,
        "mean": trained.mean.tolist(),
        "std": trained.std.tolist(),
        "parameters": trained.parameters,
        "weights_sha256": trained.weights_sha256,
        "precision": trained.precision,
        "images_per_second": trained.images_per_second,
        "stopped_epoch": trained.stopped_epoch,
        "best_epoch": trained.best_epoch,
        "privacy": trained.privacy,
        "history": list(trained.history),
        "environment": describe(trained.device),
    }


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"no model in {folder}: {ABOUT} is missing", "train it first") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}", "train again") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise ModelError(f"{path} describes no model: expected format {_FORMAT!r}, found {found!r}", "train again")
    return about


def _read_membership(folder: Path) -> NDArray[np.bool_]:
    path = folder / MEMBERSHIP
    try:
        mask: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{path} is missing or damaged: {error}", "train again") from error
    if mask.dtype != np.bool_:
        raise ModelError(f"{path} is {mask.dtype}, expected bool", "train again")
    return mask


def _read_guard(folder: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        guard: dict[str, NDArray[Any]] = load_file(folder / GUARD)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / GUARD} is missing or damaged: {error}", "train again") from error
    return guard


def _build(recipe: Recipe, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    with torch.random.fork_rng([]):  # the fresh weights are drawn and thrown away
        return build_for(recipe, input_shape, n_classes)


def _channelwise(name: str, values: Sequence[float], channels: int) -> NDArray[np.float32]:
    if len(values) not in (1, channels):
        raise ConfigError(
            f"{name} has {len(values)} numbers for {channels} channels", f"give one number, or {channels}"
        )
    return np.broadcast_to(np.asarray(values, np.float32), channels).copy()


def _digest(mask: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes() + str(mask.shape).encode()).hexdigest()


def _differences(kept: Recipe, asked: Recipe) -> str:
    old, new = kept.to_dict(), asked.to_dict()
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name, 'off')!r} instead of {new.get(name, 'off')!r}" for name in names)
