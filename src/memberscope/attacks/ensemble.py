"""Ensembles taught by reference models that play the target: several attacks, and what they miss together.

What is fitted is fitted on models whose membership the adversary knows, and applied to another: no record under audit
teaches how it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, Played, ReferenceAttack
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.four_features import balanced_weights
from memberscope.attacks.fusion import RankFusion, normal_scores
from memberscope.attacks.lira import whole_means
from memberscope.attacks.rmia import RmiaOnlineT2
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.signals import Floats

_EB, _RMIA = 0, 1
"""Columns of the features."""

_WEIGHTS_UNTAUGHT = np.array([0.5, 0.5, 1.0])
"""Of EB-LiRA, RMIA and the trees, where too few models play the target to learn them."""


class Ensemble(ReferenceAttack):
    """Boosted trees on the verdicts of two attacks and what they are made from."""

    name = "ensemble"
    title = "Ensemble of attacks with reference models"
    needs = ONLINE
    card = Card(
        "stacking (Wolpert 1992) of attacks, after Wang et al. 2025 (CCS), section 4",
        "gradient-boosted trees on the normal scores of the ranks of lira-online-eb and of rmia-online(T=2), phi, phi "
        "less its mean over OUT models, the middle of the means over IN and OUT models, phi less that, and the "
        "deviation of models that agree on membership; taught by reference models that play the target; rank-fusion "
        "where there are too few",
        "K reference models, 4 or more, and a fit of seconds; one query a record",
        "a score depends on which other records are audited with it. Trained on one target's own membership, or on "
        "reference models without equal counts, such an ensemble reads the design instead of the leak.",
    )
    _classifier: Any = None

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Learn from reference models that play the target."""
        lessons = _lessons(played())
        if lessons:
            self._classifier = _taught_by(lessons, self.rng)

    def compare(self, comparison: Comparison) -> Scores:
        """Log-odds of membership."""
        if self._classifier is None:
            return RankFusion(rng=self.rng).compare(comparison)
        features = _features(comparison)
        return log_odds(self._classifier, features, features[:, _EB])


class TaughtFusion(ReferenceAttack):
    """EB-LiRA, RMIA and the ensemble, each weighed by what it adds on models that did not teach the ensemble."""

    name = "taught-fusion"
    title = "Fusion of EB-LiRA, RMIA and a taught ensemble"
    needs = ONLINE
    card = Card(
        "this tool; no publication yet. Stacking: Wolpert 1992; weights that are not negative: Breiman 1996",
        "weighted sum of the normal scores of the ranks of lira-online-eb, of rmia-online(T=2) and of the trees of "
        "ensemble. Half of the reference models that play the target teach trees, whose verdicts on the other half's "
        "records are then weighed beside those of the two attacks by a logistic regression without negative weights, "
        "and the other way round; the target is judged by both halves' trees together. rank-fusion where there are "
        "too few models",
        "K reference models, 4 or more, and a fit of seconds; one query a record",
        "a score depends on which other records are audited with it. Nothing is fitted on the target's own membership. "
        "docs/headline.md compares it with every single attack on several targets and datasets.",
    )
    _classifiers: Sequence[Any] = ()
    _weights = _WEIGHTS_UNTAUGHT

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Learn from reference models that play the target."""
        lessons = _lessons(played())
        if len(lessons) < 2:
            self._classifiers = [_taught_by(lessons, self.rng)] if lessons else ()
            return
        halves = lessons[::2], lessons[1::2]
        self._classifiers = [_taught_by(half, self.rng) for half in halves]
        verdicts, truth = [], []
        for classifier, others in zip(self._classifiers, halves[::-1], strict=True):
            for features, member in others:
                verdicts.append(_verdicts(features, [classifier]))
                truth.append(member)
        self._weights = _learn_weights(np.concatenate(verdicts), np.concatenate(truth))

    def compare(self, comparison: Comparison) -> Scores:
        """Weighted sum of three normal scores."""
        if not self._classifiers:
            return RankFusion(rng=self.rng).compare(comparison)
        return np.asarray(_verdicts(_features(comparison), self._classifiers) @ self._weights)


_Lesson = tuple[Floats, NDArray[np.bool_]]


def _lessons(played: list[Played]) -> list[_Lesson]:
    """Features and membership of each played target that has reference models of both worlds."""
    return [(_features(one.comparison), one.member) for one in played if one.comparison.references.n_in.any()]


def _taught_by(lessons: Sequence[_Lesson], rng: np.random.Generator) -> Any:
    return fit_trees(np.concatenate([f for f, _ in lessons]), np.concatenate([m for _, m in lessons]), rng)


def _verdicts(features: Floats, classifiers: Sequence[Any]) -> Floats:
    """Normal scores of EB-LiRA, RMIA and the mean of some trees, float64 [N, 3]."""
    odds = np.mean([log_odds(classifier, features, features[:, _EB]) for classifier in classifiers], axis=0)
    return np.column_stack([features[:, _EB], features[:, _RMIA], normal_scores(odds)])


def _learn_weights(verdicts: Floats, member: NDArray[np.bool_]) -> Floats:
    """Weights float64 [3], none negative, of a logistic regression of membership on verdicts [M, 3]."""
    from scipy.optimize import minimize
    from scipy.special import expit

    sign = np.where(member, 1.0, -1.0)
    share = balanced_weights(member) / len(member)

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (verdicts @ w[:3] + w[3])
        slope = -share * sign * expit(-margin)
        return float(share @ np.logaddexp(0, -margin)), np.append(slope @ verdicts, slope.sum())

    start = np.append(_WEIGHTS_UNTAUGHT, 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 3 + [(None, None)]).x[:3]
    return np.asarray(found) if found.any() else _WEIGHTS_UNTAUGHT


def _features(comparison: Comparison) -> Floats:
    """float64 [N, 7]: see the card of `Ensemble`."""
    inside, outside = comparison.references.moments()
    means = whole_means(inside, outside, inside.mean, outside.mean)
    phi = comparison.phi()
    middle = 0.5 * (means.inside + means.outside)
    freedom = np.maximum(np.maximum(inside.n - 1, 0) + np.maximum(outside.n - 1, 0), 1)
    deviation = np.sqrt((inside.ss + outside.ss) / freedom)
    parts = (phi, phi - means.outside, middle, phi - middle, deviation)
    verdicts = [EbLira().compare(comparison), RmiaOnlineT2().compare(comparison)]
    return np.column_stack([*map(normal_scores, verdicts), *(part.mean(axis=0) for part in parts)])
