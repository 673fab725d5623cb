"""The privacy that DP-SGD guarantees: epsilon of a noise, and the noise of an epsilon.

Opacus does the accounting (Rényi differential privacy of the Poisson-subsampled Gaussian mechanism, Mironov, Talwar &
Zhang 2019); it is imported here and nowhere else, and comes with the extra ``dp``. Its tighter PRV accountant is not
used: for little noise its tables need all the memory of a machine, and an upper bound must be there for every recipe.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from memberscope.errors import ConfigError

ACCOUNTANT = "RDP (Opacus)"
_ORDERS = (
    *(1.001, 1.002, 1.005, 1.01, 1.02, 1.03, 1.05, 1.07),
    *(1 + k / 10 for k in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
"""Opacus' default orders, with smaller ones for little noise and larger ones for much."""
_CLOSE = 1e-3
_MOST_NOISE = 1e4


@dataclass(frozen=True)
class Guarantee:
    """An (epsilon, delta) that a training has, for adding or removing one of its records.

    Parameters
    ----------
    epsilon, delta
        The guarantee; epsilon is infinite without noise.
    noise_multiplier, clip
        Standard deviation of the noise in units of `clip`, the largest norm of a record's gradient.
    sample_rate, steps
        Probability of a record to be in a step, and number of steps.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    clip: float
    sample_rate: float
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: an infinite epsilon is None."""
        content = asdict(self)
        content["epsilon"] = self.epsilon if math.isfinite(self.epsilon) else None
        return {"mechanism": "DP-SGD", **content, "accountant": ACCOUNTANT, "adjacency": "add or remove one record"}


def guarantee(*, noise: float, clip: float, sample_rate: float, steps: int, delta: float) -> Guarantee:
    """The guarantee of so many steps with so much noise.

    Raises
    ------
    ConfigError
        Opacus is not installed.
    """
    return Guarantee(epsilon(noise, sample_rate, steps, delta), delta, noise, clip, sample_rate, steps)


@cache
def epsilon(noise: float, sample_rate: float, steps: int, delta: float) -> float:
    """Upper bound on epsilon of DP-SGD; infinite without noise, 0 without steps."""
    if steps == 0:
        return 0.0
    if noise == 0:
        return math.inf
    rdp = _opacus()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the (smallest|largest)")
        spent = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=steps, orders=_ORDERS)
        found, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return float(found) if math.isfinite(found) else math.inf


@cache
def noise_for(target: float, sample_rate: float, steps: int, delta: float) -> float:
    """The least noise (to a thousandth) with which so many steps keep within `target` epsilon.

    Raises
    ------
    ConfigError
        Opacus is not installed, or no noise is enough.
    """
    low, high = 0.0, 1.0
    while epsilon(high, sample_rate, steps, delta) > target:
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigError(
                f"dp_epsilon = {target:g} cannot be kept over {steps:,} steps",
                "ask for a larger epsilon, fewer epochs or a larger delta",
            )
    while high - low > _CLOSE * high:
        middle = (low + high) / 2
        if epsilon(middle, sample_rate, steps, delta) > target:
            low = middle
        else:
            high = middle
    return high


def _opacus() -> Any:
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as error:
        raise ConfigError(
            "the privacy of DP-SGD is accounted for by Opacus, which is not installed",
            "pip install 'memberscope[dp]'",
        ) from error
    return rdp
