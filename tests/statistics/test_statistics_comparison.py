"""Paired differences against their definitions and against an independent bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from memberscope.errors import ConfigError, EvidenceError
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.comparison import paired_auc_difference, paired_tpr_difference
from memberscope.statistics.curves import rank, roc_curve


def _pair(seed, m, n, a=1.0, b=0.7, step=0.0):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.r_[np.ones(m, bool), np.zeros(n, bool)])
    shared = rng.normal(size=m + n)
    both = [shared + shift * member + 0.5 * rng.normal(size=m + n) for shift in (a, b)]
    return *(np.round(score / step) * step if step else score for score in both), member


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_auc_difference_is_delongs(step):
    a, b, member = _pair(0, 90, 140, step=step)

    def wins(score):
        x, y = score[member][:, None], score[~member][None, :]
        return (x > y) + 0.5 * (x == y)

    gap = wins(a) - wins(b)
    parts = np.array([gap.mean(axis=1).var(ddof=1) / 90, gap.mean(axis=0).var(ddof=1) / 140])
    freedom = parts.sum() ** 2 / (parts[0] ** 2 / 89 + parts[1] ** 2 / 139)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum())
    estimate = paired_auc_difference(a, b, member)
    assert estimate.value == pytest.approx(metrics.roc_auc_score(member, a) - metrics.roc_auc_score(member, b))
    np.testing.assert_allclose((estimate.low, estimate.high), estimate.value + np.array([-reach, reach]), atol=1e-12)
    back = paired_auc_difference(b, a, member)
    np.testing.assert_allclose((back.low, back.high), (-estimate.high, -estimate.low), atol=1e-12)


def test_pairing_resolves_what_overlapping_intervals_do_not():
    a, b, member = _pair(1, 2000, 2000, a=1.0, b=0.9)
    single = [auc_estimate(rank(score, member)) for score in (a, b)]
    assert single[0].low < single[1].high
    assert paired_auc_difference(a, b, member).low > 0


def test_equal_rankings_leave_the_share_of_pairs_that_was_not_seen():
    a, _, member = _pair(2, 300, 200)
    same = paired_auc_difference(a, np.exp(a), member)
    unseen = 1 - 0.025 ** (1 / 200)
    assert same.value == 0
    np.testing.assert_allclose((same.low, same.high), (-unseen, unseen))
    truth = member.astype(float)
    opposite = paired_auc_difference(truth, -truth, member)
    assert (opposite.value, opposite.high) == (1, 1)
    assert opposite.low == pytest.approx(1 - 2 * unseen)


@pytest.mark.parametrize("step", [0.0, 0.3])
def test_tpr_difference_matches_a_plain_bootstrap(step):
    m, n, fpr, draws = 300, 400, 0.05, 400
    a, b, member = _pair(3, m, n, step=step)

    def tpr(score, truth):
        return roc_curve(rank(score, truth)).tpr_at(fpr)

    estimate = paired_tpr_difference(a, b, member, fpr, rng=np.random.default_rng(7), draws=draws)
    assert estimate.value == pytest.approx(tpr(a, member) - tpr(b, member), abs=1e-12)
    rng, drawn = np.random.default_rng(7), []
    groups = np.flatnonzero(member), np.flatnonzero(~member)
    for _ in range(draws):
        chosen = np.concatenate([group[rng.integers(group.size, size=group.size)] for group in groups])
        drawn.append(tpr(a[chosen], member[chosen]) - tpr(b[chosen], member[chosen]))
    np.testing.assert_allclose((estimate.low, estimate.high), np.quantile(drawn, [0.025, 0.975]), atol=1e-12)
    assert estimate.low < estimate.value < estimate.high
    again = paired_tpr_difference(a, b, member, fpr, rng=np.random.default_rng(7), draws=draws)
    assert again == estimate


def test_tpr_difference_refuses_rates_without_support():
    a, b, member = _pair(4, 50, 900)
    with pytest.raises(ConfigError, match=r"0\.01 needs 1,000 non-members, found 900"):
        paired_tpr_difference(a, b, member, 0.01, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"between 0 and 1, found 1"):
        paired_tpr_difference(a, b, member, 1.0, rng=np.random.default_rng(0))


def test_both_scores_are_checked():
    a, b, member = _pair(5, 20, 20)
    b[3] = np.nan
    with pytest.raises(EvidenceError, match="1 of 40 scores are NaN"):
        paired_auc_difference(a, b, member)
    with pytest.raises(EvidenceError, match=r"found shapes \(39,\) and \(40,\)"):
        paired_auc_difference(a[:-1], b, member)
