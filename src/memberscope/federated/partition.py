"""Which client holds which records: a partition of the pool, complete and disjoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError

NOBODY = -1
"""Owner of a record that no client holds."""


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """Who holds each record of the pool. One owner a record, so parts are disjoint by construction.

    Parameters
    ----------
    owner
        int32 [N]: the client (0 .. n_clients - 1) that holds the record; -1: nobody does.
    n_clients
        Number of clients; every one of them holds a record.

    Raises
    ------
    DataError
        Another dtype or shape, an owner that is no client, or a client without records; names which.
    """

    owner: NDArray[np.int32]
    n_clients: int

    def __post_init__(self) -> None:
        if self.owner.dtype != np.int32 or self.owner.ndim != 1:
            raise DataError(f"owner is {self.owner.dtype} {list(self.owner.shape)}, expected int32 [N], one a record")
        if self.n_clients < 1:
            raise DataError(f"a partition over {self.n_clients} clients", "at least one client holds records")
        odd = self.owner[(self.owner < NOBODY) | (self.owner >= self.n_clients)]
        if odd.size:
            raise DataError(
                f"owner holds the value {odd[0]}", f"clients are 0 .. {self.n_clients - 1}; {NOBODY} is nobody"
            )
        empty = np.flatnonzero(self.sizes == 0)
        if empty.size:
            raise DataError(
                f"{empty.size:,} of {self.n_clients:,} clients hold no record, client {empty[0]} the first",
                "ask for fewer clients, or for a partition that is less skewed",
            )

    def rows(self, client: int) -> NDArray[np.int64]:
        """Pool indices of the records of one client, ascending."""
        if not 0 <= client < self.n_clients:
            raise DataError(f"there is no client {client}", f"clients are 0 .. {self.n_clients - 1}")
        return self._order[self._edges[client] : self._edges[client + 1]]

    def load_partition(self, partition_id: int) -> NDArray[np.int64]:
        """Give `rows` under the name that partitioners have elsewhere."""
        return self.rows(partition_id)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64 [n_clients]: records of each client."""
        return np.bincount(self.owner[self.owner >= 0], minlength=self.n_clients)

    def counts(self, labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
        """int64 [n_clients, n_classes]: records of each class that each client holds."""
        held = self.owner >= 0
        cells = self.owner[held].astype(np.int64) * n_classes + labels[held]
        return np.bincount(cells, minlength=self.n_clients * n_classes).reshape(self.n_clients, n_classes)

    def skew(self, labels: NDArray[np.int64], n_classes: int) -> float:
        """Mean over clients of the total variation distance between a client's class mix and everybody's, in [0, 1]."""
        counts = self.counts(labels, n_classes).astype(np.float64)
        mixes = counts / counts.sum(axis=1, keepdims=True)
        overall = counts.sum(axis=0) / counts.sum()
        return float(0.5 * np.abs(mixes - overall).sum(axis=1).mean())

    def check_complete(self, shared_out: NDArray[np.bool_]) -> None:
        """Check that exactly the records of a mask (bool [N]) have an owner.

        Raises
        ------
        DataError
            A record to be shared out has none, or one set apart has.
        """
        if shared_out.shape != self.owner.shape:
            raise DataError(f"the partition is of {len(self.owner):,} records, the pool has {len(shared_out):,}")
        lost, taken = shared_out & (self.owner < 0), ~shared_out & (self.owner >= 0)
        if lost.any():
            raise DataError(f"{int(lost.sum()):,} records belong to no client, {np.flatnonzero(lost)[0]} the first")
        if taken.any():
            raise DataError(
                f"{int(taken.sum()):,} records that were set apart belong to a client, {np.flatnonzero(taken)[0]} the "
                "first",
                "a client holds records of the training part only",
            )

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        order = np.argsort(self.owner, kind="stable").astype(np.int64)
        order = order[int((self.owner < 0).sum()) :]
        order.setflags(write=False)
        return order

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def __repr__(self) -> str:
        low, high = int(self.sizes.min()), int(self.sizes.max())
        return (
            f"Partition({self.n_clients:,} clients with {low:,} to {high:,} records, {len(self.owner):,} in the pool)"
        )


def from_ids(ids: NDArray[Any], shared_out: NDArray[np.bool_]) -> Partition:
    """A natural partition: equal ids (writer, hospital, device), one client; clients in the order of sorted ids.

    Parameters
    ----------
    ids
        [N] of any type that sorts; ids of records that nobody holds play no part.
    shared_out
        bool [N]: the records that clients hold.
    """
    if ids.shape != shared_out.shape:
        raise DataError(f"ids has shape {list(ids.shape)}, expected [{len(shared_out)}], one entry a record")
    names, part = np.unique(ids[shared_out], return_inverse=True)
    owner = np.full(len(ids), NOBODY, np.int32)
    owner[shared_out] = part
    return Partition(owner, len(names))


def from_loader(loader: Any, n_clients: int, shared_out: NDArray[np.bool_]) -> Partition:
    """The partition of anything with ``load_partition(i)``.

    Parameters
    ----------
    loader
        Its ``load_partition(i)`` gives the pool indices of client i: an array or list of integers, or a table with a
        column ``record`` that holds them (a dataset of flwr-datasets to which that column was added).
    n_clients
        Number of clients.
    shared_out
        bool [N]: the records that clients hold.

    Raises
    ------
    DataError
        Two clients hold one record, a record has no client, or what comes back is no list of indices.
    """
    owner = np.full(len(shared_out), NOBODY, np.int32)
    for client in range(n_clients):
        rows = _indices(loader.load_partition(client), client)
        outside = rows[(rows < 0) | (rows >= len(owner))]
        if outside.size:
            raise DataError(f"client {client} holds record {outside[0]}", f"the pool has 0 .. {len(owner) - 1}")
        again = rows[owner[rows] >= 0]
        if again.size:
            raise DataError(f"record {again[0]} belongs to clients {owner[again[0]]} and {client}")
        if len(np.unique(rows)) < len(rows):
            raise DataError(f"client {client} holds a record twice", "each record has one owner and counts once")
        owner[rows] = client
    partition = Partition(owner, n_clients)
    partition.check_complete(shared_out)
    return partition


def _indices(part: Any, client: int) -> NDArray[np.int64]:
    if hasattr(part, "column_names") or isinstance(part, dict):
        try:
            part = part["record"]
        except KeyError:
            raise DataError(
                f"load_partition({client}) gave a table without the column 'record'", "add it: the pool index of a row"
            ) from None
    rows = np.asarray(part)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise DataError(
            f"load_partition({client}) gave {rows.dtype} {list(rows.shape)}", "expected the pool indices of its records"
        )
    return rows.astype(np.int64)
