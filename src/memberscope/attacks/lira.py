"""LiRA: how likely is the target's confidence under models that saw a record, and under models that did not.

Carlini et al. 2022 (S&P), "Membership inference attacks from first principles". Each world of a record is a Gaussian of
phi; several queries count as independent and are averaged. A record without any IN (OUT) model borrows the mean of that
world from the other, moved by the average shift between them, and is given the variance of that shift on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, ReferenceAttack
from memberscope.reference_moments import Moments
from memberscope.signals import Floats

Variance = Literal["pooled", "per-record", "global"]
Centre = Literal["mean", "median"]

_SMALLEST = 1e-6
"""A record's own variance is at least this share of the pooled one: two equal answers are no certainty."""


_SMALLEST_DEVIATION = 1e-8
"""Standard deviation of models that answer all alike, relative to the size of their answers."""


@dataclass(frozen=True, eq=False)
class Worlds:
    """A Gaussian of phi for each world of each record, float64 [A, N]."""

    mean_in: Floats
    var_in: Floats
    mean_out: Floats
    var_out: Floats


@dataclass(frozen=True, eq=False)
class Means:
    """Means of both worlds, float64 [A, N], where need be borrowed from the other world, which adds variance.

    What is added has shape [A, N], or [A, 1] where nothing is.
    """

    inside: Floats
    outside: Floats
    added_in: Floats
    added_out: Floats


def whole_means(inside: Moments, outside: Moments, mean_in: Floats, mean_out: Floats) -> Means:
    """Means of both worlds for every record.

    Where no record has both worlds, the shift between them is that of the grand means. Where one world is empty for
    every record, its means are NaN.
    """
    both = (inside.n > 0) & (outside.n > 0)
    if both.all():
        nothing = np.zeros((len(mean_in), 1))
        return Means(mean_in, mean_out, nothing, nothing)
    shift, spread = np.full((len(mean_in), 1), np.nan), np.zeros((len(mean_in), 1))
    if both.any():
        shifts = mean_in[:, both] - mean_out[:, both]
        shift, spread = shifts.mean(axis=1, keepdims=True), shifts.var(axis=1, keepdims=True)
    elif inside.n.any() and outside.n.any():
        shift[:, 0] = mean_in[:, inside.n > 0].mean(axis=1) - mean_out[:, outside.n > 0].mean(axis=1)
    return Means(
        np.where(inside.n > 0, mean_in, mean_out + shift),
        np.where(outside.n > 0, mean_out, mean_in - shift),
        np.where(inside.n > 0, 0.0, spread),
        np.where(outside.n > 0, 0.0, spread),
    )


def global_variance(world: Moments) -> Floats:
    """Variance of all values of a world around their grand mean, float64 [A, 1]; NaN for an empty world."""
    used = world.n > 0
    if not used.any():
        return np.full((len(world.mean), 1), np.nan)
    n, mean = world.n[used], world.mean[:, used]
    grand = (n * mean).sum(axis=1, keepdims=True) / n.sum()
    total = world.ss[:, used] + n * (mean - grand) ** 2
    return np.asarray(total.sum(axis=1, keepdims=True) / n.sum())


def pooled_variances(inside: Moments, outside: Moments) -> tuple[Floats, Floats]:
    """Variance within records, pooled over all of them, for either world: float64 [A, 1] each, never 0.

    A world without two models on any record takes the other's. If neither has them (two models, or one), half the
    variance of the shift between the worlds has to do, or at last the variance between records.
    """
    found: list[Floats | None] = []
    for world in (inside, outside):
        freedom = np.maximum(world.n - 1, 0).sum()
        found.append(world.ss.sum(axis=1, keepdims=True) / freedom if freedom else None)
    first, second = found
    if first is None:
        first = second
    if second is None:
        second = first
    if first is None or second is None:
        first = second = _variance_of_single_answers(inside, outside)
    grand = np.where(outside.n > 0, outside.mean, inside.mean).mean(axis=1, keepdims=True)
    smallest = (_SMALLEST_DEVIATION * (1 + np.abs(grand))) ** 2
    return np.maximum(first, smallest), np.maximum(second, smallest)


def _variance_of_single_answers(inside: Moments, outside: Moments) -> Floats:
    both = (inside.n > 0) & (outside.n > 0)
    if both.any():
        return np.asarray(0.5 * (inside.mean - outside.mean)[:, both].var(axis=1, keepdims=True))
    return np.fmax(global_variance(inside), global_variance(outside))


def fit_worlds(comparison: Comparison, *, variance: Variance = "pooled", centre: Centre = "mean") -> Worlds:
    """Fit a Gaussian to each world of each record.

    Parameters
    ----------
    comparison
        The reference models are taken from it; the target plays no part.
    variance
        ``pooled``: within records, over all of them (section VI-C: better below about 64 models). ``per-record``:
        each record's own, with divisor n as published; the pooled one for a record with a single IN or OUT model.
        ``global``: of all raw values, as the released code's ``fix_variance`` computes it, spread between records
        included.
    centre
        ``mean``, or ``median`` as in the released code.
    """
    inside, outside = comparison.references.moments()
    middle = (inside.mean, outside.mean) if centre == "mean" else comparison.references.medians()
    means = whole_means(inside, outside, *middle)
    pooled = pooled_variances(inside, outside)
    variances = []
    # Its own variance for one world and the pooled one for the other would let the counts speak.
    alone = (inside.n == 1) | (outside.n == 1)
    for world, typical, added in zip((inside, outside), pooled, (means.added_in, means.added_out), strict=True):
        if variance == "per-record":
            found = np.maximum(world.ss / np.maximum(world.n, 1), _SMALLEST * typical)
            too_few = alone | (world.n == 0)
            if too_few.any():
                found = np.where(too_few, typical, found)
        else:
            found = typical if variance == "pooled" else global_variance(world)
        variances.append(found + added)
    return Worlds(means.inside, variances[0], means.outside, variances[1])


