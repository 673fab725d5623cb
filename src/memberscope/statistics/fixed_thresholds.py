"""What thresholds achieve that were not chosen on the records they are judged on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memberscope.statistics.curves import rank
from memberscope.statistics.intervals import Estimate, clopper_pearson
from memberscope.statistics.operating import Cut, allowed_errors, nonmembers_needed
from memberscope.statistics.points import OperatingPoint

Floats = NDArray[np.float64]
_METHOD = "Clopper-Pearson, threshold fixed on other models"


def thresholds_for(scores: Floats, member: NDArray[np.bool_], fprs: Sequence[float]) -> dict[float, float]:
    """The loosest threshold for each rate of which at most that share of these non-members lies at or above it.

    Rates that these non-members cannot show, or that no threshold attains, are left out.
    """
    ranking = rank(scores, member)
    found = {}
    for fpr in fprs:
        if ranking.n_nonmembers >= nonmembers_needed(fpr):
            threshold = Cut.at(ranking, allowed_errors(fpr, ranking.n_nonmembers)).threshold
            if not np.isnan(threshold):
                found[fpr] = threshold
    return found


def at_thresholds(
    scores: Floats, member: NDArray[np.bool_], thresholds: dict[float, float], confidence: float = 0.95
) -> tuple[OperatingPoint, ...]:
    """What each threshold does to records that had no part in choosing it.

    Parameters
    ----------
    scores, member
        float64 [N] and bool [N].
    thresholds
        By the false-positive rate that each aims at.

    Returns
    -------
    A point for each rate: `true_fpr` and `tpr` are those realised here, with exact intervals, for the threshold owes
    nothing to these records. A rate at which fewer than ten of these non-members are expected is not supported.
    """
    members, others = np.sort(scores[member]), np.sort(scores[~member])
    points = []
    for fpr, threshold in sorted(thresholds.items(), reverse=True):
        needs = nonmembers_needed(fpr)
        if len(others) < needs or not len(members):
            points.append(OperatingPoint(fpr=fpr, supported=False, needs=needs, available=len(others)))
            continue
        hits, false = (len(group) - int(np.searchsorted(group, threshold)) for group in (members, others))
        tpr = Estimate(
            hits / len(members), *clopper_pearson(hits, len(members), confidence), _METHOD, hits, len(members)
        )
        realised = Estimate(
            false / len(others), *clopper_pearson(false, len(others), confidence), _METHOD, false, len(others)
        )
        points.append(
            OperatingPoint(
                fpr=fpr,
                supported=True,
                needs=needs,
                available=len(others),
                tpr=tpr,
                true_fpr=realised,
                threshold=threshold,
                false_positives=false,
                true_positives=hits,
            )
        )
    return tuple(points)
