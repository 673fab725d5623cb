"""What makes a model bank this one and no other: recipe, records, pool, seed, queries. Any other is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, DataError, ModelError
from memberscope.training.recipe import Recipe

if TYPE_CHECKING:
    from memberscope.data_loader import Dataset

_KINDS = {
    "recipe": "recipe",
    "records": "dataset",
    "pool": "pool of records that models may be trained on",
    "validation": "validation records",
    "tied": "records that share their membership",
    "seed": "seed",
    "queries": "queries",
    "stored": "precision of the answers",
    "weights": "choice of keeping weights",
}


def identity_of(
    recipe: Recipe,
    dataset: Dataset,
    pool: NDArray[np.bool_],
    validation: NDArray[np.bool_] | None,
    queries: Sequence[str],
    seed: int,
    keep_weights: bool,
    stored: str,
    tied: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Give all that determines the models of a bank and what is kept of them; JSON-able.

    Raises
    ------
    DataError
        The pool is no mask of the records, too small, or overlaps validation.
    ConfigError
        An unknown precision, or a recipe that needs validation records and has none.
    """
    _check_pool(pool, validation, dataset.n)
    _check_tied(tied, pool)
    if stored not in ("float32", "float16"):
        raise ConfigError(f"precision = {stored!r} of answers is unknown", "float32 or float16")
    if recipe.needs_validation and validation is None:
        raise ConfigError(
            f"{recipe.needs_validation} needs validation records", "set some apart (--validation-fraction)"
        )
    identity = {
        "recipe": recipe.to_dict() | {"learning_rate": recipe.rate},
        "dataset": dataset.name,
        "records": dataset.fingerprint,
        "shape": [dataset.n, dataset.n_classes],
        "pool": _digest(pool),
        "pool_records": int(pool.sum()),
        # Who is watched matters only to those who stop by it.
        "validation": _digest(validation) if validation is not None and recipe.needs_validation else None,
        "seed": seed,
        "queries": list(queries),
        "stored": stored,
        "weights": keep_weights,
    }
    if tied is not None:
        identity["tied"] = hashlib.sha256(np.ascontiguousarray(tied, "<i8").tobytes()).hexdigest()
    return identity


def same_identity(folder: Path, there: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Give the identity of the bank that is there, if it is the one that is asked for."""
    if not isinstance(there, dict):
        raise ModelError(f"the manifest of the bank {folder} is damaged", "choose another folder, or remove this one")
    # Weights that nobody asks for do no harm.
    keys = dict.fromkeys((*asked, "tied"))
    other = [key for key in keys if there.get(key) != asked.get(key) and not (key == "weights" and there.get(key))]
    told = []
    for key, kind in _KINDS.items():
        if key not in other:
            continue
        then: Any = there.get(key)
        now: Any = asked.get(key)
        if key == "recipe" and isinstance(then, dict):
            changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            differ = (f"{name} {then.get(name, 'off')!r} there, {now.get(name, 'off')!r} here" for name in changed)
            kind += " (" + ", ".join(differ) + ")"
        elif key == "records":
            kind += f" ({there.get('dataset')!r} there, {asked['dataset']!r} here)"
        elif key == "pool":
            kind += f" ({there.get('pool_records')} records there, {asked['pool_records']} here)"
        elif key not in ("validation", "tied"):
            kind += f" ({then!r} there, {now!r} here)"
        told.append(kind)
    if told:
        raise ModelError(
            f"the model bank {folder} was made with another {', another '.join(told)}",
            "choose another folder, or ask for what this bank was made with",
        )
    return there


def _check_pool(pool: NDArray[np.bool_], validation: NDArray[np.bool_] | None, n: int) -> None:
    for name, mask in (("pool", pool), ("validation", validation)):
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != (n,)):
            raise DataError(f"{name} is {mask.dtype} {list(mask.shape)}, expected bool [{n}], one entry a record")
    if pool.sum() < 2:
        raise DataError(
            f"{int(pool.sum())} records to train reference models on, at least 2 are needed", "audit more records"
        )
    if validation is not None and (pool & validation).any():
        both = int((pool & validation).sum())
        raise DataError(f"{both:,} records are of the pool and of validation", "validation records must be set apart")


def _check_tied(tied: NDArray[np.int64] | None, pool: NDArray[np.bool_]) -> None:
    if tied is None:
        return
    if tied.dtype != np.int64 or tied.shape != pool.shape or not ((tied >= 0) & (tied < len(pool))).all():
        raise DataError(f"tied is {tied.dtype} {list(tied.shape)}, expected int64 [{len(pool)}] of indices of records")
    if (tied[tied] != tied).any() or (pool[tied] != pool).any():
        raise DataError(
            "records are tied to one that is itself tied, or not of the pool with them", "tie copies to their first"
        )


def _digest(mask: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
