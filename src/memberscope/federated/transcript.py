"""What one party of a federation saw, round by round: read back from a folder that `memberscope.federated.tap` wrote.

A transcript is a folder:

- ``transcript.json``: the seat that recorded it, precision, which rounds and clients were asked for.
- ``events.jsonl``: one line an event, only ever appended to: ``begin``, ``nodes``, ``sent``, ``received``, ``failed``,
  ``sum``, ``aggregate``, ``stopped``, ``end``. A line is written after the file that it names.
- ``round_00001/*.safetensors``: the arrays.

Whatever a crash left (a line cut short, a file without its line) is passed over and told in `Transcript.problems`.
A round that was trained again after a restart takes the place of its first attempt, and of all that came after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import RunFolderError
from memberscope.federated.array_files import Arrays, read_arrays
from memberscope.federated.transcript_events import FEATURES_ONLY, Ledger, Reply, Round, read_ledger
from memberscope.federated.weighted_mean import RunningMean

SERVER = "server"
BEHIND_SECURE_AGGREGATION = "server behind secure aggregation"
_SHOWN = 12


class Transcript:
    """A party's view of a federation. Rounds count from 1 as in Flower; clients are numbered (see `clients`).

    Get one from `open`. All arrays come back as ``dict`` name -> array, in the order of the model; what was recorded
    in float16 comes back as float32.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], ledger: Ledger) -> None:
        self.folder = folder
        self.header = header
        self._ledger = ledger

    @classmethod
    def open(cls, folder: str | Path, *, nodes: Mapping[int, int] | None = None) -> Transcript:
        """Read the transcript in `folder`, as far as it was written.

        Parameters
        ----------
        folder
            Where a tap wrote it.
        nodes
            Node id -> number of the client, where you know better than the transcript: a SuperNode prints its id when
            it starts.

        Raises
        ------
        RunFolderError
            The folder holds no transcript, or one of another format.
        ConfigError
            `nodes` names one that is not there, or one number twice.
        """
        transcript = cls(Path(folder), *read_ledger(Path(folder)))
        if nodes:
            transcript._ledger.rename(nodes)
        return transcript

    # Who and when -----------------------------------------------------------------------------------------------------

    @property
    def view(self) -> str:
        """The seat that recorded it: ``server``, ``server behind secure aggregation`` or ``client K``."""
        masked = any(kept.masked for kept in self._ledger.rounds.values())
        return BEHIND_SECURE_AGGREGATION if masked else str(self.header.get("view", SERVER))

    @property
    def observer(self) -> int | None:
        """The client that recorded it; None: a server did."""
        name, _, number = self.view.partition(" ")
        return int(number) if name == "client" and number.isdecimal() else None

    @property
    def only_sums(self) -> bool:
        """True where no client's own update could be recorded."""
        return self.view == BEHIND_SECURE_AGGREGATION

    @property
    def keeps_models(self) -> bool:
        """False where features were computed online: of the models only the last global one is on record."""
        return self.header.get("kept") != FEATURES_ONLY

    @property
    def strategy(self) -> str | None:
        """Name of the strategy, with its wrappers, as far as the tap could see it."""
        return self._ledger.strategy

    @property
    def position(self) -> str | None:
        """Where the tap sat, as a sentence: with a DP wrapper, whether it saw updates before or after clipping."""
        return self._ledger.position

    @property
    def tampered(self) -> tuple[str, ...]:
        """The malicious parties that took part, as they describe themselves."""
        return tuple(self._ledger.tampered)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong or missing, as sentences: lines cut short, taping stopped, one identity used by two nodes."""
        return tuple(self._ledger.problems)

    @property
    def rounds(self) -> list[int]:
        """Rounds of which a model that was sent is on record, ascending."""
        return sorted(number for number, kept in self._ledger.rounds.items() if kept.sent)

    def fingerprint(self, rounds: Sequence[int]) -> str:
        """SHA-256 of which files these rounds are in, when they were recorded and what the clients said beside them."""
        kept = [(r, asdict(self._ledger.rounds[r])) for r in rounds]
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def clients(self) -> list[int]:
        """All clients, ascending: the ``partition-id`` that they reported, else their place among all node ids."""
        return sorted(self._ledger.numbers.values())

    @property
    def clients_reported(self) -> bool:
        """True: every client told its ``partition-id``. False: some numbers only follow the order of node ids."""
        return bool(self._ledger.numbers) and self._ledger.reported.keys() == self._ledger.numbers.keys()

    def asked(self, round_: int) -> list[int]:
        """The clients that a round's model was sent to, ascending."""
        return self._numbered(self._round(round_).sent)

    def clients_of(self, round_: int) -> list[int]:
        """The clients whose own reply of a round is on record, ascending; none where only sums are kept."""
        return self._numbered(self._round(round_).received)

    def took_part(self, round_: int) -> list[int]:
        """The clients that answered in a round with a model, whether or not it could be recorded, ascending."""
        kept = self._round(round_)
        return self._numbered(dict.fromkeys([*kept.received, *kept.masked, *kept.passed_over]))

    def failures(self, round_: int) -> dict[int, str]:
        """Client -> reason, for replies that were errors."""
        return {self._ledger.numbers[node]: reason for node, reason in self._round(round_).failed.items()}

    def node(self, client: int) -> int:
        """Flower's node id of a client.

        Raises
        ------
        RunFolderError
            There is no such client.
        """
        for node, number in self._ledger.numbers.items():
            if number == client:
                return node
        raise RunFolderError(f"no client {client} in {self.folder}", f"clients: {_listed(self.clients)}")

    def num_examples(self, round_: int, client: int) -> float | None:
        """The weight that the client reported with its reply; None if it reported none."""
        return self._reply(round_, client).num_examples

    def metrics(self, round_: int, client: int) -> Mapping[str, Any]:
        """The scalars that the client reported with its reply."""
        return self._reply(round_, client).metrics

    # Arrays -----------------------------------------------------------------------------------------------------------

    def sent(self, round_: int) -> Arrays:
        """The global model of a round: what was sent to most clients."""
        kept = self._round(round_)
        file = _most(kept)
        if file is None:
            raise RunFolderError(f"nothing that was sent in round {round_} is on record", self._known())
        return self._arrays(file)

    def sent_to(self, round_: int, client: int) -> Arrays:
        """What was sent to one client: differs from `sent` under a malicious server and some strategies."""
        file = self._round(round_).sent.get(self.node(client))
        if file is None:
            raise RunFolderError(
                f"nothing that was sent to client {client} in round {round_} is on record",
                f"clients of that round: {_listed(self.asked(round_))}",
            )
        return self._arrays(file)

    def received(self, round_: int, client: int) -> Arrays:
        """The model that a client sent back."""
        reply = self._reply(round_, client)
        arrays = self._arrays(reply.file)
        if reply.base is None:
            return arrays
        base = self._arrays(reply.base)
        return {k: (base[k] + v).astype(base[k].dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}

    def update(self, round_: int, client: int) -> Arrays:
        """What the client changed: sent minus received, so that it points along the gradient; floating arrays only.

        An array that came back in another shape than it was sent in is left out.
        """
        reply = self._reply(round_, client)
        arrays = {k: v for k, v in self._arrays(reply.file).items() if v.dtype.kind == "f"}
        if reply.base is not None:
            return {k: -v for k, v in arrays.items()}
        sent = self.sent_to(round_, client)
        return {k: sent[k] - v for k, v in arrays.items() if k in sent and sent[k].shape == v.shape}

    def aggregate(self, round_: int) -> Arrays | None:
        """The global model that came out of a round (what the next one sent); None where it is not on record."""
        file = self._round(round_).aggregate or _most(self._ledger.rounds.get(round_ + 1, Round()))
        return None if file is None else self._arrays(file)

    def sum(self, round_: int) -> Arrays:
        """The mean of the clients' models weighted by their examples: all that secure aggregation lets through.

        As recorded where only sums are kept (under real secure aggregation that is what came out of the round); else
        computed from the replies on record. Integer arrays are left out.

        Raises
        ------
        RunFolderError
            Neither is on record.
        """
        kept = self._round(round_)
        if kept.sum is not None:
            return self._arrays(kept.sum)
        if kept.received:
            total = RunningMean()
            for client in self.clients_of(round_):
                total.add(self.received(round_, client), self.num_examples(round_, client) or 1.0)
            return total.mean()
        aggregate = self.aggregate(round_)
        if aggregate is None:
            raise RunFolderError(f"round {round_} has neither replies nor their sum on record", self._known())
        return aggregate

    def total_examples(self, round_: int) -> float | None:
        """Examples behind `sum`; None where the clients reported none."""
        kept = self._round(round_)
        weights = [reply.num_examples for reply in (kept.received or kept.masked).values()]
        known = [weight for weight in weights if weight is not None]
        return kept.examples if not weights else (sum(known) if len(known) == len(weights) else None)

    def final(self) -> Arrays:
        """The last global model on record: what came out of the last round, else its mean reply, else what was sent."""
        last = max((r for r, kept in self._ledger.rounds.items() if kept.sent or kept.aggregate), default=None)
        if last is None:
            raise RunFolderError(f"{self.folder} has no round on record", "record the federation again")
        outcome, kept = self.aggregate(last), self._ledger.rounds[last]
        if outcome is None and self.observer is None and (kept.sum or kept.received):
            outcome = {**self.sent(last), **self.sum(last)}  # whole numbers are not averaged
        return self.sent(last) if outcome is None else outcome

    @property
    def bytes(self) -> int:
        """Size of the folder on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def __repr__(self) -> str:
        rounds = f"rounds {_listed(self.rounds)}" if self.rounds else "no rounds"
        return f"Transcript({self.folder.name!r}: seen by the {self.view}, {rounds}, {len(self.clients)} clients)"

    def _round(self, number: int) -> Round:
        if number not in self._ledger.rounds:
            raise RunFolderError(f"round {number} is not on record in {self.folder}", self._known())
        return self._ledger.rounds[number]

    def _reply(self, round_: int, client: int) -> Reply:
        reply = self._round(round_).received.get(self.node(client))
        if reply is None:
            why = "; only sums are kept" if self.only_sums else ""
            raise RunFolderError(
                f"no reply of client {client} in round {round_} is on record{why}",
                f"replies of that round: {_listed(self.clients_of(round_)) or 'none'}",
            )
        return reply

    def _numbered(self, nodes: Mapping[int, Any]) -> list[int]:
        return sorted(self._ledger.numbers[node] for node in nodes)

    def _arrays(self, file: str) -> Arrays:
        if not file:
            raise RunFolderError(
                f"no models are on record in {self.folder}, but features that were computed from them",
                "ask what the features tell, or record the models (--record updates)",
            )
        return read_arrays(self.folder / file)

    def _known(self) -> str:
        return f"rounds on record: {_listed(self.rounds) or 'none'}"


def flat(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float32]:
    """The named arrays one after the other, float32 [d]: the order of `names` is that of the model's parameters."""
    return np.concatenate([np.asarray(arrays[name], np.float32).reshape(-1) for name in names])


def _most(kept: Round) -> str | None:
    """The file that was sent to most nodes; among equals the first."""
    files = list(kept.sent.values())
    return max(dict.fromkeys(files), key=files.count) if files else None


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) <= _SHOWN:
        return ", ".join(map(str, numbers))
    return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]} ({len(numbers)})"
