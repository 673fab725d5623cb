"""Which client? Source inference: of a record that somebody trained on, the one client out of K."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
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
        Share that is named rightly by who knows each client's class counts, and nothing about the model.
    recall
        Of each client, int64 number of its records and estimate of the share named rightly.
    """

    accuracy: Estimate
    over_clients: Estimate
    chance: float
    by_class: float
    recall: tuple[tuple[int, Estimate], ...]


def source_inference(
    scores: NDArray[np.float64],
    owner: NDArray[np.int64],
    labels: NDArray[np.int64],
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
        int64 [N], classes, for the guess that knows nothing else.
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
    if np.isnan(scores).any():
        raise EvidenceError("a score is NaN", "leave clients without replies out")
    best = scores == scores.max(axis=0)
    named = np.where(best, rng.random(scores.shape), -1.0).argmax(axis=0)
    right = named == owner
    hits = int(right.sum())
    counts = np.zeros((k, int(labels.max()) + 1))
    np.add.at(counts, (owner, labels), 1)
    recall = []
    for client in range(k):
        mine = owner == client
        found, size = int(right[mine].sum()), int(mine.sum())
        recall.append((size, _share(found, size, confidence)))
    draws = np.empty(DRAWS)
    for draw in range(DRAWS):
        by_client: NDArray[np.float64] = np.asarray(rng.exponential(size=k))
        weight = by_client[owner] * rng.exponential(size=n)
        draws[draw] = weight[right].sum() / weight.sum()
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    over = Estimate(hits / n, float(low), float(high), f"bootstrap over {k} clients and {n:,} records", hits, n)
    by_class = float(counts.max(axis=0).sum() / n)
    return SourceInference(_share(hits, n, confidence), over, 1 / k, by_class, tuple(recall))


def _share(hits: int, n: int, confidence: float) -> Estimate:
    if not n:
        return Estimate.undefined("Clopper-Pearson", "no records of this client")
    return Estimate(hits / n, *clopper_pearson(hits, n, confidence), "Clopper-Pearson", hits, n)
