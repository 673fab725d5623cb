"""Shadow classifier: learn on reference models how answers about members look, and apply that to the target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import ONLINE
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence
from memberscope.signals import Floats, Signals

TOP = 3
"""Largest probabilities that are features, as in ML-Leaks."""

LEARNT_RECORDS = 200_000
"""Answers to learn from, at most."""

MODELS = 16
"""Reference models to learn from, at most."""


class ShadowClassifier(Attack):
    """One classifier for all records, taught by reference models."""

    name = "shadow-classifier"
    title = "Shadow classifier (Shokri)"
    needs = ONLINE
    card = Card(
        "Shokri et al. 2017 (S&P), section V; features as in Salem et al. 2019 (NDSS), adversary 1",
        "gradient-boosted trees on the 3 largest log-probabilities, phi and the class, taught by the answers of "
        "reference models about records in and out of their training",
        "K reference models and a fit of seconds; one query a record",
        "one rule for all records: it finds many members but none surely (TPR about FPR at low FPR).",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Log-odds of membership, first query."""
        assert evidence.reference_logits is not None
        assert evidence.reference_membership is not None
        k, n = evidence.reference_membership.shape
        models = np.unique(np.linspace(0, k - 1, MODELS).round().astype(int))
        most = max(1, LEARNT_RECORDS // len(models))
        rows = np.arange(n) if n <= most else np.sort(self.rng.choice(n, most, replace=False))
        features = [_features(np.asarray(evidence.reference_logits[m][0])[rows], evidence.labels[rows]) for m in models]
        member = evidence.reference_membership[models][:, rows].ravel()
        if member.all():
            raise EvidenceError(
                "every reference model was trained on every record",
                "reference models must leave records out: train each on a random half",
            )
        few_classes = evidence.n_classes <= 255  # what the classifier takes as a category
        classifier = fit_trees(
            np.concatenate(features), member, self.rng, categorical=[TOP + 1] if few_classes else None
        )
        return log_odds(classifier, _features(evidence.logits[0], evidence.labels), evidence.signals.phi)


def _features(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Floats:
    signals = Signals(logits, labels)
    top = np.sort(signals.log_probabilities, axis=-1)[:, : -TOP - 1 : -1]
    if top.shape[1] < TOP:
        top = np.pad(top, ((0, 0), (0, TOP - top.shape[1])))
    return np.column_stack([top, signals.phi, labels])
