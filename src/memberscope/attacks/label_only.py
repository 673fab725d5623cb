"""Label-only attacks: how far a record can be altered before the predicted class changes.

A model that was trained on a record tends to keep its class under larger alterations, and a defense that rounds or
hides probabilities does not touch this (Choquette-Choo et al. 2021; Li & Zhang 2021).
"""

from __future__ import annotations

from itertools import product

import numpy as np

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, Knowledge
from memberscope.probes import Noise, Oracle, Probe, Shift

_NEEDS = frozenset({Knowledge.LABELS, Knowledge.TRUE_LABELS, Knowledge.QUERIES})


def _oracle(evidence: Evidence) -> Oracle:
    if evidence.oracle is None:
        raise EvidenceError("this evidence cannot ask about altered records", "audit the model itself")
    return evidence.oracle


def _share_right(evidence: Evidence, probes: list[Probe]) -> Scores:
    """Share of the probes answered with the true class, float64 [N]."""
    oracle = _oracle(evidence)
    right = np.zeros(evidence.n_records)
    for probe in probes:
        right += oracle.labels(probe) == evidence.labels
    return right / len(probes)


class NoiseRobustness(Attack):
    """A record that keeps its class under noise is called a member."""

    name = "noise-robustness"
    title = "Robustness to noise"
    needs = _NEEDS
    costly = True
    card = Card(
        "Choquette-Choo et al. 2021 (ICML), section 3.3; Li & Zhang 2021 (CCS), section 4",
        "share of noisy copies that are answered with the true class, over 3 strengths (0.02, 0.05, 0.1 of the range) "
        "of 8 copies each, the unaltered record counted as 8 more",
        "24 label queries a record",
        "33 distinct values: ties limit what can be shown at low FPR. The strengths are fixed, not tuned: tuning them "
        "on the audited records would fit what is judged.",
    )
    strengths = (0.02, 0.05, 0.1)
    copies = 8

    def score(self, evidence: Evidence) -> Scores:
        """Share of the noisy copies answered with the true class, plus correctness of the record itself."""
        seeds = self.rng.integers(2**31, size=(len(self.strengths), self.copies))
        probes: list[Probe] = [
            Noise(strength, int(seed)) for strength, row in zip(self.strengths, seeds, strict=True) for seed in row
        ]
        share = _share_right(evidence, probes)
        return (share * len(probes) + self.copies * evidence.signals.correct) / (len(probes) + self.copies)


class AugmentationRobustness(Attack):
    """An image that keeps its class when moved and mirrored is called a member."""

    name = "augmentation-robustness"
    title = "Robustness to shifts and mirroring"
    needs = _NEEDS
    costly = True
    card = Card(
        "Choquette-Choo et al. 2021 (ICML), section 3.2",
        "share of 18 copies (moved by -1, 0, 1 pixels down and right, mirrored or not) answered with the true class; "
        "the published form learns a classifier on the vector of 18 answers on a shadow model",
        "18 label queries a record; images only",
        "19 distinct values. Strongest against models trained with these augmentations.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Share of the altered copies answered with the true class."""
        if not _oracle(evidence).images:
            raise EvidenceError("feature rows cannot be moved or mirrored", "use noise-robustness")
        moves = product((-1, 0, 1), (-1, 0, 1), (False, True))
        return _share_right(evidence, [Shift(down, right, mirrored) for down, right, mirrored in moves])


class BoundaryDistance(Attack):
    """A record that lies far from the decision boundary is called a member."""

    name = "boundary-distance"
    title = "Distance to the decision boundary along random directions"
    needs = _NEEDS
    costly = True
    card = Card(
        "Choquette-Choo et al. 2021 (ICML), section 3.3; Li & Zhang 2021 (CCS), section 5 (random directions)",
        "mean over 5 random directions of the strength of noise at which the class is lost, by doubling and bisection; "
        "0 for a record that is misclassified",
        "65 label queries a record",
        "random directions overestimate the distance that HopSkipJump finds with thousands of queries, but rank "
        "records alike; pixel values are not clipped to the range that a camera gives.",
    )
    directions = 5
    largest = 2.0
    steps = 12

    def score(self, evidence: Evidence) -> Scores:
        """Mean distance at which the predicted class is lost."""
        oracle = _oracle(evidence)
        right = evidence.signals.correct
        total = np.zeros(evidence.n_records)
        for seed in self.rng.integers(2**31, size=self.directions):
            low, high = np.zeros(evidence.n_records), np.full(evidence.n_records, self.largest)
            kept = oracle.labels(Noise(high, int(seed))) == evidence.labels
            low[kept] = self.largest
            for _ in range(self.steps):
                middle = (low + high) / 2
                kept = oracle.labels(Noise(middle, int(seed))) == evidence.labels
                low, high = np.where(kept, middle, low), np.where(kept, high, middle)
            total += low
        return np.asarray(np.where(right, total / self.directions, 0.0))
