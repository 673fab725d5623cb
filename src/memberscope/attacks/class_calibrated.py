"""Modified entropy, calibrated class by class on reference models."""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import OFFLINE
from memberscope.attacks.population import above_population
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence
from memberscope.signals import Signals

CALIBRATED_ANSWERS = 1_000_000
"""Answers of reference models to calibrate on, at most."""


class ClassCalibratedModifiedEntropy(Attack):
    """A record is called a member if few non-members of its class have so small a modified entropy."""

    name = "modified-entropy-class-calibrated"
    title = "Modified entropy, calibrated by class"
    needs = OFFLINE
    card = Card(
        "Song & Mittal 2021 (USENIX Security), section 4.3",
        "share of the answers of reference models about records of the same class that they were not trained on with a "
        "larger modified entropy",
        "from one reference model on; one query a record",
        "the published form sets one threshold a class for the best balanced accuracy; the share gives each class the "
        "same false-positive rate at every threshold, which is what low-FPR figures ask for. One rule for all records "
        "of a class: TPR stays near FPR at low FPR.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Share of OUT answers of the class with larger modified entropy, first query."""
        assert evidence.reference_logits is not None
        assert evidence.reference_membership is not None
        k, n = evidence.reference_membership.shape
        models = np.unique(np.linspace(0, k - 1, max(1, min(k, CALIBRATED_ANSWERS // n))).round().astype(int))
        values, labels = [], []
        for model in models:
            out = ~evidence.reference_membership[model]
            signals = Signals(np.asarray(evidence.reference_logits[model][0])[out], evidence.labels[out])
            values.append(-np.log(np.maximum(signals.modified_entropy, np.finfo(np.float64).tiny)))
            labels.append(evidence.labels[out])
        everyone, classes = np.concatenate(values), np.concatenate(labels)
        if not len(everyone):
            raise EvidenceError(
                "every reference model was trained on every record", "train each on a random half of the records"
            )
        target = -np.log(np.maximum(evidence.signals.modified_entropy, np.finfo(np.float64).tiny))
        scores = np.empty(n)
        for label in np.unique(evidence.labels):
            rows = evidence.labels == label
            alike = everyone[classes == label]
            scores[rows] = above_population(target[rows], alike if len(alike) else everyone)
        return scores
