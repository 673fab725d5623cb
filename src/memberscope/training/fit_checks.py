"""What `fit` refuses before it trains: masks, soft targets and records that do not fit the recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.defenses.base import Lesson, LossDefense, Procedure
from memberscope.defenses.registry import in_force, procedure
from memberscope.errors import ConfigError, DataError
from memberscope.training.recipe import Recipe


def check_records(
    recipe: Recipe, x: NDArray[Any], member: NDArray[np.bool_], validation: NDArray[np.bool_] | None
) -> None:
    """Refuse masks that do not fit the records, and records that do not fit the recipe."""
    for name, mask in (("member", member), ("validation", validation)):
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != (len(x),)):
            raise DataError(f"{name} is {mask.dtype} {list(mask.shape)}, expected bool [{len(x)}], one entry a record")
    if not member.any():
        raise DataError("no record is a member", "there is nothing to train on")
    if validation is not None and not validation.any():
        raise DataError("no record is a validation record", "give validation=None to train without any")
    if validation is not None and (member & validation).any():
        both = int((member & validation).sum())
        raise DataError(f"{both:,} records are members and validation records", "validation records must be set apart")
    check_validation(recipe, validation)
    only_images = next((d.name for d in in_force(recipe) if d.images), None)
    if only_images and x.ndim != 4:
        raise ConfigError(f"{only_images} is for images, the records are feature rows", "leave it out")
    if recipe.augmentation and x.ndim != 4:
        raise ConfigError(
            f"augmentation = {list(recipe.augmentation)} is for images, the records are feature rows", "leave it out"
        )


def check_validation(recipe: Recipe, validation: NDArray[np.bool_] | None) -> None:
    """Refuse a defense that trains by validation records where there are none."""
    if recipe.needs_validation and validation is None:
        reason = f"{recipe.needs_validation} needs validation records"
        raise ConfigError(reason, "set some apart (--validation-fraction)")


def check_defenses(recipe: Recipe, validation: NDArray[np.bool_] | None, lesson: Lesson | None) -> None:
    """Refuse a single training that lacks what the defenses of its recipe need; a federation trains so."""
    first = procedure(recipe)
    if first is not None and lesson is None:
        raise ConfigError(f"{first.name} trains other models first, which cannot be done here", "leave it out")
    if lesson is None:
        check_validation(recipe, validation)


def lesson_of(recipe: Recipe, member: NDArray[np.bool_], soft_targets: NDArray[np.floating], n_classes: int) -> Lesson:
    """The soft targets that a caller gives, checked."""
    if soft_targets.shape != (len(member), n_classes):
        raise DataError(
            f"soft targets have shape {list(soft_targets.shape)}, expected [{len(member)}, {n_classes}]",
            "a row a record of the pool, a column a class",
        )
    taught = soft_targets[member].astype(np.float64)
    if not np.isfinite(taught).all() or (taught < 0).any() or not np.allclose(taught.sum(axis=1), 1, atol=1e-3):
        raise DataError("soft targets of members are no probabilities", "each row of a member is >= 0 and sums to 1")
    for defense in in_force(recipe):
        if isinstance(defense, Procedure) or (isinstance(defense, LossDefense) and not defense.soft_targets):
            raise ConfigError(
                f"{defense.name} and soft targets do not go together", "train on them by a recipe without it"
            )
    return Lesson(member, np.ascontiguousarray(soft_targets, np.float32))
