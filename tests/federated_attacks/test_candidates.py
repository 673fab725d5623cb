"""The pairs of an audit: fixed, disjoint from the population, matched by class."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.errors import DataError
from memberscope.federated.candidates import choose, others
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.curves import rank

RNG = np.random.default_rng(0)
N, K, C = 6000, 4, 5
LABELS = RNG.integers(0, C, N)
OWNER = RNG.integers(-1, K, N).astype(np.int32)
# Client k has its own favourite class.
OWNER = np.where((OWNER >= 0) & (RNG.random(N) < 0.6), np.minimum(LABELS, K - 1), OWNER).astype(np.int32)
COIN = (OWNER >= 0) & (RNG.random(N) < 0.5)
ALL = np.arange(K)


def counts(chosen, which):
    table = np.zeros((K, C), int)
    np.add.at(table, (chosen.client[which], LABELS[chosen.record[which]]), 1)
    return table


def chosen_of(owner=OWNER, member=COIN, **settings):
    return choose(owner, member, LABELS, ALL, np.random.default_rng(1), **{"by_coin": True, **settings})


def test_held_records_stand_with_their_client_and_each_record_once() -> None:
    chosen = chosen_of(per_client=10_000)
    assert len(np.unique(chosen.record)) == len(chosen.record)
    np.testing.assert_array_equal(chosen.client, OWNER[chosen.record])
    np.testing.assert_array_equal(chosen.member, COIN[chosen.record])
    assert (OWNER[chosen.population] == -1).all()
    assert not np.isin(chosen.population, chosen.record).any()


def test_the_size_of_a_client_does_not_tell_members() -> None:
    """Of little ones all records would come, of large ones as many of both: most of the former are members."""
    rng = np.random.default_rng(3)
    owner = rng.choice(K, N, p=np.arange(1, K + 1) / sum(range(1, K + 1))).astype(np.int32)
    owner[-500:] = -1
    member = (owner >= 0) & (rng.random(N) < 0.95)
    chosen = choose(owner, member, LABELS, ALL, rng, by_coin=True, per_client=120)
    sizes = np.bincount(owner[owner >= 0], minlength=K)
    assert len({int((chosen.client == k).sum()) for k in ALL}) > 1
    for k in ALL:
        mine = chosen.client == k
        assert chosen.member[mine].sum() == (~chosen.member[mine]).sum() == min(60, (~member[owner == k]).sum())
    assert auc_estimate(rank(-sizes[chosen.client].astype(float), chosen.member)).value == 0.5


def test_half_of_the_pairs_of_a_client_are_members_at_most() -> None:
    chosen = chosen_of(per_client=100, population=50)
    for client in range(K):
        assert chosen.member[chosen.client == client].sum() == 50
        assert (~chosen.member[chosen.client == client]).sum() == 50
    assert len(chosen.population) == 50
    again = chosen_of(per_client=100, population=50)
    np.testing.assert_array_equal(again.record, chosen.record)


def test_without_a_coin_members_and_nonmembers_are_matched_by_client_and_class() -> None:
    member = (OWNER >= 0) & (RNG.random(N) < np.where(LABELS < 2, 0.8, 0.3))
    chosen = chosen_of(member=member, by_coin=False, per_client=10_000)
    np.testing.assert_array_equal(counts(chosen, chosen.member), counts(chosen, ~chosen.member))
    assert counts(chosen, chosen.member).sum() > 500


def test_records_of_nobody_are_dealt_where_clients_hold_none_apart() -> None:
    member = OWNER >= 0
    chosen = chosen_of(member=member, by_coin=False, per_client=10_000, population=400)
    np.testing.assert_array_equal(counts(chosen, chosen.member), counts(chosen, ~chosen.member))
    negatives = chosen.record[~chosen.member]
    assert (OWNER[negatives] == -1).all()
    assert len(np.unique(negatives)) == len(negatives)
    assert not np.isin(negatives, chosen.population).any()
    assert len(negatives) > 0.8 * (np.sum(OWNER == -1) - 400)


def test_without_records_of_nobody_half_of_those_held_are_set_aside() -> None:
    owner = np.where(OWNER < 0, 0, OWNER).astype(np.int32)
    member = RNG.random(N) < 0.5
    chosen = chosen_of(owner=owner, member=member, per_client=10_000)
    assert 0.4 < (~chosen.member).sum() / (~member).sum() < 0.6
    assert "set aside" in chosen.matching
    assert not member[chosen.population].any()
    assert not np.isin(chosen.population, chosen.record).any()


def test_nonmembers_of_the_question_whose_are_members_elsewhere_of_the_same_classes() -> None:
    chosen = chosen_of(per_client=10_000)
    pairs = others(chosen, LABELS, np.random.default_rng(2))
    assert COIN[pairs.record].all()
    np.testing.assert_array_equal(pairs.member, OWNER[pairs.record] == pairs.client)
    np.testing.assert_array_equal(counts(pairs, pairs.member), counts(pairs, ~pairs.member))


def test_nothing_to_compare_is_refused() -> None:
    lonely = np.zeros(N, np.int32)
    with pytest.raises(DataError, match="class-matched"):
        choose(lonely, np.ones(N, bool), LABELS, np.array([0]), np.random.default_rng(0), by_coin=False)
    one = choose(OWNER, COIN, LABELS, np.array([2]), np.random.default_rng(0), by_coin=True)
    with pytest.raises(DataError, match="no two clients"):
        others(one, LABELS, np.random.default_rng(0))
