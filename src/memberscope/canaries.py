"""Canaries: records that a model is likely to memorise, put into the training data by coins, audited for themselves.

An average over ordinary records hides those who are exposed most: at a false-positive rate of 0.1 %, an undefended
model gave away 13 % of its ordinary members and every mislabelled canary (Aerni, Zhang, Tramèr 2024, CCS). So a worst
case is put in on purpose. Each canary takes the place of a record of the pool and is in the training data with
probability 1/2, by a coin of its own; ordinary records, and their membership, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError
from memberscope.membership import Split
from memberscope.records.pool import Dataset

COPIES = 3
"""Copies of each duplicated canary; all of them are in, or none."""
_BLOCKS = 4
_LARGEST_SHARE = 0.25
_GREY_LEVELS = 256


@dataclass(frozen=True, eq=False)
class Canaries:
    """Which records of a pool are canaries.

    Parameters
    ----------
    index
        int64 [M]: the place in the pool at which each is audited.
    kind
        M names, each a key of `KINDS`.
    place
        int64 [P], P >= M: all places that canaries take; a duplicated one takes `COPIES`.
    owner
        int64 [P] in 0..M-1: whose place it is.
    """

    index: NDArray[np.int64]
    kind: tuple[str, ...]
    place: NDArray[np.int64]
    owner: NDArray[np.int64]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that occur, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if kind in self.kind)

    @property
    def most_copies(self) -> int:
        """How often the canary with the most copies is in the training data, if it is."""
        return int(np.bincount(self.owner).max())

    def of(self, kind: str) -> NDArray[np.bool_]:
        """bool [M]: the canaries of a kind."""
        return np.array([one == kind for one in self.kind], bool)

    def coins(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """bool [M]: a fair coin for each canary; the copies of one share it."""
        return rng.random(len(self.index)) < 0.5

    def admit(self, split: Split, coins: NDArray[np.bool_]) -> Split:
        """The split with canaries in or out as the coins say, and not under audit as ordinary records."""
        member, audited = split.member.copy(), split.audited.copy()
        member[self.place] = coins[self.owner]
        audited[self.place] = False
        return Split(member, split.validation, audited, self.mask(len(member)))

    def mask(self, n: int) -> NDArray[np.bool_]:
        """bool [N]: all places of canaries."""
        found = np.zeros(n, bool)
        found[self.place] = True
        return found

    def tied(self, n: int) -> NDArray[np.int64] | None:
        """int64 [N]: the record whose membership each record shares; None where every record has its own."""
        if len(self.place) == len(self.index):
            return None
        shared = np.arange(n)
        shared[self.place] = self.index[self.owner]
        return shared


def insert(
    dataset: Dataset, allowed: NDArray[np.bool_], kinds: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[Dataset, Canaries]:
    """Put canaries into a pool, each in the place of a record drawn at random.

    Parameters
    ----------
    dataset
        N records; it is not changed.
    allowed
        bool [N]: places that may be taken.
    kinds
        Names, each a key of `KINDS`.
    count
        Canaries of all kinds together, in parts that differ by one at most.
    rng
        Draws places, contents and labels; no coin, so that several targets with coins of their own share the canaries.

    Returns
    -------
    The pool with canaries in it, and which they are.

    Raises
    ------
    ConfigError
        An unknown kind, fewer canaries than kinds, more than a quarter of the places, or more blank grey images than
        there are grey levels.
    """
    check_kinds(kinds, count)
    names = [kind for kind in KINDS if kind in kinds]
    counts = {kind: len(part) for kind, part in zip(names, np.array_split(np.arange(count), len(names)), strict=True)}
    copies = np.repeat([COPIES if kind == "duplicated" else 1 for kind in names], list(counts.values()))
    places, free = int(copies.sum()), int(allowed.sum())
    if places > _LARGEST_SHARE * free:
        most = int(_LARGEST_SHARE * free * count / places)
        raise ConfigError(
            f"{count:,} canaries take {places:,} places of the {free:,} records that models may be trained on",
            f"a quarter is the most, for the model must still learn its task: ask for {most:,}",
        )
    owner = np.repeat(np.arange(count), copies)
    place = rng.permutation(np.flatnonzero(allowed))[:places]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    x, y = dataset.x.copy(), dataset.y.copy()
    start = 0
    for kind, number in counts.items():
        mine = place[first[start : start + number]]
        x[mine], y[mine] = KINDS[kind].make(dataset, mine, rng)
        start += number
    index = place[first]
    x[place], y[place] = x[index[owner]], y[index[owner]]
    kind_of = tuple(kind for kind, number in counts.items() for _ in range(number))
    return replace(dataset, x=x, y=y), Canaries(index, kind_of, place, owner)


def check_kinds(kinds: Sequence[str], count: int) -> None:
    """Raise a `ConfigError` for kinds or a number of canaries that cannot be."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of canary {kind!r}", f"known: {', '.join(KINDS)}")
    if len(kinds) == 0 or len(set(kinds)) < len(kinds):
        raise ConfigError(f"kinds of canaries {', '.join(kinds) or '(none)'}", f"each once, of {', '.join(KINDS)}")
    if count < len(kinds):
        raise ConfigError(f"{count} canaries of {len(kinds)} kinds", "at least one of each; hundreds show something")


