"""Intervals for counts, and corrections for looking many times. Nothing here knows what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    value, low, high
        The figure and the two ends of its interval. NaN where it is undefined: `note` then says why.
    method
        How the interval was made.
    k, n
        The counts behind a proportion (k of n), where the figure is one.
    note
        What a reader of this figure has to know; mostly empty.
    """

    value: float
    low: float
    high: float
    method: str
    k: int | None = None
    n: int | None = None
    note: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"undefined ({self.note})"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @classmethod
    def undefined(cls, method: str, note: str) -> Estimate:
        """A figure that the data cannot give, with the reason."""
        return cls(float("nan"), float("nan"), float("nan"), method, note=note)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Estimate:
        """Read back what `Evaluation.to_dict` wrote: null is NaN."""
        numbers = {name: float("nan") if content[name] is None else content[name] for name in ("value", "low", "high")}
        return cls(**{**content, **numbers})


def binomial_limit(k: ArrayLike, n: int, probability: ArrayLike, *, upper: bool) -> FloatArray:
    """One-sided Clopper-Pearson limit: with the stated probability the true proportion is not beyond it.

    Parameters
    ----------
    k : number or array
        Successes out of `n`, 0..n. Fractions are allowed (an AUC counts ties as half a success).
    probability : number or array
        Confidence of this one side, for example 0.975 for one end of a 95 % interval.
    upper
        The upper limit, else the lower.

    References
    ----------
    C. Clopper and E. Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    from scipy.special import betaincinv

    successes = np.asarray(k, dtype=np.float64)
    level = np.asarray(probability, dtype=np.float64)
    tiny = np.finfo(np.float64).tiny
    if upper:
        limit = betaincinv(successes + 1, np.maximum(n - successes, tiny), level)
        return np.asarray(np.where(successes < n, limit, 1.0), dtype=np.float64)
    limit = betaincinv(np.maximum(successes, tiny), n - successes + 1, 1 - level)
    return np.asarray(np.where(successes > 0, limit, 0.0), dtype=np.float64)


def clopper_pearson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval for a proportion of `k` in `n` independent trials with a rule fixed beforehand."""
    side = (1 + confidence) / 2
    return float(binomial_limit(k, n, side, upper=False)), float(binomial_limit(k, n, side, upper=True))


def z_of(confidence: float) -> float:
    """Half the width, in standard errors, of a normal interval at this level."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of Wilson (1927) for a proportion: covers about `confidence` on average rather than at least."""
    z = z_of(confidence)
    share = k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def weighted_sum(
    weights: Sequence[float], counts: Sequence[tuple[int, int]], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Value and interval of a sum of independent proportions with non-negative weights.

    Balanced accuracy is (TPR + TNR) / 2, accuracy the same with the group sizes as weights. The distances from each
    proportion to its Wilson limit are added in quadrature (MOVER).

    References
    ----------
    R. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
    (1998), method 10; G. Zou and A. Donner, Statistics in Medicine 27 (2008).
    """
    value = below = above = 0.0
    for weight, (k, n) in zip(weights, counts, strict=True):
        low, high = wilson(k, n, confidence)
        value += weight * k / n
        below += (weight * (k / n - low)) ** 2
        above += (weight * (high - k / n)) ** 2
    return value, value - sqrt(below), value + sqrt(above)


def order_statistic_band(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true false-positive rate lies of "score above the (k+1)-th largest of `n` non-members": Beta(k+1, n-k).

    With 0 <= k < n and untied scores this holds exactly, whatever the distribution of the scores.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    return float(betaincinv(k + 1, n - k, tail)), float(betaincinv(k + 1, n - k, 1 - tail))


def zero_count_bound(n: int, confidence: float = 0.95) -> float:
    """Largest rate that zero events in `n` trials leave plausible, one-sided: about 3 / n at 95 %."""
    return float(-np.expm1(np.log1p(-confidence) / n))


def bonferroni(confidence: float, count: int) -> float:
    """Confidence that each of `count` intervals needs so that all of them hold together with `confidence`."""
    return 1 - (1 - confidence) / max(count, 1)


def holm(p_values: ArrayLike) -> FloatArray:
    """Adjusted p-values of Holm (1979): rejecting those <= alpha errs anywhere with probability <= alpha at most.

    NaN stands for a test that could not be made; it stays NaN and is not counted.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    made = np.flatnonzero(~np.isnan(raw))
    order = made[np.argsort(raw[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * factors), 1.0)
    return adjusted