def log_likelihood_ratio(phi: Floats, worlds: Worlds) -> Scores:
    """``log N(phi; IN) - log N(phi; OUT)``, averaged over queries: float64 [N] from phi [A, N]."""
    inside = (phi - worlds.mean_in) ** 2 / worlds.var_in + np.log(worlds.var_in)
    outside = (phi - worlds.mean_out) ** 2 / worlds.var_out + np.log(worlds.var_out)
    return np.asarray(0.5 * (outside - inside).mean(axis=0))


def upper_z(phi: Floats, worlds: Worlds) -> Scores:
    """Standard deviations above the OUT mean, averaged over queries: ranks as ``log Phi(z)`` does, without its ties."""
    return np.asarray(((phi - worlds.mean_out) / np.sqrt(worlds.var_out)).mean(axis=0))


def two_sided(phi: Floats, worlds: Worlds) -> Scores:
    """``-log N(phi; OUT)``, averaged over queries: high on either side of the OUT mean."""
    terms = (phi - worlds.mean_out) ** 2 / worlds.var_out + np.log(2 * np.pi * worlds.var_out)
    return np.asarray(0.5 * terms.mean(axis=0))


_PAPER = "Carlini et al. 2022 (S&P), algorithm 1"
_OFFLINE_PAPER = "Carlini et al. 2022 (S&P), section IV-C, eq. 4"
_COST = "K reference models; one query a record (or one for each augmentation of the training)"
_POOLED = "one variance within records for all of them"


class _Lira(ReferenceAttack):
    variance: Variance = "pooled"

    def __init__(self, *, centre: Centre = "mean", rng: np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.centre: Centre = centre

    def worlds(self, comparison: Comparison) -> Worlds:
        """The Gaussians of both worlds."""
        return fit_worlds(comparison, variance=self.variance, centre=self.centre)


class LiraOnlinePooled(_Lira):
    """LiRA with both worlds and a pooled variance."""

    name = "lira-online-pooled"
    title = "LiRA online, pooled variance"
    needs = ONLINE
    card = Card(
        _PAPER,
        "log N(phi; mean IN, s IN) - log N(phi; mean OUT, s OUT), averaged over queries; " + _POOLED,
        _COST,
        "the released code's 'fixed variance' is the spread of all raw values, between records too, and it uses the IN "
        "one for both worlds; this is the variance within records.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Log-likelihood ratio."""
        return log_likelihood_ratio(comparison.phi(), self.worlds(comparison))


class LiraOnlinePerRecord(LiraOnlinePooled):
    """LiRA with both worlds and each record's own variance."""

    name = "lira-online-per-record"
    title = "LiRA online, variance per record"
    variance = "per-record"
    card = Card(
        _PAPER,
        "log N(phi; mean IN, s IN) - log N(phi; mean OUT, s OUT), averaged over queries; mean and variance of each "
        "record and world",
        _COST,
        "worse than a pooled variance below about 64 models (at 4 to 16 by .02 to .09 AUC). The released code takes "
        "medians and cuts every record to the smallest IN and OUT count, which costs .05 AUC under unbalanced designs; "
        "here every model counts (centre='median' is a setting).",
    )


class LiraOfflineOneSided(_Lira):
    """LiRA from OUT models only: unusually confident for a model that did not see the record."""

    name = "lira-offline-onesided"
    title = "LiRA offline, one-sided, pooled variance"
    card = Card(
        _OFFLINE_PAPER,
        "(phi - mean OUT) / s OUT, averaged over queries: ranks as Pr[Z < z] does, and at one query as difficulty "
        "calibration on phi; " + _POOLED,
        _COST + "; OUT models only, so they may be trained before the records are known",
        "the paper's text; the released code and its copies score -log N(phi; OUT) instead: see lira-offline-twosided.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Standard deviations above the OUT mean."""
        return upper_z(comparison.phi(), self.worlds(comparison))


class LiraOfflineOneSidedPerRecord(LiraOfflineOneSided):
    """LiRA from OUT models only, each record with its own variance."""

    name = "lira-offline-onesided-per-record"
    title = "LiRA offline, one-sided, variance per record"
    variance = "per-record"
    card = Card(
        _OFFLINE_PAPER,
        "(phi - mean OUT) / s OUT, averaged over queries: ranks as Pr[Z < z] does; mean and variance of each record",
        _COST + "; OUT models only",
        "needs many models: with few, a small variance by chance makes a record look like a member.",
    )


class LiraOfflineTwoSided(LiraOfflineOneSided):
    """LiRA offline as the released code computes it."""

    name = "lira-offline-twosided"
    title = "LiRA offline, two-sided (as released)"
    card = Card(
        "Carlini et al. 2022 (S&P), released code (not the paper's text)",
        "-log N(phi; mean OUT, s OUT), averaged over queries; " + _POOLED,
        _COST + "; OUT models only",
        "calls an unusually UNconfident answer a member too and loses .05 to .13 AUC by it. Here only to compare with "
        "published figures that were made so.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Minus the log-density under OUT."""
        return two_sided(comparison.phi(), self.worlds(comparison))
