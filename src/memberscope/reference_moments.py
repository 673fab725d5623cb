"""Sums over reference models, split into IN and OUT, for every record at once: the engine below LiRA, RMIA and others.

Values lie record by record, the IN models of a record before its OUT models (any number of either). A segmented sum
then reads every value once, whatever the membership looks like: no mask is multiplied, no record is looped over, and a
record may have no IN or no OUT model at all. Blocks of records that fit a core's cache bound the memory, so values may
be memory-mapped; the arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Transform = Callable[[Floats, int, slice], None]
"""Changes a block [B, K] of values in place; told which query and rows the block holds."""

_BLOCK_VALUES = 262_144
"""Values worked on at a time: two megabytes of float64, which stay near a core."""

_FEW_MODELS = 16
"""Up to so many values in a row, a product with ones sums rows faster than any sum over each."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """The values of K reference models on N records, grouped by world.

    Parameters
    ----------
    residuals
        float64 [A, N, K]: values less the record's `centre`, IN models first. May be memory-mapped.
    centre
        float64 [A, N]: a typical value of the record. Sums of squares of residuals lose no digits to a common offset.
    n_in
        int64 [N]: how many of the K models are IN.
    """

    residuals: Floats
    centre: Floats
    n_in: Counts

    @property
    def n_models(self) -> int:
        """K."""
        return int(self.residuals.shape[2])

    @cached_property
    def balanced(self) -> bool:
        """Whether every record has as many IN as OUT models."""
        return bool(np.all(2 * self.n_in == self.n_models))

    @property
    def values(self) -> Floats:
        """float64 [A, N, K]: the values themselves, in memory."""
        return np.asarray(self.residuals + self.centre[..., None])


@dataclass(frozen=True, eq=False)
class Moments:
    """What the models of one world (IN, or OUT) say about each record.

    Parameters
    ----------
    n
        int64 [N]: how many models.
    mean
        float64 [A, N]; NaN where ``n == 0``.
    ss
        float64 [A, N]: sum of squared deviations from the mean; 0 where ``n == 0``.
    """

    n: Counts
    mean: Floats
    ss: Floats


def moments(group: Grouped) -> tuple[Moments, Moments]:
    """Counts, means and sums of squares over the IN and over the OUT models of every record."""
    totals, squares = _space(group), _space(group)

    def work(room: _Room) -> None:
        residuals = group.residuals[room.here]
        totals[:, *room.here] = room.sums(residuals)
        squares[:, *room.here] = room.sums_of_squares(residuals)

    _over_blocks(group, work)
    worlds = []
    for total, ss, count in zip(totals, squares, (group.n_in, group.n_models - group.n_in), strict=True):
        mean = _divided(total, count)
        total *= mean
        ss -= total
        np.fmax(ss, 0.0, out=ss)  # rounding below 0, and NaN of an empty world
        mean += group.centre
        worlds.append(Moments(count, mean, ss))
    return worlds[0], worlds[1]


def means(group: Grouped, transform: Transform, *, negated: bool = False) -> tuple[Floats, Floats]:
    """Means of transformed values over the IN and over the OUT models, float64 [A, N] each; NaN without a model.

    Parameters
    ----------
    group
        The values.
    transform
        Applied to each block in place.
    negated
        Give it minus the values, which costs nothing here and a pass over them there.
    """
    totals = _space(group)
    combine, centre = (np.subtract, -group.centre) if negated else (np.add, group.centre)

    def work(room: _Room) -> None:
        combine(centre[room.here][:, None], group.residuals[room.here], out=room.block)
        transform(room.block, *room.here)
        totals[:, *room.here] = room.sums(room.block)

    _over_blocks(group, work)
    return _divided(totals[0], group.n_in), _divided(totals[1], group.n_models - group.n_in)


def medians(group: Grouped) -> tuple[Floats, Floats]:
    """Medians over the IN and over the OUT models of every record, float64 [A, N] each; NaN without a model."""
    queries, n, k = group.residuals.shape
    found = np.full((2, queries, n), np.nan)
    size = max(1, _BLOCK_VALUES // k)
    for count in np.unique(group.n_in):
        alike = np.flatnonzero(group.n_in == count)
        for query in range(queries):
            for start in range(0, len(alike), size):
                rows = alike[start : start + size]
                block = group.residuals[query, rows]
                for world, part in enumerate((block[:, :count], block[:, count:])):
                    if part.shape[1]:
                        found[world, query, rows] = _row_medians(part) + group.centre[query, rows]
    return found[0], found[1]


def _row_medians(values: Floats) -> Floats:
    values.sort(axis=1)
    k = values.shape[1]
    return np.asarray(0.5 * (values[:, (k - 1) // 2] + values[:, k // 2]))


class _Room:
    """One block of records: space for their values, and sums over their worlds."""

    def __init__(self, group: Grouped, size: int) -> None:
        self._group = group
        self._space = np.zeros(size * group.n_models + 1)

    def enter(self, query: int, rows: slice) -> None:
        """Make room for these records."""
        self.here = query, rows
        k = self._group.n_models
        n_in = self._group.n_in[rows]
        n = len(n_in)
        self._space[n * k] = 0.0  # where an empty last segment begins
        self._flat = self._space[: n * k + int(n_in[-1] == k)]
        self.block = self._space[: n * k].reshape(n, k)
        if not self._group.balanced:
            first = np.arange(n, dtype=np.intp) * k
            self._borders = np.stack([first, first + n_in], axis=1).ravel()
            self._empty = np.stack([n_in == 0, n_in == k], axis=1)

    def sums(self, values: Floats) -> Floats:
        """float64 [2, B]: sums over IN and over OUT of values [B, K]."""
        if self._group.balanced:
            halves = values.reshape(-1, values.shape[1] // 2)
            few = halves.shape[1] <= _FEW_MODELS
            sums = halves @ np.ones(halves.shape[1]) if few else np.einsum("nk->n", halves)
            return np.asarray(sums.reshape(-1, 2).T)
        if values is not self.block:
            np.copyto(self.block, values)
        segments = np.add.reduceat(self._flat, self._borders).reshape(-1, 2)
        segments[self._empty] = 0.0  # of an empty segment, reduceat gives the value that follows it
        return np.asarray(segments.T)

    def sums_of_squares(self, values: Floats) -> Floats:
        """float64 [2, B]: sums of squares over IN and over OUT of values [B, K]."""
        if self._group.balanced:
            halves = values.reshape(-1, values.shape[1] // 2)
            return np.asarray(np.einsum("nk,nk->n", halves, halves).reshape(-1, 2).T)
        np.square(values, out=self.block)
        return self.sums(self.block)


def _over_blocks(group: Grouped, work: Callable[[_Room], None]) -> None:
    queries, n, k = group.residuals.shape
    size = max(1, min(n, _BLOCK_VALUES // k))
    room = _Room(group, size)
    for query in range(queries):
        for start in range(0, n, size):
            room.enter(query, slice(start, min(start + size, n)))
            work(room)


def _space(group: Grouped) -> Floats:
    return np.empty((2, *group.residuals.shape[:2]))


def _divided(total: Floats, count: Counts) -> Floats:
    if count.all():
        return np.asarray(total / count)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
