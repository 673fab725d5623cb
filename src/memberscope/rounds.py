"""The rounds of a federation as one seat saw them: candidate pairs of client and record, and series over rounds.

The question about a pair (client, record) is whether that client trained on that record. The truth is not in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.knowledge import Knowledge
from memberscope.round_features import MAX_PARTS, Floats, RoundFeatures, loss_of

SERIES: dict[str, Callable[[RoundFeatures, int], Floats]] = {}
"""What one reply says about all records, by name: a function of the features and the position of the reply."""


def _series(name: str) -> Callable[[Callable[[RoundFeatures, int], Floats]], Callable[[RoundFeatures, int], Floats]]:
    def register(compute: Callable[[RoundFeatures, int], Floats]) -> Callable[[RoundFeatures, int], Floats]:
        SERIES[name] = compute
        return compute

    return register


@dataclass(frozen=True, eq=False)
class Others:
    """The same series under the other clients of the round, float64 [T, M] each; NaN where there are fewer than two.

    Parameters
    ----------
    mean, std
        Over the other clients, pair by pair, less those above mean + 3 std of all of them (Zhu et al., FedMIA): a
        member is a member of one of them. The standard deviation divides by their number.
    pooled
        Root of the mean square of `std` over the records of the same client and round.
    """

    mean: Floats
    std: Floats
    pooled: Floats


@dataclass(frozen=True, eq=False)
class Reference:
    """Another federation of the same clients and records, whose coins the adversary tossed.

    Parameters
    ----------
    features
        Of the same N records, and of rounds with the same numbers.
    owner
        int32 [N]: the client that holds each record, -1 for nobody.
    member
        bool [N]: that client trained on it in this federation.
    """

    features: RoundFeatures
    owner: NDArray[np.int32]
    member: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name in ("owner", "member"):
            if (shape := getattr(self, name).shape) != (self.features.n_records,):
                raise EvidenceError(
                    f"{name} has shape {list(shape)} for features of {self.features.n_records:,} records"
                )

    def trained(self, client: NDArray[np.int64], record: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the client of each pair trained on its record, bool [M]."""
        return np.asarray(self.member[record] & (self.owner[record] == client))


