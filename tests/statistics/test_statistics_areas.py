"""Variances of areas against their definitions, pair by pair and by finite differences; the ends of the scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from memberscope.statistics.areas import (
    Spread,
    auc_estimate,
    auc_p_value,
    average_precision_estimate,
    delong_components,
)
from memberscope.statistics.curves import auc, rank
from memberscope.statistics.intervals import clopper_pearson


def _data(seed, m, n, shift=1.0, step=0.0):
    rng = np.random.default_rng(seed)
    member = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    score = rng.normal(shift * member, 1)
    return (np.round(score / step) * step if step else score), member


def _wins(score, member):
    """[members, non-members] 1, 1/2 or 0: the definition of the AUC, pair by pair."""
    a, b = score[member][:, None], score[~member][None, :]
    return (a > b) + 0.5 * (a == b)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_delong_components_are_means_over_pairs(step):
    score, member = _data(0, 60, 90, step=step)
    ranking = rank(score, member)
    below, above = delong_components(ranking)
    wins = _wins(score, member)
    np.testing.assert_allclose(below[ranking.group[member]], wins.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(above[ranking.group[~member]], wins.mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_auc_interval_is_delongs_on_the_logit_scale(step):
    score, member = _data(1, 120, 200, step=step)
    wins = _wins(score, member)
    parts = np.array([wins.mean(axis=1).var(ddof=1) / 120, wins.mean(axis=0).var(ddof=1) / 200])
    variance, value = parts.sum(), wins.mean()
    freedom = variance**2 / (parts[0] ** 2 / 119 + parts[1] ** 2 / 199)
    reach = stats.t.ppf(0.95, freedom) * np.sqrt(variance) / (value * (1 - value))
    estimate = auc_estimate(rank(score, member), confidence=0.9)
    assert estimate.value == pytest.approx(value, abs=1e-14)
    np.testing.assert_allclose(
        (estimate.low, estimate.high), expit(logit(value) + np.array([-reach, reach])), atol=1e-12
    )
    assert estimate.method == "DeLong (logit, t)"
    p = auc_p_value(rank(score, member))
    assert p == pytest.approx(2 * stats.t.sf(logit(value) / (reach / stats.t.ppf(0.95, freedom)), freedom), rel=1e-9)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_precision_influence_is_the_derivative_by_weight(step):
    m, n = 30, 50
    score, member = _data(2, m, n, step=step)

    def precision(weight):
        """Average precision when records have weights; groups keep their sizes."""
        w, v = weight[member] * m / weight[member].sum(), weight[~member] * n / weight[~member].sum()
        reached = score[member][:, None] <= score[member][None, :]
        alarms = score[member][:, None] <= score[~member][None, :]
        tp, fp = reached @ w, alarms @ v
        return np.sum(w * tp / (tp + fp)) / m

    slopes = np.zeros(m + n)
    for i in range(m + n):
        bump = np.zeros(m + n)
        bump[i] = 1e-6
        slopes[i] = (precision(1 + bump) - precision(1 - bump)) / 2e-6
    influence = np.where(member, slopes * m, slopes * n)
    variance = influence[member].var(ddof=1) / m + influence[~member].var(ddof=1) / n
    estimate = average_precision_estimate(rank(score, member))
    # Undo the logit: half the interval there is t times the error over value (1 - value).
    half = (logit(estimate.high) - logit(estimate.low)) / 2 * estimate.value * (1 - estimate.value)
    parts = [influence[member].var(ddof=1) / m, influence[~member].var(ddof=1) / n]
    freedom = variance**2 / (parts[0] ** 2 / (m - 1) + parts[1] ** 2 / (n - 1))
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize(("m", "n"), [(50, 50), (1000, 20), (3, 4), (1, 1)])
def test_perfect_separation_leaves_room_for_what_was_not_seen(m, n):
    score, member = np.r_[np.ones(m), np.zeros(n)], np.r_[np.ones(m, bool), np.zeros(n, bool)]
    estimate, pairs = auc_estimate(rank(score, member)), min(m, n)
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(0.025 ** (1 / pairs))
    worst = auc_estimate(rank(-score, member))
    assert (worst.value, worst.low) == (0, 0)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / pairs))
    assert auc_p_value(rank(score, member)) == pytest.approx(min(1, 2 * 0.5**pairs))
    assert auc_p_value(rank(score, member)) == auc_p_value(rank(-score, member))

    precision = average_precision_estimate(rank(score, member))
    assert (precision.value, precision.high) == (1, 1)
    assert 0 < precision.low < 1
    lowest = average_precision_estimate(rank(-score, member))
    assert lowest.low < lowest.value < lowest.high


def test_separated_precision_falls_to_what_unseen_top_non_members_would_make_of_it():
    m, n = 400, 200
    member = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    estimate = average_precision_estimate(rank(member.astype(float), member))
    # With probability 2.5 % none of 200 is seen of a kind of non-member that is this frequent:
    hidden = 1 - 0.025 ** (1 / n)
    # If they all stood above all members, precision at recall u would be u / (u + n hidden / m).
    recall = (np.arange(1_000_000) + 0.5) / 1_000_000
    assert estimate.low == pytest.approx(np.mean(recall / (recall + n * hidden / m)), abs=1e-6)


def test_a_constant_score_is_a_coin_flip_with_the_coins_error():
    member = np.r_[np.ones(300, bool), np.zeros(200, bool)]
    constant = rank(np.zeros(500), member)
    estimate = auc_estimate(constant)
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == clopper_pearson(100, 200)
    assert auc_p_value(constant) == pytest.approx(1.0)
    precision = average_precision_estimate(constant)
    assert precision.value == pytest.approx(0.6)
    assert (precision.low, precision.high) == clopper_pearson(120, 200)


def test_few_misordered_pairs_widen_the_interval_and_only_outwards():
    score, member = _data(3, 400, 400, shift=4.0)
    ranking = rank(score, member)
    estimate = auc_estimate(ranking)
    assert 0 < (1 - estimate.value) * 400 < 5
    assert estimate.low == pytest.approx(clopper_pearson(estimate.value * 400, 400)[0])
    assert estimate.high > estimate.value
    assert "disjoint pairs" in estimate.method
    flipped = auc_estimate(rank(-score, member))
    np.testing.assert_allclose((flipped.low, flipped.high), (1 - estimate.high, 1 - estimate.low), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    shift=st.floats(-5, 5),
    step=st.sampled_from([0.0, 0.5, 2.0]),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.9999]),
)
def test_intervals_hold_the_value_have_width_and_agree_with_the_p_value(seed, m, n, shift, step, confidence):
    score, member = _data(seed, m, n, shift, step)
    ranking = rank(score, member)
    area, precision = auc_estimate(ranking, confidence), average_precision_estimate(ranking, confidence)
    for estimate in (area, precision):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high > estimate.low
    p = auc_p_value(ranking)
    assert 0 <= p <= 1
    if abs(p - (1 - confidence)) > 1e-9:
        assert (p < 1 - confidence) == (not area.low <= 0.5 <= area.high)
    wider = auc_estimate(ranking, (1 + confidence) / 2)
    assert wider.low <= area.low <= area.high <= wider.high
    assert area.value == auc(ranking)


def test_degrees_of_freedom_follow_the_noisier_group():
    values = np.array([0.0, 1.0])
    alone = Spread.of([(values, np.array([5, 5])), (np.zeros(2), np.array([500, 500]))])
    assert alone.freedom == pytest.approx(9)
    both = Spread.of([(values, np.array([5, 5])), (values, np.array([5, 5]))])
    assert both.freedom == pytest.approx(18)
    assert both.variance == pytest.approx(2 * 0.25 * 10 / 9 / 10)
