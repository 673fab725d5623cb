"""ROC and precision-recall curves from scores: exact, in float64, with tied scores kept whole.

A score is never transformed before it is ranked (a sigmoid in float32 collapses the tail where an attack is strongest)
and a curve is never interpolated: between two neighbouring points no threshold exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memberscope.errors import EvidenceError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores sorted from the highest to the lowest, ties merged: all that a ranking figure depends on.

    Attributes
    ----------
    thresholds : float64 [G]
        The distinct scores, descending. The rule of step g is "a member iff score >= thresholds[g]".
    members, nonmembers : int64 [G]
        How many members and non-members have exactly that score.
    group : int64 [N]
        For each record the position of its score in `thresholds`.
    """

    thresholds: FloatArray
    members: IntArray
    nonmembers: IntArray
    group: IntArray

    @cached_property
    def tp(self) -> IntArray:
        """Members at or above each threshold, int64 [G]."""
        return np.cumsum(self.members)

    @cached_property
    def fp(self) -> IntArray:
        """Non-members at or above each threshold, int64 [G]."""
        return np.cumsum(self.nonmembers)

    @property
    def n_members(self) -> int:
        """Number of members."""
        return int(self.tp[-1])

    @property
    def n_nonmembers(self) -> int:
        """Number of non-members."""
        return int(self.fp[-1])

    def mirrored(self) -> Ranking:
        """The same records with the groups exchanged and the scores negated: its TPR at FPR f is our TNR at FNR f."""
        last = len(self.thresholds) - 1
        return Ranking(-self.thresholds[::-1], self.nonmembers[::-1], self.members[::-1], last - self.group)


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Receiver operating characteristic.

    Attributes
    ----------
    fpr, tpr : float64 [P]
        Ascending, from (0, 0) to (1, 1). The TPR at a false-positive rate f is the last `tpr` with `fpr <= f`: draw
        the curve as steps (matplotlib: ``drawstyle="steps-post"``).
    """

    fpr: FloatArray
    tpr: FloatArray

    def tpr_at(self, fpr: float) -> float:
        """Largest TPR of any threshold whose FPR is at most `fpr`; an attained point, never an interpolated one."""
        return float(self.tpr[np.searchsorted(self.fpr, fpr, side="right") - 1])


@dataclass(frozen=True, eq=False)
class PrCurve:
    """Precision against recall.

    Attributes
    ----------
    recall, precision : float64 [P]
        Recall ascends from 0, where precision is set to 1, to 1, where it is the share of members among the records.
    """

    recall: FloatArray
    precision: FloatArray


def check_scores(score: ArrayLike, member: ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return `score` as float64 [N] and `member` as bool [N], or say what is wrong with them.

    Raises
    ------
    EvidenceError
        A shape or dtype that does not fit, NaN among the scores, or no member or no non-member to compare.
    """
    scores, members = np.asarray(score), np.asarray(member)
    if scores.ndim != 1 or members.shape != scores.shape:
        raise EvidenceError(
            f"scores and membership must be two arrays of one length, found shapes {scores.shape} and {members.shape}",
            "give one score and one membership flag for each record",
        )
    if members.dtype != np.bool_:
        raise EvidenceError(
            f"membership must be boolean, found dtype {members.dtype}", "convert it, for example with `member == 1`"
        )
    if scores.dtype.kind not in "fiub":
        raise EvidenceError(f"scores must be real numbers, found dtype {scores.dtype}", "give one number a record")
    values = scores.astype(np.float64) + 0.0  # -0.0 becomes 0.0: equal scores must also be written alike
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        raise EvidenceError(
            f"{missing.size} of {values.size} scores are NaN, the first at position {missing[0]}",
            "a NaN has no rank: find out why the attack could not score these records",
        )
    for name, count in (("members", int(members.sum())), ("non-members", int((~members).sum()))):
        if count == 0:
            raise EvidenceError(
                f"no {name} among {values.size} records", "membership can only be judged where both groups are present"
            )
    return values, members


