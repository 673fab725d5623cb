"""What K reference models say about N records, reduced once from logits and shared by all attacks.

Logits [K, A, N, C] are read once for each temperature, a block of records at a time, and reduced to phi in float64. The
result is kept with the evidence that it was computed from (`Evidence.references`) and dies with it, so it cannot go
stale. Above a limit of memory it lies in a temporary file that vanishes with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.reference_moments import Counts, Floats, Grouped, Moments, means, medians, moments
from memberscope.signals import logit_scaled_confidence

MEMORY_BYTES = 2**30
"""Phi of all reference models that takes more than this lies in a temporary file instead of memory."""

_BLOCK_BYTES = 2**24
"""Phi of one block of records, before it is grouped by world."""

_TRANSPOSED_VALUES = 65_536
"""Values turned from model by model to record by record at a time: they stay in a core's cache."""

_LARGEST_EXPONENT = 700.0
"""exp(700) is finite: a probability below 1e-304 is taken as that."""

_T = TypeVar("_T")


class ReferenceSignals:
    """Signals of K reference models on N records, grouped into the IN and OUT models of each record.

    Use `from_logits` or `from_phi`. Nothing is computed before it is asked for, and nothing twice.

    Parameters
    ----------
    grouped
        Computes phi at a temperature.
    order
        integer [N, K]: the model at each place of a record, IN models first.
    n_in
        int64 [N]: how many of the models are IN.
    """

    def __init__(self, grouped: Callable[[float], Grouped], order: NDArray[np.integer], n_in: Counts) -> None:
        self._grouped, self.order, self.n_in = grouped, order, n_in
        self._kept: dict[Any, Any] = {}

    @classmethod
    def from_logits(
        cls,
        logits: NDArray[np.floating],
        labels: NDArray[np.int64],
        membership: NDArray[np.bool_],
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> ReferenceSignals:
        """Signals of logits.

        Parameters
        ----------
        logits
            float [K, A, N, C], or anything with that `shape` whose item k is model k's [A, N, C]: one memory-mapped
            file a model will do.
        labels
            int64 [N].
        membership
            bool [K, N]: whether model k was trained on record n.
        memory_bytes
            Above it phi lies in a temporary file.
        """
        order, n_in = _order(membership)

        def grouped(temperature: float) -> Grouped:
            def phi(model: int, rows: slice) -> Floats:
                return logit_scaled_confidence(np.asarray(logits[model][:, rows]), labels[rows], temperature)

            return _grouped(phi, logits.shape[1], order, n_in, memory_bytes)

        return cls(grouped, order, n_in)

    @classmethod
    def from_phi(
        cls, phi: NDArray[np.floating], membership: NDArray[np.bool_], *, memory_bytes: int = MEMORY_BYTES
    ) -> ReferenceSignals:
        """Signals of phi [K, A, N] that was stored without the logits: at temperature 1 only."""
        order, n_in = _order(membership)

        def grouped(temperature: float) -> Grouped:
            if temperature != 1.0:
                raise EvidenceError(
                    f"confidences stored without logits hold temperature 1 only, not {temperature:g}",
                    "give the reference models' logits",
                )
            return _grouped(lambda model, rows: phi[model][:, rows], phi.shape[1], order, n_in, memory_bytes)

        return cls(grouped, order, n_in)

    @property
    def n_models(self) -> int:
        """K."""
        return int(self.order.shape[1])

    @property
    def n_records(self) -> int:
        """N."""
        return int(self.order.shape[0])

    @property
    def n_out(self) -> Counts:
        """int64 [N]: how many of the models are OUT."""
        return self.n_models - self.n_in

    def phi(self, temperature: float = 1.0) -> Grouped:
        """Logit-scaled confidence at a temperature."""
        return self._once(("phi", temperature), lambda: self._grouped(temperature))

    def moments(self) -> tuple[Moments, Moments]:
        """Counts, means and sums of squares of phi over the IN and the OUT models of each record."""
        return self._once("moments", lambda: moments(self.phi()))

    def medians(self) -> tuple[Floats, Floats]:
        """Medians of phi over the IN and the OUT models of each record, float64 [A, N] each."""
        return self._once("medians", lambda: medians(self.phi()))

    def mean_probability(self, temperature: float = 1.0) -> tuple[Floats, Floats]:
        """Means of ``p_y`` over the IN and the OUT models of each record, float64 [A, N] each; NaN without a model."""
        return self._once(("p", temperature), lambda: means(self.phi(temperature), _logistic, negated=True))

    def mean_log_probability(self) -> tuple[Floats, Floats]:
        """Means of ``log p_y`` over the IN and the OUT models, float64 [A, N] each; NaN without a model."""
        return self._once("log p", lambda: means(self.phi(), _log_probability))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> ReferenceSignals:
        """The same models on some of the records, in the order of `rows`."""

        def grouped(temperature: float) -> Grouped:
            group = self.phi(temperature)
            return Grouped(group.residuals[:, rows], group.centre[:, rows], self.n_in[rows])

        return ReferenceSignals(grouped, self.order[rows], self.n_in[rows])

    def at(self, places: NDArray[np.integer], temperature: float = 1.0) -> Floats:
        """float64 [A, N]: phi at one place of each record; `places` is integer [N]."""
        group = self.phi(temperature)
        index = np.broadcast_to(places[None, :, None], (*group.centre.shape, 1))
        return np.asarray(np.take_along_axis(group.residuals, index, axis=2)[..., 0] + group.centre)

    def without(self, places: NDArray[np.integer]) -> ReferenceSignals:
        """All but some places of each record; `places` is integer [N, D], distinct in a row. K - D models are left."""
        dropped = np.sort(places, axis=1)
        left = np.tile(np.arange(self.n_models - places.shape[1], dtype=np.int64), (self.n_records, 1))
        for place in dropped.T:  # ascending: each step over a gap moves all later places by one
            left += left >= place[:, None]
        n_in = self.n_in - (places < self.n_in[:, None]).sum(axis=1)

        def grouped(temperature: float) -> Grouped:
            group = self.phi(temperature)
            index = np.broadcast_to(left, (group.residuals.shape[0], *left.shape))
            return Grouped(np.take_along_axis(group.residuals, index, axis=2), group.centre, n_in)

        return ReferenceSignals(grouped, np.take_along_axis(self.order, left, axis=1), n_in)

    def _once(self, key: Any, compute: Callable[[], _T]) -> _T:
        if key not in self._kept:
            self._kept[key] = compute()
            _make_readonly(self._kept[key])
        found: _T = self._kept[key]
        return found


def _make_readonly(kept: Any) -> None:
    """All attacks share what is kept: none may change it."""
    for part in kept if isinstance(kept, tuple) else (kept,):
        for array in (part,) if isinstance(part, np.ndarray) else (getattr(part, f.name) for f in fields(part)):
            array.setflags(write=False)


def log_probability(phi: Floats) -> Floats:
    """``log p_y`` from phi, exact at both ends: ``-log(1 + exp(-phi))``."""
    return np.asarray(np.minimum(phi, 0.0) - np.log1p(np.exp(-np.abs(phi))))


def _logistic(block: Floats, query: int, rows: slice) -> None:
    """``1 / (1 + exp(block))``, never 0."""
    del query, rows
    if block.max() > _LARGEST_EXPONENT:
        np.minimum(block, _LARGEST_EXPONENT, out=block)
    np.exp(block, out=block)
    block += 1.0
    np.divide(1.0, block, out=block)  # in half the time of np.reciprocal


def _log_probability(block: Floats, query: int, rows: slice) -> None:
    del query, rows
    block[...] = log_probability(block)


def _order(membership: NDArray[np.bool_]) -> tuple[NDArray[np.integer], Counts]:
    k, n = membership.shape
    order = np.empty((n, k), np.int16 if k <= np.iinfo(np.int16).max else np.int32)
    n_in = np.asarray(membership.sum(axis=0, dtype=np.int64))
    size = max(1, _TRANSPOSED_VALUES // k)
    first = np.arange(size)[:, None] * k
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        inside, count = np.ascontiguousarray(membership[:, rows].T), int(n_in[start])
        if not (n_in[rows] == count).all():
            order[rows] = np.argsort(~inside, axis=1, kind="stable")
            continue
        # Where records have as many IN models each, finding these is all the sorting that there is to do.
        for world, places in ((inside, order[rows, :count]), (~inside, order[rows, count:])):
            found = np.flatnonzero(world).reshape(places.shape)
            np.subtract(found, first[: len(found)], out=places, casting="unsafe")
    return order, n_in


def _grouped(
    phi: Callable[[int, slice], NDArray[np.floating]],
    queries: int,
    order: NDArray[np.integer],
    n_in: Counts,
    memory_bytes: int,
) -> Grouped:
    """Read phi block by block and put the IN models of each record before its OUT models."""
    n, k = order.shape
    residuals, centre = space((queries, n, k), memory_bytes), np.empty((queries, n))
    size = max(1, min(n, 8192, _BLOCK_BYTES // (8 * k * queries)))
    # A few more columns than needed: rows a power of two apart would fall on the same few lines of a core's cache.
    answers, turned = np.empty((k, queries, size + 24)), _Turned(k)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        block = answers[:, :, : rows.stop - start]
        for model in range(k):
            block[model] = phi(model, rows)
        with np.errstate(invalid="ignore"):
            for query in range(queries):
                turned.group(block[:, query], order[rows], residuals[query, rows], centre[query, rows])
        if not np.isfinite(centre[:, rows]).all():
            _refuse_nonfinite(block, start)
    return Grouped(residuals, centre, n_in)


class _Turned:
    """Turns answers from model by model to record by record; its room is made once and stays near a core."""

    def __init__(self, k: int) -> None:
        self._size = max(1, _TRANSPOSED_VALUES // k)
        self._answers, self._values = np.empty((2, self._size, k))
        self._places = np.empty((self._size, k), np.intp)
        self._first = np.arange(self._size)[:, None] * k

    def group(self, answers: Floats, order: NDArray[np.integer], residuals: Floats, centre: Floats) -> None:
        """Fill residuals [B, K] and centre [B] from answers [K, B] and the order [B, K] of the models."""
        for start in range(0, len(centre), self._size):
            rows = slice(start, min(start + self._size, len(centre)))
            count = rows.stop - start
            turned, values, places = self._answers[:count], self._values[:count], self._places[:count]
            np.copyto(turned, answers[:, rows].T)
            np.add(order[rows], self._first[:count], out=places)
            turned.reshape(-1).take(places, out=values, mode="clip")
            values.mean(axis=1, out=centre[rows])
            np.subtract(values, centre[rows][:, None], out=residuals[rows])


def _refuse_nonfinite(block: Floats, start: int) -> None:
    broken = np.argwhere(~np.isfinite(block))
    if len(broken):
        model, query, record = broken[0]
        raise EvidenceError(
            f"reference model {model} answers query {query} on record {start + record} with NaN or infinite logits",
            "leave that model out, or mend it and let it answer again",
        )


def space(shape: tuple[int, ...], memory_bytes: int = MEMORY_BYTES, dtype: Any = np.float64) -> NDArray[Any]:
    """An array to be filled: in memory, or in a temporary file that vanishes with it."""
    if np.dtype(dtype).itemsize * int(np.prod(shape)) <= memory_bytes:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:  # the mapping outlives it
        return np.memmap(file, dtype, mode="w+", shape=shape)
