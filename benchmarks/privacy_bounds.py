"""Do the privacy bounds hold, and what do they find? Prints the two tables of docs/privacy_bounds.md.

1,000 simulated audits of 1,000 canaries (or runs) for each row and column, 95 % confidence, delta = 1e-5; about two
minutes on one core, no data needed. Usage: python benchmarks/privacy_bounds.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.privacy_bounds import Bound, bound

TRIALS = 1000
M = 1000
DELTA = 1e-5
Mechanism = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SETTINGS: dict[str, dict] = {
    "one-run, default (100 guesses)": {"method": "one-run"},
    "one-run, 500 guesses": {"method": "one-run", "guesses": 500},
    "one-run, split": {"method": "one-run", "guesses": "split"},
    "one-run, bonferroni": {"method": "one-run", "guesses": "bonferroni"},
    "one-run-gdp, default (100 guesses)": {"method": "one-run-gdp"},
    "one-run-gdp, bonferroni": {"method": "one-run-gdp", "guesses": "bonferroni"},
    "several-runs, threshold fixed": {"method": "several-runs", "threshold": 0.5},
    "several-runs, split": {"method": "several-runs", "threshold": "split"},
    "several-runs-gdp, threshold fixed": {"method": "several-runs-gdp", "threshold": 0.5},
    "several-runs-gdp, split": {"method": "several-runs-gdp", "threshold": "split"},
}


def noise(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=len(member))


def tied_noise(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4, len(member)) / 2.0


def gaussian(mu: float) -> Mechanism:
    return lambda member, rng: mu * member + rng.normal(size=len(member))


def randomised_response(epsilon: float) -> Mechanism:
    honest = 1 / (1 + math.exp(-epsilon))
    return lambda member, rng: np.where(rng.random(len(member)) < honest, member, ~member).astype(float)


def memorised(share: float) -> Mechanism:
    """A model that knows some of its records by heart and nothing of the others; no finite epsilon holds for it."""
    return lambda member, rng: rng.normal(size=len(member)) + 8.0 * (member & (rng.random(len(member)) < share))


def audits(settings: dict, mechanism: Mechanism, seed: int) -> list[Bound]:
    rng = np.random.default_rng(seed)
    design = "coin-flips" if settings["method"].startswith("one-run") else "independent-runs"
    found = []
    for _ in range(TRIALS):
        member = rng.random(M) < 0.5
        found.append(bound(mechanism(member, rng), member, design=design, delta=DELTA, rng=rng, **settings))
    return found


def share_above(found: list[Bound], epsilon: float, mu: float) -> str:
    above = [one.epsilon > epsilon if one.mu is None else one.mu > mu for one in found]
    return f"{100 * np.mean(above):.1f} %"


def soundness() -> None:
    columns: dict[str, tuple[Mechanism, float, float]] = {
        "no leak": (noise, 0.0, 0.0),
        "no leak, tied": (tied_noise, 0.0, 0.0),
    }
    for epsilon in (0.5, 2.0):
        honest = 1 / (1 + math.exp(-epsilon))
        truth = math.log((honest - DELTA) / (1 - honest))
        columns[f"RR ε = {epsilon:g}"] = (randomised_response(epsilon), truth, 2 * float(ndtri(honest)))
    for mu in (0.5, 2.0):
        columns[f"Gauss µ = {mu:g}"] = (gaussian(mu), gdp_epsilon(mu, DELTA), mu)
    table("share of audits whose bound lies above the truth", columns, share_above, seed=100)


def power() -> None:
    columns: dict[str, tuple[Mechanism, float, float]] = {}
    for epsilon in (1.0, 3.0):
        columns[f"RR ε = {epsilon:g}"] = (randomised_response(epsilon), epsilon, 0.0)
    for mu in (0.5, 1.0, 2.0, 4.0):
        columns[f"Gauss µ = {mu:g} (ε = {gdp_epsilon(mu, DELTA):.2f})"] = (gaussian(mu), 0.0, 0.0)
    for share in (0.1, 0.5):
        columns[f"{share:.0%} memorised (ε = ∞)"] = (memorised(share), 0.0, 0.0)

    def median(found: list[Bound], *_: float) -> str:
        return f"{np.median([one.epsilon for one in found]):.2f}"

    table("median bound", columns, median, seed=200)


def table(title: str, columns: dict, cell: Callable[..., str], seed: int) -> None:
    print(f"{title}, {TRIALS} audits of {M} canaries or runs\n")
    print("| method | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, settings in SETTINGS.items():
        cells = [
            cell(audits(settings, mechanism, seed + i), epsilon, mu)
            for i, (mechanism, epsilon, mu) in enumerate(columns.values())
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print()


if __name__ == "__main__":
    started = time.perf_counter()
    soundness()
    power()
    print(f"{time.perf_counter() - started:.0f} s")
