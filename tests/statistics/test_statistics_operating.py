"""Operating points by brute force over thresholds; what the sample supports; what tied and infinite scores do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memberscope.statistics.curves import rank
from memberscope.statistics.intervals import clopper_pearson, order_statistic_band, zero_count_bound
from memberscope.statistics.operating import (
    allowed_errors,
    nonmembers_needed,
    predictive_values,
    tnr_at_fnr,
    tpr_at_fpr,
    tpr_at_zero_fp,
)


def _data(seed, m, n, shift=1.0, step=0.0):
    rng = np.random.default_rng(seed)
    member = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    score = rng.normal(shift * member, 1)
    return (np.round(score / step) * step if step else score), member


@pytest.mark.parametrize(
    ("fpr", "needs"), [(0.1, 100), (0.01, 1000), (0.001, 10_000), (1e-4, 100_000), (1e-5, 1_000_000), (0.3, 34)]
)
def test_a_rate_needs_ten_expected_false_positives(fpr, needs):
    assert nonmembers_needed(fpr) == needs
    score, member = _data(0, 5, needs - 1)
    refused = tpr_at_fpr(rank(score, member), fpr)
    assert not refused.supported
    assert (refused.tpr, refused.true_fpr, refused.false_positives, refused.true_positives) == (None, None, None, None)
    assert np.isnan(refused.threshold)
    assert f"it needs {needs:,} non-members and there are {needs - 1:,}" in str(refused)
    if needs <= 10_000:
        score, member = _data(0, 5, needs)
        assert tpr_at_fpr(rank(score, member), fpr).supported


@given(k=st.integers(0, 1000), n=st.integers(1, 1000))
def test_allowed_errors_survive_rounding(k, n):
    k = min(k, n)
    assert allowed_errors(k / n, n) == k


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 80),
    n=st.integers(100, 300),
    step=st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    fpr=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_point_is_the_best_threshold_with_ties_whole(seed, m, n, step, fpr):
    score, member = _data(seed, m, n, step=step)
    point = tpr_at_fpr(rank(score, member), fpr)
    candidates = [t for t in np.unique(score) if np.mean(score[~member] >= t) <= fpr]
    best = max((np.mean(score[member] >= t) for t in candidates), default=0.0)
    assert point.tpr.value == best
    called = score >= point.threshold
    assert point.true_positives == np.sum(called & member) == point.tpr.k
    assert point.false_positives == np.sum(called & ~member) == point.true_fpr.k
    assert point.false_positives <= fpr * n
    # The threshold is the loosest: the next score down brings too many.
    assert np.mean(score[~member] >= score[score < point.threshold].max()) > fpr
    assert point.tpr.low <= point.tpr.value <= point.tpr.high
    assert point.tpr.high > point.tpr.low
    own = clopper_pearson(point.true_positives, m)
    assert point.tpr.low <= own[0] + 1e-12
    assert point.tpr.high >= own[1] - 1e-12


def test_true_fpr_is_the_order_statistic_band_or_clopper_pearson_if_tied():
    score, member = _data(1, 500, 1000)
    point = tpr_at_fpr(rank(score, member), 0.01)
    assert point.false_positives == 10
    assert (point.true_fpr.low, point.true_fpr.high) == order_statistic_band(10, 1000)
    score, member = _data(1, 500, 1000, step=0.5)
    tied = tpr_at_fpr(rank(score, member), 0.01)
    assert tied.false_positives < 10
    assert (tied.true_fpr.low, tied.true_fpr.high) == clopper_pearson(tied.false_positives, 1000)
    assert "tied" in tied.true_fpr.method


def test_interval_answers_for_the_threshold_too():
    """Its width is that of both errors in quadrature where the curve is smooth: known density, delta method."""
    m = n = 20_000
    score, member = _data(2, m, n, shift=1.5)
    fpr = 0.05
    threshold = stats.norm.isf(fpr)
    tpr = stats.norm.sf(threshold - 1.5)
    slope = stats.norm.pdf(threshold - 1.5) / stats.norm.pdf(threshold)
    error = np.sqrt(tpr * (1 - tpr) / m + slope**2 * fpr * (1 - fpr) / n)
    alone = np.sqrt(tpr * (1 - tpr) / m)
    point = tpr_at_fpr(rank(score, member), fpr)
    assert (point.tpr.high - point.tpr.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)
    assert error / alone > 1.8


def test_no_false_positive_claims_no_rate_of_zero():
    score, member = np.r_[np.arange(1.0, 51.0), np.arange(0.5, 40.5)], np.r_[np.ones(50, bool), np.zeros(40, bool)]
    point = tpr_at_zero_fp(rank(score, member))
    assert (point.fpr, point.supported, point.false_positives, point.true_positives) == (0.0, True, 0, 11)
    assert point.threshold == np.nextafter(39.5, np.inf)
    assert (point.tpr.low, point.tpr.high) == clopper_pearson(11, 50)
    assert (point.true_fpr.low, point.true_fpr.high) == (0.0, zero_count_bound(40))
    assert str(point).startswith("TPR at no false positive (FPR < 7.22 %): 22 % [")
    assert str(point).endswith("(11 of 50)")


def test_nothing_can_be_accepted_above_an_infinite_non_member():
    score = np.r_[np.full(30, np.inf), np.zeros(70), np.full(60, np.inf), np.zeros(40)]
    member = np.r_[np.ones(100, bool), np.zeros(100, bool)]
    point = tpr_at_fpr(rank(score, member), 0.1)
    assert np.isnan(point.threshold)
    assert (point.true_positives, point.false_positives, point.tpr.value) == (0, 0, 0.0)
    assert all(np.isnan(row.ppv.value) for row in predictive_values(point, 100, (0.5,)))
    assert predictive_values(point, 100, (0.5,))[0].ppv.note == "no record was called a member"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.sampled_from([0.0, 0.2]), fnr=st.sampled_from([0.01, 0.05]))
def test_tnr_is_the_tpr_of_the_mirrored_scores(seed, step, fnr):
    score, member = _data(seed, 1000, 300, step=step)
    point = tnr_at_fnr(rank(score, member), fnr)
    mirrored = tpr_at_fpr(rank(-score, ~member), fnr)
    assert (point.tnr, point.true_fnr, point.needs) == (mirrored.tpr, mirrored.true_fpr, mirrored.needs)
    assert point.false_negatives == np.sum(member & (score < point.threshold)) <= fnr * 1000
    assert point.true_negatives == np.sum(~member & (score < point.threshold))
    assert point.threshold in score
    too_few = tnr_at_fnr(rank(score, ~member), fnr)
    assert too_few.supported == (fnr == 0.05)
    if not too_few.supported:
        assert str(too_few) == "TNR at 1 % FNR: not shown, it needs 1,000 members and there are 300"


def test_predictive_values_are_bayes_rule_and_ordered():
    score, member = _data(4, 2000, 3000)
    ranking = rank(score, member)
    point = tpr_at_fpr(ranking, 0.01)
    rows = predictive_values(point, 2000, (0.5, 0.1, 0.01))
    tpr, fpr = point.true_positives / 2000, point.false_positives / 3000
    for row, prior in zip(rows, (0.5, 0.1, 0.01), strict=True):
        assert (row.prior, row.fpr) == (prior, 0.01)
        assert row.ppv.value == pytest.approx(prior * tpr / (prior * tpr + (1 - prior) * fpr))
        assert 0 < row.ppv.low < row.ppv.value < row.ppv.high < 1
    assert [row.ppv.value for row in rows] == sorted((row.ppv.value for row in rows), reverse=True)
    assert predictive_values(tpr_at_fpr(ranking, 1e-4), 2000, (0.5,)) == ()
