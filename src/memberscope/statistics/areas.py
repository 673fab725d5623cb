"""Areas under curves with intervals: AUC by DeLong, average precision by the same idea."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memberscope.statistics.curves import FloatArray, IntArray, Ranking, auc, average_precision
from memberscope.statistics.intervals import Estimate, clopper_pearson

FEW = 5.0
"""Below so many misordered pairs among min(members, non-members) disjoint ones, a variance says too little."""

_EXACT = "Clopper-Pearson for {} disjoint pairs"


@dataclass(frozen=True)
class Spread:
    """Variance of a figure from two independent groups, with the degrees of freedom of Welch and Satterthwaite."""

    variance: float
    freedom: float

    @classmethod
    def of(cls, parts: Sequence[tuple[FloatArray, IntArray]]) -> Spread:
        """From the value that each distinct score contributes in each group, and how often it occurs there."""
        variance = divisor = 0.0
        for value, count in parts:
            size = int(count.sum())
            if size < 2:
                return cls(0.0, 1.0)
            mean = float(np.sum(count * value)) / size
            part = float(np.sum(count * (value - mean) ** 2)) / (size - 1) / size
            variance += part
            divisor += part * part / (size - 1)
        return cls(variance, variance * variance / divisor if divisor > 0 else 1.0)


def delong_components(ranking: Ranking) -> tuple[FloatArray, FloatArray]:
    """Share of non-members below, and share of members above, each distinct score (half of those equal), float64 [G].

    The mean of the first over members is the AUC, and so is the mean of the second over non-members.

    References
    ----------
    E. DeLong, D. DeLong, D. Clarke-Pearson, Biometrics 44 (1988); by mid-ranks in O(N log N): X. Sun and W. Xu, IEEE
    Signal Processing Letters 21 (2014).
    """
    n, m = ranking.n_nonmembers, ranking.n_members
    below = (n - ranking.fp + 0.5 * ranking.nonmembers) / n
    above = (ranking.tp - 0.5 * ranking.members) / m
    return below, above


def _auc_spread(ranking: Ranking) -> Spread:
    below, above = delong_components(ranking)
    return Spread.of([(below, ranking.members), (above, ranking.nonmembers)])


def auc_estimate(ranking: Ranking, confidence: float = 0.95) -> Estimate:
    """AUC with DeLong's variance on the logit scale and Student's t.

    Where fewer than five of min(members, non-members) disjoint pairs are misordered (AUC near 0 or 1, or tiny groups)
    DeLong's variance is an accident of the few and vanishes at AUC 0 or 1. The end of the interval on that side is then
    moved out to the exact limit for that many independent pairs, which is valid for any distribution, because the AUC
    of the sample varies at most as such a proportion does (Z. Birnbaum and O. Klose, Annals of Mathematical Statistics
    28, 1957). The same limit serves where all scores are equal.
    """
    value, pairs = auc(ranking), min(ranking.n_members, ranking.n_nonmembers)
    exact_low, exact_high = clopper_pearson(value * pairs, pairs, confidence)
    spread = _auc_spread(ranking)
    if spread.variance == 0.0 or value in (0.0, 1.0):
        return Estimate(value, exact_low, exact_high, _EXACT.format(pairs))
    low, high = _logit_interval(value, spread, confidence)
    method = "DeLong (logit, t)"
    if (1 - value) * pairs < FEW:
        low, method = min(low, exact_low), f"DeLong (logit, t), widened to {_EXACT.format(pairs)}"
    if value * pairs < FEW:
        high, method = max(high, exact_high), f"DeLong (logit, t), widened to {_EXACT.format(pairs)}"
    return Estimate(value, low, high, method)


def auc_p_value(ranking: Ranking) -> float:
    """Two-sided p-value of "the AUC is 1/2"; fits the interval of `auc_estimate`: p < 0.05 iff it excludes 1/2."""
    from scipy.special import betainc, logit, stdtr

    value, pairs = auc(ranking), min(ranking.n_members, ranking.n_nonmembers)
    good = max(value, 1 - value)
    exact = min(1.0, 2 * float(betainc(good * pairs, (1 - good) * pairs + 1, 0.5)))
    spread = _auc_spread(ranking)
    if spread.variance == 0.0 or good == 1.0:
        return exact
    statistic = float(logit(good)) / _logit_error(value, spread)
    p = 2 * float(stdtr(spread.freedom, -statistic))
    return max(p, exact) if (1 - good) * pairs < FEW else p


def average_precision_estimate(ranking: Ranking, confidence: float = 0.95) -> Estimate:
    """Average precision at the sample's own share of members, with the variance of its influence function.

    What one record adds to the figure is found by differentiating it with respect to that record's weight: itself, if
    it is a member, and its part in the precision at every lower member. On the logit scale, with Student's t. Where so
    few pairs are misordered that DeLong's variance is not trusted either, the interval is widened to what average
    precision can be at worst (at best) if as many records as could have been missed stood at the very top.
    """
    value, area = average_precision(ranking), auc(ranking)
    m, n = ranking.n_members, ranking.n_nonmembers
    pairs = min(m, n)
    spread = Spread.of(_precision_influence(ranking))
    separated = area in (0.0, 1.0)
    if spread.variance == 0.0 and not separated:
        return Estimate(value, *clopper_pearson(value * pairs, pairs, confidence), _EXACT.format(pairs))
    method = "extreme rankings" if separated else "influence function (logit, t)"
    low, high = (value, value) if separated else _logit_interval(value, spread, confidence)
    widened = False
    if (1 - area) * pairs < FEW:
        misplaced = clopper_pearson((1 - area) * n, n, confidence)[1]
        low, widened = min(low, _lowest_precision(n * misplaced / m)), True
    if area * pairs < FEW:
        risen = clopper_pearson(area * m, m, confidence)[1]
        low, high, widened = min(low, _lowest_precision(n / m)), max(high, _highest_precision(n / m, risen)), True
    if widened and not separated:
        method += ", widened to extreme rankings"
    return Estimate(value, low, high, method)


def _precision_influence(ranking: Ranking) -> list[tuple[FloatArray, IntArray]]:
    m, n = ranking.n_members, ranking.n_nonmembers
    precision = ranking.tp / (ranking.tp + ranking.fp)
    both = (ranking.tp + ranking.fp).astype(np.float64) ** 2
    # Slopes of the precision m R / (m R + n F) in R and in F, summed over the members at or below a score.
    in_recall = ranking.members * ranking.fp / both
    in_fallout = -ranking.members * ranking.tp * (n / m) / both
    return [
        (precision + np.cumsum(in_recall[::-1])[::-1], ranking.members),
        (np.cumsum(in_fallout[::-1])[::-1], ranking.nonmembers),
    ]


def _lowest_precision(ratio: float) -> float:
    """Average precision if non-members, `ratio` of them to a member, stand above all members and no other matters."""
    return 1 - ratio * float(np.log1p(1 / ratio))


def _highest_precision(ratio: float, share: float) -> float:
    """Average precision if that share of members stands above all non-members and the others, tied, below them."""
    return share + (1 - share) / (1 + ratio)


def _logit_error(value: float, spread: Spread) -> float:
    return float(np.sqrt(spread.variance)) / (value * (1 - value))


def _logit_interval(value: float, spread: Spread, confidence: float) -> tuple[float, float]:
    from scipy.special import expit, logit, stdtrit

    reach = float(stdtrit(spread.freedom, (1 + confidence) / 2)) * _logit_error(value, spread)
    centre = float(logit(value))
    return float(expit(centre - reach)), float(expit(centre + reach))
