"""Which client? Source inference: of a record that somebody trained on, the one client out of K."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.statistics.clustered import around, widening
from memberscope.statistics.intervals import Estimate, clopper_pearson

DRAWS = 1000


@dataclass(frozen=True)
class SourceInference:
    """How often the right client was named.

    Attributes
    ----------
    accuracy
        Share of the records whose client was named first; the interval is for these clients.
    over_clients
        The same with an interval over clients and records: for other clients drawn alike.
    chance
        One over the number of clients.
    by_class
        Share that is named rightly by who knows how many of each class every client trains on, and nothing about the
        model.
    recall
        Of each client, int64 number of its records and estimate of the share named rightly.
    mean_recall
        Mean of these over the clients, large and small alike: guessing has `chance` of it, whatever their sizes.
    """

    accuracy: Estimate
    over_clients: Estimate
    chance: float
    by_class: float
    recall: tuple[tuple[int, Estimate], ...]
    mean_recall: Estimate


def source_inference(
    scores: NDArray[np.float64],
    owner: NDArray[np.int64],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> SourceInference:
    """Name the client with the highest score, record by record.

    Parameters
    ----------
    scores
        float64 [K, N], higher = more likely that client k trained on record n.
    owner
        int64 [N], position 0..K-1 of the client that did.
    labels
        int64 [N], classes.
    counts
        int64 [K, C]: how many records of each class every client trains on, for the guess that knows nothing else.
    rng
        Breaks ties, and draws clients and records for the second interval.
    confidence
        Of each interval.

    Raises
    ------
    EvidenceError
        Shapes that do not fit, an owner that is none of the K clients, or NaN.
    """
    k, n = scores.shape
    if owner.shape != (n,) or labels.shape != (n,) or not n or owner.min() < 0 or owner.max() >= k:
        raise EvidenceError(f"owners and labels do not fit scores of {k} clients and {n:,} records")
    if counts.ndim != 2 or counts.shape[0] != k or counts.shape[1] <= labels.max():
        raise EvidenceError(f"counts of shape {list(counts.shape)} for {k} clients and these classes")
    if np.isnan(scores).any():
        raise EvidenceError("a score is NaN", "leave clients without replies out")
    best = scores == scores.max(axis=0)
    named = np.where(best, rng.random(scores.shape), -1.0).argmax(axis=0)
    right = named == owner
    hits = int(right.sum())
    recall = []
    for client in range(k):
        mine = owner == client
        found, size = int(right[mine].sum()), int(mine.sum())
        recall.append((size, _share(found, size, confidence)))
    there = np.bincount(owner, minlength=k) > 0
    draws: NDArray[np.float64] = np.empty((DRAWS, 2))
    for draw in range(DRAWS):
        by_client: NDArray[np.float64] = np.asarray(rng.exponential(size=k))
        by_record: NDArray[np.float64] = np.asarray(rng.exponential(size=n))
        weight = by_client[owner] * by_record
        shares = np.bincount(owner[right], by_record[right], k)[there] / np.bincount(owner, by_record, k)[there]
        draws[draw] = weight[right].sum() / weight.sum(), by_client[there] @ shares / by_client[there].sum()
    ends: NDArray[np.float64] = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    method = f"bootstrap over {k} clients and {n:,} records"
    over = around(hits / n, ends[:, 0], widening(owner, confidence), method)
    mean = float(np.mean([estimate.value for size, estimate in recall if size]))
    each = around(mean, ends[:, 1], widening(np.flatnonzero(there), confidence), method)
    by_class = float((counts.argmax(axis=0)[labels] == owner).mean())
    return SourceInference(_share(hits, n, confidence), over, 1 / k, by_class, tuple(recall), each)


def _share(hits: int, n: int, confidence: float) -> Estimate:
    if not n:
        return Estimate.undefined("Clopper-Pearson", "no records of this client")
    return Estimate(hits / n, *clopper_pearson(hits, n, confidence), "Clopper-Pearson", hits, n)
