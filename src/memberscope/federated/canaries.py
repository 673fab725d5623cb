"""One-shot privacy estimation: canary clients whose updates are random directions, and what is left of them at the end.

Each canary client sends the model it got plus a random direction of the length that updates are clipped to. In d
dimensions a direction that was not sent lies at a cosine of mean 0 and variance 1/d to the way from the first global
model to the last; one that was sent lies further along. In units of 1/sqrt(d) the mean cosine is the separation mu of a
Gaussian mechanism, and mu gives epsilon (Dong, Roth, Su 2022). One federation is enough, since there are many canaries.

An estimate, not a bound: it holds for this adversary (who sees the first and the last global model, or every round's)
and these canaries. Andrew et al., "One-shot empirical privacy estimation for federated learning", ICLR 2024. They fit
mean and variance of the cosines; here the variance is the known 1/d, for one that is fitted to some dozens of canaries
may come out far too small, and epsilon far too large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, DataError
from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.intervals import Estimate

Arrays = Mapping[str, NDArray[Any]]
LEAST = 5
"""Canaries below which nothing is said."""


@dataclass(frozen=True)
class Canaries:
    """Random directions, made anew from the seed whenever they are needed: none is kept.

    Parameters
    ----------
    seed
        Of all directions.
    length
        Of an update: what updates are clipped to.
    """

    seed: int
    length: float

    def direction(self, canary: int, d: int) -> NDArray[np.float64]:
        """Unit vector float64 [d] of a canary."""
        drawn = np.random.default_rng([self.seed, canary]).standard_normal(d)
        return np.asarray(drawn / np.linalg.norm(drawn))

    def reply(self, canary: int, sent: Arrays, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """What canary client number `canary` sends back: the model it got, plus its direction.

        Parameters
        ----------
        canary
            Its number, from 0.
        sent
            The model.
        names
            Arrays that the direction lies in; default: all floating ones. The statistics of a batch normalisation
            should not be among them: a variance that comes out negative makes NaN of the model.
        """
        names = _floating(sent) if names is None else list(names)
        d = sum(sent[name].size for name in names)
        step = self.length * self.direction(canary, d)
        edges = np.cumsum([sent[name].size for name in names])[:-1]
        parts = dict(zip(names, np.split(step, edges), strict=True))
        return {
            name: (value + parts[name].reshape(value.shape)).astype(value.dtype) if name in parts else value
            for name, value in sent.items()
        }


@dataclass(frozen=True)
class CanaryEstimate:
    """What the canaries tell.

    Attributes
    ----------
    mu
        Separation in standard deviations of the noise, with an interval over the canaries (Student's t).
    epsilon
        The epsilon of a Gaussian mechanism with that separation, its interval from that of mu.
    delta
        Of epsilon.
    d
        Number of weights.
    canaries
        How many took part.
    unseen_spread
        Standard deviation of the cosines of as many directions that were never sent, times sqrt(d): about 1.
    """

    mu: Estimate
    epsilon: Estimate
    delta: float
    d: int
    canaries: int
    unseen_spread: float


def estimate(
    canaries: Canaries,
    first: Arrays,
    last: Arrays,
    n_canaries: int | Sequence[int],
    *,
    names: Sequence[str] | None = None,
    delta: float = 1e-5,
    confidence: float = 0.95,
) -> CanaryEstimate:
    """Estimate epsilon of a federation from its first and last global model.

    Parameters
    ----------
    canaries
        Whose clients 0 .. n_canaries - 1 took part.
    first, last
        Global models before the first round and after the last.
    n_canaries
        How many took part, at least 5: the first so many, or the numbers of those that did.
    names
        Arrays that the directions lie in; default: all floating ones.
    delta
        Of epsilon.
    confidence
        Of the intervals.

    Raises
    ------
    ConfigError
        Too few canaries, or a delta out of range.
    DataError
        Models that differ in their arrays, or do not differ at all.
    """
    seen_numbers = list(range(n_canaries)) if isinstance(n_canaries, int) else list(n_canaries)
    if len(seen_numbers) < LEAST:
        raise ConfigError(f"{len(seen_numbers)} canaries say too little", "some dozens are usual, five the least")
    names = _floating(first) if names is None else list(names)
    shared = first.keys() == last.keys() and set(names) <= first.keys()
    if not shared or any(first[n].shape != last[n].shape for n in names):
        raise DataError("the first and the last model differ in their arrays", "give two models of one federation")
    way = np.concatenate([(np.asarray(last[n], np.float64) - first[n]).reshape(-1) for n in names])
    distance, d = float(np.linalg.norm(way)), len(way)
    if not math.isfinite(distance) or distance == 0:
        raise DataError("the models do not differ, or hold NaN", "give the first and the last global model")
    beyond = max(seen_numbers) + 1
    seen = _standardised(canaries, way / distance, seen_numbers)
    unseen = _standardised(canaries, way / distance, range(beyond, beyond + len(seen_numbers)))
    mu = _mean(seen, confidence)
    ends = [gdp_epsilon(max(value, 0.0), delta) if value > 0 else 0.0 for value in (mu.value, mu.low, mu.high)]
    epsilon = Estimate(ends[0], ends[1], ends[2], f"Gaussian mechanism of separation mu, delta {delta:g}")
    return CanaryEstimate(mu, epsilon, delta, d, len(seen_numbers), float(unseen.std(ddof=1)))


def _standardised(canaries: Canaries, way: NDArray[np.float64], which: Sequence[int]) -> NDArray[np.float64]:
    """Cosines in units of the standard deviation 1/sqrt(d) of a direction that was never sent."""
    d = len(way)
    return np.array([float(canaries.direction(canary, d) @ way) for canary in which]) * math.sqrt(d)


def _mean(values: NDArray[np.float64], confidence: float) -> Estimate:
    from scipy.special import stdtrit

    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    mean = float(values.mean())
    return Estimate(mean, mean - reach, mean + reach, f"Student's t over {len(values)} canaries")


def _floating(arrays: Arrays) -> list[str]:
    return [name for name, value in arrays.items() if np.asarray(value).dtype.kind == "f"]
