"""The shaded band of a log-log ROC, from the points of the curve that results.json keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

POINTS = 60


def roc_band(evaluation: Mapping[str, Any]) -> tuple[list[float], list[float], list[float]] | None:
    """Intervals of the TPR over a grid of false-positive rates, at each rate for itself.

    They are the intervals of the operating points (`memberscope.statistics.operating.tpr_at_fpr`) and agree with those
    printed in the tables; so the band begins where ten false positives are expected.

    Parameters
    ----------
    evaluation
        `Evaluation.to_dict()`.

    Returns
    -------
    False-positive rates ascending, lower ends, upper ends; or None where the sample supports no rate.
    """
    from memberscope.statistics.curves import Ranking
    from memberscope.statistics.operating import EXPECTED_ERRORS, tpr_at_fpr

    n, m = evaluation["n_nonmembers"], evaluation["n_members"]
    roc = evaluation["roc"]
    if n <= EXPECTED_ERRORS or not m or len(roc["fpr"]) < 2:
        return None
    fp = np.rint(np.asarray(roc["fpr"], np.float64) * n).astype(np.int64)
    tp = np.rint(np.asarray(roc["tpr"], np.float64) * m).astype(np.int64)
    thresholds = -np.arange(len(fp), dtype=np.float64)
    ranking = Ranking(thresholds, np.diff(tp, prepend=0), np.diff(fp, prepend=0), np.zeros(0, np.int64))
    grid = {p["fpr"] for p in evaluation.get("operating_points", []) if p.get("supported")}
    grid |= set(np.geomspace(EXPECTED_ERRORS / n, 0.99, POINTS).tolist())
    points = [tpr_at_fpr(ranking, fpr, evaluation.get("confidence") or 0.95) for fpr in sorted(grid)]
    known = [(p.fpr, p.tpr.low, p.tpr.high) for p in points if p.tpr is not None]
    if not known:
        return None
    x, low, high = (list(column) for column in zip(*known, strict=True))
    return x, low, high