@dataclass(frozen=True, eq=False)
class Rounds:
    """What a seat saw of the rounds, and the M pairs that it asks about.

    Parameters
    ----------
    features
        Of N records; what the seat does not see is not in there.
    client, record
        int64 [M]: the pairs. Clients by their number, records by their row in the features.
    population
        int64 [Z]: rows of records known to be nobody's, none of which is asked about.
    learning_rate
        Of the clients' optimiser, where the server sets it: one for all rounds, or float64 [T]. None: unknown.
    references
        Reference federations: theirs is the membership that the adversary knows, the target's is not in here.
    """

    features: RoundFeatures
    client: NDArray[np.int64]
    record: NDArray[np.int64]
    population: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    learning_rate: float | Floats | None = None
    references: tuple[Reference, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.client.shape != self.record.shape or self.client.ndim != 1:
            raise EvidenceError(
                f"pairs have clients of shape {list(self.client.shape)} and records of shape "
                f"{list(self.record.shape)}, expected [M] both"
            )
        for name in ("record", "population"):
            rows = getattr(self, name)
            if len(rows) and (rows.min() < 0 or rows.max() >= self.features.n_records):
                raise EvidenceError(f"{name} names a row outside of 0..{self.features.n_records - 1}")
        if np.isin(self.population, self.record).any():
            raise EvidenceError(
                "records of the population are also asked about", "a known non-member is no candidate: set it apart"
            )

    @property
    def n_pairs(self) -> int:
        """M."""
        return len(self.client)

    @property
    def n_rounds(self) -> int:
        """T."""
        return len(self.features.rounds)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [M], true class of each pair's record."""
        return self.features.labels[self.record]

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        """What this seat sees of the rounds."""
        seen = {Knowledge.GLOBAL_MODELS}
        if self.features.sum_along is not None:
            seen.add(Knowledge.SUMS)
        if self.features.reply_client is not None:
            seen.add(Knowledge.UPDATES)
        if self.references:
            seen.add(Knowledge.REFERENCE_FEDERATIONS)
        return frozenset(seen)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Rounds:
        """Some of the pairs only, in the order of `rows`."""
        return replace(self, client=self.client[rows], record=self.record[rows])

    def of_reference(self, reference: Reference) -> Rounds:
        """The same pairs in a reference federation."""
        return replace(self, features=reference.features, references=())

    def whoever(self) -> Rounds:
        """The same records with all pairs under one name, for attacks that cannot tell clients apart."""
        return replace(self, client=np.zeros_like(self.client))

    def of_population(self, at_most: int = 200_000) -> Rounds:
        """Every client that is asked about, paired with the known non-members (every so many of them, if too many)."""
        clients = np.unique(self.client)
        step = -(-len(clients) * len(self.population) // at_most) or 1
        rows = self.population[::step]
        nothing = np.empty(0, np.int64)
        return replace(
            self, client=np.repeat(clients, len(rows)), record=np.tile(rows, len(clients)), population=nothing
        )

    # Series under global models: float64 [T, M] ---------------------------------------------------------------------

    def sent_phi(self) -> Floats:
        """Confidence of the global model that each round began with."""
        return self._of_records(self.features.sent_phi[self.features.main])

    def next_phi(self) -> Floats:
        """Confidence of the global model that came out of each round."""
        return self._of_records(self.features.next_phi)

    def log_gradient_norm(self) -> Floats:
        """Logarithm of the norm of the record's gradient at the global model of each round."""
        return self._of_records(self.features.sent_log_norm[self.features.main])

    def sum_cosine(self) -> Floats:
        """Cosine of the record's gradient with the mean update of the round."""
        along, length = self._sums()
        return self._of_records(along.sum(axis=1) / np.maximum(length, _TINY)[:, None])

    def sum_parts(self) -> Floats:
        """What each part of the model adds to `sum_cosine`, float64 [P, T, M]."""
        along, length = self._sums()
        parts = along / np.maximum(length, _TINY)[:, None, None]
        return np.ascontiguousarray(parts[:, :, self.record].transpose(1, 0, 2))

    def sum_dot(self) -> Floats:
        """Product of the record's gradient with the mean update of the round."""
        along, _ = self._sums()
        return self._of_records(along.sum(axis=1)) * np.exp(self.log_gradient_norm())

    # Series under the clients' models -------------------------------------------------------------------------------

    def own(self, name: str) -> Floats:
        """A series of `SERIES` under the reply of the pair's own client, float64 [T, M]; NaN where it took no part."""
        return self._own[name] if name in self._own else self._compute(name)[0]

    def others(self, name: str) -> Others:
        """The same series under the replies of the other clients."""
        return self._others[name] if name in self._others else self._compute(name)[1]

    @cached_property
    def _own(self) -> dict[str, Floats]:
        return {}

    @cached_property
    def _others(self) -> dict[str, Others]:
        return {}

    def _compute(self, name: str) -> tuple[Floats, Others]:
        own, mean, std, pooled = (np.full((self.n_rounds, self.n_pairs), np.nan) for _ in range(4))
        for t, clients, values in self.each_round(name):
            for place, client in enumerate(clients):
                rows = np.flatnonzero(self.client == client)
                if not len(rows):
                    continue
                seen = values[:, self.record[rows]]
                own[t, rows] = seen[place]
                if len(clients) > 2:
                    rest = np.delete(seen, place, axis=0)
                    mean[t, rows], std[t, rows] = _without_the_highest(rest)
                    pooled[t, rows] = np.sqrt(np.mean(std[t, rows] ** 2))
        if np.isnan(own).all(axis=0).any():
            absent = np.unique(self.client[np.isnan(own).all(axis=0)])
            raise EvidenceError(
                f"no reply of client {absent[0]} is on record", "ask about clients that took part in a recorded round"
            )
        self._own[name], self._others[name] = own, Others(mean, std, pooled)
        return self._own[name], self._others[name]

    def each_round(self, name: str) -> Iterator[tuple[int, NDArray[np.int64], Floats]]:
        """Round by round: its position, the clients that replied, and a series under each, float64 [K, N]."""
        f = self.features
        if f.reply_sent is None or f.reply_client is None:
            raise EvidenceError("no client's own update was seen from this seat", "attack from the server's seat")
        in_round = f.sent_round[f.reply_sent]
        for t in range(self.n_rounds):
            replies = np.flatnonzero(in_round == t)
            if len(replies):
                yield t, f.reply_client[replies], np.stack([SERIES[name](f, int(s)) for s in replies])

    def _sums(self) -> tuple[Floats, Floats]:
        if self.features.sum_along is None or self.features.sum_length is None:
            raise EvidenceError("no sum of updates was seen from this seat", "attack from a server's seat")
        return self.features.sum_along.astype(np.float64), self.features.sum_length.astype(np.float64)

    def _of_records(self, values: NDArray[np.floating]) -> Floats:
        return values[:, self.record].astype(np.float64)


_TINY = 1e-30
_FEWEST_FOR_OUTLIERS = 11
"""Among n values none lies more than (n - 1) / sqrt(n) standard deviations from their mean: 3.02 for 11."""


def _without_the_highest(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation over the first axis, of what is not above mean + 3 std."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    if len(values) < _FEWEST_FOR_OUTLIERS:
        return mean, std
    kept = values <= mean + 3 * std
    count = kept.sum(axis=0)
    mean = np.where(kept, values, 0.0).sum(axis=0) / count
    return mean, np.sqrt(np.where(kept, (values - mean) ** 2, 0.0).sum(axis=0) / count)


def _at(array: NDArray[Any] | None, reply: int) -> Floats:
    assert array is not None  # `each_round` has looked
    return np.asarray(array[reply], np.float64)


def _sent(array: NDArray[Any], f: RoundFeatures, reply: int) -> Floats:
    """The row of an array by model sent that belongs to a reply."""
    return np.asarray(array[int(_at(f.reply_sent, reply))], np.float64)


@_series("phi")
def _phi(f: RoundFeatures, reply: int) -> Floats:
    return _at(f.reply_phi, reply)


@_series("loss")
def _loss(f: RoundFeatures, reply: int) -> Floats:
    return loss_of(_phi(f, reply))


@_series("minus-loss")
def _minus_loss(f: RoundFeatures, reply: int) -> Floats:
    return -_loss(f, reply)


@_series("gain")
def _gain(f: RoundFeatures, reply: int) -> Floats:
    """Confidence after the client's training less confidence before it."""
    return np.asarray(_phi(f, reply) - _sent(f.sent_phi, f, reply))


@_series("loss-drop")
def _loss_drop(f: RoundFeatures, reply: int) -> Floats:
    return np.asarray(loss_of(_sent(f.sent_phi, f, reply)) - _loss(f, reply))


@_series("cosine")
def _cosine(f: RoundFeatures, reply: int) -> Floats:
    along = _at(f.reply_along, reply).sum(axis=0)
    return np.asarray(along / max(float(_at(f.reply_length, reply)), _TINY))


def _part(part: int) -> Callable[[RoundFeatures, int], Floats]:
    def cosine(f: RoundFeatures, reply: int) -> Floats:
        """What this part of the model adds to the cosine."""
        along = _at(f.reply_along, reply)[part]
        return np.asarray(along / max(float(_at(f.reply_length, reply)), _TINY))

    return cosine


for _number in range(MAX_PARTS):
    SERIES[f"part-{_number}"] = _part(_number)


@_series("dot-over-length")
def _dot_over_length(f: RoundFeatures, reply: int) -> Floats:
    """Product of the record's gradient, at its length, with the update scaled to length 1."""
    return np.asarray(_cosine(f, reply) * np.exp(_sent(f.sent_log_norm, f, reply)))


@_series("log-norm")
def _log_norm(f: RoundFeatures, reply: int) -> Floats:
    """Logarithm of the norm of the record's gradient at the model that the client was sent."""
    return _sent(f.sent_log_norm, f, reply)


@_series("dot")
def _dot(f: RoundFeatures, reply: int) -> Floats:
    return _dot_over_length(f, reply) * float(_at(f.reply_length, reply))
