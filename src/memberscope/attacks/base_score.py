"""BASE, offline: the target's log-probability less a share of what models without the record give it.

Lassila et al. 2025 (NeurIPS), "BASE". The online form is the logarithm of RMIA's ratio, to the last digit: see
`rmia-online`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import Comparison, Played, ReferenceAttack, best_setting
from memberscope.attacks.rmia import GRID, mean_probabilities
from memberscope.reference_signals import log_probability

DEFAULT_SHARE = 0.33
"""Where too few reference models are there to tune on: the value of the released code."""


def base_offline(comparison: Comparison, share: float, temperature: float) -> Scores:
    """``log p - share * log(mean OUT p)``, averaged over queries, float64 [N]."""
    _, p_out = mean_probabilities(comparison, temperature)
    terms = log_probability(comparison.phi(temperature)) - share * np.log(p_out)
    return np.asarray(terms.mean(axis=0))


class BaseOfflineT2(ReferenceAttack):
    """BASE with OUT models only."""

    name = "base-offline(T=2)"
    title = "BASE offline, temperature 2"
    card = Card(
        "Lassila et al. 2025 (NeurIPS), arXiv 2505.24089",
        "log p_y - s log(mean p_y over OUT models) of softmax(z / 2), averaged over queries; s in 0, 0.1, ... 1 is "
        "the one with the best AUC when reference models play the target; 0.33 where there are too few",
        "from one reference model on; one query a record; OUT models only",
        "differs from RMIA offline only in how it guesses the IN models: a power of p OUT here, an affine form there. "
        "Online the two are one number.",
    )

    def __init__(self, *, share: float | None = None, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.share = share

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Choose the share on reference models that play the target, unless it was given."""
        if self.share is None:
            targets = played()
            self.share = best_setting(targets, GRID, self._score) if targets else DEFAULT_SHARE

    def compare(self, comparison: Comparison) -> Scores:
        """Calibrated log-probability."""
        return self._score(comparison, DEFAULT_SHARE if self.share is None else self.share)

    def _score(self, comparison: Comparison, share: float) -> Scores:
        return base_offline(comparison, share, 2.0)
