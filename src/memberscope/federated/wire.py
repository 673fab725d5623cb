"""Reading Flower's messages, of its Message API and of its legacy one: round, model, what the client said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from memberscope.federated.array_files import Arrays
from memberscope.federated.taping import ClientReply

_ROUND_KEYS = ("server-round", "server_round", "current-round", "current_round", "round")
_IDENTITY_KEYS = ("partition-id", "partition_id")
_WEIGHT_KEYS = ("num-examples", "num_examples")
_STORABLE = frozenset("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split())
_NO_ARRAYS = "_empty"  # legacy Parameters without any become a record with this one entry
_SECURE_AGGREGATION = "secaggplus_configs"


def is_training(message: Message) -> bool:
    """True for a message of a training round (``train`` or ``train.ACTION``)."""
    return str(message.metadata.message_type).partition(".")[0] == "train"


def is_evaluation(message: Message) -> bool:
    """True for a message of an evaluation round."""
    return str(message.metadata.message_type).partition(".")[0] == "evaluate"


def round_of(message: Message) -> int | None:
    """The round that a message names in its config or, as legacy servers do, in its group id; None if it names none."""
    if message.has_content():
        for config in message.content.config_records.values():
            for key in _ROUND_KEYS:
                value = config.get(key)
                if isinstance(value, int | float | str) and str(value).isdigit():
                    return int(value)
    group = str(message.metadata.group_id)
    return int(group) if group.isdigit() else None


def is_masked(message: Message) -> bool:
    """True for a message of the SecAgg or SecAgg+ protocol."""
    return message.has_content() and _SECURE_AGGREGATION in message.content


class Decoder:
    """Arrays of records, each record decoded once: strategies put one into the messages to all clients."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ArrayRecord, Arrays]] = {}

    def record(self, record: ArrayRecord) -> Arrays:
        """Name -> array of one record, leaving out what is no number."""
        known = self._known.get(id(record))
        if known is None:
            decoded = {name: array.numpy() for name, array in record.items() if name != _NO_ARRAYS}
            kept = {name: value for name, value in decoded.items() if value.dtype.name in _STORABLE}
            known = self._known[id(record)] = record, kept
        return known[1]

    def content(self, content: RecordDict) -> Arrays:
        """All arrays of a message; where it holds several records, ``record/name`` -> array."""
        records = {key: self.record(record) for key, record in content.array_records.items()}
        if len(records) == 1:
            return next(iter(records.values()))
        return {f"{key}/{name}": value for key, arrays in records.items() for name, value in arrays.items()}


def outgoing(messages: Iterable[Message]) -> Iterator[tuple[int, Arrays]]:
    """(node, arrays) of the messages that carry a model."""
    decoder = Decoder()
    for message in messages:
        arrays = decoder.content(message.content) if message.has_content() else {}
        if arrays:
            yield int(message.metadata.dst_node_id), arrays


def replies(messages: Iterable[Message], weighted_by: str | None = None) -> Iterator[ClientReply]:
    """What the clients' replies hold; protocol messages of secure aggregation without a model are left out."""
    for message in messages:
        if not is_masked(message) or message.content.array_records:
            yield reply_of(message, weighted_by)


def reply_of(message: Message, weighted_by: str | None = None) -> ClientReply:
    """What a client's reply holds; an error, or arrays that cannot be decoded, are a failure with its reason."""
    node = int(message.metadata.src_node_id)
    if message.has_error():
        return ClientReply(node, None, failure=str(message.error.reason or "an error without a reason"))
    metrics = _scalars(message.content)
    client = next((_identity(metrics[key]) for key in _IDENTITY_KEYS if key in metrics), None)
    keys = _WEIGHT_KEYS if weighted_by is None else (weighted_by, *_WEIGHT_KEYS)
    weight = next((_number(metrics[key]) for key in keys if key in metrics), None)
    failure, arrays = "the reply holds no model", None
    if is_masked(message):
        return ClientReply(node, None, num_examples=weight, metrics=metrics, client=client, masked=True)
    try:
        arrays = Decoder().content(message.content) or None
    except (ValueError, TypeError, EOFError, OSError) as error:  # bytes that are no array, or Python objects
        failure = f"the model cannot be decoded: {error}"
    return ClientReply(
        node,
        arrays,
        num_examples=weight,
        metrics=metrics,
        client=client,
        failure="" if arrays else failure,
    )


def to_record(arrays: Mapping[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    """Arrays as Flower sends them."""
    from flwr.app import Array

    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def _scalars(content: RecordDict) -> dict[str, Any]:
    """All that the client reported beside its model; legacy clients put their metrics into a config record."""
    found: dict[str, Any] = {}
    for key, record in content.config_records.items():
        if key.endswith(".metrics"):
            found.update(record)
    for metrics in content.metric_records.values():
        found.update(metrics)
    return {key: _plain(value) for key, value in found.items() if not isinstance(value, bytes)}


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _identity(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value == int(value) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
