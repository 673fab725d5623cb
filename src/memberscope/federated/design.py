"""Who holds which record, and which of them are trained on: planned before a federation is trained, known afterwards.

Of each client's records a coin decides which it trains on. The others stay with it, unused: non-members that were drawn
as the members were, with the client's own class mix. Records of nobody (the official test part) are non-members too,
with everybody's class mix; and to client k the members of all other clients are non-members.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.errors import ConfigError, DataError, RunFolderError
from memberscope.federated.partition import Partition, from_ids
from memberscope.federated.sharing import draw
from memberscope.files import replacing
from memberscope.records.pool import Dataset

PARTITION, MEMBERSHIP = "partition.npy", "membership.npy"
_NOBODYS_SHARE = 0.1
"""Of a pool without an official test part, set apart by class: the records of nobody."""


@dataclass(frozen=True, eq=False, repr=False)
class Design:
    """The part that every record of the pool plays in a federation.

    Parameters
    ----------
    partition
        Who holds it.
    member
        bool [N]: its owner trains on it.

    Raises
    ------
    DataError
        A member that nobody holds, or a client without members.
    """

    partition: Partition
    member: NDArray[np.bool_]

    def __post_init__(self) -> None:
        owner = self.partition.owner
        if self.member.dtype != np.bool_ or self.member.shape != owner.shape:
            raise DataError(
                f"member is {self.member.dtype} {list(self.member.shape)}, expected bool [{len(owner)}], one a record"
            )
        if (self.member & (owner < 0)).any():
            raise DataError("a record is trained on that no client holds")
        trains = np.bincount(owner[self.member], minlength=self.n_clients)
        if not trains.all():
            raise DataError(f"client {int(trains.argmin())} trains on no record", "give clients more records")

    @property
    def owner(self) -> NDArray[np.int32]:
        """int32 [N]: client that holds the record, -1 for nobody."""
        return self.partition.owner

    @property
    def n_clients(self) -> int:
        """Number of clients."""
        return self.partition.n_clients

    @property
    def nobody(self) -> NDArray[np.bool_]:
        """bool [N]: records that no client holds."""
        return self.partition.owner < 0

    def trained(self, client: int) -> NDArray[np.int64]:
        """Pool indices of the records that a client trains on."""
        rows = self.partition.rows(client)
        return rows[self.member[rows]]

    def held(self, client: int) -> NDArray[np.int64]:
        """Pool indices of the records that a client holds and does not train on."""
        rows = self.partition.rows(client)
        return rows[~self.member[rows]]

    def __repr__(self) -> str:
        counts = (int(a.sum()) for a in (self.member, ~self.member & ~self.nobody, self.nobody))
        return "Design({} clients: {:,} records trained on, {:,} held, {:,} of nobody)".format(self.n_clients, *counts)


def plan(
    dataset: Dataset,
    *,
    partition: str,
    n_clients: int,
    held_fraction: float,
    seed: int,
    partition_seed: int | None = None,
) -> Design:
    """Draw a design: the same settings and seed give the same on every machine.

    Parameters
    ----------
    dataset
        The pool; clients hold its official training part, or nine tenths by class where it has none.
    partition
        A spec of `sharing.draw`, or ``natural:FILE.npy`` with an id for each record of the pool.
    n_clients
        Number of clients; a natural partition has as many as there are ids.
    held_fraction
        Probability that a client holds a record without training on it, in [0, 0.9].
    seed
        Of both draws.
    partition_seed
        Of the partition, where it has one of its own.

    Raises
    ------
    ConfigError
        An unknown partition, or a fraction out of range.
    DataError
        Too few records.
    """
    if not 0 <= held_fraction <= 0.9:
        raise ConfigError(f"held_fraction = {held_fraction!r} is out of range", "expected in [0, 0.9]")
    rng = seeds.generator(seed if partition_seed is None else partition_seed, "partition")
    shared_out = _shared_out(dataset, rng)
    if partition.startswith("natural:"):
        parts = _natural(Path(partition.removeprefix("natural:")).expanduser(), shared_out)
    else:
        parts = draw(partition, n_clients, dataset.y, shared_out, rng)
    return with_coins(parts, held_fraction, seeds.generator(seed, "membership", "federation"))


def with_coins(partition: Partition, held_fraction: float, rng: np.random.Generator) -> Design:
    """Toss a coin for each record that a client holds; a client whose records all come down unused trains on one."""
    member = (rng.random(len(partition.owner)) >= held_fraction) & (partition.owner >= 0)
    for client in range(partition.n_clients):
        rows = partition.rows(client)
        if not member[rows].any():
            member[rng.choice(rows)] = True
    return Design(partition, member)


def write(design: Design, folder: Path) -> None:
    """Write partition.npy (int32 [N], -1 nobody) and membership.npy (bool [N])."""
    for name, array in ((PARTITION, design.owner), (MEMBERSHIP, design.member)):
        with replacing(folder / name) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)


def read(folder: Path) -> Design:
    """Read what `write` wrote.

    Raises
    ------
    RunFolderError
        A file is missing or damaged.
    """
    arrays = []
    for name, dtype in ((PARTITION, np.int32), (MEMBERSHIP, np.bool_)):
        path = folder / name
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunFolderError(
                f"{path} is missing or damaged: {error}", "is it the folder of a federation?"
            ) from error
        if array.dtype != dtype or array.ndim != 1 or not len(array):
            raise RunFolderError(f"{path} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} [N]")
        arrays.append(array)
    owner, member = arrays
    try:
        return Design(Partition(owner, int(owner.max()) + 1), member)
    except DataError as error:
        raise RunFolderError(f"{folder / PARTITION} and {MEMBERSHIP} do not fit: {error.problem}") from error


def _shared_out(dataset: Dataset, rng: np.random.Generator) -> NDArray[np.bool_]:
    if dataset.is_train.any() and not dataset.is_train.all():
        return dataset.is_train.copy()
    shared = np.ones(dataset.n, bool)
    for label in range(dataset.n_classes):
        rows = rng.permutation(np.flatnonzero(dataset.y == label))
        shared[rows[: round(_NOBODYS_SHARE * len(rows))]] = False
    return shared


def _natural(path: Path, shared_out: NDArray[np.bool_]) -> Partition:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the ids of a natural partition cannot be read from {path}: {error}",
            "a .npy file with an id (number or text) for each record of the pool, training part first",
        ) from error
    return from_ids(ids, shared_out)
