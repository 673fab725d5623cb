"""Gaussian differential privacy: from a signal-to-noise ratio mu to (epsilon, delta) and back.

Dong, Roth, Su, "Gaussian Differential Privacy" (JRSS B 2022), Corollary 2.13.
"""

from __future__ import annotations

import math
from functools import lru_cache

from memberscope.errors import ConfigError

_RESOLUTION = 1e-9


def gdp_delta(mu: float, epsilon: float) -> float:
    """The smallest delta for which a mu-GDP mechanism is (epsilon, delta)-DP.

    Parameters
    ----------
    mu
        Separation of the two worlds in standard deviations of the noise, >= 0 (sensitivity 1 and noise 1/mu).
    epsilon
        >= 0.

    Returns
    -------
    Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu), in [0, 1].
    """
    from scipy.special import log_ndtr, ndtr

    if mu <= 0:
        return 0.0
    upper = float(ndtr(mu / 2 - epsilon / mu))
    lower = math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
    return max(0.0, upper - lower)


@lru_cache(maxsize=65536)
def gdp_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon for which a mu-GDP mechanism is (epsilon, delta)-DP; 0 where delta alone covers it.

    Found from below, to a relative 1e-9.

    Raises
    ------
    ConfigError
        `delta` outside (0, 1): no Gaussian mechanism is (epsilon, 0)-DP for a finite epsilon.
    """
    if not 0 < delta < 1:
        raise ConfigError(
            f"delta is {delta}; the Gaussian form needs a delta above 0 and below 1",
            "1e-5 is common, and should lie below 1 / (number of training records)",
        )
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gdp_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > _RESOLUTION * high:
        middle = (low + high) / 2
        if gdp_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return low
