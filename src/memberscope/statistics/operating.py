"""What a rule achieves at a stated error: TPR at an FPR, TNR at an FNR, precision at a prior, with intervals.

A false-positive rate f is looked at only if the non-members could show it: f x N >= 10 (ten false positives; the true
rate of the chosen threshold is then known within about 60 %). Otherwise the point says how many non-members it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np

from memberscope.statistics.curves import FloatArray, IntArray, Ranking
from memberscope.statistics.intervals import (
    Estimate,
    binomial_limit,
    clopper_pearson,
    order_statistic_band,
    z_of,
    zero_count_bound,
)
from memberscope.statistics.points import OperatingPoint, PredictiveValue, RejectionPoint

EXPECTED_ERRORS = 10
"""False positives that a nominal rate must lead one to expect before it is reported."""


def nonmembers_needed(fpr: float) -> int:
    """How many non-members it takes to report the false-positive rate `fpr`."""
    return ceil(EXPECTED_ERRORS / fpr * (1 - 1e-12))


@dataclass(frozen=True)
class Cut:
    """The loosest threshold of a ranking with at most `allowed` false positives.

    Attributes
    ----------
    false_positives, true_positives : int
        Records at or above `threshold`.
    threshold : float
        Just above the highest score that would bring too many non-members; NaN if nothing can be accepted.
    allowed : int
        False positives that were allowed; ties may leave fewer.
    tied : bool
        Whether the next score holds several non-members, so that none of the allowed counts could be attained there.
    """

    false_positives: int
    true_positives: int
    threshold: float
    allowed: int
    tied: bool

    @classmethod
    def at(cls, ranking: Ranking, allowed: int) -> Cut:
        """Cut `ranking` so that at most `allowed` (< the number of non-members) stand above, ties kept whole."""
        step = int(np.searchsorted(ranking.fp, allowed, side="right"))
        next_score = float(ranking.thresholds[step])
        return cls(
            false_positives=int(ranking.fp[step - 1]) if step else 0,
            true_positives=int(ranking.tp[step - 1]) if step else 0,
            threshold=float("nan") if np.isposinf(next_score) else float(np.nextafter(next_score, np.inf)),
            allowed=allowed,
            tied=int(ranking.nonmembers[step]) > 1,
        )

    def true_fpr(self, n: int, confidence: float) -> Estimate:
        """False-positive rate of this threshold on records not seen: Beta(k+1, n-k), or Clopper-Pearson if tied."""
        k = self.false_positives
        if self.allowed == 0:
            bound = zero_count_bound(n, confidence)
            return Estimate(k / n, 0.0, bound, "order statistic, one-sided (< 3/N)", k, n)
        if self.tied:
            return Estimate(k / n, *clopper_pearson(k, n, confidence), "Clopper-Pearson (tied scores)", k, n)
        return Estimate(k / n, *order_statistic_band(k, n, confidence), "order statistic, Beta(k+1, N-k)", k, n)


def allowed_errors(rate: float, n: int) -> int:
    """Largest k with k / n <= rate, safe against the rounding of rates such as 0.1 % of 10,000."""
    return floor(rate * n * (1 + 1e-12))


def tpr_at_fpr(ranking: Ranking, fpr: float, confidence: float = 0.95) -> OperatingPoint:
    """True-positive rate at the false-positive rate `fpr` (0 < fpr < 1) of the step curve, ties whole.

    The interval is for the TPR at a *population* FPR of `fpr`, so it answers for the threshold as well, which was
    read off these very non-members (Clopper-Pearson alone covers about half the time where the curve is steep). With a
    budget z^2 = a^2 + b^2 of surprise, the threshold may be off by a standard deviations (order statistics: how many
    of N non-members a rate of `fpr` may bring) and the count of members above it by b (Clopper-Pearson); the interval
    is the envelope over all shares of the budget.
    """
    n, m, needs = ranking.n_nonmembers, ranking.n_members, nonmembers_needed(fpr)
    if n < needs or m < 1:
        return OperatingPoint(fpr=fpr, supported=False, needs=needs, available=n)
    cut = Cut.at(ranking, allowed_errors(fpr, n))
    value = cut.true_positives / m
    off_threshold, off_count = _budget(confidence)
    strict, loose = _positives_by_order_statistics(ranking, fpr, off_threshold)
    low = float(np.min(binomial_limit(strict, m, off_count, upper=False)))
    high = float(np.max(binomial_limit(loose, m, off_count, upper=True)))
    method = "Clopper-Pearson and order statistics of the threshold"
    tpr = Estimate(value, min(low, value), max(high, value), method, cut.true_positives, m)
    return _point(fpr, needs, n, tpr, cut, confidence)


def tpr_at_zero_fp(ranking: Ranking, confidence: float = 0.95) -> OperatingPoint:
    """True-positive rate of the threshold just above the highest non-member.

    No rate of zero is claimed: the true FPR is at most about 3 / N (one-sided). The TPR is that of this threshold,
    Clopper-Pearson: the members had no part in choosing it.
    """
    n, m = ranking.n_nonmembers, ranking.n_members
    cut = Cut.at(ranking, 0)
    limits = clopper_pearson(cut.true_positives, m, confidence)
    tpr = Estimate(cut.true_positives / m, *limits, "Clopper-Pearson", cut.true_positives, m)
    return _point(0.0, 1, n, tpr, cut, confidence)


def _point(fpr: float, needs: int, n: int, tpr: Estimate, cut: Cut, confidence: float) -> OperatingPoint:
    return OperatingPoint(
        fpr=fpr,
        supported=True,
        needs=needs,
        available=n,
        tpr=tpr,
        true_fpr=cut.true_fpr(n, confidence),
        threshold=cut.threshold,
        false_positives=cut.false_positives,
        true_positives=cut.true_positives,
    )


def tnr_at_fnr(ranking: Ranking, fnr: float, confidence: float = 0.95) -> RejectionPoint:
    """True-negative rate at the false-negative rate `fnr`: who is surely not a member. `tpr_at_fpr` with sides swapped.

    References
    ----------
    On its use as a thermometer of leakage without reference models: Dodd et al., "The tail tells all" (2025).
    """
    point = tpr_at_fpr(ranking.mirrored(), fnr, confidence)
    if not point.supported:
        return RejectionPoint(fnr=fnr, supported=False, needs=point.needs, available=point.available)
    return RejectionPoint(
        fnr=fnr,
        supported=True,
        needs=point.needs,
        available=point.available,
        tnr=point.tpr,
        true_fnr=point.true_fpr,
        # The mirrored rule accepts -score >= -threshold + one step: non-members are those with score < threshold.
        threshold=-float(np.nextafter(point.threshold, -np.inf)),
        false_negatives=point.false_positives,
        true_negatives=point.true_positives,
    )


def predictive_values(
    point: OperatingPoint, n_members: int, priors: tuple[float, ...], confidence: float = 0.95
) -> tuple[PredictiveValue, ...]:
    """Of the records that the threshold of a supported `point` calls members, the share that is, by prior.

    PPV = p TPR / (p TPR + (1 - p) FPR) with the attained counts. Its interval is that of the ratio TPR / FPR: the
    envelope, as in `tpr_at_fpr`, of Clopper-Pearson for the one and the order statistics for the other.
    """
    k, n, t = point.false_positives, point.available, point.true_positives
    if k is None or t is None:
        return ()
    one, other = _budget(confidence)
    fpr_low, fpr_high = (binomial_limit(k, n, one, upper=side) for side in (False, True))
    tpr_low, tpr_high = (binomial_limit(t, n_members, other, upper=side) for side in (False, True))
    with np.errstate(divide="ignore"):
        ratio_low, ratio_high = float(np.min(tpr_low / fpr_high)), float(np.max(tpr_high / fpr_low))
    values = []
    for prior in priors:
        method = "Clopper-Pearson and order statistics of the ratio TPR / FPR"
        if k == t == 0:
            ppv = Estimate.undefined(method, "no record was called a member")
        else:
            positive, negative = prior * t / n_members, (1 - prior) * k / n
            low, high = (_precision(ratio, prior) for ratio in (ratio_low, ratio_high))
            value = positive / (positive + negative)
            ppv = Estimate(value, min(low, value), max(high, value), method)
        values.append(PredictiveValue(prior=prior, fpr=point.fpr, ppv=ppv))
    return tuple(values)


def _precision(ratio: float, prior: float) -> float:
    return 1.0 if np.isinf(ratio) else prior * ratio / (prior * ratio + 1 - prior)


def _budget(confidence: float, steps: int = 17) -> tuple[FloatArray, FloatArray]:
    """One-sided confidences for two independent errors whose squared z-values add up to that of `confidence`."""
    from scipy.special import ndtr

    z = z_of(confidence)
    angle = np.linspace(0.0, np.pi / 2, steps)
    return ndtr(z * np.sin(angle)), ndtr(z * np.cos(angle))


def _positives_by_order_statistics(ranking: Ranking, fpr: float, probability: FloatArray) -> tuple[IntArray, IntArray]:
    """Members above a stricter and a looser threshold, between which one with the rate `fpr` lies.

    If B of n non-members stand at or above the threshold with population rate `fpr`, B is binomial; each of the two
    bounds for B holds with the stated one-sided probability.
    """
    from scipy.special import bdtr

    n = ranking.n_nonmembers
    reach = 9 * sqrt(n * fpr * (1 - fpr)) + 9
    counts = np.arange(max(0, floor(n * fpr - reach)), min(n, ceil(n * fpr + reach)) + 1)
    distribution = bdtr(counts, n, fpr)
    fewest = counts[0] - 1 + np.searchsorted(distribution, 1 - probability, side="right")
    most = counts[0] + np.searchsorted(distribution, probability, side="left")
    positives = np.concatenate([[0], ranking.tp])
    strict, loose = (positives[np.searchsorted(ranking.fp, bound, side="right")] for bound in (fewest, most))
    return strict, loose
