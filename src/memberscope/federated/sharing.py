"""How records are shared out among clients, by name: drawn from one generator, so that a seed decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, DataError
from memberscope.federated.partition import NOBODY, Partition

Share = Callable[[NDArray[np.int64], int, int, float, np.random.Generator], NDArray[np.int32]]


def draw(
    spec: str,
    n_clients: int,
    labels: NDArray[np.int64],
    shared_out: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Partition:
    """Share records out among clients.

    Parameters
    ----------
    spec
        How (see `SCHEMES`): ``iid``, ``dirichlet:0.5``, ``pathological:2``, ``shards:2``, ``sizes:0.5``.
    n_clients
        Number of clients.
    labels
        int64 [N] of the pool.
    shared_out
        bool [N]: the records that clients hold; nobody holds the others.
    rng
        The generator kept for the partition.

    Raises
    ------
    ConfigError
        An unknown scheme or a parameter that it cannot use.
    DataError
        Fewer records than clients, or a client would stay without any.
    """
    name, value = parse(spec)
    scheme = SCHEMES[name]
    rows = np.flatnonzero(shared_out)
    if n_clients < 1:
        raise ConfigError(f"clients = {n_clients} is out of range", "expected at least 1")
    if len(rows) < n_clients:
        raise DataError(f"{len(rows):,} records for {n_clients:,} clients", "every client needs a record")
    classes, positions = np.unique(labels[rows], return_inverse=True)
    part = scheme.share(positions.astype(np.int64), len(classes), n_clients, value, rng)
    owner = np.full(len(labels), NOBODY, np.int32)
    owner[rows] = part
    partition = Partition(owner, n_clients)
    partition.check_complete(shared_out)
    return partition


def parse(spec: str) -> tuple[str, float]:
    """Split ``name:value`` and check both; a scheme without a value has its default.

    Raises
    ------
    ConfigError
        An unknown name, or a value that the scheme cannot use.
    """
    name, colon, text = spec.partition(":")
    if name not in SCHEMES:
        raise ConfigError(f"partition = {spec!r} is unknown", f"one of {', '.join(SCHEMES)}; or natural:FILE.npy")
    scheme = SCHEMES[name]
    if not colon:
        return name, scheme.default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    fits = value > 0 and np.isfinite(value) and (not scheme.whole or value == int(value))
    if not scheme.takes or not fits:
        expected = f"{name}:{scheme.default:g}, {scheme.takes}" if scheme.takes else f"{name} alone"
        raise ConfigError(f"partition = {spec!r} cannot be used", f"for example {expected}")
    return name, value


def _iid(
    labels: NDArray[np.int64], n_classes: int, clients: int, value: float, rng: np.random.Generator
) -> NDArray[np.int32]:
    del n_classes, value
    part = np.empty(len(labels), np.int32)
    for client, rows in enumerate(np.array_split(rng.permutation(len(labels)), clients)):
        part[rows] = client
    return part


def _dirichlet(
    labels: NDArray[np.int64], n_classes: int, clients: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Each class is cut into shares drawn from Dirichlet(alpha), as Hsu et al. (2019) and NIID-Bench (2022) have it."""
    part = np.empty(len(labels), np.int32)
    for label in range(n_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        part[rows] = np.repeat(np.arange(clients), _apportion(rng.dirichlet(np.full(clients, alpha)), len(rows)))
    return _fill_up(part, clients, rng)


def _pathological(
    labels: NDArray[np.int64], n_classes: int, clients: int, value: float, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Each client holds this many classes; a class is shared out evenly among its holders."""
    each = int(value)
    if each > n_classes or clients * each < n_classes:
        raise ConfigError(
            f"{clients} clients of {each} classes cannot share out {n_classes} classes",
            f"a client holds 1 to {n_classes} classes, and every class needs a holder",
        )
    holders: list[list[int]] = [[] for _ in range(n_classes)]
    for client in range(clients):
        # The classes with the fewest holders so far, ties by lot: all are held, and about equally often.
        order = np.lexsort((rng.random(n_classes), np.asarray([len(h) for h in holders])))
        for label in order[:each]:
            holders[label].append(client)
    part = np.empty(len(labels), np.int32)
    for label in range(n_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for client, own in zip(holders[label], np.array_split(rows, len(holders[label])), strict=True):
            part[own] = client
    return part


def _shards(
    labels: NDArray[np.int64], n_classes: int, clients: int, value: float, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Records sorted by class, cut into equal shards, this many for each client (McMahan et al. 2017, section 3)."""
    del n_classes
    each = int(value)
    if clients * each > len(labels):
        raise ConfigError(f"{clients} clients of {each} shards are more shards than the {len(labels):,} records")
    ordered = np.lexsort((rng.random(len(labels)), labels))
    dealt = rng.permutation(np.repeat(np.arange(clients), each))
    part = np.empty(len(labels), np.int32)
    for client, rows in zip(dealt, np.array_split(ordered, clients * each), strict=True):
        part[rows] = client
    return part


def _sizes(
    labels: NDArray[np.int64], n_classes: int, clients: int, beta: float, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Class mixes alike, sizes from Dirichlet(beta): the quantity skew of NIID-Bench (Li et al. 2022)."""
    del n_classes
    part = np.empty(len(labels), np.int32)
    sizes = _apportion(rng.dirichlet(np.full(clients, beta)), len(labels))
    part[rng.permutation(len(labels))] = np.repeat(np.arange(clients), sizes)
    return _fill_up(part, clients, rng)


def _apportion(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers in these proportions that sum to `total`."""
    edges = np.round(np.cumsum(np.nan_to_num(shares, nan=0.0)) * total).astype(np.int64)
    edges[-1] = total
    return np.diff(np.minimum(edges, total), prepend=0)


def _fill_up(part: NDArray[np.int32], clients: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Let the largest clients give records, one by one, to those with fewer than `least`: none can train on nothing."""
    least = min(LEAST_RECORDS, len(part) // clients)
    sizes = np.bincount(part, minlength=clients)
    for client in np.flatnonzero(sizes < least):
        while sizes[client] < least:
            giver = int(sizes.argmax())
            part[rng.choice(np.flatnonzero(part == giver))] = client
            sizes[giver] -= 1
            sizes[client] += 1
    return part


LEAST_RECORDS = 8
"""A skewed draw leaves no client with fewer records, where there are that many a client."""


@dataclass(frozen=True)
class Scheme:
    """A way to share records out.

    Parameters
    ----------
    share
        Gives the client of each record, int32 [n], from its class, the number of classes and of clients, the value
        after the colon and a generator.
    description
        One line.
    takes
        What the value means; empty: there is none.
    default
        The value where none is given.
    whole
        The value is a whole number.
    """

    share: Share
    description: str
    takes: str = ""
    default: float = 0.0
    whole: bool = False


SCHEMES: dict[str, Scheme] = {
    "iid": Scheme(_iid, "at random, all clients alike"),
    "dirichlet": Scheme(_dirichlet, "class mixes from a Dirichlet distribution", "alpha, smaller is more skewed", 0.5),
    "pathological": Scheme(_pathological, "few classes a client", "classes a client", 2, whole=True),
    "shards": Scheme(_shards, "sorted by class and dealt out in shards", "shards a client", 2, whole=True),
    "sizes": Scheme(
        _sizes, "class mixes alike, sizes from a Dirichlet distribution", "beta, smaller is more skewed", 0.5
    ),
}
"""Adding a partition is one function and one line here; or anything with ``load_partition(i)``, see `from_loader`."""
