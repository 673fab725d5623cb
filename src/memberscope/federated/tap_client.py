"""What one participant sees: the model that it is sent each round, and its own reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from flwr.app import Context, Message

from memberscope.errors import MemberscopeError, RunFolderError
from memberscope.federated import wire
from memberscope.federated.recorder import Recorder
from memberscope.federated.taping import LIMIT, Precision, Taping
from memberscope.federated.transcript import Transcript

_LOG = logging.getLogger("memberscope.tap")

CallNext = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, CallNext], Message]


def client_mod(
    out: str | Path,
    *,
    every: int = 1,
    rounds: Collection[int] | None = None,
    precision: Precision = "float32",
    max_bytes: int = LIMIT,
) -> Mod:
    """A Flower mod that records what a curious client sees: ``ClientApp(mods=[tap.client_mod("runs/a")])``.

    Each client has a transcript of its own, ``out/client_K`` with K its ``partition-id`` (its node id where it has
    none). Given to the whole app, the models that come for evaluation are on record too, and so the one that came out
    of the last round; given to ``@app.train(mods=[...])``, those of training alone.

    Parameters
    ----------
    out
        Folder for the clients' transcripts; on a SuperNode every message may come to a new process, which continues it.
    every, rounds, precision, max_bytes
        See `memberscope.federated.taping.Taping`; the limit is for each client.

    Raises
    ------
    ConfigError
        A setting out of range.
    """
    taping = Taping(every=every, rounds=rounds, precision=precision, max_bytes=max_bytes)
    recorders: dict[int, Recorder | None] = {}

    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        if not (wire.is_training(message) or wire.is_evaluation(message)):
            return call_next(message, context)
        client = int(str(context.node_config.get("partition-id", context.node_id)))
        if client not in recorders:
            recorders[client] = _recorder(Path(out) / f"client_{client}", client, taping)
        recorder = recorders[client]
        if recorder is None:
            return call_next(message, context)
        number = wire.round_of(message)
        if wire.is_evaluation(message):
            if number is not None:
                recorder.aggregate(number, lambda: next((arrays for _, arrays in wire.outgoing([message])), None))
            return call_next(message, context)
        if number is None:
            number = _next_round(recorder.folder)
        recorder.sent(number, wire.outgoing([message]))
        reply = call_next(message, context)
        recorder.received(number, wire.replies([reply]))
        return reply

    return mod


def _recorder(folder: Path, client: int, taping: Taping) -> Recorder | None:
    """A recorder; None, with a message, where its folder cannot be used: the client must train all the same."""
    try:
        recorder = Recorder(folder, view=f"client {client}", taping=taping)
    except MemberscopeError as error:
        _LOG.warning("client %d is not taped: %s", client, error)
        return None
    recorder.begin(lambda: {"position": "at the client, at the place of the mod: what it got and what it answers"})
    return recorder


def _next_round(folder: Path) -> int:
    try:
        return max(Transcript.open(folder).rounds, default=0) + 1
    except RunFolderError:
        return 1
