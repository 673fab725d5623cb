"""Signals: what one model's answer about one record says, computed once in float64 from float32 logits.

Everything is computed from ``z - logsumexp(z)``, never from a rounded softmax: a float32 probability of 1 - 1e-8 is
exactly 1, and a loss computed from it exactly 0, which ties the most confident members at the top of the ROC
(10 % of the records of a small CNN at epoch 20).

All functions take ``logits`` of any shape [..., N, C] and ``labels`` int64 [N] and return float64 [..., N].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
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

    @cached_property
    def log_probabilities(self) -> Floats:
        """float64 [..., N, C]: log softmax."""
        z = self.logits.astype(np.float64)
        z -= z.max(axis=-1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return z

    @cached_property
    def _top_two(self) -> Floats:
        """float64 [..., N, 2]: log-probabilities of the runner-up and of the predicted class."""
        return np.partition(self.log_probabilities, -2, axis=-1)[..., -2:]

    @cached_property
    def _others(self) -> Floats:
        """float64 [..., N, C]: log-probabilities with the true class at -inf."""
        others = self.log_probabilities.copy()
        np.put_along_axis(others, self._index, -np.inf, axis=-1)
        return others

    @property
    def _index(self) -> NDArray[np.int64]:
        shape = (*self.logits.shape[:-1], 1)
        return np.broadcast_to(self.labels[:, None], shape)

    @cached_property
    def true_log_probability(self) -> Floats:
        """log p_y, that is minus the cross-entropy loss (Yeom et al. 2018)."""
        taken = np.take_along_axis(self.log_probabilities, self._index, axis=-1)
        return np.asarray(taken[..., 0])

    @property
    def loss(self) -> Floats:
        """Cross-entropy ``-log p_y``, in nats."""
        return -self.true_log_probability

    @cached_property
    def max_confidence(self) -> Floats:
        """``max_c p_c`` (Salem et al. 2019)."""
        return np.asarray(np.exp(self._top_two[..., 1]))

    @cached_property
    def log_max_odds(self) -> Floats:
        """``log max_c p_c / (1 - max_c p_c)``: ranks as `max_confidence` does, without its ties near 1."""
        top = self.log_probabilities.argmax(axis=-1)
        others = self.log_probabilities.copy()
        np.put_along_axis(others, top[..., None], -np.inf, axis=-1)
        return np.asarray(self._top_two[..., 1] - _logsumexp(others))

    @cached_property
    def entropy(self) -> Floats:
        """Softmax entropy ``-sum_c p_c log p_c``, in nats."""
        log_p = self.log_probabilities
        return np.asarray(-(np.exp(log_p) * log_p).sum(axis=-1))

    @cached_property
    def true_probability(self) -> Floats:
        """``p_y``."""
        return np.asarray(np.exp(self.true_log_probability))

    @cached_property
    def top_two_gap(self) -> Floats:
        """Difference of the two largest probabilities."""
        return np.asarray(np.exp(self._top_two[..., 1]) - np.exp(self._top_two[..., 0]))

    @cached_property
    def phi(self) -> Floats:
        """Logit-scaled confidence: ``log p_y / (1 - p_y) = z_y - logsumexp_{c != y} z_c`` (Carlini et al. 2022)."""
        return np.asarray(self.true_log_probability - _logsumexp(self._others))

    @cached_property
    def hinge(self) -> Floats:
        """``z_y - max_{c != y} z_c`` (Carlini et al. 2022)."""
        return np.asarray(self.true_log_probability - self._others.max(axis=-1))

    @cached_property
    def modified_entropy(self) -> Floats:
        """``-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)`` (Song & Mittal 2021, eq. 7)."""
        others = self._others
        log_rest_y = _logsumexp(others)  # log(1 - p_y), exact even where p_y rounds to 1
        first = -np.exp(log_rest_y) * self.true_log_probability
        p_other = np.exp(others)
        # The one wrong class that may come near 1 needs its complement from the sum of the others, as p_y does.
        log_rest = np.log1p(-np.minimum(p_other, 0.5))
        near_one = p_other > 0.5
        if near_one.any():
            log_rest[near_one] = _log_complement_of_top(self.log_probabilities)[near_one.any(axis=-1)]
        return np.asarray(first - (p_other * log_rest).sum(axis=-1))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """int64 [..., N]: the predicted class, all that a label-only adversary sees."""
        return np.asarray(self.logits.argmax(axis=-1)).astype(np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool [..., N]: whether the predicted class is the true one."""
        return np.asarray(self.predicted == self.labels)


def _logsumexp(z: Floats) -> Floats:
    top = z.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(z - top).sum(axis=-1)) + top[..., 0])


def _log_complement_of_top(log_p: Floats) -> Floats:
    """log(1 - max_c p_c), from the sum of the other probabilities."""
    rest = log_p.copy()
    np.put_along_axis(rest, rest.argmax(axis=-1)[..., None], -np.inf, axis=-1)
    return _logsumexp(rest)
