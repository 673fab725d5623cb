"""A part of a pool, for audits that must be short: drawn by class, so that it looks like the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from memberscope.errors import ConfigError
from memberscope.records.pool import Dataset


def take(dataset: Dataset, count: int, rng: np.random.Generator) -> Dataset:
    """Take some records of a pool, in their order: the same share of each class and official part.

    Parameters
    ----------
    dataset
        N records.
    count
        How many, at least one of each class in each part that has it.
    rng
        Draws them.

    Returns
    -------
    A pool of exactly `count` records; their source says so.

    Raises
    ------
    ConfigError
        More records than there are, or too few for all classes.
    """
    groups = 2 * dataset.y + dataset.is_train
    names, sizes = np.unique(groups, return_counts=True)
    if not len(names) <= count <= dataset.n:
        raise ConfigError(
            f"a subset of {count:,} records of {dataset.name}, which has {dataset.n:,}",
            f"from {len(names):,} (one of each class and official part) to {dataset.n:,}",
        )
    exact = count * sizes / dataset.n
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    # Largest remainders first, until the number is right; where a class was raised to one, others give way.
    while shares.sum() != count:
        step = 1 if shares.sum() < count else -1
        free = shares < sizes if step > 0 else shares > 1
        gap = np.where(free, step * (exact - shares), -np.inf)
        shares[np.argmax(gap)] += step
    kept = np.zeros(dataset.n, bool)
    for name, share in zip(names, shares, strict=True):
        kept[rng.permutation(np.flatnonzero(groups == name))[:share]] = True
    return replace(
        dataset,
        x=dataset.x[kept],
        y=dataset.y[kept],
        is_train=dataset.is_train[kept],
        source=f"{count:,} records, drawn by class, of: {dataset.source}",
    )
