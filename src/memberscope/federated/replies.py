"""What comes back from clients, looked at before it is aggregated: a bad reply must not end or poison a federation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord

from memberscope.federated.engine import FIRST_NODE

Shapes = dict[str, tuple[tuple[int, ...], str]]
REFUSED = 0
"""Error code of a reply that was refused (Flower's for 'unknown')."""


@dataclass
class Sifted:
    """The replies of a round.

    Parameters
    ----------
    good
        To be aggregated.
    bad
        Error messages: those that came, and one in place of each reply that was refused or is missing.
    clients
        Node -> client, of all that said who they are.
    reasons
        Node -> why its reply is bad.
    """

    good: list[Message] = field(default_factory=list)
    bad: list[Message] = field(default_factory=list)
    clients: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def sift(sent: Sequence[Message], replies: Iterable[Message], arrays: ArrayRecord, timeout: float) -> Sifted:
    """Tell good replies from bad ones.

    Parameters
    ----------
    sent
        The messages of the round.
    replies
        What came.
    arrays
        The global model: names, shapes and types that a reply must have.
    timeout
        Seconds that were waited.
    """
    sifted = Sifted()
    shapes: Shapes = {name: (tuple(array.shape), str(np.dtype(array.dtype).kind)) for name, array in arrays.items()}
    by_node = {message.metadata.dst_node_id: message for message in sent}
    seen: dict[int, int] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        if reply.has_error():
            sifted.bad.append(reply)
            sifted.reasons[node] = reply.error.reason or f"error {reply.error.code}"
            continue
        reason = _fault(reply, shapes)
        client = _client(reply, node)
        if reason is None and client in seen:
            reason = (
                f"client {client} answered twice, from nodes {seen[client]} and {node}: "
                f"two SuperNodes were started with partition-id={client}"
            )
        if client is not None:
            sifted.clients[node] = client
        if reason is not None:
            _refuse(sifted, by_node.get(node), node, reason)
            continue
        if client is not None:
            seen[client] = node
        sifted.good.append(reply)
    answered = {m.metadata.src_node_id for m in (*sifted.good, *sifted.bad)} | set(sifted.reasons)
    for node, message in by_node.items():
        if node not in answered:
            _refuse(sifted, message, node, f"no reply within {timeout:g} seconds")
    return sifted


def client_of(sifted: Sifted, node: int) -> int | None:
    """Which client a node is, where that is known."""
    if node in sifted.clients:
        return sifted.clients[node]
    return node - FIRST_NODE if FIRST_NODE <= node < 1 << 32 else None  # SuperNodes have random ids of 64 bits


def _refuse(sifted: Sifted, message: Message | None, node: int, reason: str) -> None:
    sifted.reasons[node] = reason
    if message is not None:
        sifted.bad.append(Message(Error(REFUSED, reason), reply_to=message))


def _client(reply: Message, node: int) -> int | None:
    for record in reply.content.metric_records.values():
        value = record.get("partition-id")
        if isinstance(value, int | float) and math.isfinite(value):
            return int(value)
    return node


def _fault(reply: Message, shapes: Shapes) -> str | None:
    """Why a reply cannot be aggregated; None: it can."""
    records = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        return f"sent {len(records)} models and {len(metrics)} records of metrics, expected one of each"
    return _metric_fault(metrics[0]) or _array_fault(records[0], shapes)


def _metric_fault(metrics: MetricRecord) -> str | None:
    weight: Any = metrics.get("num-examples")
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        return f"sent num-examples = {weight!r}, expected a number above 0"
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"sent {name} = {value}"
    return None


def _array_fault(record: ArrayRecord, shapes: Shapes) -> str | None:
    if set(record) != set(shapes):
        other = sorted(set(record) ^ set(shapes))
        return f"sent a model with other arrays: {', '.join(other[:3])}"
    for name, (shape, kind) in shapes.items():
        try:
            values = record[name].numpy()
        except Exception as error:  # bytes of a stranger
            return f"sent {name} in a form that cannot be read ({type(error).__name__})"
        if values.shape != shape or values.dtype.kind not in (kind, "f"):
            return f"sent {name} as {values.dtype} {list(values.shape)}, expected shape {list(shape)}"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"sent {name} with {int((~np.isfinite(values)).sum()):,} values that are not finite"
    return None
