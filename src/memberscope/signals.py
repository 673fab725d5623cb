"""Signals: what one model's answer about one record says, computed once in float64 from float32 logits.

Everything is computed from ``z - logsumexp(z)``, never from a rounded softmax: a float32 probability of 1 - 1e-8 is
exactly 1, and a loss computed from it exactly 0, which ties the most confident members at the top of the ROC
(10 % of the records of a small CNN at epoch 20). The logarithm is ``log1p`` of what the other classes add to the
largest, for in float64 too ``log(1 + rest)`` is 0 as soon as the largest logit leads by 37.

All functions take ``logits`` of any shape [..., N, C] and ``labels`` int64 [N] and return float64 [..., N]. What is
kept is read-only: all attacks share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_Array = TypeVar("_Array", bound=NDArray[Any])

_BLOCK_VALUES = 32_768
"""Values worked on at a time: a quarter of a megabyte of float64, which stays in a core's cache."""


def _kept(compute: Callable[[Signals], _Array]) -> cached_property[_Array]:
    """A property computed at first use; one attack cannot change in place what the next one reads."""

    @wraps(compute)
    def once(signals: Signals) -> _Array:
        array = compute(signals)
        array.setflags(write=False)
        return array

    return cached_property(once)


@dataclass(frozen=True, eq=False)
class Signals:
    """The signals of one model on N records, each computed at first use and kept.

    Parameters
    ----------
    logits
        float [..., N, C]; a constant added to a record's logits changes no signal.
    labels
        int64 [N], the true classes.
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.int64]

    @_kept
    def log_probabilities(self) -> Floats:
        """float64 [..., N, C]: log softmax."""
        z = self.logits.astype(np.float64)
        top = z.argmax(axis=-1)[..., None]
        z -= np.take_along_axis(z, top, axis=-1)
        rest = np.exp(z)
        np.put_along_axis(rest, top, 0.0, axis=-1)
        z -= np.log1p(rest.sum(axis=-1, keepdims=True))
        return z

    @_kept
    def _top_two(self) -> Floats:
        """float64 [..., N, 2]: log-probabilities of the runner-up and of the predicted class."""
        return np.partition(self.log_probabilities, -2, axis=-1)[..., -2:]

    @_kept
    def _log_complement_of_top(self) -> Floats:
        """float64 [..., N]: log(1 - max_c p_c), from the sum of the other probabilities."""
        rest = self.log_probabilities.copy()
        np.put_along_axis(rest, rest.argmax(axis=-1)[..., None], -np.inf, axis=-1)
        return _logsumexp(rest)

    @_kept
    def _others(self) -> Floats:
        """float64 [..., N, C]: log-probabilities with the true class at -inf."""
        others = self.log_probabilities.copy()
        np.put_along_axis(others, self._index, -np.inf, axis=-1)
        return others

    @property
    def _index(self) -> NDArray[np.int64]:
        shape = (*self.logits.shape[:-1], 1)
        return np.broadcast_to(self.labels[:, None], shape)

    @_kept
    def true_log_probability(self) -> Floats:
        """log p_y, that is minus the cross-entropy loss (Yeom et al. 2018)."""
        taken = np.take_along_axis(self.log_probabilities, self._index, axis=-1)
        return np.asarray(taken[..., 0])

    @property
    def loss(self) -> Floats:
        """Cross-entropy ``-log p_y``, in nats."""
        return -self.true_log_probability

    @_kept
    def max_confidence(self) -> Floats:
        """``max_c p_c`` (Salem et al. 2019)."""
        return np.asarray(np.exp(self._top_two[..., 1]))

    @_kept
    def log_max_odds(self) -> Floats:
        """``log max_c p_c / (1 - max_c p_c)``: ranks as `max_confidence` does, without its ties near 1."""
        return np.asarray(self._top_two[..., 1] - self._log_complement_of_top)

    @_kept
    def entropy(self) -> Floats:
        """Softmax entropy ``-sum_c p_c log p_c``, in nats."""
        log_p = self.log_probabilities
        return np.asarray(-(np.exp(log_p) * log_p).sum(axis=-1))

    @_kept
    def true_probability(self) -> Floats:
        """``p_y``."""
        return np.asarray(np.exp(self.true_log_probability))

    @_kept
    def top_two_gap(self) -> Floats:
        """Difference of the two largest probabilities."""
        return np.asarray(np.exp(self._top_two[..., 1]) - np.exp(self._top_two[..., 0]))

    @_kept
    def phi(self) -> Floats:
        """Logit-scaled confidence: ``log p_y / (1 - p_y) = z_y - logsumexp_{c != y} z_c`` (Carlini et al. 2022)."""
        return logit_scaled_confidence(self.logits, self.labels)

    @_kept
    def hinge(self) -> Floats:
        """``z_y - max_{c != y} z_c`` (Carlini et al. 2022)."""
        return np.asarray(self.true_log_probability - self._others.max(axis=-1))

    @_kept
    def modified_entropy(self) -> Floats:
        """``-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)`` (Song & Mittal 2021, eq. 7)."""
        others = self._others
        log_rest_y = _logsumexp(others)  # log(1 - p_y), exact even where p_y rounds to 1
        first = -np.exp(log_rest_y) * self.true_log_probability
        p_other = np.exp(others)
        log_rest = np.log1p(-np.minimum(p_other, 0.5))
        # A wrong class above one half is the predicted one: its complement is the sum of the others, as for p_y.
        log_rest = np.where(p_other > 0.5, self._log_complement_of_top[..., None], log_rest)
        return np.asarray(first - (p_other * log_rest).sum(axis=-1))

    @_kept
    def predicted(self) -> NDArray[np.int64]:
        """int64 [..., N]: the predicted class, all that a label-only adversary sees."""
        return np.asarray(self.logits.argmax(axis=-1)).astype(np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool [..., N]: whether the predicted class is the true one."""
        return np.asarray(self.predicted == self.labels)


