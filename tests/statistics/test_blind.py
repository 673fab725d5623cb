"""The blind baseline: exact where there is nothing, awake where there is something, and indifferent to order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from memberscope.statistics import blind
from memberscope.statistics.blind import blind_baseline, duplicates, label_p_value, record_features

RNG = np.random.default_rng(0)


def pictures(n: int, seed: int, size: tuple[int, int, int] = (1, 6, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *size), dtype=np.uint8)


KINDS = {
    "pictures": lambda n, seed: pictures(n, seed),
    "feature rows": lambda n, seed: np.random.default_rng(seed).normal(0, 1, (n, 5)).astype(np.float32),
    "few distinct rows": lambda n, seed: np.random.default_rng(seed).integers(0, 2, (n, 2)).astype(np.float32),
    "heavy tails": lambda n, seed: np.random.default_rng(seed).standard_cauchy((n, 3)).astype(np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_p_values_are_uniform_where_the_groups_are_drawn_alike(kind: str) -> None:
    trials, permutations, n = 200, 19, 90
    p = []
    for seed in range(trials):
        rng = np.random.default_rng(1000 + seed)
        member = np.arange(n) < 50  # members first, as in a pool; the records themselves are in random order
        result = blind_baseline(
            KINDS[kind](n, seed), rng.integers(0, 3, n), member, 3, rng=rng, permutations=permutations
        )
        p.append(result.p_value)
    values = np.round(np.array(p) * (permutations + 1)).astype(int)
    assert values.min() >= 1
    assert values.max() <= permutations + 1
    counts = np.bincount((values - 1) // 4, minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert (
        stats.binomtest(int((values == 1).sum()), trials, 1 / (permutations + 1), alternative="greater").pvalue > 1e-3
    )


def shifted(n: int, how: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, member = pictures(n, 1, (3, 12, 12)), RNG.integers(0, 3, n), RNG.permutation(np.arange(n) < n // 2)
    if how == "brighter":
        x[member] = np.minimum(x[member].astype(int) + 8, 255)
    elif how == "more contrast":
        x[member] = np.clip((x[member].astype(float) - 127) * 1.15 + 127, 0, 255)
    elif how == "a mark in the corner":
        x[member, :, :3, :3] //= 2
    elif how == "smoother":
        x[member, :, :, 1:] = (x[member, :, :, 1:] // 2) + (x[member, :, :, :-1] // 2)
    elif how == "other classes":
        y[member] = np.minimum(y[member], 1)
    return x, y, member


@pytest.mark.parametrize("how", ["brighter", "more contrast", "a mark in the corner", "smoother", "other classes"])
def test_a_difference_between_the_groups_is_found(how: str) -> None:
    x, y, member = shifted(1000, how)
    result = blind_baseline(x, y, member, 3, rng=np.random.default_rng(0))
    assert result.p_value == 0.005
    assert result.auc > 0.52
    assert result.auc > result.null_95
    same = blind_baseline(x, y, RNG.permutation(member), 3, rng=np.random.default_rng(0))
    assert same.p_value > 0.01
    assert (result.permutations, result.records) == (199, 1000)


@pytest.mark.parametrize("members_first", [True, False])
def test_records_that_are_all_alike_cannot_be_told_apart(members_first: bool) -> None:
    """Ranked by position, as equal scores come out of a sort, they were: AUC 1 with members last."""
    member = (np.arange(60) < 30) == members_first
    result = blind_baseline(np.zeros((60, 4), np.float32), np.zeros(60, int), member, 1, rng=np.random.default_rng(0))
    assert (result.auc, result.p_value, result.features) == (0.5, 1.0, 0)


def test_the_order_of_records_plays_no_part() -> None:
    x, y, member = shifted(600, "brighter")
    first = np.argsort(~member, kind="stable")
    one = blind_baseline(x, y, member, 3, rng=np.random.default_rng(0))
    other = blind_baseline(x[first], y[first], member[first], 3, rng=np.random.default_rng(1))
    assert one.p_value == other.p_value == 0.005
    assert one.auc == pytest.approx(other.auc, abs=0.05)


def test_many_records_are_sampled_from_both_groups() -> None:
    member = np.arange(1000) < 900
    x = RNG.normal(0, 1, (1000, 3)).astype(np.float32)
    result = blind_baseline(x, np.zeros(1000, int), member, 1, rng=np.random.default_rng(0), at_most=400)
    assert result.records == 300  # 200 of 900 members, all of 100 non-members


def test_the_same_seed_gives_the_same_answer() -> None:
    x, y, member = shifted(200, "nothing")
    one, same = (blind_baseline(x, y, member, 3, rng=np.random.default_rng(4)) for _ in range(2))
    assert one == same


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 1, 20), (3, 20, 1), (1, 28, 28), (3, 9, 40)])
def test_pictures_of_any_size(size: tuple[int, int, int]) -> None:
    features = record_features(pictures(50, 2, size), RNG.integers(0, 2, 50), 2)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-9)
    cells = min(8, size[1]) * min(8, size[2])
    assert features.shape[1] <= 2 * size[0] * (cells + 2) + 2


def test_many_pictures_are_worked_on_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(100, 3, (3, 8, 8)), RNG.integers(0, 3, 100)
    whole = record_features(x, y, 3)
    monkeypatch.setattr(blind, "_CHUNK_VALUES", 7 * 3 * 8 * 8)
    np.testing.assert_array_equal(record_features(x, y, 3), whole)


def test_features_of_large_and_constant_numbers() -> None:
    x = np.stack([np.full(40, 1e30), RNG.normal(0, 1e25, 40), np.full(40, 0.1), RNG.normal(5, 1e-8, 40)], axis=1)
    features = record_features(x.astype(np.float64), np.zeros(40, int), 1)
    assert features.shape[1] == 4  # two columns that vary, and their squares
    assert np.isfinite(features).all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({truth for _, truth in rows}) == 2
    )
)
def test_column_aucs_are_those_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([[score, -score, 0.0] for score, _ in rows], float)
    positive = np.array([[truth] * 3 for _, truth in rows])
    found = blind._column_aucs(scores, positive)
    for column in range(3):
        assert found[column] == pytest.approx(roc_auc_score(positive[:, column], scores[:, column]), abs=1e-12)


def test_the_p_value_of_the_class_mix_is_that_of_scipy() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, member = rng.integers(0, 4, 300), rng.random(300) < 0.4
        table = np.stack([np.bincount(y[group], minlength=4) for group in (member, ~member)])
        expected = stats.chi2_contingency(table, correction=False).pvalue
        assert label_p_value(y, member, 6) == pytest.approx(expected, rel=1e-10)  # classes without records do not count
    assert label_p_value(np.zeros(10, int), np.arange(10) < 5, 3) == 1.0
    assert label_p_value(np.repeat([0, 1], 50), np.repeat([True, False], 50), 2) < 1e-20


@pytest.mark.parametrize("make", [lambda n: pictures(n, 5, (3, 4, 4)), lambda n: RNG.normal(0, 1, (n, 6))])
def test_duplicates_across_the_groups(make: object) -> None:
    x = make(12)  # type: ignore[operator]
    member = np.arange(12) < 6
    assert duplicates(x, member) == blind.DuplicateResult(0, 0, None)
    x[4] = x[3]  # two members alike: no matter
    x[8] = x[7]
    assert duplicates(x, member) == blind.DuplicateResult(0, 0, None)
    x[7] = x[8] = x[4]  # one content: two members, two non-members
    x[11] = x[1]
    assert duplicates(x, member) == blind.DuplicateResult(3, 3, (1, 11))
    assert duplicates(x, member, np.arange(100, 112)) == blind.DuplicateResult(3, 3, (101, 111))


def test_duplicates_agree_with_comparing_every_pair() -> None:
    rng = np.random.default_rng(6)
    x, member = rng.integers(0, 3, (60, 1, 1, 3), dtype=np.uint8), rng.random(60) < 0.5
    alike = (x[:, None] == x[None]).all(axis=(2, 3, 4)) & (member[:, None] & ~member[None])
    found = duplicates(x, member)
    assert (found.member_records, found.nonmember_records) == (alike.any(axis=1).sum(), alike.any(axis=0).sum())
    assert found.first_pair is not None
    assert alike[found.first_pair]
