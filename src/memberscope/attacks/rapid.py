"""RAPID: learned calibration, which weighs a record's confidence against its calibrated confidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import Comparison, Played, ReferenceAttack
from memberscope.attacks.lira import fit_worlds
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.signals import Floats


class Rapid(ReferenceAttack):
    """Learned calibration."""

    name = "rapid"
    title = "RAPID (learned calibration)"
    card = Card(
        "He et al. 2024 (CCS), section 4",
        "gradient-boosted trees on phi and phi - mean OUT phi (averaged over queries), taught by reference models "
        "that play the target; the calibrated confidence alone where there are too few",
        "K reference models and a fit of seconds; one query a record; OUT models only",
        "corrects difficulty calibration where it errs, on easy non-members. It must not see how many OUT models a "
        "record has: in a balanced design that number is the answer for a model that plays the target. The published "
        "form is a neural network taught by one model.",
    )
    _classifier: Any = None

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Learn from reference models that play the target."""
        targets = played()
        if targets:
            features = np.concatenate([calibrated_features(one.comparison) for one in targets])
            self._classifier = fit_trees(features, np.concatenate([one.member for one in targets]), self.rng)

    def compare(self, comparison: Comparison) -> Scores:
        """Log-odds of membership."""
        features = calibrated_features(comparison)
        if self._classifier is None:
            return features[:, 1]
        return log_odds(self._classifier, features, features[:, 1])


def calibrated_features(comparison: Comparison) -> Floats:
    """Phi, and phi less its mean over OUT models, averaged over queries: float64 [N, 2]."""
    phi = comparison.phi()
    return np.column_stack([phi.mean(axis=0), (phi - fit_worlds(comparison).mean_out).mean(axis=0)])
