"""Risk of single records: a list of records flagged with error control, and whether attacks agree on whom they find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flagged:
    """Records called members so that at most a share `level` of the calls is expected to be wrong.

    Parameters
    ----------
    flagged
        bool [N].
    p_value
        float64 [N]: conformal p-values of "this record is not a member".
    level
        The false-discovery rate that was asked for.
    true, false
        How many of the flagged records are members, and how many are not.
    """

    flagged: NDArray[np.bool_]
    p_value: Floats
    level: float
    true: int
    false: int


def flag(scores: Floats, member: NDArray[np.bool_], *, level: float, rng: np.random.Generator) -> Flagged:
    """Flag records with false-discovery control at `level`.

    A record's p-value compares its score with those of non-members of the other half of the records, as an adversary
    would who holds known non-members: (1 + #{non-members that score at least as high}) / (n + 1) (Vovk et al. 2005;
    Bates et al. 2023, "Testing for outliers with conformal p-values"). Benjamini & Hochberg (1995) then choose how many
    to flag in each half at `level`, so the expected share of non-members among the flagged of a half is at most `level`
    times the share of non-members among its records. Of both halves together that holds where each flags enough for its
    share to be near the expected one; where they flag a few records only, it may be a little more.

    Parameters
    ----------
    scores
        float64 [N], higher = more likely a member.
    member
        bool [N], the truth.
    """
    half = rng.permutation(len(scores)) % 2
    p_value = np.empty(len(scores))
    flagged = np.zeros(len(scores), bool)
    for this in (0, 1):
        rows = half == this
        known = np.sort(scores[~rows & ~member])
        at_least = len(known) - np.searchsorted(known, scores[rows], side="left")
        p_value[rows] = (1 + at_least) / (len(known) + 1)
        flagged[rows] = benjamini_hochberg(p_value[rows], level)
    return Flagged(flagged, p_value, level, int((flagged & member).sum()), int((flagged & ~member).sum()))


def benjamini_hochberg(p_value: Floats, level: float) -> NDArray[np.bool_]:
    """Which of N hypotheses are rejected at a false-discovery rate of `level`, bool [N]."""
    ordered = np.sort(p_value)
    below = np.flatnonzero(ordered <= level * np.arange(1, len(ordered) + 1) / len(ordered))
    return np.asarray(p_value <= ordered[below[-1]]) if below.size else np.zeros(len(p_value), bool)


def agreement(one: Floats, other: Floats, share: float = 0.01) -> float:
    """Jaccard overlap of the records that two attacks rank highest, in 0..1; NaN where ties leave both tops empty.

    Parameters
    ----------
    one, other
        float64 [N].
    share
        Which share of the records counts as the top; ties at its edge are left out.
    """
    n = max(1, int(share * len(one)))
    tops = [scores > np.partition(scores, -n - 1)[-n - 1] for scores in (one, other)] if n < len(one) else []
    return _jaccard(*tops) if tops else float("nan")


def _jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else float("nan")
