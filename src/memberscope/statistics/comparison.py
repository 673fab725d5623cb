"""Two scores of the same records: is one better? Paired, because overlapping intervals do not answer that.

Both scores stumble over the same hard records, so their difference is known far better than either of them. Whoever
compares one score with the best of A others looks A times: ask for `bonferroni(confidence, A)` then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from memberscope.errors import ConfigError
from memberscope.statistics.areas import Spread, delong_components
from memberscope.statistics.curves import BoolArray, IntArray, Ranking, auc, rank
from memberscope.statistics.intervals import Estimate, binomial_limit
from memberscope.statistics.operating import allowed_errors, nonmembers_needed


def paired_auc_difference(
    score_a: ArrayLike, score_b: ArrayLike, member: ArrayLike, *, confidence: float = 0.95
) -> Estimate:
    """AUC of `score_a` minus AUC of `score_b` on the same records, with the paired interval of DeLong.

    Parameters
    ----------
    score_a, score_b : float [N]
        Higher = more likely a member.
    member : bool [N]
        The truth.

    Notes
    -----
    Where every pair of records is judged the same way by both scores (or oppositely by all) the variance is zero; the
    interval then says what share of such pairs min(members, non-members) disjoint ones could have missed.

    References
    ----------
    E. DeLong, D. DeLong, D. Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44 (1988).
    """
    from scipy.special import stdtrit

    a, b = rank(score_a, member), rank(score_b, member)
    truth = np.asarray(member)
    value = auc(a) - auc(b)
    below, above = (
        part_a[a.group] - part_b[b.group]
        for part_a, part_b in zip(delong_components(a), delong_components(b), strict=True)
    )
    once = np.ones(truth.size, dtype=np.int64)
    spread = Spread.of([(below[truth], once[truth]), (above[~truth], once[~truth])])
    side = (1 + confidence) / 2
    if spread.variance == 0.0:
        pairs = min(a.n_members, a.n_nonmembers)
        missed = float(binomial_limit(0, pairs, side, upper=True))
        low, high = value - missed * (1 + value), value + missed * (1 - value)
        return Estimate(value, low, high, f"Clopper-Pearson for {pairs} disjoint pairs", note="no pair is an exception")
    reach = float(stdtrit(spread.freedom, side) * np.sqrt(spread.variance))
    return Estimate(value, max(value - reach, -1.0), min(value + reach, 1.0), "paired DeLong (t)")


def paired_tpr_difference(
    score_a: ArrayLike,
    score_b: ArrayLike,
    member: ArrayLike,
    fpr: float,
    *,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """TPR of `score_a` minus TPR of `score_b` at the false-positive rate `fpr`, with a paired bootstrap interval.

    Members and non-members are drawn anew separately, the same records for both scores, and both thresholds are chosen
    anew on each draw (ties whole). Percentile interval.

    Raises
    ------
    ConfigError
        `fpr` outside (0, 1), or the non-members do not support it.
    """
    if not 0 < fpr < 1:
        raise ConfigError(f"fpr must lie between 0 and 1, found {fpr}", "give a fraction, for example 0.01 for 1 %")
    a, b = rank(score_a, member), rank(score_b, member)
    truth = np.asarray(member)
    m, n, needs = a.n_members, a.n_nonmembers, nonmembers_needed(fpr)
    if n < needs:
        raise ConfigError(
            f"a false-positive rate of {fpr:g} needs {needs:,} non-members, found {n:,}",
            "compare at a higher rate, or by AUC",
        )
    allowed = allowed_errors(fpr, n)
    columns = [_Column.of(ranking, truth) for ranking in (a, b)]
    value = _difference(columns, np.ones(m, dtype=np.int64), np.ones(n, dtype=np.int64), allowed)
    drawn = np.empty(draws)
    for i in range(draws):
        of_members = np.bincount(rng.integers(m, size=m), minlength=m)
        of_nonmembers = np.bincount(rng.integers(n, size=n), minlength=n)
        drawn[i] = _difference(columns, of_members, of_nonmembers, allowed)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), f"paired bootstrap, {draws} draws")


@dataclass(frozen=True)
class _Column:
    """One score, prepared for counting the members above a threshold again and again with other weights.

    Attributes
    ----------
    members, nonmembers : int64
        Positions within each group, from the highest score to the lowest.
    members_above : int64 [non-members]
        For each non-member in that order, how many members score strictly higher.
    """

    members: IntArray
    nonmembers: IntArray
    members_above: IntArray

    @classmethod
    def of(cls, ranking: Ranking, truth: BoolArray) -> _Column:
        steps = [ranking.group[truth], ranking.group[~truth]]
        members, nonmembers = (np.argsort(step, kind="stable") for step in steps)
        return cls(members, nonmembers, (ranking.tp - ranking.members)[steps[1][nonmembers]])

    def hits(self, of_members: IntArray, of_nonmembers: IntArray, allowed: int) -> int:
        """Weight of the members above the loosest threshold with at most `allowed` weight of non-members."""
        first_out = np.searchsorted(np.cumsum(of_nonmembers[self.nonmembers]), allowed, side="right")
        return int(of_members[self.members[: self.members_above[first_out]]].sum())


def _difference(columns: list[_Column], of_members: IntArray, of_nonmembers: IntArray, allowed: int) -> float:
    a, b = (column.hits(of_members, of_nonmembers, allowed) for column in columns)
    return (a - b) / of_members.size
