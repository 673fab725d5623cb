"""Do the bounds hold? Each method, 1,000 audits of mechanisms whose epsilon is known, and of scores without any leak.

A 95 % bound may lie above the truth in 5 % of audits. The limit is the count that a rate of exactly 5 % exceeds with
probability 0.1 %: a sound method passes, and one that errs in 9 % of audits fails with probability above 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from memberscope.statistics.bound_search import OneRun
from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.guesses import candidate_guesses
from memberscope.statistics.privacy_bounds import Bound, bound, bound_each, compare_with_accountant

TRIALS = 1000
ALPHA = 0.05
AT_MOST = int(binom.ppf(0.999, TRIALS, ALPHA))
DELTA = 1e-5
M = 1000

ONE_RUN = {
    "one-run, default": {"method": "one-run"},
    "one-run, 30 guesses": {"method": "one-run", "guesses": 30},
    "one-run, 40 in and 0 out": {"method": "one-run", "guesses": (40, 0)},
    "one-run, all guessed": {"method": "one-run", "guesses": M},
    "one-run, split": {"method": "one-run", "guesses": "split"},
    "one-run, bonferroni": {"method": "one-run", "guesses": "bonferroni"},
    "one-run-gdp, default": {"method": "one-run-gdp"},
    "one-run-gdp, all guessed": {"method": "one-run-gdp", "guesses": M},
    "one-run-gdp, bonferroni": {"method": "one-run-gdp", "guesses": "bonferroni"},
}
SEVERAL_RUNS = {
    "several-runs, fixed": {"method": "several-runs", "threshold": 0.5},
    "several-runs, five thresholds": {"method": "several-runs", "threshold": [-1, 0, 0.5, 1, 2]},
    "several-runs, split": {"method": "several-runs", "threshold": "split"},
    "several-runs-gdp, fixed": {"method": "several-runs-gdp", "threshold": 0.5},
    "several-runs-gdp, five thresholds": {"method": "several-runs-gdp", "threshold": [-1, 0, 0.5, 1, 2]},
    "several-runs-gdp, split": {"method": "several-runs-gdp", "threshold": "split"},
}
ALL = ONE_RUN | SEVERAL_RUNS

Mechanism = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise_only(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=len(member))


def tied_noise(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4, len(member)) / 2.0


def gaussian(mu: float) -> Mechanism:
    return lambda member, rng: mu * member + rng.normal(size=len(member))


def randomised_response(epsilon: float) -> Mechanism:
    honest = 1 / (1 + math.exp(-epsilon))
    return lambda member, rng: np.where(rng.random(len(member)) < honest, member, ~member).astype(float)


def audits(settings: dict, mechanism: Mechanism, *, seed: int, delta: float = DELTA) -> Iterator[Bound]:
    rng = np.random.default_rng(seed)
    design = "coin-flips" if settings["method"].startswith("one-run") else "independent-runs"
    for _ in range(TRIALS):
        member = rng.random(M) < 0.5
        found = bound(mechanism(member, rng), member, design=design, delta=delta, rng=rng, **settings)
        assert found.valid
        yield found


@pytest.mark.parametrize("scores", [noise_only, tied_noise])
@pytest.mark.parametrize("name", ALL)
def test_scores_without_leak_give_a_positive_bound_in_at_most_5_percent(name, scores):
    positive = sum(found.epsilon > 0 for found in audits(ALL[name], scores, seed=1))
    assert positive <= AT_MOST


@pytest.mark.parametrize("step", [1, -1], ids=["members last", "members first"])
@pytest.mark.parametrize("name", ONE_RUN)
def test_the_order_of_records_tells_nothing(name, step):
    rng = np.random.default_rng(2)
    positive = 0
    for _ in range(TRIALS // 4):
        member = np.sort(rng.random(M) < 0.5)[::step]
        positive += bound(np.zeros(M), member, design="coin-flips", rng=rng, **ONE_RUN[name]).epsilon > 0
    assert positive <= int(binom.ppf(0.999, TRIALS // 4, ALPHA))


@pytest.mark.parametrize("settings", [{}, {"method": "one-run-gdp"}, {"guesses": "bonferroni"}, {"guesses": "split"}])
def test_the_best_of_eight_attacks_without_leak_is_positive_in_at_most_5_percent(settings):
    rng = np.random.default_rng(3)
    positive = 0
    for _ in range(TRIALS):
        member = rng.random(400) < 0.5
        attacks = {str(i): rng.normal(size=400) for i in range(8)}
        found = bound_each(attacks, member, design="coin-flips", rng=rng, **settings)
        positive += next(iter(found.values())).epsilon > 0
    assert positive <= AT_MOST


def test_these_simulations_would_notice_a_search_that_is_not_paid_for():
    rng = np.random.default_rng(4)
    audit = OneRun(gaussian=False, delta=DELTA, alpha=ALPHA)
    choices = candidate_guesses(M, ALPHA)
    positive = 0
    for _ in range(TRIALS):
        ranked = rng.random(M) < 0.5
        positive += max(audit.at(ranked, one, ALPHA, "").epsilon for one in choices) > 0
    assert positive > 2 * AT_MOST


@pytest.mark.parametrize("name", ALL)
def test_randomised_response_is_bounded_from_below(name):
    epsilon = 1.0
    honest = 1 / (1 + math.exp(-epsilon))
    # Randomised response is (epsilon', delta)-DP with honest = (1 - honest) e^epsilon' + delta, and mu-GDP for the mu
    # whose curve passes through its one point.
    true_epsilon = math.log((honest - DELTA) / (1 - honest))
    true_mu = 2 * ndtri(honest)
    above = 0
    for found in audits(ALL[name], randomised_response(epsilon), seed=5):
        above += found.epsilon > true_epsilon if found.mu is None else found.mu > true_mu
    assert above <= AT_MOST


def test_randomised_response_uses_up_the_error_probability():
    # The worst case of the theorem: guesses are right with probability e^eps / (1 + e^eps) exactly. What remains below
    # 5 % is the coarseness of counts. So the bound could not be raised.
    settings = {"method": "one-run", "guesses": 700}
    above = sum(found.epsilon > 0.5 for found in audits(settings, randomised_response(0.5), seed=6, delta=0.0))
    assert 0.03 * TRIALS <= above <= AT_MOST


@pytest.mark.parametrize("name", ALL)
def test_the_gaussian_mechanism_is_bounded_from_below(name):
    mu = 1.0
    true_epsilon = gdp_epsilon(mu, DELTA)
    above = 0
    for found in audits(ALL[name], gaussian(mu), seed=7):
        above += found.epsilon > true_epsilon if found.mu is None else found.mu > mu
    assert above <= AT_MOST


@pytest.mark.parametrize("guesses", [8, 30, "split", "bonferroni"])
def test_records_given_away_with_probability_delta_are_within_delta(guesses):
    """Name and shame: each record is published with probability delta, which is (0, delta)-DP."""
    delta = 2e-3

    def name_and_shame(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(len(member)) < delta, np.where(member, 10.0, -10.0), rng.normal(size=len(member)))

    settings = {"method": "one-run", "guesses": guesses}
    assert sum(found.epsilon > 0 for found in audits(settings, name_and_shame, seed=8, delta=delta)) <= AT_MOST


@pytest.mark.parametrize("name", ["one-run, default", "one-run-gdp, default", "several-runs, fixed"])
def test_a_leak_is_found(name):
    """Soundness alone is cheap: a bound that is always 0 is sound."""
    found = [one.epsilon for one in audits(ALL[name], gaussian(2.0), seed=9)]
    assert np.median(found) > {"one-run": 2.8, "one-run-gdp": 4.0, "several-runs": 1.2}[ALL[name]["method"]]


@pytest.mark.parametrize(("noise", "at_least", "at_most"), [(4.0, 0, AT_MOST), (0.5, 950, TRIALS)])
def test_a_claim_is_broken_when_noise_was_forgotten_and_stands_when_it_was_not(noise, at_least, at_most):
    """The accountant counted on noise of four times the sensitivity."""
    claim = gdp_epsilon(1 / 4, DELTA)
    found = audits({"method": "one-run"}, gaussian(1 / noise), seed=10)
    broken = sum(compare_with_accountant(one, claim, DELTA).verdict == "contradiction" for one in found)
    assert at_least <= broken <= at_most
