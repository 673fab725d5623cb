"""How exposed each single record is: an estimate with an interval, never a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memberscope.errors import ConfigError, EvidenceError
from memberscope.statistics.gaussian_dp import gdp_epsilon

FloatArray = NDArray[np.float64]

# Beyond it the interval is proportional to t to within the accuracy of the inversion.
_LARGEST_T = 1e4
_MU_GRID = 512


@dataclass(frozen=True)
class PerRecordEstimate:
    """Separation of each record's two worlds, in standard deviations: an estimate, not a bound.

    Parameters
    ----------
    d
        float64 [N]: posterior mean of (mean with the record - mean without) / standard deviation. NaN where the models
        do not suffice (none with or none without the record, fewer than three, or all signals equal).
    low, high
        float64 [N]: ends of the central posterior interval.
    n_in, n_out
        int64 [N]: models with and without the record.
    confidence
        Of the interval.
    """

    d: FloatArray
    low: FloatArray
    high: FloatArray
    n_in: NDArray[np.int64]
    n_out: NDArray[np.int64]
    confidence: float

    def epsilon(self, delta: float = 1e-5) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Estimated epsilon of each record at `delta`, with the ends of its interval: d read as the mu of Gaussian DP.

        A negative separation counts as none. Read off a fine grid of mu.
        """
        top = np.nanmax(self.high, initial=1.0)
        mu = top * np.linspace(0.0, 1.0, _MU_GRID) ** 2
        epsilon = np.array([gdp_epsilon(float(one), delta) for one in mu])
        value, low, high = (np.interp(one, mu, epsilon) for one in (self.d, self.low, self.high))
        return value, low, high

    def tpr(self, fpr: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Estimated true-positive rate of each record at a false-positive rate of its own, with its interval.

        1 - Phi(Phi^-1(1 - fpr) - d): both worlds Gaussian with one standard deviation.
        """
        from scipy.special import ndtr, ndtri

        if not 0 < fpr < 1:
            raise ConfigError(f"a false-positive rate of {fpr}; expected it above 0 and below 1", "0.001 is common")
        value, low, high = (np.asarray(ndtr(one + ndtri(fpr))) for one in (self.d, self.low, self.high))
        return value, low, high

    def __repr__(self) -> str:
        known = np.isfinite(self.d)
        above = int(np.count_nonzero(self.low > 0))
        return (
            f"PerRecordEstimate({int(known.sum()):,} of {len(self.d):,} records; estimate, not a bound; "
            f"interval above 0: {above:,})"
        )


def per_record_estimate(signal: ArrayLike, member: ArrayLike, *, confidence: float = 0.95) -> PerRecordEstimate:
    """Estimate how far apart a record's signal lies in models trained with it and without it.

    Signals of one record are taken as Gaussian with one standard deviation in both worlds. Under the usual prior
    (uniform in the means, 1/sigma in sigma) the posterior of d is that of Lecoutre (1999), whose quantiles are those
    non-centralities for which Student's non-central t takes the observed t with the stated probability; the interval
    then covers the true d with exactly `confidence` over repetitions too.

    Parameters
    ----------
    signal
        float [K, N]: a record's signal (phi, say) in K models, higher = more likely a member.
    member
        bool [K, N]: which models were trained on it.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    EvidenceError
        Shapes that do not fit, or NaN and infinite signals.
    ConfigError
        A confidence outside (0, 1).
    """
    from scipy.special import gammaln

    phi = np.asarray(signal, dtype=np.float64)
    inside = np.asarray(member, dtype=bool)
    if phi.ndim != 2 or inside.shape != phi.shape:
        raise EvidenceError(
            f"signals have shape {phi.shape} and membership {inside.shape}; expected [models, records] twice",
            "give one row for each reference model",
        )
    if not np.isfinite(phi).all():
        raise EvidenceError("signals hold NaN or infinite values", "take the signal phi, which is finite")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; expected it in (0, 1)", "0.95 is the default")
    n_in, n_out = inside.sum(axis=0), (~inside).sum(axis=0)
    freedom = n_in + n_out - 2
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_in = np.where(inside, phi, 0.0).sum(axis=0) / n_in
        mean_out = np.where(inside, 0.0, phi).sum(axis=0) / n_out
        residual = phi - np.where(inside, mean_in, mean_out)
        spread = np.sqrt((residual**2).sum(axis=0) / freedom)
        scale = np.sqrt(1 / n_in + 1 / n_out)
        ratio = (mean_in - mean_out) / spread
    usable = (n_in > 0) & (n_out > 0) & (freedom > 0) & (spread > 0)
    d, low, high = (np.full(phi.shape[1], np.nan) for _ in range(3))
    nu = freedom[usable].astype(np.float64)
    d[usable] = ratio[usable] * np.exp(gammaln((nu + 1) / 2) - gammaln(nu / 2)) * np.sqrt(2 / nu)
    t = ratio[usable] / scale[usable]
    tail = (1 - confidence) / 2
    low[usable] = scale[usable] * _non_centrality(t, nu, 1 - tail)
    high[usable] = scale[usable] * _non_centrality(t, nu, tail)
    return PerRecordEstimate(d, low, high, n_in, n_out, confidence)


def _non_centrality(t: FloatArray, freedom: FloatArray, probability: float) -> FloatArray:
    """The non-centrality for which P[non-central t <= t] = probability."""
    from scipy.special import nctdtrinc

    near = np.clip(t, -_LARGEST_T, _LARGEST_T)
    with np.errstate(invalid="ignore"):
        stretch = np.where(near == t, 1.0, t / near)
    return np.asarray(nctdtrinc(freedom, probability, near) * stretch)
