"""Scores as probabilities: what a score says about membership, learnt on models whose members are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, EvidenceError
from memberscope.statistics.intervals import clopper_pearson

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Odds of membership by score: steps that never fall.

    Parameters
    ----------
    edges
        float64 [B]: the lowest score of each step but the first, which has minus infinity.
    likelihood_ratio
        float64 [B]: how much likelier a score of this step is for a member than for a non-member.
    """

    edges: Floats
    likelihood_ratio: Floats

    @classmethod
    def learn(cls, scores: Floats, member: NDArray[np.bool_]) -> Posterior:
        """Learn from M scores of records whose membership is known.

        Isotonic regression of membership on the score (Zadrozny & Elkan 2002, KDD), so that only the order of scores
        matters. Each step's share is (members + 1) / (records + 2): a step without a non-member does not prove that
        there are none.

        Raises
        ------
        EvidenceError
            No members or no non-members.
        """
        members = int(member.sum())
        if not 0 < members < len(member):
            raise EvidenceError("a posterior is learnt from members and non-members", "give both")
        from sklearn.isotonic import isotonic_regression

        distinct, group = np.unique(scores, return_inverse=True)
        size = np.bincount(group).astype(np.float64)
        inside = np.bincount(group, weights=member)
        fitted = isotonic_regression(inside / size, sample_weight=size)
        first = np.flatnonzero(np.concatenate([[True], fitted[1:] > fitted[:-1]]))
        count, hits = np.add.reduceat(size, first), np.add.reduceat(inside, first)
        share = np.maximum.accumulate((hits + 1) / (count + 2))
        odds = share / (1 - share) * (len(member) - members) / members
        edges = distinct[first]
        edges[0] = -np.inf
        return cls(edges, odds)

    def __call__(self, scores: Floats, prior: float) -> Floats:
        """Probability that each record is a member, float64 [N], if a share `prior` of the records judged are."""
        if not 0 < prior < 1:
            raise ConfigError(f"a prior of {prior}; expected it above 0 and below 1", "0.5 where nothing is known")
        odds = self.likelihood_ratio[np.searchsorted(self.edges, scores, side="right") - 1] * prior / (1 - prior)
        return np.asarray(odds / (1 + odds))


@dataclass(frozen=True)
class ReliabilityBin:
    """Records whose probability of membership was put between `low` and `high`, and how many of them are members."""

    low: float
    high: float
    records: int
    members: int
    expected: float
    share_low: float
    share_high: float


def reliability(
    probability: Floats, member: NDArray[np.bool_], *, confidence: float = 0.95, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Hold probabilities against the truth: for each tenth with records, the expected and the true share of members.

    Parameters
    ----------
    probability
        float64 [N], at the prior of these very records; NaN is left out.
    """
    known = np.isfinite(probability)
    probability, member = probability[known], member[known]
    place = np.minimum((probability * bins).astype(int), bins - 1)
    told = []
    for b in range(bins):
        here = place == b
        records, members = int(here.sum()), int(member[here].sum())
        if records:
            ends = clopper_pearson(members, records, confidence)
            told.append(
                ReliabilityBin(b / bins, (b + 1) / bins, records, members, float(probability[here].mean()), *ends)
            )
    return tuple(told)
