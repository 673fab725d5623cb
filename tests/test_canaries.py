"""Canaries: what is put in, where, by which coins, and that ordinary records stay as they were."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memberscope import membership
from memberscope.canaries import COPIES, KINDS, insert
from memberscope.config import CanaryKind
from memberscope.data_loader import Dataset
from memberscope.errors import ConfigError

N = 400


def pool(shape: tuple[int, ...] = (3, 8, 8), n: int = N) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *shape)).astype(np.uint8) if len(shape) == 3 else rng.normal(size=(n, *shape))
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return Dataset("toy", x, rng.integers(0, 5, n), tuple("abcde"), np.arange(n) < n // 2, "made up", True)


def put(kinds, count=28, shape=(3, 8, 8), seed=0):
    dataset = pool(shape)
    allowed = np.arange(N) % 10 != 0
    changed, canaries = insert(dataset, allowed, kinds, count, np.random.default_rng(seed))
    return dataset, changed, canaries, allowed


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7), (12,)])
@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], tuple(KINDS)], ids=str)
def test_only_the_places_of_canaries_change(kinds, shape):
    before, after, canaries, allowed = put(kinds, shape=shape)
    others = ~canaries.mask(N)
    np.testing.assert_array_equal(before.x[others], after.x[others])
    np.testing.assert_array_equal(before.y[others], after.y[others])
    assert allowed[canaries.place].all()
    assert len(np.unique(canaries.place)) == len(canaries.place)
    assert canaries.kinds == kinds
    assert len(canaries.index) == len(canaries.kind) == 28
    assert set(canaries.index) <= set(canaries.place)
    assert (after.x.dtype, after.y.dtype, after.name) == (before.x.dtype, before.y.dtype, before.name)


def test_the_pool_that_was_given_stays_as_it_was():
    before, after, canaries, _ = put(("blank",))
    assert np.array_equal(before.x, pool().x)
    assert before.fingerprint != after.fingerprint
    assert (before.x[canaries.index] != after.x[canaries.index]).any()


def test_mislabelled_records_have_any_other_label():
    before, after, canaries, _ = put(("mislabelled",), count=90)
    at = canaries.index
    np.testing.assert_array_equal(before.x[at], after.x[at])
    assert (before.y[at] != after.y[at]).all()
    assert len({(int(a), int(b)) for a, b in zip(before.y[at], after.y[at], strict=True)}) > 15


def test_copies_of_a_duplicated_record_are_in_together():
    before, after, canaries, _ = put(("duplicated",), count=30)
    assert canaries.most_copies == COPIES
    assert len(canaries.place) == 30 * COPIES
    for one in range(30):
        places = canaries.place[canaries.owner == one]
        assert canaries.index[one] in places
        for place in places:
            np.testing.assert_array_equal(after.x[place], before.x[canaries.index[one]])
            assert after.y[place] == before.y[canaries.index[one]]
    tied = canaries.tied(N)
    np.testing.assert_array_equal(tied[canaries.place], canaries.index[canaries.owner])
    assert (tied[~canaries.mask(N)] == np.flatnonzero(~canaries.mask(N))).all()
    assert put(("mislabelled",))[2].tied(N) is None


def test_collages_are_made_of_blocks_of_other_records():
    before, after, canaries, _ = put(("out-of-distribution",))
    image = after.x[canaries.index[0]]
    whole = (before.x == image).all(axis=(1, 2, 3))
    assert not whole.any()
    donors = set()
    for r in range(0, 8, 2):
        for c in range(0, 8, 2):
            here = (slice(None), slice(r, r + 2), slice(c, c + 2))
            same = (before.x[(slice(None), *here)] == image[here]).all(axis=(1, 2, 3))
            donors.add(int(np.flatnonzero(same)[0]))
    assert len(donors) > 10


def test_each_feature_of_a_collage_of_rows_is_somebodys():
    before, after, canaries, _ = put(("out-of-distribution",), shape=(12,))
    row = after.x[canaries.index[0]]
    assert all(value in before.x[:, j] for j, value in enumerate(row))
    assert not (before.x == row).all(axis=1).any()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (12,)])
def test_blanks_are_plain_and_no_two_alike(shape):
    _, after, canaries, _ = put(("blank",), count=80, shape=shape)
    x = after.x[canaries.index].reshape(80, shape[0], -1)
    if len(shape) == 3:
        assert (x == x[:, :, :1]).all()
    else:
        assert (x == x[:, :1]).all()
    assert len(np.unique(x.reshape(80, -1), axis=0)) == 80


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_ordinary_records_keep_their_membership(seed):
    dataset, _, canaries, _ = put(tuple(KINDS))
    split = membership.draw(
        "random-half", dataset.y, dataset.is_train, np.random.default_rng(seed), validation_fraction=0
    )
    coins = canaries.coins(np.random.default_rng(seed + 1))
    admitted = canaries.admit(split, coins)
    others = ~canaries.mask(N)
    np.testing.assert_array_equal(admitted.member[others], split.member[others])
    np.testing.assert_array_equal(admitted.audited, split.audited & others)
    np.testing.assert_array_equal(admitted.member[canaries.index], coins)
    np.testing.assert_array_equal(admitted.member[canaries.place], coins[canaries.owner])


def test_coins_are_fair_independent_and_drawn_apart_from_the_contents():
    _, first, canaries, _ = put(("mislabelled",))
    draws = np.stack([canaries.coins(np.random.default_rng(seed)) for seed in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.01
    correlation = np.corrcoef(draws.T) - np.eye(28)
    assert np.abs(correlation).max() < 0.11
    assert put(("mislabelled",))[1].fingerprint == first.fingerprint
    assert put(("mislabelled",), seed=1)[1].fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("kinds", "count", "shape", "told"),
    [
        (("misslabelled",), 10, (3, 8, 8), "unknown kind of canary 'misslabelled'"),
        ((), 10, (3, 8, 8), r"\(none\)"),
        (("blank", "blank"), 10, (3, 8, 8), "each once"),
        (("blank", "mislabelled"), 1, (3, 8, 8), "at least one of each"),
        (("mislabelled",), 91, (3, 8, 8), "91 canaries take 91 places of the 360"),
        (("duplicated",), 31, (3, 8, 8), "take 93 places"),
    ],
)
def test_what_cannot_be_is_refused(kinds, count, shape, told):
    with pytest.raises(ConfigError, match=told):
        put(kinds, count, shape)


def test_more_blanks_than_grey_levels_are_refused():
    dataset = pool((1, 4, 4), 2000)
    with pytest.raises(ConfigError, match="256 grey levels"):
        insert(dataset, np.ones(2000, bool), ("blank",), 300, np.random.default_rng(0))


def test_the_settings_know_every_kind():
    assert set(get_args(CanaryKind)) == set(KINDS)
