"""Figures over several targets: what one training would not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError
from memberscope.statistics.intervals import Estimate

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Spread:
    """A figure over T targets: its mean with an interval, and how far single trainings lie apart.

    Parameters
    ----------
    mean
        With Student's interval over the targets, cut to 0..1; without one (NaN) where all have the same figure, such
        as 0, which tells nothing of how another would differ. It covers the luck of memberships and trainings, not that
        of the pool or of the reference models, which the targets share.
    sd
        Standard deviation over targets.
    values
        Of each target.
    """

    mean: Estimate
    sd: float
    values: tuple[float, ...]


def spread(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Mean and spread of a figure in 0..1 over two or more targets.

    Raises
    ------
    ConfigError
        Fewer than two values.
    """
    if len(values) < 2:
        raise ConfigError(f"{len(values)} target has no spread", "give two or more")
    from scipy.special import stdtrit

    figures = np.asarray(values, np.float64)
    mean, sd = float(figures.mean()), float(figures.std(ddof=1))
    how = f"Student's t over {len(figures)} targets"
    if np.ptp(figures) == 0:  # the standard deviation may be a rounding error then
        nothing = Estimate(mean, float("nan"), float("nan"), how, note="the same on all targets")
        return Spread(nothing, 0.0, tuple(map(float, figures)))
    half = float(stdtrit(len(figures) - 1, (1 + confidence) / 2)) * sd / np.sqrt(len(figures))
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Spread(Estimate(mean, low, high, how), sd, tuple(map(float, figures)))


def excess_variance(values: Sequence[float], errors: Sequence[float]) -> float:
    """p-value of "the figures of the targets differ no more than the standard error of each says" (chi-square)."""
    from scipy.special import chdtrc

    expected = float(np.mean(np.square(errors)))
    if expected == 0:
        return 0.0 if np.ptp(values) > 0 else 1.0
    return float(chdtrc(len(values) - 1, (len(values) - 1) * np.var(values, ddof=1) / expected))


@dataclass(frozen=True)
class Agreement:
    """Whether targets are found out about the same records.

    Parameters
    ----------
    jaccard, by_chance
        Mean over pairs of targets, among the records that are members of both: share of those found in either that are
        found in both, and what that share would be if finding were independent. NaN where nothing was found.
    eligible
        Records that are members of two targets or more.
    found, always
        Of these, the records found in one target or more, and those found in at least two thirds of the targets that
        they are members of.
    """

    jaccard: float
    by_chance: float
    eligible: int
    found: int
    always: int


def agreement_of_targets(found: Bools, member: Bools) -> Agreement:
    """Agreement between targets.

    Parameters
    ----------
    found
        bool [T, N]: the record is called a member of target t.
    member
        bool [T, N]: it is one.
    """
    shares, chances = [], []
    for a, b in combinations(range(len(member)), 2):
        both = member[a] & member[b]
        one, other = found[a, both], found[b, both]
        either = int((one | other).sum())
        if either:
            p, q = one.mean(), other.mean()
            shares.append((one & other).sum() / either)
            chances.append(p * q / (p + q - p * q))
    member_in, found_in = member.sum(axis=0), (found & member).sum(axis=0)
    eligible = member_in >= 2
    return Agreement(
        jaccard=float(np.mean(shares)) if shares else float("nan"),
        by_chance=float(np.mean(chances)) if chances else float("nan"),
        eligible=int(eligible.sum()),
        found=int((eligible & (found_in > 0)).sum()),
        always=int((eligible & (found_in > 0) & (3 * found_in >= 2 * member_in)).sum()),
    )