def rank(score: ArrayLike, member: ArrayLike) -> Ranking:
    """Sort scores, merge ties and count both groups at each distinct score.

    Parameters
    ----------
    score : float [N]
        Higher = more likely a member. Infinities are allowed: they have a rank. NaN is refused.
    member : bool [N]
        The truth.

    Raises
    ------
    EvidenceError
        As `check_scores`.
    """
    values, members = check_scores(score, member)
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    group = np.empty(values.size, dtype=np.int64)
    group[order] = np.cumsum(first) - 1
    size = int(first.sum())
    return Ranking(
        thresholds=ordered[first],
        members=np.bincount(group[members], minlength=size),
        nonmembers=np.bincount(group[~members], minlength=size),
        group=group,
    )


def roc_curve(ranking: Ranking) -> RocCurve:
    """All points of the ROC curve, one for each distinct score, after (0, 0)."""
    return RocCurve(
        fpr=np.concatenate([[0.0], ranking.fp / ranking.n_nonmembers]),
        tpr=np.concatenate([[0.0], ranking.tp / ranking.n_members]),
    )


def pr_curve(ranking: Ranking) -> PrCurve:
    """All points of the precision-recall curve, one for each distinct score, after (0, 1)."""
    return PrCurve(
        recall=np.concatenate([[0.0], ranking.tp / ranking.n_members]),
        precision=np.concatenate([[1.0], ranking.tp / (ranking.tp + ranking.fp)]),
    )


def auc(ranking: Ranking) -> float:
    """Area under the ROC curve: P(member's score > non-member's score) + P(equal) / 2, counted in whole numbers."""
    n = ranking.n_nonmembers
    doubled = int(np.sum(ranking.members * (2 * (n - ranking.fp) + ranking.nonmembers)))
    return doubled / (2 * ranking.n_members * n)


def average_precision(ranking: Ranking) -> float:
    """Sum of precision over the steps of recall (scikit-learn's definition: no interpolation, ties whole)."""
    precision = ranking.tp / (ranking.tp + ranking.fp)
    return float(np.sum(ranking.members * precision) / ranking.n_members)


def thin_roc(curve: RocCurve, limit: int = 400, keep: tuple[float, ...] = ()) -> RocCurve:
    """Drop points until at most `limit` are left; points that stay are points of the curve, none is interpolated.

    Where several thresholds have the same FPR only the highest stays (as steps the picture is the same). If that is not
    enough, the 100 lowest FPRs stay exact, so do the points that are read off at the FPRs in `keep`, and the others are
    taken at a spacing between even and logarithmic. Dropping a step can only lower the curve.
    """
    top = np.flatnonzero(np.concatenate([curve.fpr[1:] != curve.fpr[:-1], [True]]))
    candidates = np.unique(np.concatenate([[0], top]))
    pinned = np.searchsorted(curve.fpr[candidates], np.asarray(keep, dtype=np.float64), side="right") - 1
    chosen = candidates[_spread(len(candidates), limit, pinned)]
    return RocCurve(curve.fpr[chosen], curve.tpr[chosen])


def thin_pr(curve: PrCurve, limit: int = 400) -> PrCurve:
    """Drop points until at most `limit` are left, as `thin_roc`; at each recall the highest precision stays."""
    first = np.flatnonzero(np.concatenate([[True], curve.recall[1:] != curve.recall[:-1]]))
    candidates = np.unique(np.concatenate([first, [len(curve.recall) - 1]]))
    chosen = candidates[_spread(len(candidates), limit, np.array([], dtype=np.int64))]
    return PrCurve(curve.recall[chosen], curve.precision[chosen])


def _spread(count: int, limit: int, pinned: NDArray[Any]) -> IntArray:
    """At most `limit` of `count` positions: the pinned, the first 100, and a mix of logarithmic and even steps."""
    if count <= limit:
        return np.arange(count)
    exact = min(100, limit // 2)
    rest = limit - exact - len(pinned) - 1
    logarithmic = np.geomspace(exact, count - 1, rest // 2)
    even = np.linspace(exact, count - 1, rest - rest // 2)
    positions = np.concatenate([np.arange(exact), pinned, logarithmic, even, [count - 1]])
    return np.unique(np.round(positions).astype(np.int64))
