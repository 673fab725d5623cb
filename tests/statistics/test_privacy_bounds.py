"""Numbers of published bounds, refusals, designs that admit no bound, and the comparison with an accountant."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm

from memberscope.errors import ConfigError, DataError
from memberscope.statistics import one_run, several_runs
from memberscope.statistics.gaussian_dp import gdp_delta, gdp_epsilon
from memberscope.statistics.guesses import both_sides, candidate_guesses, default_guesses, rank, right_guesses
from memberscope.statistics.privacy_bounds import DESIGNS, METHODS, bound, bound_each, compare_with_accountant
from memberscope.statistics.several_runs import RunCounts


@pytest.mark.parametrize(
    ("m", "guesses", "correct", "delta", "expected"),
    [
        (1000, 100, 100, 0, 3.4930),
        (1000, 100, 100, 1e-5, 3.4654),
        (1000, 100, 95, 1e-5, 2.1652),
        (5000, 500, 480, 1e-5, 2.7830),
        (5000, 1000, 900, 1e-5, 2.0183),
        (1000, 1000, 600, 1e-5, 0.2972),
        (10000, 200, 200, 1e-5, 3.9091),
        (1000, 50, 25, 1e-5, 0.0),
    ],
)
def test_steinke_nasr_jagielski_to_four_digits(m, guesses, correct, delta, expected):
    assert one_run.steinke_epsilon(m, guesses, correct, delta, 0.05) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("m", "guesses", "correct", "mu", "epsilon"),
    [
        (1000, 100, 100, 1.2255, 5.549),
        (1000, 100, 95, 0.7868, 3.323),
        (5000, 500, 480, 0.9375, 4.063),
        (5000, 1000, 900, 0.7239, 3.023),
        (1000, 1000, 600, 0.1638, 0.5835),
        (10000, 200, 200, 1.2269, 5.556),
    ],
)
def test_mahloujifar_melis_chaudhuri_to_four_digits(m, guesses, correct, mu, epsilon):
    assert one_run.gaussian_mu(m, guesses, correct, 0.05) == pytest.approx(mu, abs=5e-5)
    assert one_run.gaussian_epsilon(m, guesses, correct, 1e-5, 0.05) == pytest.approx(epsilon, abs=5e-4)


@pytest.mark.parametrize(("runs", "expected"), [(500, 4.906), (5000, 7.211)])
def test_perfect_runs_end_at_the_clopper_pearson_ceiling(runs, expected):
    assert several_runs.clopper_pearson_epsilon(RunCounts(runs, runs, 0, 0), 1e-5, 0.05) == pytest.approx(
        expected, abs=5e-4
    )


def test_perfect_runs_end_at_a_mu_of_4_88():
    assert several_runs.gaussian_mu(RunCounts(500, 500, 0, 0), 0.05) == pytest.approx(4.88, abs=5e-3)


@pytest.mark.shared
def test_published_tools_agree_where_they_are_right(shared_dir):
    published = np.load(shared_dir / "reference" / "metrics_eps.npz")
    for m, guesses, correct, delta, epsilon, p_value in published["steinke_rows_m_r_v_delta_epslb_pvalAtEps1"]:
        found = one_run.steinke_epsilon(int(m), int(guesses), int(correct), float(delta), 0.05)
        assert found == pytest.approx(epsilon, abs=1e-5)
        ours = one_run.steinke_p_value(int(m), int(guesses), int(correct), 1.0, float(delta))
        assert ours == pytest.approx(p_value, rel=1e-5)
    for m, correct, guesses, delta, epsilon in published["pg_fdp_rows_m_c_ccap_delta_eps"]:
        found = one_run.gaussian_epsilon(int(m), int(guesses), int(correct), float(delta), 0.05)
        # PrivacyGuard scans the noise in steps of 0.01, so its mu is the next coarser one: up to 2 % below.
        assert epsilon * 0.9999 <= found <= epsilon * 1.02
    # jax_privacy at the threshold 1.0 fixed in advance.
    scores, member = published["scores"], published["member"]
    called = scores >= 1.0
    guesses, correct = int(called.sum()), int((called & member).sum())
    assert one_run.steinke_epsilon(2000, guesses, correct, 1e-5, 0.05) == pytest.approx(
        float(published["jaxp_onerun_d1e-5_explicit_1.0"]), abs=1e-5
    )
    assert one_run.gaussian_epsilon(2000, guesses, correct, 1e-5, 0.05) == pytest.approx(
        float(published["jaxp_onerun_fdp_d1e-5_explicit_1.0"]), abs=1e-5
    )
    found = bound(scores, member, method="several-runs", design="independent-runs", delta=0.0, threshold=1.0)
    assert found.epsilon == pytest.approx(float(published["jaxp_cp_explicit_1.0"]), abs=1e-9)


def slow_p_value(m, guesses, correct, epsilon, delta):
    """Theorem 3.1 word for word."""
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))

    def f(v):
        return binom.sf(v - 1, guesses, honest)

    spill = max((f(correct - i) - f(correct)) / i for i in range(1, m + 1))
    return min(1.0, f(correct) + 2 * m * delta * spill)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_p_value_is_the_theorem(data):
    m = data.draw(st.integers(1, 60))
    guesses = data.draw(st.integers(1, m))
    correct = data.draw(st.integers(1, guesses))
    epsilon = data.draw(st.floats(0, 8))
    delta = data.draw(st.sampled_from([0.0, 1e-5, 1e-2]))
    ours = one_run.steinke_p_value(m, guesses, correct, epsilon, delta)
    assert ours == pytest.approx(slow_p_value(m, guesses, correct, epsilon, delta), rel=1e-9, abs=1e-12)
    # A number of guesses chosen from what training gave out never comes cheaper.
    for fewest in (1, guesses):
        assert one_run.steinke_p_value(m, guesses, correct, epsilon, delta, fewest_guesses=fewest) >= ours - 1e-12


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_bounds_rise_with_right_guesses_and_fall_with_confidence_and_delta(data):
    m = data.draw(st.integers(2, 400))
    guesses = data.draw(st.integers(1, m))
    correct = data.draw(st.integers(0, guesses - 1))
    alpha = data.draw(st.floats(0.001, 0.2))
    for find in (one_run.gaussian_mu, lambda *given: one_run.steinke_epsilon(*given[:3], 1e-5, given[3])):
        here = find(m, guesses, correct, alpha)
        assert 0 <= here <= find(m, guesses, correct + 1, alpha) + 1e-6
        assert find(m, guesses, correct, alpha / 2) <= here + 1e-6
    strict = one_run.steinke_epsilon(m, guesses, correct, 1e-3, alpha)
    assert strict <= one_run.steinke_epsilon(m, guesses, correct, 0.0, alpha) + 1e-6


def slow_gaussian_refutes(m, guesses, correct, mu, alpha):
    """Algorithm 3 of Mahloujifar et al. with scipy.stats, one mu, no short cut."""
    right, wrong = alpha * correct / m, alpha * (guesses - correct) / m
    for i in range(correct - 1, -1, -1):
        grown = max(wrong, norm.cdf(norm.ppf(min(right, 1.0)) - mu))
        right += i / (guesses - i) * (grown - wrong)
        wrong = grown
    return right + wrong > guesses / m


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_mu_is_the_last_that_the_published_recursion_refutes(data):
    m = data.draw(st.integers(20, 300))
    guesses = data.draw(st.integers(10, m))
    correct = data.draw(st.integers(guesses // 2, guesses))
    mu = one_run.gaussian_mu(m, guesses, correct, 0.05)
    assert mu == 0 or slow_gaussian_refutes(m, guesses, correct, mu, 0.05)
    assert not slow_gaussian_refutes(m, guesses, correct, mu + 1e-5, 0.05)


@given(st.floats(0.01, 8), st.sampled_from([1e-9, 1e-5, 1e-2]))
@settings(deadline=None)
def test_gaussian_epsilon_and_delta_are_inverse(mu, delta):
    epsilon = gdp_epsilon(mu, delta)
    if epsilon == 0:
        assert gdp_delta(mu, 0.0) <= delta
    else:
        assert gdp_delta(mu, epsilon) == pytest.approx(delta, rel=1e-5)


def test_gaussian_delta_by_integration():
    # delta(epsilon) is the integral of (p - e^epsilon q)+ for p = N(mu, 1), q = N(0, 1).
    x = np.linspace(-12, 14, 400_001)
    for mu, epsilon in [(0.5, 0.1), (1.0, 2.0), (3.0, 4.0)]:
        gap = np.maximum(norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x), 0)
        assert gdp_delta(mu, epsilon) == pytest.approx(float(np.trapezoid(gap, x)), rel=1e-6)


def test_clopper_pearson_form_against_its_formula():
    runs = RunCounts(runs_with=40, runs_without=60, false_negatives=10, false_positives=3)
    fpr, fnr = beta.ppf(0.975, 4, 57), beta.ppf(0.975, 11, 30)
    assert several_runs.rate_limits(runs, 0.05) == pytest.approx((fpr, fnr))
    expected = max(math.log((1 - 0.01 - fpr) / fnr), math.log((1 - 0.01 - fnr) / fpr))
    assert several_runs.clopper_pearson_epsilon(runs, 0.01, 0.05) == pytest.approx(expected)
    assert several_runs.gaussian_mu(runs, 0.05) == pytest.approx(norm.ppf(1 - fpr) - norm.ppf(fnr))


def test_runs_that_are_all_called_wrongly_bound_nothing():
    runs = RunCounts(runs_with=20, runs_without=20, false_negatives=20, false_positives=20)
    assert several_runs.clopper_pearson_epsilon(runs, 1e-5, 0.05) == 0
    assert several_runs.gaussian_epsilon(runs, 1e-5, 0.05) == 0


# --- guesses


@pytest.mark.parametrize(("m", "total"), [(1, 1), (20, 10), (100, 50), (200, 100), (1000, 100), (5000, 500)])
def test_default_number_of_guesses(m, total):
    assert default_guesses(m).total == total


@given(st.integers(1, 5000), st.floats(1e-4, 0.2))
def test_candidates_fit_and_can_refute_something(m, alpha):
    found = candidate_guesses(m, alpha)
    assert len(set(found)) == len(found) >= 1
    for one in found:
        assert 1 <= one.total <= m
        assert 0.5**one.total <= alpha or found == [both_sides(m)]


def test_ties_are_broken_at_random_and_order_is_kept_otherwise():
    scores = np.array([1.0, 0.0, 1.0, 1.0, -np.inf, np.inf])
    seen = {tuple(rank(scores, np.random.default_rng(seed))) for seed in range(200)}
    assert len(seen) == 6
    assert all(order[:2] == (4, 1) and order[-1] == 5 for order in seen)


def test_right_guesses_are_counted_on_both_ends():
    ranked = np.array([0, 1, 0, 1, 1, 0, 1, 1], bool)
    assert right_guesses(ranked, both_sides(4)) == 3
    assert right_guesses(ranked, both_sides(8)) == 5
    assert right_guesses(ranked, both_sides(1)) == 1


# --- the one way in


@pytest.fixture(scope="module")
def canaries():
    rng = np.random.default_rng(0)
    member = rng.random(1000) < 0.5
    return rng.normal(size=1000) + 2 * member, member


def down(value: float) -> str:
    """What is printed never overstates."""
    return f"{math.floor(100 * value) / 100:.2f}"


def test_a_bound_tells_all_that_it_rests_on(canaries):
    found = bound(*canaries, design="coin-flips", guesses=(120, 60), rng=np.random.default_rng(1))
    assert found.valid
    assert found.status == "bound"
    assert (found.m, found.guesses) == (1000, 180)
    assert found.counts == {"guesses_in": 120, "guesses_out": 60}
    assert found.epsilon == one_run.steinke_epsilon(1000, 180, found.correct, 1e-5, 1 - 0.95)
    assert found.epsilon < found.ceiling == one_run.steinke_epsilon(1000, 180, 180, 1e-5, 1 - 0.95)
    assert found.selection == "180 guesses (120 in, 60 out), fixed in advance"
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["valid"] is True
    assert content["text"] == str(found)
    assert "each canary was put in by its own fair coin" in content["assumptions"][0]
    assert str(found).startswith(f"ε ≥ {down(found.epsilon)} at δ = 1e-05 with 95 % confidence (one-run: ")


def test_gaussian_bound_names_its_hypothesis(canaries):
    found = bound(*canaries, method="one-run-gdp", design="coin-flips")
    assert found.mu is not None
    assert found.epsilon == gdp_epsilon(found.mu, 1e-5)
    assert "if the mechanism is a Gaussian one" in str(found)
    assert any("Gaussian" in one for one in found.assumptions)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("design", DESIGNS)
def test_only_the_admissible_design_gives_a_bound(canaries, method, design):
    threshold = 1.0 if method.startswith("several") else None
    found = bound(*canaries, method=method, design=design, threshold=threshold)
    admissible = design == ("coin-flips" if method.startswith("one-run") else "independent-runs")
    assert found.valid == admissible
    assert found.epsilon > 0
    if not admissible:
        assert found.status.startswith("not a bound: ")
        assert str(found).startswith("not a bound: ")
        assert "≥" not in str(found)


def test_without_a_stated_design_there_is_no_bound(canaries):
    found = bound(*canaries)
    assert not found.valid
    assert "not put in by coin flips" in found.status


def test_search_is_written_down_and_costs(canaries):
    free = bound(*canaries, design="coin-flips", guesses=200)
    paid = bound(*canaries, design="coin-flips", guesses=200, searched=10)
    assert paid.epsilon == one_run.steinke_epsilon(1000, 200, paid.correct, 1e-5, (1 - 0.95) / 10)
    assert paid.epsilon < free.epsilon
    assert paid.selection.endswith("one of 10 attacks, each at its share of the error probability")
    searched = bound(*canaries, design="coin-flips", guesses="bonferroni")
    choices = candidate_guesses(1000, 1 - 0.95)
    share = (1 - 0.95) / len(choices)
    assert searched.epsilon == one_run.steinke_epsilon(1000, searched.guesses, searched.correct, 1e-5, share)
    assert f"the best of {len(choices)} choices" in searched.selection
    halved = bound(*canaries, design="coin-flips", guesses="split")
    assert halved.m == 500
    assert halved.selection.endswith("chosen on 500 canaries, bounded on the other 500 (split)")


def test_several_attacks_share_the_error_probability(canaries):
    scores, member = canaries
    noise = np.random.default_rng(5).normal(size=1000)
    found = bound_each({"noise": noise, "signal": scores}, member, design="coin-flips", guesses=100)
    assert list(found) == ["signal", "noise"]
    assert all(one.searched == 2 for one in found.values())
    alone = bound(scores, member, design="coin-flips", guesses=100, searched=2)
    assert found["signal"] == alone


def test_several_runs_thresholds():
    rng = np.random.default_rng(2)
    member = np.repeat([True, False], 200)
    scores = rng.normal(size=400) + 3 * member
    settings_ = {"method": "several-runs", "design": "independent-runs"}
    one = bound(scores, member, threshold=1.5, **settings_)
    assert one.counts["runs_with"] == one.counts["runs_without"] == 200
    assert one.counts["false_negatives"] == int((scores[member] < 1.5).sum())
    assert one.correct == 400 - one.counts["false_negatives"] - one.counts["false_positives"]
    two = bound(scores, member, threshold=[1.5, 50.0], **settings_)
    assert 0 < two.epsilon < one.epsilon
    assert two.selection.startswith("threshold 1.5, the best of 2")
    half = bound(scores, member, threshold="split", **settings_)
    assert half.m == 200
    assert half.epsilon > 1
    # A score at the threshold counts as positive.
    edge = bound([1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0], threshold=1.0, **settings_)
    assert edge.correct == 4


def test_a_split_is_bounded_on_the_half_that_it_was_not_chosen_on():
    # Odd numbers tell the halves apart: the smaller one chooses.
    rng = np.random.default_rng(6)
    member = np.repeat([True, False], 201)
    runs = bound(
        rng.normal(size=402) + 3 * member,
        member,
        method="several-runs",
        design="independent-runs",
        threshold="split",
    )
    assert (runs.counts["runs_with"], runs.counts["runs_without"]) == (101, 101)
    assert runs.selection.endswith("chosen on 200 runs, bounded on the other 202 (split)")
    coins = rng.random(1001) < 0.5
    canaries = bound(rng.normal(size=1001) + 2 * coins, coins, design="coin-flips", guesses="split")
    assert canaries.m == 501
    assert canaries.selection.endswith("chosen on 500 canaries, bounded on the other 501 (split)")


def test_the_generator_decides_ties_and_halves_and_nothing_global(canaries):
    scores, member = canaries
    coarse = np.round(scores)
    first, again, other = (
        bound(coarse, member, design="coin-flips", guesses="split", rng=np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "two-run"}, "unknown method of a privacy bound: 'two-run'"),
        ({"design": "rct"}, "unknown design of a privacy bound: 'rct'"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": -1e-5}, "delta is -1e-05"),
        ({"delta": 0.0, "method": "one-run-gdp"}, r"needs it in \(0, 1\)"),
        ({"confidence": 95}, "confidence is 95"),
        ({"searched": 0}, "searched is 0"),
        ({"guesses": 0}, "0 guesses 'in' and 0 'out' for 1000 canaries"),
        ({"guesses": (900, 101)}, "900 guesses 'in' and 101 'out'"),
        ({"guesses": "best"}, "guesses is 'best'"),
        ({"guesses": "split", "method": "one-run-gdp"}, "its theorem needs a fixed number"),
        ({"threshold": 1.0}, "one-run goes by guesses"),
        ({"guesses": 10, "method": "several-runs"}, "several-runs goes by a threshold"),
        ({"method": "several-runs"}, "need a threshold that was not chosen on these runs"),
        ({"method": "several-runs", "threshold": "best"}, "threshold is 'best'"),
        ({"method": "several-runs", "threshold": []}, "threshold is"),
        ({"method": "several-runs", "threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(canaries, change, message):
    with pytest.raises(ConfigError, match=message):
        bound(*canaries, **{"design": "coin-flips"} | change)


@pytest.mark.parametrize(
    ("scores", "member", "change", "message"),
    [
        ([], [], {}, "two equally long vectors"),
        ([1.0, 2.0], [True], {}, "two equally long vectors"),
        ([1.0, np.nan], [True, False], {}, "1 of 2 scores are NaN, the first at index 1"),
        ([1.0, 2.0], [1, 2], {}, "membership holds 2"),
        ([1.0], [True], {"guesses": "split"}, "cannot be split"),
        ([1.0, 2.0], [True, True], {"method": "several-runs", "threshold": 1.0}, "2 of 2 runs had the canary"),
        ([1.0, 2.0], [True, False], {"method": "several-runs", "threshold": "split"}, "too few runs to split"),
        (np.zeros(1000), np.arange(1000) < 600, {}, "600 of 1,000 records are members, which 1,000 fair coins do not"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores, member, change, message):
    with pytest.raises(DataError, match=message):
        bound(scores, member, **{"design": "coin-flips"} | change)


# --- beside the accountant


def test_a_bound_below_the_accountant_is_within(canaries):
    lower = bound(*canaries, design="coin-flips")
    found = compare_with_accountant(lower, 8.0, 1e-5)
    assert found.verdict == "within"
    assert str(found).startswith(f"{down(lower.epsilon)} ≤ true ε ≤ 8.00")
    # 100 right guesses of 1,000 canaries would show 3.465: no such audit could have contradicted the claim of 8.
    assert "could not have shown more than 3.46" in found.text
    assert "could not have shown" not in compare_with_accountant(lower, 3.4, 1e-5).text


def test_a_bound_above_the_accountant_is_told_loudly(canaries):
    lower = bound(*canaries, design="coin-flips")
    found = compare_with_accountant(lower, 0.5, 1e-5)
    assert found.verdict == "contradiction"
    assert found.text.startswith("BROKEN DP CLAIM: measured ε ≥ ")
    assert "clipped" in found.text
    assert "probability at most 0.05" in found.text
    assert "Gaussian mechanism" not in found.text
    gaussian = compare_with_accountant(bound(*canaries, method="one-run-gdp", design="coin-flips"), 0.5, 1e-5)
    assert gaussian.verdict == "contradiction"
    assert "assumes a Gaussian mechanism, which the accountant's claim does not" in gaussian.text


def test_no_contradiction_from_what_is_no_bound_or_speaks_of_a_smaller_delta(canaries):
    observed = bound(*canaries)
    assert compare_with_accountant(observed, 0.1, 1e-5).verdict == "not comparable"
    lower = bound(*canaries, design="coin-flips")
    assert compare_with_accountant(lower, 0.1, 1e-3).verdict == "not comparable"
    assert compare_with_accountant(lower, 0.1, 1e-6).verdict == "contradiction"


def test_copies_of_a_canary_weaken_the_claim(canaries):
    lower = bound(*canaries, design="coin-flips", delta=1e-4)
    assert compare_with_accountant(lower, 1.0, 1e-5).verdict == "contradiction"
    triple = compare_with_accountant(lower, 1.0, 1e-6, copies=3)
    assert triple.upper == 3.0
    assert triple.upper_delta == pytest.approx(1e-6 * (1 + math.e + math.e**2))
    pure = compare_with_accountant(lower, 400.0, 0.0, copies=4)
    assert (pure.upper, pure.upper_delta) == (1600.0, 0.0)
    assert compare_with_accountant(lower, 0.0, 1e-6, copies=4).upper_delta == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("epsilon", "delta", "copies", "message"),
    [(-1, 1e-5, 1, "claim is"), (float("nan"), 1e-5, 1, "claim is"), (1, 1, 1, "claim is"), (1, 1e-5, 0, "0 copies")],
)
def test_claims_that_make_no_sense_are_refused(canaries, epsilon, delta, copies, message):
    with pytest.raises(ConfigError, match=message):
        compare_with_accountant(bound(*canaries), epsilon, delta, copies=copies)


def test_figures_are_rounded_to_the_safe_side(canaries):
    lower = dataclasses.replace(bound(*canaries, design="coin-flips"), epsilon=1.9999)
    assert str(lower).startswith("ε ≥ 1.99 ")
    assert str(compare_with_accountant(lower, 2.0001, 1e-5)).startswith("1.99 ≤ true ε ≤ 2.01")
    assert str(compare_with_accountant(lower, math.inf, 1e-5)).startswith("1.99 ≤ true ε ≤ ∞")


def test_the_documentation_shows_what_is_printed():
    page = Path(__file__).resolve().parents[2] / "docs" / "privacy_bounds.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10
    assert failed == 0
