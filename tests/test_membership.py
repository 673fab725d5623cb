"""Who is in: shares, class mix, what is apart from what, and masks that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from memberscope.errors import ConfigError, DataError
from memberscope.membership import PROTOCOLS, Split, class_mix_difference, draw
from memberscope.membership import given as stated

LABELS = np.repeat(np.arange(5), [400, 300, 200, 90, 10])
IS_TRAIN = np.tile([True, True, True, False], 250)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_holdout_compares_the_official_parts() -> None:
    split = draw("holdout", LABELS, IS_TRAIN, rng())
    assert np.array_equal(split.nonmember, ~IS_TRAIN)
    assert np.array_equal(split.member | split.validation, IS_TRAIN)
    assert np.array_equal(split.audited, ~split.validation)
    for label in range(5):
        official = int((IS_TRAIN & (label == LABELS)).sum())
        assert (split.validation & (label == LABELS)).sum() == round(0.1 * official)


def test_random_half_sets_validation_apart_before_membership() -> None:
    split = draw("random-half", LABELS, IS_TRAIN, rng(), validation_fraction=0.2)
    assert not (split.validation & split.member).any()
    assert np.array_equal(split.audited, ~split.validation)
    for label in range(5):
        assert (split.validation & (label == LABELS)).sum() == round(0.1 * int((label == LABELS).sum()))


def test_targets_that_share_a_validation_generator_share_their_validation_records() -> None:
    one, other = (draw("random-half", LABELS, IS_TRAIN, rng(t), validation_rng=rng(9)) for t in (1, 2))
    assert np.array_equal(one.validation, other.validation)
    assert not np.array_equal(one.member, other.member)


def test_random_half_is_a_fair_coin_for_each_audited_record() -> None:
    n, draws = 40, 2000
    labels, generator = np.zeros(n, int), rng(1)
    splits = [draw("random-half", labels, np.ones(n, bool), generator, validation_rng=rng(0)) for _ in range(draws)]
    member = np.array([split.member[split.audited] for split in splits])
    assert member.shape == (draws, 38)
    assert stats.binomtest(int(member.sum()), member.size, 0.5).pvalue > 1e-3
    # Independent: the size of the member group varies as a binomial does, and no two records move together.
    assert member.sum(axis=1).var() == pytest.approx(38 / 4, rel=0.15)
    pairs = np.corrcoef(member.T)[np.triu_indices(38, 1)]
    assert abs(pairs.mean()) < 0.005
    assert np.abs(pairs).max() < 0.11


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(st.integers(0, 2**32), st.floats(0, 0.5), st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=20))
def test_the_parts_never_overlap_and_leave_nobody_out(
    protocol: str, seed: int, fraction: float, records: list[tuple[int, bool]]
) -> None:
    labels, is_train = (np.array(column) for column in zip(*records, strict=True))
    try:
        split = draw(protocol, labels, is_train, rng(seed), validation_fraction=fraction)
    except DataError:
        return
    assert split.member.any()
    assert split.nonmember.any()
    parts = split.member.astype(int) + split.nonmember + split.validation
    assert parts.tolist() == [1] * len(labels)


def test_the_same_seed_draws_the_same_members() -> None:
    for protocol in PROTOCOLS:
        one, other, another = (draw(protocol, LABELS, IS_TRAIN, rng(seed)) for seed in (3, 3, 4))
        assert np.array_equal(one.member, other.member)
        assert np.array_equal(one.validation, other.validation)
        assert not np.array_equal(one.member, another.member)


@pytest.mark.parametrize(("is_train", "part"), [(np.ones(1000, bool), "test"), (np.zeros(1000, bool), "training")])
def test_holdout_needs_both_official_parts(is_train: np.ndarray, part: str) -> None:
    with pytest.raises(DataError) as refusal:
        draw("holdout", LABELS, is_train, rng())
    assert refusal.value.problem == (
        f"the protocol 'holdout' compares an official training and test part, and this pool has no {part} part"
    )
    assert "random-half" in refusal.value.hint


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'thirds'\n  known: holdout, random-half"):
        draw("thirds", LABELS, IS_TRAIN, rng())
    for fraction in (-0.1, 0.51, float("nan")):
        with pytest.raises(ConfigError, match=rf"validation fraction {fraction} is outside \[0, 0.5\]"):
            draw("holdout", LABELS, IS_TRAIN, rng(), validation_fraction=fraction)


def test_a_pool_too_small_for_two_groups_is_refused() -> None:
    outcomes = set()
    for seed in range(40):
        try:
            draw("random-half", np.zeros(2, int), np.ones(2, bool), rng(seed))
        except DataError as refusal:
            outcomes.add(refusal.problem)
    assert outcomes == {
        "of 2 records the protocol made none a member",
        "of 2 records the protocol made none a non-member",
    }


def test_a_validation_record_cannot_be_audited() -> None:
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    for split in ((yes, yes, no), (no, yes, yes)):
        with pytest.raises(DataError, match="a validation record is also a member or audited"):
            Split(*split)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_stated_mask_is_taken_in_any_type(dtype: type) -> None:
    split = stated(np.array([1, 0, 1, 0], dtype), 4)
    assert split.member.tolist() == [True, False, True, False]
    assert split.audited.all()
    assert not split.validation.any()


def test_minus_one_leaves_a_record_out() -> None:
    split = stated(np.array([1, 0, -1, -1]), 4)
    assert split.member.tolist() == [True, False, False, False]
    assert split.nonmember.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.array([1, 0]), "mask.npy has shape (2,), expected (4,): one entry for every record of the pool"),
        (np.ones((4, 1)), "mask.npy has shape (4, 1), expected (4,): one entry for every record of the pool"),
        (np.array([1, 0, 2, 0]), "mask.npy holds the value 2"),
        (np.array([1, 0, 0.5, 0]), "mask.npy holds the value 0.5"),
        (np.array([1, 0, np.nan, 0]), "mask.npy holds the value nan"),
        (np.array([1, 0, 255, 0], np.uint8), "mask.npy holds the value 255"),
        (np.array(list("1010")), "mask.npy has dtype <U1, expected bool or 0/1"),
        (np.array([1, 0, 1, 0], complex), "mask.npy has dtype complex128, expected bool or 0/1"),
        (np.zeros(4), "mask.npy names no members"),
        (np.array([1, -1, 1, 1]), "mask.npy names no non-members"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_by_name(mask: np.ndarray, told: str) -> None:
    with pytest.raises(DataError) as refusal:
        stated(mask, 4, source="mask.npy")
    assert refusal.value.problem == told
    assert refusal.value.hint


def test_class_mix_difference_is_the_advantage_of_knowing_the_class() -> None:
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    split = stated(np.array([1, 1, 1, 1, 0, 0, 0, 0]), 8)
    assert (
        class_mix_difference(labels, split, 3) == 0.5
    )  # "class 0" finds 3/4 of the members, accuses 1/4 of the others
    assert class_mix_difference(np.tile([0, 1], 4), split, 2) == 0
    assert class_mix_difference(np.repeat([0, 1], 4), split, 2) == 1


def test_validation_keeps_the_class_mix_of_both_groups() -> None:
    split = draw("holdout", LABELS, IS_TRAIN, rng())
    everyone = draw("holdout", LABELS, IS_TRAIN, rng(), validation_fraction=0)
    assert class_mix_difference(LABELS, split, 5) == pytest.approx(class_mix_difference(LABELS, everyone, 5), abs=0.002)
    assert repr(split) == "Split(675 members, 250 non-members, 75 validation)"
