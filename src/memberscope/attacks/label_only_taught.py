"""Label-only attacks that learn on a reference model which alterations tell, and judge the target by that.

The adversary still sees nothing of the target but classes; that they can train reference models makes them an insider.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import FEWEST
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, Knowledge
from memberscope.probes import Noise, Oracle, Probe, Shift
from memberscope.signals import Floats
from memberscope.statistics.curves import auc, rank

_NEEDS = frozenset(
    {
        Knowledge.LABELS,
        Knowledge.TRUE_LABELS,
        Knowledge.QUERIES,
        Knowledge.REFERENCES,
        Knowledge.REFERENCES_IN,
        Knowledge.REFERENCE_WEIGHTS,
    }
)

LEARNT_RECORDS = 5_000
"""Records that the reference model is asked about, at most."""


class _Taught:
    """A reference model that plays the target: what it answers to probes, and who its members are."""

    def __init__(self, evidence: Evidence, rng: np.random.Generator) -> None:
        assert evidence.reference_membership is not None
        assert evidence.reference_oracle is not None
        inside, n = evidence.reference_membership.sum(axis=1), evidence.n_records
        able = np.flatnonzero(np.minimum(inside, n - inside) >= FEWEST)
        if not len(able):
            raise EvidenceError(
                "no reference model has members and non-members enough among the records under audit to learn from",
                f"train reference models on random halves of the records; at least {FEWEST} of each are needed",
            )
        rows = np.arange(n) if n <= LEARNT_RECORDS else np.sort(rng.choice(n, LEARNT_RECORDS, replace=False))
        self.labels = evidence.labels[rows]
        self.member: NDArray[np.bool_] = evidence.reference_membership[able[0], rows]
        self.oracle = evidence.reference_oracle(int(able[0])).take(rows)


def _right(oracle: Oracle, labels: NDArray[np.int64], probes: Sequence[Probe]) -> Floats:
    """Whether each probe is answered with the true class, float64 [N, P]."""
    return np.stack([oracle.labels(probe) == labels for probe in probes], axis=1).astype(np.float64)


class TunedNoiseRobustness(Attack):
    """Robustness to noise of the strength that tells most on a reference model."""

    name = "noise-robustness-tuned"
    title = "Robustness to noise, strength tuned on a reference model"
    needs = _NEEDS
    costly = True
    card = Card(
        "Choquette-Choo et al. 2021 (ICML), section 3.3: the strength of the noise is tuned on a shadow model",
        "share of noisy copies that are answered with the true class, over 24 copies at the one strength of 0.01, "
        "0.02, 0.05, 0.1, 0.2, 0.4 of the range with the best AUC on a reference model, 8 copies each; the unaltered "
        "record counts as 8 more",
        "24 label queries a record to the target, and 48 to a reference model for up to 5,000 records",
        "33 distinct values: ties limit what can be shown at low FPR.",
    )
    strengths = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    tried, copies = 8, 24

    def score(self, evidence: Evidence) -> Scores:
        """Share of the noisy copies answered with the true class, plus correctness of the record itself."""
        assert evidence.oracle is not None
        taught = _Taught(evidence, self.rng)
        seeds = self.rng.integers(2**31, size=self.copies)

        def told(strength: float) -> float:
            probes = [Noise(strength, int(seed)) for seed in seeds[: self.tried]]
            return auc(rank(_right(taught.oracle, taught.labels, probes).mean(axis=1), taught.member))

        best = max(self.strengths, key=told)
        probes = [Noise(best, int(seed)) for seed in seeds]
        right = np.zeros(evidence.n_records)
        for probe in probes:  # one at a time: all at once is 24 numbers a record
            right += evidence.oracle.labels(probe) == evidence.labels
        return np.asarray((right + self.tried * evidence.signals.correct) / (self.copies + self.tried))


class TaughtAugmentationRobustness(Attack):
    """A classifier of which shifted and mirrored copies keep their class, taught by a reference model."""

    name = "augmentation-robustness-learned"
    title = "Robustness to shifts and mirroring, learned on a reference model"
    needs = _NEEDS
    costly = True
    card = Card(
        "Choquette-Choo et al. 2021 (ICML), section 3.2",
        "gradient-boosted trees on the vector of answers (true class or not) about 50 copies, moved by -2 to 2 pixels "
        "down and right, mirrored or not, taught by a reference model",
        "50 label queries a record to the target, and to a reference model for up to 5,000 records; images only",
        "the published form moves by 1 pixel or rotates, and learns a neural network. Records that keep their class "
        "under all alterations tie.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Log-odds of membership."""
        assert evidence.oracle is not None
        if not evidence.oracle.images:
            raise EvidenceError("feature rows cannot be moved or mirrored", "use noise-robustness-tuned")
        taught = _Taught(evidence, self.rng)
        moves = product((-2, -1, 0, 1, 2), (-2, -1, 0, 1, 2), (False, True))
        probes = [Shift(down, right, mirrored) for down, right, mirrored in moves]
        answers = _right(taught.oracle, taught.labels, probes)
        classifier = fit_trees(answers, taught.member, self.rng)
        mine = _right(evidence.oracle, evidence.labels, probes)
        return log_odds(classifier, mine, mine.mean(axis=1))
