"""Ensembles taught by reference models that play the target: several attacks, and what they miss together.

What is fitted is fitted on models whose membership the adversary knows, and applied to another: no record under audit
teaches how it is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, Played, ReferenceAttack
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.fusion import RankFusion, normal_scores
from memberscope.attacks.rapid import calibrated_features
from memberscope.attacks.rmia import RmiaOnlineT2
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.signals import Floats

_EB, _RMIA = 0, 1
"""Columns of the features."""


class Ensemble(ReferenceAttack):
    """Boosted trees on the verdicts of two attacks and the confidences that they are made from."""

    name = "ensemble"
    title = "Ensemble of attacks with reference models"
    needs = ONLINE
    card = Card(
        "stacking (Wolpert 1992) of attacks, after Wang et al. 2025 (CCS), section 4",
        "gradient-boosted trees on the normal scores of the ranks of lira-online-eb and rmia-online(T=2), phi, and phi "
        "less its mean over OUT models, taught by reference models that play the target; rank-fusion where there are "
        "too few",
        "K reference models, 4 or more, and a fit of seconds; one query a record",
        "a score depends on which other records are audited with it. Trained on one target's own membership, or on "
        "reference models without equal counts, such an ensemble reads the design instead of the leak.",
    )
    _classifier: Any = None

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Learn from reference models that play the target."""
        targets = [one for one in played() if one.comparison.references.n_in.any()]
        if targets:
            features = np.concatenate([_features(one.comparison) for one in targets])
            self._classifier = fit_trees(features, np.concatenate([one.member for one in targets]), self.rng)

    def compare(self, comparison: Comparison) -> Scores:
        """Log-odds of membership."""
        if self._classifier is None:
            return RankFusion(rng=self.rng).compare(comparison)
        return self._judge(_features(comparison))

    def _judge(self, features: Floats) -> Scores:
        return log_odds(self._classifier, features, features[:, _EB])


class TaughtFusion(Ensemble):
    """Rank fusion of EB-LiRA and RMIA, fused once more with the ensemble that is taught what the two miss."""

    name = "taught-fusion"
    title = "Fusion of EB-LiRA, RMIA and a taught ensemble"
    card = Card(
        "this tool; no publication yet",
        "mean of the normal scores of the ranks of lira-online-eb and rmia-online(T=2), plus that of ensemble; "
        "rank-fusion where there are too few models to teach the ensemble",
        "K reference models, 4 or more, and a fit of seconds; one query a record",
        "a score depends on which other records are audited with it. Nothing is fitted on the target's own membership. "
        "docs/headline.md compares it with every single attack on several targets and datasets.",
    )

    def _judge(self, features: Floats) -> Scores:
        taught = normal_scores(super()._judge(features))
        return np.asarray(0.5 * (features[:, _EB] + features[:, _RMIA]) + taught)


def _features(comparison: Comparison) -> Floats:
    verdicts = [EbLira().compare(comparison), RmiaOnlineT2().compare(comparison)]
    return np.column_stack([*map(normal_scores, verdicts), calibrated_features(comparison)])
