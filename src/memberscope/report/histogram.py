"""Histograms of attack scores, small enough to be kept in results.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 40
TAIL = 0.0005


def score_histogram(scores: NDArray[np.float64], member: NDArray[np.bool_], *, bins: int = BINS) -> dict[str, Any]:
    """Count members and non-members over common bins of the score.

    The axis spans all scores but the outermost 0.05 % on each side, which a single extreme score would otherwise
    stretch; they are counted in the outermost bins, and `outside` says how many they are.

    Parameters
    ----------
    scores
        float64 [N]; infinities count as outermost, NaN is not allowed.
    member
        bool [N].
    bins
        Number of bins.

    Returns
    -------
    JSON-able: edges (bins + 1 numbers, ascending), members and nonmembers (counts, bins numbers each), outside.
    """
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        finite = np.zeros(1)
    low, high = (float(v) for v in np.quantile(finite, [TAIL, 1 - TAIL], method="nearest"))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    clipped = np.clip(scores, low, high)
    return {
        "edges": [float(e) for e in edges],
        "members": np.histogram(clipped[member], edges)[0].tolist(),
        "nonmembers": np.histogram(clipped[~member], edges)[0].tolist(),
        "outside": int(((scores < low) | (scores > high)).sum()),
    }
