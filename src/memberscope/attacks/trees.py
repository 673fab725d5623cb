"""Gradient-boosted trees for attacks that learn on reference models: one answer, in whatever order records come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.four_features import balanced_weights
from memberscope.signals import Floats

_TIE_BREAK = 1e-6


def fit_trees(
    features: Floats, member: NDArray[np.bool_], rng: np.random.Generator, *, categorical: list[int] | None = None
) -> Any:
    """Fit histogram gradient boosting that gives log-odds of membership at equal group sizes.

    Parameters
    ----------
    features
        float64 [M, F].
    member
        bool [M].
    rng
        Seeds the classifier.
    categorical
        Columns that hold classes rather than numbers.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    order = np.lexsort((member, *features.T))
    # Small leaves learn noise: a leaf holds at least 20 records and about half a percent of them.
    classifier = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.08,
        max_leaf_nodes=15,
        min_samples_leaf=max(20, len(member) // 200),
        categorical_features=categorical,
        early_stopping=False,
        random_state=int(rng.integers(2**31)),
    )
    return classifier.fit(features[order], member[order], sample_weight=balanced_weights(member)[order])


def log_odds(classifier: Any, features: Floats, tie_break: Floats) -> Floats:
    """Log-odds of membership, float64 [N]; records in the same leaves keep the order of `tie_break`."""
    return np.asarray(classifier.decision_function(features) + _TIE_BREAK * np.arctan(tie_break))