def logit_scaled_confidence(
    logits: NDArray[np.floating], labels: NDArray[np.int64], temperature: float = 1.0
) -> Floats:
    """``log p_y / (1 - p_y)`` of the softmax at a temperature, straight from the logits.

    Parameters
    ----------
    logits
        float [..., N, C], of any floating dtype and possibly memory-mapped; the arithmetic is float64.
    labels
        int64 [N], the true classes.
    temperature
        Divides the logits.

    Returns
    -------
    float64 [..., N]: ``z_y / T - logsumexp_{c != y} z_c / T``.
    """
    *leading, n, classes = logits.shape
    answers = logits.reshape(-1, n, classes)
    phi = np.empty(answers.shape[:2])
    # Classes along the first axis: reductions over few classes then run at the speed of the vector unit.
    size = max(1, min(n, max(64, _BLOCK_VALUES // classes)))
    # Room is made once: freshly allocated memory costs more to touch than all of the arithmetic.
    space, room = np.empty(classes * size), np.empty((2, size))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        count = rows.stop - start
        flat, top, true = space[: classes * count], room[0, :count], room[1, :count]
        z, own = flat.reshape(classes, count), labels[rows] * count + np.arange(count)
        for row, answer in zip(phi, answers, strict=True):
            np.copyto(z, answer[rows].T)
            flat.take(own, out=true, mode="wrap")
            flat[own] = -np.inf
            z.max(axis=0, out=top)
            z -= top
            true -= top
            if temperature != 1.0:
                z /= temperature
                true /= temperature
            np.exp(z, out=z)
            z.sum(axis=0, out=top)
            np.subtract(true, np.log(top, out=top), out=row[rows])
    return phi.reshape(*leading, n)


def _logsumexp(z: Floats) -> Floats:
    top = z.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(z - top).sum(axis=-1)) + top[..., 0])
