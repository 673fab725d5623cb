"""EB-LiRA: LiRA whose two worlds learn from each other, by an empirical-Bayes prior of how membership moves a record.

With few models the means of the two worlds are uncertain too. How far training on a record moves its confidence, and
how much models differ about it, depends on how hard the record is, and smoothly so: the shift and the variances of
records of like difficulty are a prior for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, ReferenceAttack, log_t
from memberscope.attacks.lira import pooled_variances, whole_means
from memberscope.reference_moments import Counts, Moments
from memberscope.signals import Floats

_BINS = 40
_FEWEST_IN_BIN = 200
_SMALLEST_SPREAD = 5e-4
"""The spread of shifts within a bin is at least this share of the variances within records."""

_FREEDOM_OF_ALL = 20.0
"""Degrees of freedom that the variance of all records counts for in that of a bin."""

_SHARE_OF_OTHER = 0.25
"""What a deviation in the other world counts for: simulated records do best with 1, trained models with 0 to 0.5."""


class EbLira(ReferenceAttack):
    """Empirical-Bayes LiRA."""

    name = "lira-online-eb"
    title = "EB-LiRA (experimental)"
    needs = ONLINE
    card = Card(
        "this tool; no publication yet. Student-t predictive after Brännvall 2026 (arXiv 2603.11799)",
        "variances shrunk towards those of records of like difficulty (40 bins of the middle of both means), each "
        "world counting the other's deviations for a quarter; the shift D between the worlds has a normal prior whose "
        "mean and spread are those of the same bin; both locations are estimated jointly; score: log t IN - log t OUT, "
        "averaged over queries",
        "K reference models, from one IN and one OUT a record on; one query a record",
        "experimental: judge it beside lira-online-bayes. Gains most with 2 to 16 models; with 64 and more the two "
        "agree.",
    )

    def __init__(self, *, a0: float = 2.0, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.a0 = a0

    def compare(self, comparison: Comparison) -> Scores:
        """Log-ratio of the two predictive densities, averaged over queries."""
        inside, outside = comparison.references.moments()
        typical = pooled_variances(inside, outside)
        means = whole_means(inside, outside, inside.mean, outside.mean)
        # Of the two means, or either, only their middle has an error that is not that of the shift between them.
        middle = 0.5 * (means.inside + means.outside)
        scores = [
            self._query(phi, _of_query(inside, a), _of_query(outside, a), middle[a], [float(v[a, 0]) for v in typical])
            for a, phi in enumerate(comparison.phi())
        ]
        return np.asarray(np.mean(scores, axis=0))

    def _query(
        self, phi: Floats, inside: Moments, outside: Moments, difficulty: Floats, typical: list[float]
    ) -> Scores:
        n_in, n_out = inside.n, outside.n
        alike = _Alike.of(inside, outside, difficulty)
        if alike is None:  # no record has both worlds
            typical_in, typical_out = (np.full(len(phi), value) for value in typical)
        else:
            typical_in, typical_out = alike.variances(inside, outside, *typical)
        freedom_in, s2_in = self._variance(inside, outside, typical_in, typical_out)
        freedom_out, s2_out = self._variance(outside, inside, typical_out, typical_in)
        if alike is None:
            shift = inside.mean[n_in > 0].mean() - outside.mean[n_out > 0].mean()
            spread = 0.5 * (s2_in + s2_out)
        else:
            noise = s2_in / np.maximum(n_in, 1) + s2_out / np.maximum(n_out, 1)
            shift, spread = alike.prior(noise, _SMALLEST_SPREAD * (typical_in + typical_out))
        # Precisions: a world's own mean, and the other world's mean moved by the shift. An empty world has none.
        of_out, of_in = n_out / s2_out, n_in / s2_in
        from_in = of_in / (1 + spread * of_in)
        from_out = of_out / (1 + spread * of_out)
        v_out, v_in = 1 / (of_out + from_in), 1 / (of_in + from_out)
        mean_in, mean_out = np.where(n_in > 0, inside.mean, 0.0), np.where(n_out > 0, outside.mean, 0.0)
        mu_out = (mean_out * of_out + (mean_in - shift) * from_in) * v_out
        mu_in = (mean_in * of_in + (mean_out + shift) * from_out) * v_in
        return log_t(phi, freedom_in, mu_in, s2_in + v_in) - log_t(phi, freedom_out, mu_out, s2_out + v_out)

    def _variance(self, own: Moments, other: Moments, typical: Floats, typical_other: Floats) -> tuple[Floats, Floats]:
        """Degrees of freedom and posterior mean of the variance of a world, float64 [N] each.

        How much models differ on a record is alike in both worlds, relative to what is usual there: deviations of the
        other world, rescaled, count too, but for less.
        """
        a = self.a0 + 0.5 * (own.n + _SHARE_OF_OTHER * other.n)
        deviations = own.ss / typical + _SHARE_OF_OTHER * other.ss / typical_other
        return 2 * a, typical * (self.a0 - 1 + 0.5 * deviations) / (a - 1)


@dataclass(frozen=True, eq=False)
class _Alike:
    """Records of like difficulty: how far membership moves them.

    Parameters
    ----------
    bin_of
        int64 [N].
    both
        int64 [M]: records with models of both worlds.
    mean
        float64 [B]: mean shift of each bin.
    residuals
        float64 [M]: shifts less the mean of their bin.
    """

    bin_of: Counts
    both: Counts
    mean: Floats
    residuals: Floats

    @classmethod
    def of(cls, inside: Moments, outside: Moments, difficulty: Floats) -> _Alike | None:
        both = np.flatnonzero((inside.n > 0) & (outside.n > 0))
        if len(both) == 0:
            return None
        bins = max(1, min(_BINS, len(both) // _FEWEST_IN_BIN))
        edges = np.quantile(difficulty[both], np.arange(1, bins) / bins)
        bin_of = np.searchsorted(edges, difficulty, side="right")
        shifts = (inside.mean - outside.mean)[both]
        mean = _by_bin(shifts, bin_of[both], bins)
        return cls(bin_of, both, mean, shifts - mean[bin_of[both]])

    def variances(
        self, inside: Moments, outside: Moments, typical_in: float, typical_out: float
    ) -> tuple[Floats, Floats]:
        """Variances within records of the IN and of the OUT models that are usual in the bin, float64 [N] each.

        Where no record has two models of a world, the spread of the shifts has to do: half of it for either world.
        """
        if inside.n.max() < 2 and outside.n.max() < 2:
            half = 0.5 * _by_bin(self.residuals**2, self.bin_of[self.both], len(self.mean))
            usual = np.maximum(half, _SMALLEST_SPREAD * np.mean(half) + np.finfo(np.float64).tiny)[self.bin_of]
            return usual, usual
        found = []
        for world, typical in ((inside, typical_in), (outside, typical_out)):
            freedom = np.bincount(self.bin_of, weights=np.maximum(world.n - 1, 0), minlength=len(self.mean))
            ss = np.bincount(self.bin_of, weights=world.ss, minlength=len(self.mean))
            found.append(((ss + _FREEDOM_OF_ALL * typical) / (freedom + _FREEDOM_OF_ALL))[self.bin_of])
        return found[0], found[1]

    def prior(self, noise: Floats, smallest: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of the shift of every record, float64 [N] each, less what few models add to it."""
        excess = self.residuals**2 - noise[self.both]
        spread = _by_bin(excess, self.bin_of[self.both], len(self.mean))
        return self.mean[self.bin_of], np.maximum(spread[self.bin_of], smallest)


def _by_bin(values: Floats, bin_of: Counts, bins: int) -> Floats:
    """Mean of each bin; an empty bin (ties at its edges) takes the mean of all."""
    size = np.bincount(bin_of, minlength=bins)
    total = np.bincount(bin_of, weights=values, minlength=bins)
    return np.where(size > 0, total / np.maximum(size, 1), values.mean())


def _of_query(world: Moments, query: int) -> Moments:
    return Moments(world.n, world.mean[query], world.ss[query])
