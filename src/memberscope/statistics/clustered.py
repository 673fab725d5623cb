"""Figures of pairs of client and record, with intervals for other clients and other records drawn alike.

Pairs of one client share its training, pairs of one record its difficulty. Both are drawn anew: every client and every
record gets a random weight, a pair the product of the two (A. Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics 1, 2007; with exponential weights, A. Owen and D. Eckles, "Bootstrapping data arrays of arbitrary order",
Annals of Applied Statistics 6, 2012). It is cautious: where nothing depends on the client it is a little too wide.
Quantiles of few clients lie too near: the interval is widened as Student's t is beside the normal distribution, with
as many clients as there would be of equal size (Kish's effective number). With fewer than ten of these no method knows
their spread well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from memberscope.errors import EvidenceError
from memberscope.statistics.curves import FloatArray, auc, check_scores, rank, roc_curve
from memberscope.statistics.intervals import Estimate

DRAWS = 1000


def effective_clients(client: NDArray[np.int64]) -> float:
    """How many clients of equal size tell as much as those of these pairs: (sum n)^2 / sum n^2 (Kish 1965)."""
    sizes = np.unique(client, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def widening(client: NDArray[np.int64], confidence: float) -> float:
    """How much wider than the quantiles of a bootstrap over these clients an interval is; 1 for a single client."""
    clients = effective_clients(client)
    if len(np.unique(client)) == 1:
        return 1.0
    level = (1 + confidence) / 2
    return float(t.ppf(level, clients - 1) / norm.ppf(level))


def clustered_estimates(
    score: FloatArray,
    member: NDArray[np.bool_],
    client: NDArray[np.int64],
    record: NDArray[np.int64],
    *,
    fprs: Sequence[float],
    rng: np.random.Generator,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> tuple[Estimate, list[Estimate]]:
    """AUC and true-positive rates with intervals over clients and records.

    Parameters
    ----------
    score, member
        float64 [M], bool [M].
    client, record
        int64 [M]: of each pair.
    fprs
        False-positive rates, which the caller has seen to be supported by the sample.
    rng
        Draws the weights.
    confidence
        Of each interval.
    draws
        Number of draws.

    Returns
    -------
    The AUC, and the true-positive rate at each of `fprs`.

    Raises
    ------
    EvidenceError
        Shapes that do not fit.
    """
    score, member = check_scores(score, member)
    if client.shape != score.shape or record.shape != score.shape:
        raise EvidenceError(f"{len(score):,} scores for {len(client):,} clients and {len(record):,} records")
    ranking = rank(score, member)
    _, of_client = np.unique(client, return_inverse=True)
    _, of_record = np.unique(record, return_inverse=True)
    clients, records = int(of_client.max()) + 1, int(of_record.max()) + 1
    size = len(ranking.thresholds)
    areas, rates = np.empty(draws), np.empty((draws, len(fprs)))
    for draw in range(draws):
        by_client = rng.exponential(size=clients) if clients > 1 else np.ones(1)
        weight = by_client[of_client] * rng.exponential(size=records)[of_record]
        tp = np.bincount(ranking.group[member], weight[member], size)
        fp = np.bincount(ranking.group[~member], weight[~member], size)
        above, accused = np.cumsum(tp), np.cumsum(fp)
        areas[draw] = float(fp @ (above - 0.5 * tp)) / (above[-1] * accused[-1])
        for i, fpr in enumerate(fprs):
            step = int(np.searchsorted(accused, fpr * accused[-1] * (1 + 1e-12), side="right")) - 1
            rates[draw, i] = above[step] / above[-1] if step >= 0 else 0.0
    method = f"bootstrap over {clients} clients and {records:,} records" if clients > 1 else "bootstrap over records"
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    curve = roc_curve(ranking)
    limits = np.quantile(rates, ends, axis=0)
    wide = widening(client, confidence)
    told = [around(curve.tpr_at(fpr), limits[:, i], wide, method) for i, fpr in enumerate(fprs)]
    return around(auc(ranking), np.quantile(areas, ends), wide, method), told


def around(value: float, ends: FloatArray, wide: float, method: str) -> Estimate:
    """Quantiles of draws as an interval of a figure in [0, 1], each end `wide` times as far away; none misses it."""
    low, high = (value + wide * (float(end) - value) for end in ends)
    return Estimate(value, max(0.0, min(value, low)), min(1.0, max(value, high)), method)
