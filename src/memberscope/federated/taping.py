"""What to record of a federation, how much disk it may take, and what it will take, said beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from memberscope.errors import ConfigError
from memberscope.federated.array_files import Arrays

Precision = Literal["float32", "float16"]
LIMIT = 20_000_000_000
"""Bytes that a transcript takes at most, unless told otherwise."""


class TapingSettings(TypedDict, total=False):
    """The settings of `Taping`, as the taps take them."""

    every: int
    rounds: Collection[int] | None
    clients: Collection[int] | None
    without: Collection[int]
    precision: Precision
    sums_only: bool
    max_bytes: int


@dataclass(frozen=True, kw_only=True)
class Taping:
    """What to record, and how much disk it may take.

    Parameters
    ----------
    every
        Record each round whose number this divides.
    rounds
        Record these rounds only; None: all.
    clients
        Record the replies of these clients only (``partition-id``, or Flower's node id); None: all.
    precision
        ``float32`` keeps models as they are. ``float16`` keeps each reply as its difference to what the client was
        sent, in float16 scaled to its largest value: about half the disk, each change kept to 0.05 %.
    without
        Neither record nor sum the replies of these clients: what an auditor sends itself is no evidence.
    sums_only
        Keep the mean of each round's replies instead of the replies: the seat of a server behind secure aggregation.
    max_bytes
        Size of the folder at which taping stops, and says so, while the federation goes on.

    Raises
    ------
    ConfigError
        A setting out of range.
    """

    every: int = 1
    rounds: Collection[int] | None = None
    clients: Collection[int] | None = None
    precision: Precision = "float32"
    without: Collection[int] = ()
    sums_only: bool = False
    max_bytes: int = LIMIT

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every = {self.every} records no round", "1 records all rounds, 2 every second one")
        if self.precision not in ("float32", "float16"):
            raise ConfigError(f"precision = {self.precision!r} is unknown", "float32 or float16")
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes = {self.max_bytes}", "give the largest size of the transcript in bytes")

    def wants_round(self, number: int) -> bool:
        """True if the round is to be recorded."""
        return number % self.every == 0 and (self.rounds is None or number in self.rounds)

    def wants_client(self, node: int, client: int | None) -> bool:
        """True if the replies of this client are to be recorded."""
        if self.is_left_out(node, client):
            return False
        return self.clients is None or node in self.clients or client in self.clients

    def is_left_out(self, node: int, client: int | None) -> bool:
        """True if the replies of this client are not even part of a sum."""
        return node in self.without or client in self.without

    def round_bytes(self, model: int, replies: int) -> int:
        """Bytes that a recorded round takes: the model that was sent, what came out of it, and the replies.

        What comes out of a round is the next round's model, and kept once where both are recorded.
        """
        chosen = replies if self.clients is None else min(replies, len(self.clients))
        kept = model if self.sums_only else chosen * (model // 2 if self.precision == "float16" else model)
        return kept + (model if self.every == 1 and self.rounds is None else 2 * model)

    def recorded(self, total_rounds: int) -> int:
        """How many of the rounds 1..total are recorded."""
        return sum(self.wants_round(number) for number in range(1, total_rounds + 1))


@dataclass(frozen=True)
class ClientReply:
    """A reply as the tap found it.

    Parameters
    ----------
    node
        Flower's id of the node that it came from.
    arrays
        The model; None where the reply was an error or held none, told in `failure`.
    num_examples
        Its weight, if the client reported one.
    metrics
        All scalars that it reported.
    client
        The ``partition-id`` that it reported.
    masked
        True under secure aggregation: the model is there, but only the sum over all clients can be read.
    """

    node: int
    arrays: Arrays | None
    num_examples: float | None = None
    metrics: Mapping[str, Any] | None = None
    client: int | None = None
    failure: str = ""
    masked: bool = False


def in_words(size: float) -> str:
    """A number of bytes for people: 2.2 MB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
