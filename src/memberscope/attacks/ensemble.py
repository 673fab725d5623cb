"""Ensemble: a logistic regression on the ranks of several attacks, taught by reference models that play the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.bayes_lira import LiraOnlineBayes
from memberscope.attacks.calibration import DifficultyMidpointPhi
from memberscope.attacks.comparison import ONLINE, Comparison, Played, ReferenceAttack
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.fusion import RankFusion, normal_scores
from memberscope.attacks.lira import LiraOfflineOneSided
from memberscope.attacks.rmia import RmiaOffline, RmiaOnline, RmiaOnlineT2
from memberscope.signals import Floats

PARTS: tuple[type[ReferenceAttack], ...] = (
    EbLira,
    LiraOnlineBayes,
    RmiaOnline,
    RmiaOnlineT2,
    RmiaOffline,
    DifficultyMidpointPhi,
    LiraOfflineOneSided,
)


class Ensemble(ReferenceAttack):
    """Several attacks, weighed by what they are worth on reference models."""

    name = "ensemble"
    title = "Ensemble of attacks with reference models"
    needs = ONLINE
    card = Card(
        "stacking (Wolpert 1992) of attacks, after Wang et al. 2025 (CCS), section 4",
        "logistic regression on the normal scores of the ranks of phi, "
        + ", ".join(part.name for part in PARTS)
        + ", taught by reference models that play the target; rank-fusion where there are too few",
        "K reference models and a fit of seconds; one query a record; as many comparisons as there are parts and "
        "players",
        "a score depends on which other records are audited with it. Trained on one target's own membership, or on "
        "reference models without equal counts, such an ensemble reads the design instead of the leak.",
    )
    _classifier: Any = None

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Learn the weights from reference models that play the target."""
        targets = [one for one in played() if one.comparison.references.n_in.any()]
        if not targets:
            return
        from sklearn.linear_model import LogisticRegression

        self._parts = [part(rng=self.rng) for part in PARTS]
        for part in self._parts:
            part.fit(lambda: targets)
        features = np.concatenate([self._features(one.comparison) for one in targets])
        member = np.concatenate([one.member for one in targets])
        order = np.lexsort((member, *features.T))
        self._classifier = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000, tol=1e-8)
        self._classifier.fit(features[order], member[order])

    def compare(self, comparison: Comparison) -> Scores:
        """Log-odds of membership."""
        if self._classifier is None:
            return RankFusion(rng=self.rng).compare(comparison)
        return np.asarray(self._classifier.decision_function(self._features(comparison)))

    def _features(self, comparison: Comparison) -> Floats:
        scores = [comparison.phi().mean(axis=0), *(part.compare(comparison) for part in self._parts)]
        return np.stack([normal_scores(score) for score in scores], axis=1)
