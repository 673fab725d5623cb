"""Intervals of counts against scipy, exact enumeration and published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from memberscope.statistics.intervals import (
    Estimate,
    binomial_limit,
    bonferroni,
    clopper_pearson,
    holm,
    order_statistic_band,
    weighted_sum,
    wilson,
    zero_count_bound,
)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_proportions_agree_with_scipy(n, share, confidence):
    k = round(share * n)
    test = stats.binomtest(k, n)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = test.proportion_ci(confidence, method)
        np.testing.assert_allclose(ours(k, n, confidence), (theirs.low, theirs.high), atol=1e-9)


def test_clopper_pearson_covers_every_proportion():
    n, confidence = 25, 0.9
    limits = np.array([clopper_pearson(k, n, confidence) for k in range(n + 1)])
    for p in np.linspace(0.001, 0.999, 199):
        inside = (limits[:, 0] <= p) & (p <= limits[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= confidence


def test_binomial_limits_are_one_sided_monotone_in_fractions_and_precise_when_small():
    k = np.linspace(0, 40, 401)
    for upper in (False, True):
        assert np.all(np.diff(binomial_limit(k, 40, 0.95, upper=upper)[1:-1]) > 0)
    assert binomial_limit(0, 40, 0.95, upper=False) == 0
    assert binomial_limit(40, 40, 0.95, upper=True) == 1
    tiny = binomial_limit(0, 10**9, 0.975, upper=True)
    assert tiny == pytest.approx(-np.log(0.025) / 1e9, rel=1e-8)


@pytest.mark.parametrize(
    ("n", "fpr", "low", "high"),
    [
        # The table of 95 % bands for thresholds at the (k+1)-th largest non-member, in percent.
        (1_000, 0.01, 0.55, 1.83),
        (5_000, 0.01, 0.76, 1.32),
        (5_000, 0.001, 0.044, 0.233),
        (10_000, 0.01, 0.82, 1.21),
        (10_000, 0.001, 0.055, 0.184),
        (25_000, 0.001, 0.068, 0.148),
        (100_000, 0.0001, 0.0055, 0.0184),
    ],
)
def test_order_statistic_band_has_the_published_values(n, fpr, low, high):
    band = 100 * np.array(order_statistic_band(round(fpr * n), n))
    digits = [10 ** -len(str(value).split(".")[1]) for value in (low, high)]
    assert np.all(np.abs(band - (low, high)) <= 0.51 * np.array(digits))


def test_order_statistic_band_is_exact_for_uniform_scores():
    rng, n, k = np.random.default_rng(0), 50, 4
    low, high = order_statistic_band(k, n, 0.9)
    largest = np.sort(rng.random((20_000, n)), axis=1)[:, -(k + 1)]
    inside = np.sum((1 - largest >= low) & (1 - largest <= high))
    assert stats.binomtest(int(inside), 20_000, 0.9).pvalue > 1e-4


def test_zero_events_leave_about_three_in_n():
    assert zero_count_bound(1000) == pytest.approx(0.0029912, abs=1e-7)
    assert (1 - zero_count_bound(77, 0.8)) ** 77 == pytest.approx(0.2)


def test_difference_of_proportions_is_newcombes():
    # Newcombe (1998), table II: 56/70 - 48/80, method 10 gives [0.0524, 0.3339]; 9/10 - 3/10 gives [0.1705, 0.8090].
    for (a, m), (b, n), low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)):
        value, below, above = weighted_sum((1.0, 1.0), ((a, m), (n - b, n)))
        assert value - 1 == pytest.approx(a / m - b / n)
        np.testing.assert_allclose((below - 1, above - 1), (low, high), atol=5e-5)


def test_sums_stay_within_their_range():
    for counts in (((0, 5), (0, 7)), ((5, 5), (7, 7)), ((5, 5), (0, 7))):
        value, low, high = weighted_sum((0.5, 0.5), counts)
        assert -1e-12 <= low <= value <= high <= 1 + 1e-12
        assert high - low > 0.1


def test_holm_by_hand_and_with_undefined_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.02, 0.9]), [1.0, np.nan, 0.06, 1.0])
    assert np.isnan(holm([np.nan])).all()
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_raw_and_bonferroni_and_keeps_the_order(p):
    raw, adjusted = np.array(p), holm(p)
    assert np.all(adjusted >= raw - 1e-15)
    assert np.all(adjusted <= np.minimum(raw * len(raw), 1) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)


def test_bonferroni():
    assert bonferroni(0.95, 10) == pytest.approx(0.995)
    assert bonferroni(0.95, 1) == bonferroni(0.95, 0) == pytest.approx(0.95)


def test_an_estimate_reads_as_a_figure_or_as_the_reason_why_there_is_none():
    assert str(Estimate(0.70396, 0.6812, 0.7259, "DeLong")) == "0.7040 [0.6812, 0.7259]"
    undefined = Estimate.undefined("DeLong", "no members in this class")
    assert str(undefined) == "undefined (no members in this class)"
    assert np.isnan([undefined.value, undefined.low, undefined.high]).all()
