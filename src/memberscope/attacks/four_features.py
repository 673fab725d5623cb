"""The original project's attack: four features of the answer, and a classifier that learns from known members."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Card, InformedAttack, Scores
from memberscope.evidence import Evidence, Knowledge
from memberscope.signals import Signals

FEATURES = ("max_confidence", "entropy", "true_probability", "top_two_gap")


def four_features(signals: Signals) -> NDArray[np.float64]:
    """Max confidence, softmax entropy, true-class probability, top-two gap: float64 [N, 4]."""
    features: list[NDArray[np.float64]] = [getattr(signals, name) for name in FEATURES]
    return np.stack(features, axis=-1)


def balanced_weights(member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights under which members and non-members count the same, float64 [N], mean 1."""
    share = member.mean()
    return np.asarray(np.where(member, 0.5 / share, 0.5 / (1 - share)))


class _FourFeatures(InformedAttack):
    needs = frozenset({Knowledge.PROBABILITIES, Knowledge.TRUE_LABELS, Knowledge.SOME_MEMBERSHIP})
    probability = True
    _classifier: Any

    def score(self, evidence: Evidence) -> Scores:
        """Probability of membership, at equal group sizes."""
        features = four_features(evidence.signals)
        return np.asarray(self._classifier.predict_proba(features)[:, 1])


class LogisticRegressionFourFeatures(_FourFeatures):
    """Logistic regression on the four features."""

    name = "four-features-lr"
    title = "Four features, logistic regression"
    card = Card(
        "the original project; features as in Salem et al. 2019 (NDSS) and Song & Mittal 2021 (USENIX Security)",
        "logistic regression on standardised [max p, entropy, p_y, top-two gap], members and non-members weighted "
        "equally; cross-fitted",
        "one query a record, and the membership of other records",
        "judged on records that it never saw, so it may read lower than a classifier judged on what it was fitted to; "
        "its intervals allow for folds that teach each other.",
    )

    def fit(self, evidence: Evidence, member: NDArray[np.bool_]) -> None:
        """Fit on records of known membership."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._classifier = make_pipeline(
            StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-6)
        )
        self._classifier.fit(four_features(evidence.signals), member)


class BoostedTreesFourFeatures(_FourFeatures):
    """Gradient-boosted trees on the four features."""

    name = "four-features-trees"
    title = "Four features, gradient-boosted trees"
    card = Card(
        "the original project's features; classifier as in Ke et al. 2017 (NeurIPS)",
        "histogram gradient boosting on [max p, entropy, p_y, top-two gap], members and non-members weighted equally; "
        "cross-fitted",
        "one query a record, and the membership of other records",
        "records in the same leaves are ranked by phi, which moves no probability by more than 1e-6.",
    )

    def fit(self, evidence: Evidence, member: NDArray[np.bool_]) -> None:
        """Fit on records of known membership."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        # Small leaves and many steps learn noise: 5 % of the records, 20 to 100, and more where one group is small.
        share = min(member.mean(), 1 - member.mean())
        leaf = min(max(len(member) // 20, 20), 100) * 0.5 / share
        self._classifier = HistGradientBoostingClassifier(
            max_iter=60,
            learning_rate=0.05,
            max_leaf_nodes=15,
            min_samples_leaf=int(leaf),
            early_stopping=False,
            random_state=int(self.rng.integers(2**31)),
        )
        self._classifier.fit(four_features(evidence.signals), member, sample_weight=balanced_weights(member))

    def score(self, evidence: Evidence) -> Scores:
        """Probability of membership, at equal group sizes; whole leaves would tie at the top without the last term."""
        from scipy.special import expit

        log_odds = self._classifier.decision_function(four_features(evidence.signals))
        return np.asarray(expit(log_odds + 1e-6 * np.arctan(evidence.signals.phi)))
