"""Quantile regression: how confident a model that did not see a record should be, told from the record alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.errors import MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge
from memberscope.signals import Floats, logit_scaled_confidence

COMPONENTS = 32
"""Features beyond this many are reduced to their principal components."""

FOLDS = 5


class QuantileRegression(Attack):
    """Deviation from the confidence that the record itself lets expect of a model that did not see it."""

    name = "quantile-regression"
    title = "Quantile regression (QMIA)"
    needs = frozenset({Knowledge.PROBABILITIES, Knowledge.TRUE_LABELS, Knowledge.POPULATION, Knowledge.RECORDS})
    card = Card(
        "Bertran et al. 2023 (NeurIPS), the Gaussian form of section 3",
        "(phi - mu(x, y)) / sigma(x, y): mean and standard deviation of the target's phi on non-members, regressed on "
        "the record and its class by gradient-boosted trees",
        "no reference model; one query a record; some thousand non-members and a fit of seconds",
        "as good as the regressor: the published one is a large network on the pixels, ours sees 32 principal "
        "components of the features that it is given. Fitted on the very non-members that it is judged on, as one "
        "tool does, it finds leaks in noise; spreads are fitted here to residuals of records left out.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Standard deviations above what the record lets expect, first query."""
        if evidence.population_features is None:
            raise MissingKnowledgeError(
                f"attack {self.name!r} needs the population's records as vectors of features",
                "give population_features",
            )
        assert evidence.population_logits is not None
        assert evidence.population_labels is not None
        assert evidence.record_features is not None
        known, asked = _reduced(evidence.population_features, evidence.record_features, self.rng)
        known = np.column_stack([known, evidence.population_labels])
        asked = np.column_stack([asked, evidence.labels])
        phi = logit_scaled_confidence(evidence.population_logits[0], evidence.population_labels)
        order = np.lexsort((phi, *known.T))  # whatever order the population comes in
        mean, deviation = self._fit(known[order], phi[order], evidence.n_classes)
        return np.asarray((evidence.signals.phi - mean(asked)) / deviation(asked))

    def _fit(self, features: Floats, phi: Floats, n_classes: int) -> tuple[Any, Any]:
        def fit(x: Floats, y: Floats, loss: str) -> Any:
            from sklearn.ensemble import HistGradientBoostingRegressor

            regressor = HistGradientBoostingRegressor(
                loss=loss,
                max_iter=60,
                learning_rate=0.08,
                max_leaf_nodes=15,
                min_samples_leaf=max(10, len(y) // 100),
                categorical_features=[x.shape[1] - 1] if n_classes <= 255 else None,
                early_stopping=False,
                random_state=int(self.rng.integers(2**31)),
            )
            return regressor.fit(x, y).predict

        fold_of = self.rng.permutation(np.arange(len(phi)) % FOLDS)
        residuals = np.empty(len(phi))
        for fold in range(FOLDS):
            left_out = fold_of == fold
            residuals[left_out] = phi[left_out] - fit(features[~left_out], phi[~left_out], "squared_error")(
                features[left_out]
            )
        squares = np.maximum(residuals**2, 1e-6 * np.mean(residuals**2) + np.finfo(np.float64).tiny)
        variance = fit(features, squares, "gamma")
        return fit(features, phi, "squared_error"), lambda x: np.sqrt(variance(x))


def _reduced(
    known: NDArray[np.floating], asked: NDArray[np.floating], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    components = min(COMPONENTS, len(known))
    if known.shape[1] <= components:
        return known.astype(np.float64), asked.astype(np.float64)
    from sklearn.decomposition import PCA

    reduction = PCA(components, svd_solver="randomized", random_state=int(rng.integers(2**31)))
    reduction.fit(known[np.lexsort(known.T[:3])])
    return reduction.transform(known).astype(np.float64), reduction.transform(asked).astype(np.float64)
