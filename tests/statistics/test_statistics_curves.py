"""Curves against scikit-learn, ties included; thinning that drops and never interpolates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from memberscope.errors import EvidenceError
from memberscope.statistics.curves import (
    RocCurve,
    auc,
    average_precision,
    pr_curve,
    rank,
    roc_curve,
    thin_pr,
    thin_roc,
)

CASES = {
    "continuous": lambda rng, m, n: np.r_[rng.normal(1, 1, m), rng.normal(0, 1, n)],
    "coarse": lambda rng, m, n: np.round(np.r_[rng.normal(1, 1, m), rng.normal(0, 1, n)]),
    "two values": lambda rng, m, n: np.r_[rng.random(m) < 0.6, rng.random(n) < 0.4].astype(float),
    "constant": lambda rng, m, n: np.full(m + n, 0.25),
    "separated": lambda rng, m, n: np.r_[np.full(m, 2.0) + rng.random(m), rng.random(n)],
    "inverted": lambda rng, m, n: np.r_[rng.random(m), np.full(n, 2.0) + rng.random(n)],
    "saturated": lambda rng, m, n: np.r_[1 - 10.0 ** -rng.uniform(1, 18, m), 1 - 10.0 ** -rng.uniform(1, 17, n)],
}


def _members(m, n):
    return np.r_[np.ones(m, bool), np.zeros(n, bool)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("m", "n"), [(500, 500), (40, 960), (997, 3), (1, 1)])
def test_agrees_with_scikit_learn(case, m, n):
    rng = np.random.default_rng(5)
    score, member = CASES[case](rng, m, n), _members(m, n)
    shuffle = rng.permutation(m + n)
    score, member = score[shuffle], member[shuffle]
    ranking = rank(score, member)
    roc, pr = roc_curve(ranking), pr_curve(ranking)

    fpr, tpr, thresholds = metrics.roc_curve(member, score, drop_intermediate=False)
    np.testing.assert_allclose(roc.fpr, fpr, atol=1e-12, rtol=0)
    np.testing.assert_allclose(roc.tpr, tpr, atol=1e-12, rtol=0)
    np.testing.assert_array_equal(ranking.thresholds, thresholds[1:])
    precision, recall, _ = metrics.precision_recall_curve(member, score)
    np.testing.assert_allclose(pr.precision, precision[::-1], atol=1e-12, rtol=0)
    np.testing.assert_allclose(pr.recall, recall[::-1], atol=1e-12, rtol=0)
    assert auc(ranking) == pytest.approx(metrics.roc_auc_score(member, score), abs=1e-12)
    assert average_precision(ranking) == pytest.approx(metrics.average_precision_score(member, score), abs=1e-12)


def test_auc_counts_pairs_and_a_tie_is_half_a_pair():
    ranking = rank(np.array([3.0, 1.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False, False]))
    # Pairs of (3, .) win three times; of (1, .) one loss, one tie, one win.
    assert auc(ranking) == (3 + 0 + 0.5 + 1) / 6


def test_infinities_have_a_rank():
    member = np.array([True, True, False, False])
    assert auc(rank(np.array([np.inf, 1.0, 0.0, -np.inf]), member)) == 1.0
    assert auc(rank(np.array([np.inf, -np.inf, np.inf, -np.inf]), member)) == 0.5


def test_minus_zero_is_zero_whichever_comes_first():
    member = np.array([True, False, True])
    for score in ([-0.0, 0.0, 1.0], [0.0, -0.0, 1.0]):
        assert [str(t) for t in rank(np.array(score), member).thresholds] == ["1.0", "0.0"]


scores = st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, np.inf]), min_size=2, max_size=40)


@given(score=scores, data=st.data())
def test_ranking_counts_every_record_once(score, data):
    values = np.array(score)
    member = np.array(data.draw(st.lists(st.booleans(), min_size=len(score), max_size=len(score))))
    member[0], member[1] = True, False
    ranking = rank(values, member)
    assert np.all(ranking.thresholds[1:] < ranking.thresholds[:-1])
    np.testing.assert_array_equal(ranking.thresholds[ranking.group], values)
    for step, threshold in enumerate(ranking.thresholds):
        assert ranking.tp[step] == np.sum(member & (values >= threshold))
        assert ranking.fp[step] == np.sum(~member & (values >= threshold))
    pairs = values[member][:, None], values[~member][None, :]
    assert auc(ranking) == pytest.approx(np.mean((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])), abs=1e-14)
    mirrored = rank(-values, ~member)
    for name in ("thresholds", "members", "nonmembers", "group"):
        np.testing.assert_array_equal(getattr(ranking.mirrored(), name), getattr(mirrored, name))


@given(score=scores, fpr=st.floats(0.0, 1.0))
def test_tpr_at_fpr_is_the_best_attained_point(score, fpr):
    values = np.array(score)
    member = np.arange(len(score)) % 2 == 0
    curve = roc_curve(rank(values, member))
    best = max([0.0] + [np.mean(values[member] >= t) for t in values if np.mean(values[~member] >= t) <= fpr])
    assert curve.tpr_at(fpr) == best


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 3000), step=st.sampled_from([0.0, 0.01, 0.3]))
def test_thinning_keeps_points_and_never_raises_the_curve(seed, size, step):
    rng = np.random.default_rng(seed)
    member = np.arange(2 * size) % 2 == 0
    score = rng.normal(member * 1.5, 1)
    score = np.round(score / step) * step if step else score
    ranking = rank(score, member)
    full, keep = roc_curve(ranking), (0.1, 0.01, 0.001)
    thin = thin_roc(full, limit=100, keep=keep)
    assert len(thin.fpr) <= 100
    points = set(zip(full.fpr, full.tpr, strict=True))
    assert all(point in points for point in zip(thin.fpr, thin.tpr, strict=True))
    assert (thin.fpr[0], thin.tpr[0]) == (0, 0)
    assert (thin.fpr[-1], thin.tpr[-1]) == (1, 1)
    assert all(thin.tpr_at(f) == full.tpr_at(f) for f in keep)
    grid = rng.random(50)
    assert all(thin.tpr_at(f) <= full.tpr_at(f) for f in grid)
    lowest = np.unique(full.fpr)[:40]
    assert all(thin.tpr_at(f) == full.tpr_at(f) for f in lowest)
    again = thin_roc(thin, limit=100, keep=keep)
    np.testing.assert_array_equal(again.tpr, thin.tpr)

    pr = pr_curve(ranking)
    thin = thin_pr(pr, limit=100)
    assert len(thin.recall) <= 100
    assert thin.recall[-1] == 1.0
    points = set(zip(pr.recall, pr.precision, strict=True))
    assert all(point in points for point in zip(thin.recall, thin.precision, strict=True))


def test_a_short_curve_stays_whole_but_for_superseded_points():
    curve = RocCurve(np.array([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]), np.array([0.0, 0.2, 0.4, 0.4, 0.6, 1.0]))
    thin = thin_roc(curve)
    assert thin.fpr.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert thin.tpr.tolist() == [0.0, 0.4, 0.4, 1.0]


@pytest.mark.parametrize(
    ("score", "member", "problem"),
    [
        ([0.1, np.nan, np.nan], [True, False, True], "2 of 3 scores are NaN, the first at position 1"),
        ([0.1, 0.2], [True, True], "no non-members among 2 records"),
        ([0.1, 0.2], [False, False], "no members among 2 records"),
        ([], np.array([], bool), "no members among 0 records"),
        ([0.1, 0.2], [1, 0], "membership must be boolean, found dtype int64"),
        ([0.1, 0.2], [True], "found shapes (2,) and (1,)"),
        ([[0.1], [0.2]], [[True], [False]], "found shapes (2, 1) and (2, 1)"),
        (["a", "b"], [True, False], "scores must be real numbers, found dtype <U1"),
        ([1j, 0j], [True, False], "scores must be real numbers, found dtype complex128"),
    ],
)
def test_refuses_what_cannot_be_ranked(score, member, problem):
    with pytest.raises(EvidenceError) as error:
        rank(score, member)
    assert problem in error.value.problem
    assert error.value.hint
