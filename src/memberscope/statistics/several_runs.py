"""Epsilon lower bounds from independent training runs, each with or without one canary.

Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine Learning" (NeurIPS 2020), and, for the Gaussian form,
Nasr et al., "Tight Auditing of Differentially Private Machine Learning" (USENIX Security 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.intervals import binomial_limit


@dataclass(frozen=True)
class RunCounts:
    """How a threshold called the runs: positive = "the canary was in".

    Parameters
    ----------
    runs_with, runs_without
        Runs whose training data held the canary, and runs whose data did not.
    false_negatives
        Of `runs_with`, those called negative.
    false_positives
        Of `runs_without`, those called positive.
    """

    runs_with: int
    runs_without: int
    false_negatives: int
    false_positives: int

    @property
    def correct(self) -> int:
        """Runs called rightly."""
        return self.runs_with + self.runs_without - self.false_negatives - self.false_positives


def rate_limits(counts: RunCounts, alpha: float) -> tuple[float, float]:
    """Upper limits of the false-positive and false-negative rates, at once, with confidence 1 - alpha.

    Each is Clopper and Pearson's one-sided limit at 1 - alpha/2.
    """
    return (
        _upper_limit(counts.false_positives, counts.runs_without, alpha / 2),
        _upper_limit(counts.false_negatives, counts.runs_with, alpha / 2),
    )


def clopper_pearson_epsilon(counts: RunCounts, delta: float, alpha: float) -> float:
    """Lower bound on epsilon at a threshold that was not chosen on these runs.

    (epsilon, delta)-DP forces 1 - FNR <= exp(epsilon) FPR + delta and 1 - FPR <= exp(epsilon) FNR + delta
    (Kairouz et al. 2015); both hold for the upper limits of `rate_limits` too, so either direction may be taken.

    Parameters
    ----------
    counts
        From independent runs.
    delta
        In [0, 1).
    alpha
        Error probability.

    Returns
    -------
    The bound, >= 0. Its ceiling is set by the number of runs: 500 + 500 perfect runs give 4.906 at delta = 1e-5.
    """
    fpr, fnr = rate_limits(counts, alpha)
    found = 0.0
    for hit, miss in ((1 - delta - fpr, fnr), (1 - delta - fnr, fpr)):
        if hit > miss:
            found = max(found, math.log(hit / miss))
    return found


def gaussian_mu(counts: RunCounts, alpha: float) -> float:
    """Lower bound on mu under the hypothesis of Gaussian DP: Phi^-1(1 - FPR) - Phi^-1(FNR), both at their limits.

    Nasr et al. 2023, Section 4. The hypothesis is that the mechanism's trade-off curve is a Gaussian one.
    """
    from scipy.special import ndtri

    fpr, fnr = rate_limits(counts, alpha)
    if fpr >= 1 or fnr >= 1:
        return 0.0
    return max(0.0, float(-ndtri(fpr) - ndtri(fnr)))


def gaussian_epsilon(counts: RunCounts, delta: float, alpha: float) -> float:
    """`gaussian_mu` told as an epsilon at `delta`."""
    return gdp_epsilon(gaussian_mu(counts, alpha), delta)


@lru_cache(maxsize=65536)
def _upper_limit(events: int, trials: int, alpha: float) -> float:
    return float(binomial_limit(events, trials, 1 - alpha, upper=True))