_Made = tuple[NDArray[np.generic], NDArray[np.int64]]


@dataclass(frozen=True)
class Kind:
    """A kind of canary.

    Parameters
    ----------
    make
        Gives records and labels for the places that are taken.
    text
        What it is, for people.
    """

    make: Callable[[Dataset, NDArray[np.int64], np.random.Generator], _Made]
    text: str


def _mislabelled(dataset: Dataset, places: NDArray[np.int64], rng: np.random.Generator) -> _Made:
    shift = rng.integers(1, dataset.n_classes, len(places))
    return dataset.x[places], (dataset.y[places] + shift) % dataset.n_classes


def _duplicated(dataset: Dataset, places: NDArray[np.int64], rng: np.random.Generator) -> _Made:
    del rng
    return dataset.x[places], dataset.y[places]


def _collage(dataset: Dataset, places: NDArray[np.int64], rng: np.random.Generator) -> _Made:
    """Each block of an image, each feature of a row, from another record: like the data in detail, not as a whole."""
    x = dataset.x[places]
    if x.ndim == 2:
        donors = rng.integers(0, dataset.n, x.shape)
        return dataset.x[donors, np.arange(x.shape[1])], _any_label(dataset, places, rng)
    rows = np.array_split(np.arange(x.shape[2]), min(_BLOCKS, x.shape[2]))
    columns = np.array_split(np.arange(x.shape[3]), min(_BLOCKS, x.shape[3]))
    for down in rows:
        for across in columns:
            whole = dataset.x[rng.integers(0, dataset.n, len(places))]
            x[:, :, down[:, None], across] = whole[:, :, down[:, None], across]
    return x, _any_label(dataset, places, rng)


def _blank(dataset: Dataset, places: NDArray[np.int64], rng: np.random.Generator) -> _Made:
    """One colour all over, one value in all features; no two alike."""
    x, count = dataset.x[places], len(places)
    if x.ndim == 2:
        values = rng.uniform(dataset.x.min(), dataset.x.max(), count).astype(np.float32)
        return np.repeat(values[:, None], x.shape[1], axis=1), _any_label(dataset, places, rng)
    used = min(x.shape[1], 3)
    if count > _GREY_LEVELS**used:
        raise ConfigError(
            f"{count} blank canaries of {_GREY_LEVELS} grey levels would not be distinct", "ask for fewer"
        )
    codes = rng.choice(_GREY_LEVELS**used, count, replace=False)
    levels = np.stack([codes // _GREY_LEVELS**c % _GREY_LEVELS for c in range(used)], axis=1).astype(np.uint8)
    channels = np.arange(x.shape[1]) % used
    x[:] = levels[:, channels, None, None]
    return x, _any_label(dataset, places, rng)


def _any_label(dataset: Dataset, places: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, dataset.n_classes, len(places))


KINDS: dict[str, Kind] = {
    "mislabelled": Kind(_mislabelled, "a record of the pool with a wrong label, drawn at random"),
    "duplicated": Kind(_duplicated, f"a record of the pool that is in the training data {COPIES} times, or not at all"),
    "out-of-distribution": Kind(_collage, "a collage of other records, with a label drawn at random"),
    "blank": Kind(_blank, "one colour all over, with a label drawn at random"),
}
