"""Differences between attacks on the same targets and the same records, with intervals for both being a sample.

Targets are drawn anew and records are drawn anew, both at once; the records are the same for all targets, as they are
in a pool that all targets share. With T targets the spread of the draws is widened by sqrt(T / (T - 1)) and the
interval is Student's with T - 1 degrees of freedom: percentiles of five drawn targets would be too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
FPR = 0.01
METRICS = ("AUC", "TPR at 1 % FPR")


@dataclass(frozen=True)
class Difference:
    """Mean over targets of one attack's figure less another's, with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


class Ranked:
    """The scores of one attack on one target, to be judged again and again under other weights of the records."""

    def __init__(self, scores: Floats, member: NDArray[np.bool_]) -> None:
        _, group = np.unique(-scores, return_inverse=True)
        self._group, self._member = group.ravel(), member
        self._size = int(group.max()) + 1

    def figures(self, weights: Floats) -> tuple[float, float]:
        """AUC with ties counted half, and the TPR of the loosest threshold with at most 1 % false positives."""
        tp = np.bincount(self._group, weights=weights * self._member, minlength=self._size)
        fp = np.bincount(self._group, weights=weights * ~self._member, minlength=self._size)
        above_tp, above_fp = np.cumsum(tp), np.cumsum(fp)
        m, n = above_tp[-1], above_fp[-1]
        auc = float((tp * (n - above_fp + 0.5 * fp)).sum() / (m * n))
        last = int(np.searchsorted(above_fp, FPR * n + 1e-9, side="right"))
        return auc, float(above_tp[last - 1] / m) if last else 0.0


def figures(scores: Mapping[str, list[Floats]], members: list[NDArray[np.bool_]]) -> dict[str, Floats]:
    """Figures of every attack on every target, float64 [T, 2]."""
    once = np.ones(len(members[0]))
    return {
        name: np.array([Ranked(s, m).figures(once) for s, m in zip(own, members, strict=True)])
        for name, own in scores.items()
    }


def differences(
    scores: Mapping[str, list[Floats]], members: list[NDArray[np.bool_]], first: str, *, draws: int, seed: int = 0
) -> dict[str, tuple[Difference, ...]]:
    """The first attack's figures less those of each other one; the same draws for all.

    Parameters
    ----------
    scores
        By attack: float64 [N] for each of T targets.
    members
        bool [N] for each target.
    first
        Which attack the others are held against.
    draws
        How often targets and records are drawn.
    seed
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    targets, n = len(members), len(members[0])
    ranked = {name: [Ranked(s, m) for s, m in zip(own, members, strict=True)] for name, own in scores.items()}
    drawn: dict[str, list[Floats]] = {name: [] for name in scores}
    for _ in range(draws):
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        times = np.bincount(rng.integers(targets, size=targets), minlength=targets)
        for name, own in ranked.items():
            each = [np.multiply(times[t], own[t].figures(weights)) for t in range(targets) if times[t]]
            drawn[name].append(np.sum(each, axis=0) / targets)
    found = {}
    known = {name: own.mean(axis=0) for name, own in figures(scores, members).items()}
    reach = float(stdtrit(targets - 1, 0.975)) * sqrt(targets / (targets - 1))
    for name in scores:
        if name != first:
            value = known[first] - known[name]
            half = reach * np.std(np.array(drawn[first]) - np.array(drawn[name]), axis=0, ddof=1)
            found[name] = tuple(
                Difference(float(v), float(v - h), float(v + h)) for v, h in zip(value, half, strict=True)
            )
    return found
