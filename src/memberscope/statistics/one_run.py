"""Epsilon lower bounds from one training run: m canaries, each put in by its own fair coin, some of them guessed.

Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run" (NeurIPS 2023), and Mahloujifar, Melis,
Chaudhuri, "Auditing f-Differential Privacy in One Run" (ICML 2025).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from memberscope.statistics.gaussian_dp import gdp_epsilon

# Finer than any figure that is printed; the lower end of the last interval is reported, which errs on the safe side.
_RESOLUTION = 1e-7
_LARGEST_EPSILON = 64.0
_LARGEST_MU = 16.0
_MU_PER_PASS = 24


def steinke_p_value(
    m: int, guesses: int, correct: int, epsilon: float, delta: float, *, fewest_guesses: int | None = None
) -> float:
    """Probability, at most, that an (epsilon, delta)-DP training lets so many guesses come out right.

    Steinke et al. 2023, Theorem 3.1: f(v) + 2 m delta max_i (f(v - i) - f(v)) / i, where f(v) = P[B >= v] and
    B ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)).

    Parameters
    ----------
    m
        Canaries, guessed or not.
    guesses, correct
        Canaries that were guessed, and rightly so.
    epsilon, delta
        The claim under test.
    fewest_guesses
        Where the number of guesses was itself chosen from what training gave out (split): the fewest that could have
        been chosen. delta > 0 then costs more: their Theorem 5.2 holds for each outcome of training, with extra right
        guesses of expectation 2 m delta over all outcomes; a training could spend them where the choice makes them
        count most, so max_i (f(v - i) - f(v)) / i is replaced by its maximum over all v and all choices, which is the
        largest probability of Binomial(fewest_guesses, .).

    Returns
    -------
    In [0, 1].
    """
    from scipy.special import bdtrc

    if correct == 0:
        return 1.0
    tail = float(bdtrc(correct - 1, guesses, 1 / (1 + math.exp(-epsilon))))
    if delta == 0:
        return min(1.0, tail)
    if fewest_guesses is not None:
        mode = math.floor((fewest_guesses + 1) / (1 + math.exp(-epsilon)))
        spill = float(_binomial_mass(fewest_guesses, np.array([min(mode, fewest_guesses)]), epsilon)[0])
    else:
        below = np.cumsum(_binomial_mass(guesses, np.arange(correct - 1, -1, -1), epsilon))
        spill = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * m * delta * spill)


@lru_cache(maxsize=65536)
def steinke_epsilon(
    m: int, guesses: int, correct: int, delta: float, alpha: float, *, fewest_guesses: int | None = None
) -> float:
    """Lower bound on epsilon: everything below it is refuted by `steinke_p_value` < alpha.

    Returns
    -------
    The bound, >= 0, found to 1e-7 from below.
    """

    def refuted(epsilon: float) -> bool:
        return steinke_p_value(m, guesses, correct, epsilon, delta, fewest_guesses=fewest_guesses) < alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _LARGEST_EPSILON:
        low, high = high, 2 * high
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@lru_cache(maxsize=65536)
def gaussian_mu(m: int, guesses: int, correct: int, alpha: float) -> float:
    """Lower bound on mu under the hypothesis of Gaussian DP, from one run.

    Mahloujifar et al. 2025, Algorithm 3 with the trade-off curve of mu-GDP and two choices for each canary. The number
    of guesses must be fixed: their recursion has no form for one chosen from what training gave out.

    Parameters
    ----------
    m, guesses, correct
        As for `steinke_p_value`.
    alpha
        Error probability.

    Returns
    -------
    The largest mu that is refuted, >= 0, found to 1e-7 from below.
    """
    low, high = 0.0, _LARGEST_MU
    if not _refuted_mu(m, guesses, correct, np.zeros(1), alpha)[0]:
        return 0.0
    while high - low > _RESOLUTION:
        tried = np.linspace(low, high, _MU_PER_PASS + 2)[1:-1]
        refuted = _refuted_mu(m, guesses, correct, tried, alpha)
        # Refutation is monotone in mu: the first that stands ends the interval.
        first = int(np.argmin(refuted)) if not refuted.all() else len(tried)
        ends = np.concatenate([[low], tried, [high]])
        low, high = float(ends[first]), float(ends[first + 1])
    return low


def gaussian_epsilon(m: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """`gaussian_mu` told as an epsilon at `delta`."""
    return gdp_epsilon(gaussian_mu(m, guesses, correct, alpha), delta)


def _refuted_mu(m: int, guesses: int, correct: int, mu: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
    """bool [len(mu)]: no mu-GDP training gives so many right guesses with probability alpha."""
    from scipy.special import ndtr, ndtri

    right = np.full(mu.shape, alpha * correct / m)
    wrong = np.full(mu.shape, alpha * (guesses - correct) / m)
    for i in range(correct - 1, -1, -1):
        grown = np.maximum(wrong, ndtr(ndtri(right) - mu))
        if np.array_equal(grown, wrong):
            break
        right = np.minimum(1.0, right + i / (guesses - i) * (grown - wrong))
        wrong = grown
    return np.asarray(right + wrong > guesses / m)


def _binomial_mass(trials: int, successes: NDArray[np.int64], epsilon: float) -> NDArray[np.float64]:
    """P[Binomial(trials, e^epsilon / (1 + e^epsilon)) = successes], from logarithms."""
    from scipy.special import gammaln

    log_choose = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(trials - successes + 1)
    log_odds_against = math.log1p(math.exp(-epsilon))
    mass = np.exp(log_choose - trials * log_odds_against - (trials - successes) * epsilon)
    return np.asarray(mass, dtype=np.float64)
