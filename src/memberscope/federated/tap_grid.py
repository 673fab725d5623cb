"""Recording all training traffic of a grid: custom loops, legacy servers, and rounds under secure aggregation."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
from flwr.app import Message

from memberscope.federated import wire
from memberscope.federated.recorder import Recorder
from memberscope.federated.taping import Taping, TapingSettings

G = TypeVar("G")

POSITION = (
    "on the wire: models are recorded as they were sent, replies as they arrived, before anything that the server does"
)


def watch_grid(
    grid: G,
    out: str | Path,
    **settings: Unpack[TapingSettings],
) -> G:
    """Record what passes through a grid: ``grid = tap.watch_grid(grid, out)`` as the first line of a ServerApp.

    Works with any loop: `send_and_receive`, or `push_messages` and `pull_messages`, from any thread. A round's number
    is what a message names in its config (``server-round``) or group id (legacy servers); a federation that begins
    again goes on counting. Without either, a new round begins when another model is sent after replies came in, or a
    node is asked again. What comes out of a round is seen when it is sent out for evaluation or as the next round's
    model. Under SecAgg and SecAgg+ only masked vectors pass: the transcript then is that of a server behind secure
    aggregation.

    Parameters
    ----------
    grid
        Any Flower Grid; changed in place and given back.
    out
        Folder of the transcript; that of an interrupted federation is continued.
    every, rounds, clients, without, precision, sums_only, max_bytes
        See `memberscope.federated.taping.Taping`.

    Raises
    ------
    ConfigError
        A setting out of range.
    RunFolderError
        `out` holds the transcript of another seat or precision.
    """
    GridTap(grid, Recorder(out, taping=Taping(**settings))).attach()
    return grid


class GridTap:
    """Stands in for `send_and_receive`, `push_messages` and `pull_messages` of one grid object."""

    def __init__(self, grid: Any, recorder: Recorder, *, ends: bool = False) -> None:
        self.grid, self.recorder, self.ends = grid, recorder, ends
        self.both, self.push, self.pull = grid.send_and_receive, grid.push_messages, grid.pull_messages
        self._inside = threading.local()  # send_and_receive of a real grid calls the other two
        self._lock = threading.Lock()
        self._rounds: dict[str, int] = {}
        self._unnamed = 0
        self._named = self._before = 0
        self._asked: set[int] = set()
        self._model = b""
        self._answered = True
        self._begun = False
        self.last = 0
        """The highest round that anything was sent in."""

    def attach(self) -> None:
        """Take the grid's place."""
        self.grid.send_and_receive = self._send_and_receive
        self.grid.push_messages = self._push_messages
        self.grid.pull_messages = self._pull_messages

    def restart(self) -> None:
        """A federation begins: its rounds follow those that are on record."""
        with self._lock:
            self._before, self._named = self.last, 0

    def _send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        number = self._outgoing(messages)
        self._inside.yes = True
        try:
            replies = list(self.both(messages, timeout=timeout))
        finally:
            self._inside.yes = False
        self._incoming([(number, reply) for reply in replies])
        return replies

    def _push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if getattr(self._inside, "yes", False):
            return self.push(messages)  # type: ignore[no-any-return]
        messages = list(messages)
        number = self._outgoing(messages)
        names = list(self.push(messages))
        if number is not None:
            with self._lock:
                self._rounds.update(dict.fromkeys(names, number))
        return names

    def _pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.pull(message_ids))
        if not getattr(self._inside, "yes", False):
            with self._lock:
                known = [(self._rounds.pop(m.metadata.reply_to_message_id, None), m) for m in replies]
            self._incoming(known)
        return replies

    def _outgoing(self, messages: list[Message]) -> int | None:
        """Record what is sent; gives the round, None if these are no messages of a training round."""
        evaluations = [m for m in messages if wire.is_evaluation(m)]
        if evaluations and (named := wire.round_of(evaluations[0])) is not None:
            self.recorder.aggregate(
                self._before + named, lambda: next((arrays for _, arrays in wire.outgoing(evaluations[:1])), None)
            )
        trainings = [m for m in messages if wire.is_training(m)]
        if not trainings:
            return None
        number = self._number(trainings)
        self.last = max(self.last, number)
        if not self._begun:
            self._begun = True
            told = list(getattr(self.grid, "memberscope_tampered", ()))
            self.recorder.begin(lambda: {"position": POSITION, "tampered": told, "ends": self.ends})
        self.recorder.nodes(lambda: self.grid.get_node_ids())
        self.recorder.sent(number, wire.outgoing(trainings))
        return number

    def _incoming(self, replies: list[tuple[int | None, Message]]) -> None:
        for number in dict.fromkeys(n for n, _ in replies if n is not None):
            self._answered = True
            self.recorder.received(number, wire.replies(m for n, m in replies if n == number))

    def _number(self, messages: list[Message]) -> int:
        named = wire.round_of(messages[0])
        with self._lock:
            if named is not None:
                if named < self._named:
                    self._before = self.last
                self._named = named
                self._unnamed = self._before + named
            else:
                nodes = {message.metadata.dst_node_id for message in messages}
                model = _digest(messages[0]) if self._answered else self._model
                if self._unnamed == 0 or (self._answered and (model != self._model or nodes & self._asked)):
                    self._unnamed += 1
                    self._asked, self._model = set(), model or _digest(messages[0])
                self._asked |= nodes
            self._answered = False
            return self._unnamed


def _digest(message: Message) -> bytes:
    """Of the model in a message, to tell whether another one is sent."""
    digest = hashlib.blake2b(digest_size=16)
    for _, arrays in wire.outgoing([message]):
        for name, array in arrays.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
