"""Partitions are complete, disjoint, repeatable, and skewed as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memberscope.errors import ConfigError, DataError
from memberscope.federated.partition import Partition, from_ids, from_loader
from memberscope.federated.sharing import SCHEMES, draw, parse

SPECS = ("iid", "dirichlet:0.1", "dirichlet:10", "pathological:2", "shards:2", "sizes:0.3")


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    clients=st.integers(5, 40),
    n=st.integers(120, 400),
    seed=st.integers(0, 1000),
    classes=st.integers(2, 10),
)
def test_complete_disjoint_and_repeatable(spec: str, clients: int, n: int, seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    held = rng.random(n) < 0.8
    held[:classes] = True
    held[: clients + classes] = True
    partition = draw(spec, clients, labels, held, np.random.default_rng(seed))
    rows = [partition.rows(i) for i in range(clients)]
    together = np.concatenate(rows)
    assert len(np.unique(together)) == len(together)
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(held))
    np.testing.assert_array_equal(partition.sizes, [len(r) for r in rows])
    counts = partition.counts(labels, classes)
    np.testing.assert_array_equal(counts[3], np.bincount(labels[rows[3]], minlength=classes))
    again = draw(spec, clients, labels, held, np.random.default_rng(seed))
    np.testing.assert_array_equal(partition.owner, again.owner)


def _pool(n: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n) % 10, np.ones(n, bool)


def test_pathological_clients_hold_so_many_classes() -> None:
    labels, held = _pool()
    counts = draw("pathological:3", 20, labels, held, np.random.default_rng(0)).counts(labels, 10)
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert (counts > 0).any(axis=0).all()


def test_shards_are_of_equal_size_and_of_few_classes() -> None:
    labels, held = _pool()
    partition = draw("shards:2", 50, labels, held, np.random.default_rng(0))
    assert (partition.sizes == 100).all()
    assert ((partition.counts(labels, 10) > 0).sum(axis=1) <= 4).all()


def test_smaller_alpha_means_more_skew() -> None:
    labels, held = _pool()
    skews = [
        draw(spec, 10, labels, held, np.random.default_rng(1)).skew(labels, 10)
        for spec in ("iid", "dirichlet:10", "dirichlet:0.5", "dirichlet:0.05")
    ]
    assert skews == sorted(skews)
    assert skews[0] < 0.06 < 0.7 < skews[3]


def test_size_skew_keeps_the_class_mix() -> None:
    labels, held = _pool(20_000)
    partition = draw("sizes:0.5", 5, labels, held, np.random.default_rng(2))
    assert partition.sizes.max() > 3 * partition.sizes.min()
    assert partition.skew(labels, 10) < 0.1


def test_no_client_is_left_without_records() -> None:
    labels, held = _pool()
    assert draw("dirichlet:0.01", 200, labels, held, np.random.default_rng(0)).sizes.min() >= 8


def test_natural_ids() -> None:
    held = np.array([True, True, True, False, True])
    partition = from_ids(np.array(["b", "a", "b", "zz", "c"]), held)
    np.testing.assert_array_equal(partition.owner, [1, 0, 1, -1, 2])
    assert partition.n_clients == 3


class _Loader:
    def __init__(self, parts: list[object]) -> None:
        self.parts = parts

    def load_partition(self, i: int) -> object:
        return self.parts[i]


def test_anything_with_load_partition() -> None:
    held = np.ones(5, bool)
    partition = from_loader(_Loader([[0, 3], {"record": np.array([1, 2, 4])}]), 2, held)
    np.testing.assert_array_equal(partition.owner, [0, 1, 1, 0, 1])
    np.testing.assert_array_equal(from_loader(partition, 2, held).owner, partition.owner)
    for parts, told in (
        ([[0, 3], [3, 1, 2, 4]], "record 3 belongs to clients 0 and 1"),
        ([[0, 3], [1, 2]], "1 records belong to no client, 4"),
        ([[0, 3, 3], [1, 2, 4]], "twice"),
        ([[0, 9], [1, 2]], "holds record 9"),
        ([[0.5], [1]], "gave float64"),
        ([{"x": 1}, [1]], "without the column"),
    ):
        with pytest.raises(DataError, match=told):
            from_loader(_Loader(parts), 2, held)


def test_what_is_refused() -> None:
    labels, held = _pool(100)
    for spec, told in (
        ("dirichlet:-1", "cannot be used"),
        ("iid:2", "cannot be used"),
        ("shards:1.5", "cannot"),
        ("frobnicate", "unknown"),
        ("pathological:11", "cannot share out"),
    ):
        with pytest.raises(ConfigError, match=told):
            draw(spec, 5, labels, held, np.random.default_rng(0))
    with pytest.raises(DataError, match="every client needs"):
        draw("iid", 101, labels, held, np.random.default_rng(0))
    with pytest.raises(DataError, match="owner holds the value 3"):
        Partition(np.array([0, 1, 3], np.int32), 2)
    with pytest.raises(DataError, match="client 1 the first"):
        Partition(np.array([0, 0, 2], np.int32), 3)
    with pytest.raises(DataError, match="expected int32"):
        Partition(np.array([0, 1]), 2)
    assert parse("dirichlet") == ("dirichlet", 0.5)
    assert all(scheme.description for scheme in SCHEMES.values())
