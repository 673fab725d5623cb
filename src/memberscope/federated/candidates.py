"""Which pairs of client and record an audit asks about: fixed once, and class-matched.

Each pair is a record with one client, and each record stands in one pair, so that the intervals for independent records
hold. Three kinds of non-members occur:

- held: records that the client holds and, by a coin, did not train on. Drawn as its members were, with its class mix.
- of nobody: dealt to clients so that each has as many of a class as it has members there.
- of other clients: members elsewhere. They answer another question (whose is it?), and are asked about apart
  (`others`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError

NOBODY = -1
FEWEST_KNOWN = 10
"""Known non-members a class, below which half of the held records are set aside as such."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """M pairs, and Z records known to be nobody's.

    Parameters
    ----------
    client
        int64 [M].
    record
        int64 [M], pool index; each once.
    member
        bool [M]: the client trained on the record. The truth, which no attack gets.
    population
        int64 [Z], pool index: known non-members, none of them in `record`.
    matching
        How the non-members were matched, as a sentence.
    """

    client: NDArray[np.int64]
    record: NDArray[np.int64]
    member: NDArray[np.bool_]
    population: NDArray[np.int64]
    matching: str


def choose(
    owner: NDArray[np.int32],
    member: NDArray[np.bool_],
    labels: NDArray[np.int64],
    clients: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    by_coin: bool,
    per_client: int = 1000,
    population: int = 2000,
) -> Candidates:
    """Choose the pairs of an audit.

    Parameters
    ----------
    owner
        int32 [N], client that holds each record, -1 for nobody.
    member
        bool [N]: its owner trained on it.
    labels
        int64 [N].
    clients
        Those that are asked about.
    rng
        Draws.
    by_coin
        Whether a coin decided which of a client's records it trains on. If not, non-members are matched by class.
    per_client
        Pairs a client at most.
    population
        Known non-members at most.

    Raises
    ------
    DataError
        No client has a member and a matched non-member.
    """
    nobody = rng.permutation(np.flatnonzero(owner == NOBODY))
    asked = np.isin(owner, clients)
    if not (asked & member).any():
        holders = ", ".join(map(str, np.unique(owner[member])[:10].tolist()))
        on_record = ", ".join(map(str, np.asarray(clients)[:10].tolist())) or "none"
        raise DataError(
            f"no record is a member of a client on record: owners are {holders}, clients on record {on_record}",
            "number the owners as the partition does (partition-id, from 0)",
        )
    held = np.flatnonzero(asked & ~member)
    classes = int(labels.max()) + 1
    dealt = np.empty(0, np.int64)
    if len(held):
        matching = (
            "held by the client itself and, by a coin, not trained on"
            if by_coin
            else ("held by the client itself and not trained on, as many of each class as members")
        )
        if len(nobody) < FEWEST_KNOWN * classes:
            aside = rng.random(len(held)) < 0.5
            nobody, held = np.r_[nobody, rng.permutation(held[aside])], held[~aside]
            matching += "; half of these records were set aside as known non-members"
        negatives, of = held, owner[held].astype(np.int64)
    else:
        matching = "of nobody, dealt to clients, as many of each class as members"
        apart = min(population, len(nobody) // 2)
        negatives, of = _deal(nobody[apart:], np.flatnonzero(asked & member), owner, labels, rng)
        nobody = nobody[:apart]
        dealt = negatives
    positives = np.flatnonzero(asked & member)
    record = np.r_[positives, negatives]
    client = np.r_[owner[positives].astype(np.int64), of]
    truth = np.arange(len(record)) < len(positives)
    keep = np.ones(len(record), bool)
    if not by_coin or len(dealt):
        keep = _matched(client, labels[record], truth, rng)
    keep &= _at_most(client, truth, keep, per_client, rng)
    if not truth[keep].any() or truth[keep].all():
        raise DataError(
            "no client has both members and class-matched non-members", "give held-out records of the same classes"
        )
    order = rng.permutation(np.flatnonzero(keep))
    return Candidates(client[order], record[order], truth[order], np.sort(nobody[:population]), matching)


def others(chosen: Candidates, labels: NDArray[np.int64], rng: np.random.Generator) -> Candidates:
    """Pairs for the question whose a record is: members of the client, against members of the other clients.

    Of each client and class as many of both. A record may stand in several pairs: figures about them take intervals
    over clients and records (`memberscope.statistics.clustered`).
    """
    mine, of = chosen.record[chosen.member], chosen.client[chosen.member]
    client, record, truth = [], [], []
    for k in np.unique(of):
        for label in np.unique(labels[mine[of == k]]):
            alike = labels[mine] == label
            own, theirs = mine[alike & (of == k)], mine[alike & (of != k)]
            size = min(len(own), len(theirs))
            for rows, is_member in ((own, True), (theirs, False)):
                record.append(rng.permutation(rows)[:size])
                truth.append(np.full(size, is_member))
                client.append(np.full(size, k))
    if not sum(map(len, record)):
        raise DataError("no two clients have members of one class", "ask about more records a client")
    return Candidates(
        np.concatenate(client).astype(np.int64),
        np.concatenate(record),
        np.concatenate(truth),
        chosen.population,
        "members of other clients, as many of each class as the client's own",
    )


def _deal(
    records: NDArray[np.int64],
    members: NDArray[np.int64],
    owner: NDArray[np.int32],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal records to clients, class by class, in proportion to the clients' members."""
    dealt, to = [], []
    for label in np.unique(labels[members]):
        rows = rng.permutation(records[labels[records] == label])
        clients, counts = np.unique(owner[members[labels[members] == label]], return_counts=True)
        edges = np.round(np.cumsum(counts) / counts.sum() * len(rows)).astype(int)
        to.append(np.repeat(clients, np.diff(np.r_[0, edges])))
        dealt.append(rows)
    return np.concatenate(dealt), np.concatenate(to).astype(np.int64)


def _matched(
    client: NDArray[np.int64], labels: NDArray[np.int64], member: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Keep as many members as non-members of each client and class."""
    keep = np.zeros(len(client), bool)
    cell = client * (int(labels.max()) + 1) + labels
    for value in np.unique(cell):
        groups = [rng.permutation(np.flatnonzero((cell == value) & which)) for which in (member, ~member)]
        for rows in groups:
            keep[rows[: min(len(groups[0]), len(groups[1]))]] = True
    return keep


def _at_most(
    client: NDArray[np.int64],
    member: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    per_client: int,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """As many members as non-members of each client, half of `per_client` each at most.

    Were small clients to bring more members than non-members, and large ones as many, a client's size would give its
    members away.
    """
    few = np.zeros(len(client), bool)
    for k in np.unique(client):
        groups = [rng.permutation(np.flatnonzero((client == k) & which & keep)) for which in (member, ~member)]
        size = min(max(1, per_client // 2), *map(len, groups))
        for rows in groups:
            few[rows[:size]] = True
    return few
