"""Figures of pairs of client and record, with intervals for other clients and other records drawn alike.

Pairs of one client share its training, pairs of one record its difficulty. Both are drawn anew: every client and every
record gets a random weight, a pair the product of the two (A. Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics 1, 2007; with exponential weights, A. Owen and D. Eckles, "Bootstrapping data arrays of arbitrary order",
Annals of Applied Statistics 6, 2012). It is cautious: where nothing depends on the client it is a little too wide. With
fewer than ten clients no method knows their spread well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.statistics.curves import FloatArray, auc, check_scores, rank, roc_curve
from memberscope.statistics.intervals import Estimate

DRAWS = 1000


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
    told = [_around(curve.tpr_at(fpr), limits[:, i], method) for i, fpr in enumerate(fprs)]
    return _around(auc(ranking), np.quantile(areas, ends), method), told


def _around(value: float, ends: FloatArray, method: str) -> Estimate:
    """The quantiles of the draws as an interval; where few pairs make them miss the figure itself, up to that."""
    return Estimate(value, min(value, float(ends[0])), max(value, float(ends[1])), method)
