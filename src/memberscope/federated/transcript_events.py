"""The lines of a transcript, read into what happened in each round; whatever a crash left of them is passed over."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memberscope.errors import ConfigError, RunFolderError

FORMAT = 1
HEADER = "transcript.json"
FEATURES_ONLY = "features"
"""Value of ``kept`` in the header, where features were computed online and models were not kept."""
EVENTS = "events.jsonl"

_FILE = re.compile(r"round_[0-9]{5,}/[A-Za-z0-9_-]+\.safetensors")
_SHOWN = 5


@dataclass(frozen=True)
class Reply:
    """What a node sent back in a round.

    Parameters
    ----------
    file
        Of the arrays, within the folder; empty where they were not kept.
    base
        File of what the node had been sent, if `file` holds the difference to it; None: `file` holds the model.
    num_examples
        Weight of the reply as the client reported it.
    metrics
        All scalars that the client reported.
    """

    file: str
    base: str | None
    num_examples: float | None
    metrics: Mapping[str, Any]


@dataclass
class Round:
    """Files and figures of one round, by node id; `examples` is the weight behind `sum`.

    `begun` is when the tap that recorded it began, as the tap wrote it.
    `masked` are replies under secure aggregation: what the client said beside a model that cannot be read.
    `passed_over` came in, but were not to be kept.
    """

    begun: str = ""
    sent: dict[int, str] = field(default_factory=dict)
    received: dict[int, Reply] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    masked: dict[int, Reply] = field(default_factory=dict)
    passed_over: set[int] = field(default_factory=set)
    aggregate: str | None = None
    sum: str | None = None
    examples: float | None = None


class Ledger:
    """All events of a transcript in their order. `problems` tells what is missing or makes no sense."""

    def __init__(self, *, models: bool = True) -> None:
        self._models = models
        self.rounds: dict[int, Round] = {}
        self.numbers: dict[int, int] = {}
        self.reported: dict[int, int] = {}
        self.position: str | None = None
        self.strategy: str | None = None
        self.tampered: list[str] = []
        self.problems: list[str] = []
        self._nodes: set[int] = set()
        self._clashes: dict[int, set[int]] = {}
        self._begun: dict[int, int] = {}
        self._session, self._since = 0, ""
        self._last_round: int | None = None
        self._open = self._ends = False
        self._stopped: str | None = None

    def rename(self, nodes: Mapping[int, int]) -> None:
        """Number the clients as told: those that are not named keep no number that is taken."""
        unknown = nodes.keys() - self.numbers.keys()
        if unknown:
            known = ", ".join(map(str, sorted(self.numbers)))
            raise ConfigError(f"no node {min(unknown)} is on record", f"nodes: {known}")
        if len(set(nodes.values())) < len(nodes):
            raise ConfigError("two nodes are given the same number", "number the clients as the partition does")
        self.reported = dict(nodes)
        self._number()

    def close(self) -> None:
        """All events are in: number the clients, tell what is missing."""
        if self._stopped is not None:
            self.problems.append(f"taping stopped early: {self._stopped}")
        elif self._open and (text := self._unfinished()):
            self.problems.append(f"not taped to its end ({text}): the federation was killed, or is still running")
        for client, nodes in sorted(self._clashes.items()):
            self.problems.append(f"{len(nodes)} nodes reported to be client {client}: only the first keeps the number")
        self._number()

    def _number(self) -> None:
        places = {node: place for place, node in enumerate(sorted(self._nodes))}
        if all(places[node] == client for node, client in self.reported.items()):
            self.numbers = places
            return
        free = max(self.reported.values()) + 1
        rest = (node for node in places if node not in self.reported)
        self.numbers = {**self.reported, **{node: free + place for place, node in enumerate(rest)}}

    def _unfinished(self) -> str | None:
        """What tells that the federation went on after the last line; None where nothing does."""
        last = max((number for number, kept in self.rounds.items() if kept.sent), default=None)
        if last is None:
            return "no round is on record"
        kept = self.rounds[last]
        answered = kept.received.keys() | kept.failed.keys() | kept.masked.keys() | kept.passed_over
        if kept.aggregate is None and kept.sum is None and kept.sent.keys() - answered:
            return f"round {last} has {len(answered)} of {len(kept.sent)} replies"
        if self._last_round is not None and last < self._last_round:
            return f"the last round on record is {last}, not {self._last_round}"
        return "its end is not on record" if self._ends else None

    def add(self, event: Mapping[str, Any]) -> None:
        """One event. Raises KeyError, TypeError or ValueError if it makes no sense."""
        kind = event["event"]
        if kind == "begin":
            self._session, self._since = self._session + 1, str(event.get("time") or "")
            self._open, self._stopped = True, None
            self.position = event.get("position") or self.position
            self.strategy = event.get("strategy") or self.strategy
            self._last_round, self._ends = event.get("last_round"), bool(event.get("ends"))
            self.tampered += [t for t in event.get("tampered", ()) if t not in self.tampered]
        elif kind == "nodes":
            self._nodes.update(int(n) for n in event["nodes"])
        elif kind == "end":
            self._open = False
        elif kind == "stopped":
            self._stopped = str(event["reason"])
        elif kind == "sent":
            self._sent(int(event["round"]), [int(n) for n in event["nodes"]], self._file(event))
        elif kind == "aggregate":
            self._round(event).aggregate = _safe(event["file"])
        elif kind == "sum":
            kept = self._round(event)
            kept.sum, kept.examples = _safe(event["file"]), event["examples"]
        elif kind == "failed":
            self._node(event)
            self._round(event).failed[int(event["node"])] = str(event["reason"])
        elif kind == "received":
            self._received(event)
        elif kind == "masked":
            self._round(event).masked[self._node(event)] = Reply("", None, event.get("num_examples"), _metrics(event))
        elif kind == "passed_over":
            self._round(event).passed_over.add(self._node(event))

    def _sent(self, number: int, nodes: list[int], file: str) -> None:
        if self._begun.setdefault(number, self._session) != self._session:
            # Trained again after a restart: the first attempt, and whatever followed from it, did not happen.
            for later in [r for r in self._begun if r >= number]:
                self.rounds.pop(later, None)
                del self._begun[later]
            self._begun[number] = self._session
        self._nodes.update(nodes)
        self.rounds.setdefault(number, Round(begun=self._since)).sent.update(dict.fromkeys(nodes, file))

    def _received(self, event: Mapping[str, Any]) -> None:
        node, base = self._node(event), event.get("base")
        self._round(event).received[node] = Reply(
            self._file(event),
            None if base is None else _safe(base),
            event.get("num_examples"),
            _metrics(event),
        )

    def _file(self, event: Mapping[str, Any]) -> str:
        """The file that an event names; none where only features were kept."""
        return _safe(event["file"]) if self._models else ""

    def _round(self, event: Mapping[str, Any]) -> Round:
        return self.rounds.setdefault(int(event["round"]), Round())

    def _node(self, event: Mapping[str, Any]) -> int:
        """The node of an event, with the identity that it reported."""
        node, client = int(event["node"]), event.get("client")
        self._nodes.add(node)
        if isinstance(client, int):
            first = next((n for n, k in self.reported.items() if k == client), node)
            if first != node:
                self._clashes.setdefault(client, {first}).add(node)
            else:
                self.reported[node] = client
        return node


def read_ledger(folder: Path) -> tuple[Mapping[str, Any], Ledger]:
    """Header and events of the transcript in `folder`.

    Raises
    ------
    RunFolderError
        The folder holds no transcript, or one of another format.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        lines = (folder / EVENTS).read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise RunFolderError(
            f"no transcript in {folder} ({Path(error.filename).name} is missing)",
            "record one with memberscope.federated.tap.watch(strategy, folder)",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"cannot read the transcript in {folder}: {error}", "check the folder") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder / HEADER} is not a transcript of format {FORMAT}", "read it with the version that wrote it"
        )
    ledger, broken = Ledger(models=header.get("kept") != FEATURES_ONLY), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ledger.add(json.loads(line))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            broken.append(number)
    if broken:
        more = "" if len(broken) <= _SHOWN else f" and {len(broken) - _SHOWN} more"
        ledger.problems.append(
            f"line {', '.join(map(str, broken[:_SHOWN]))}{more} of {EVENTS} cannot be read (cut short by a crash?) "
            "and was passed over"
        )
    ledger.close()
    return header, ledger


def _metrics(event: Mapping[str, Any]) -> Mapping[str, Any]:
    found = event.get("metrics") or {}
    if not isinstance(found, dict):
        raise TypeError(found)
    return found


def _safe(file: Any) -> str:
    """A file name as we write them; anything else, such as a way out of the folder, is refused."""
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(file)
    return file
