"""Writing a transcript while a federation runs. Nothing that goes wrong here ends the federation."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from memberscope.errors import MemberscopeError, RunFolderError
from memberscope.federated.array_files import Arrays, digest, halved, write_arrays
from memberscope.federated.taping import ClientReply, Taping, in_words
from memberscope.federated.transcript import BEHIND_SECURE_AGGREGATION, SERVER
from memberscope.federated.transcript_events import EVENTS, FEATURES_ONLY, FORMAT, HEADER
from memberscope.federated.weighted_mean import RunningMean
from memberscope.files import write_json

if TYPE_CHECKING:
    from memberscope.federated.online import OnlineFeatures

_LOG = logging.getLogger("memberscope.tap")
_RESERVE = 128 * 2**20
"""Free disk space that taping leaves alone: the federation itself has things to write."""

P = ParamSpec("P")


class _Unconfigured(logging.StreamHandler[Any]):
    """Prints to standard error where nobody has configured logging: what a tape will take is said before it is made."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


if not _LOG.handlers:
    _LOG.addHandler(_Unconfigured())
    _LOG.setLevel(logging.INFO)


def say_nothing_but_warnings() -> None:
    """For whoever was asked to be quiet."""
    _LOG.setLevel(logging.WARNING)


class _StopError(Exception):
    """Why taping cannot go on."""


def _harmless(method: Callable[Concatenate[Recorder, P], None]) -> Callable[Concatenate[Recorder, P], None]:
    """One thread at a time, timed; an error ends the taping with a message and is never raised to the federation."""

    @functools.wraps(method)
    def guarded(self: Recorder, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with self.lock:
            if self.stopped is not None:
                return
            start = time.perf_counter()
            try:
                method(self, *args, **kwargs)
            except _StopError as reason:
                self._stop(str(reason))
            except OSError as error:
                self._stop(f"cannot write to {self.folder}: {error.strerror or error}")
            except Exception as error:
                _LOG.exception("an error in the tap; the federation goes on without it")
                self._stop(f"{type(error).__name__} in the tap: {error}")
            finally:
                self.seconds += time.perf_counter() - start

    return guarded


class Recorder:
    """Appends to a transcript. After an error (disk full, say) it stops and says so; its methods raise nothing.

    Parameters
    ----------
    folder
        Of the transcript; one that an earlier session of the same seat began is continued.
    view
        The seat: ``server`` or ``client K``.
    taping
        What to record.
    features
        Given, features of each round are computed while its models are in memory, and no model is kept but the last.

    Raises
    ------
    RunFolderError
        The folder holds the transcript of another seat, or in another precision.
    MemberscopeError
        The folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        view: str = SERVER,
        taping: Taping | None = None,
        features: OnlineFeatures | None = None,
    ) -> None:
        self.folder, self.features = Path(folder), features
        self.taping = taping or Taping()
        self.view = BEHIND_SECURE_AGGREGATION if self.taping.sums_only and view == SERVER else view
        self.lock = threading.RLock()  # legacy servers call from a pool of threads
        self.bytes = 0
        self.seconds = 0.0
        self.stopped: str | None = None
        self.round: int | None = None
        self._payloads: dict[bytes, tuple[str, Arrays]] = {}
        self._sent: dict[int, tuple[str, Arrays]] = {}
        self._mean = RunningMean()
        self._replies: list[ClientReply] = []
        self._known: set[int] = set()
        self._last_round: int | None = None
        self._announced = False
        self._total_rounds: int | None = None
        self._open()

    @_harmless
    def begin(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """A session begins; `facts` go into its line: strategy, position, tampered, total_rounds."""
        told = facts()
        self._total_rounds = total = told.get("total_rounds")
        last = None if total is None else max(filter(self.taping.wants_round, range(1, total + 1)), default=None)
        self._last_round = last
        self._event("begin", time=datetime.datetime.now().isoformat(timespec="seconds"), last_round=last, **told)

    @_harmless
    def nodes(self, find: Callable[[], Iterable[int]]) -> None:
        """The nodes that are there, so that clients which report no number can be numbered by their place."""
        new = set(find()) - self._known
        if new:
            self._known |= new
            self._event("nodes", nodes=sorted(new))

    @_harmless
    def sent(self, number: int, messages: Iterable[tuple[int, Arrays]]) -> None:
        """Models on their way to nodes; the same arrays are written once, whoever gets them."""
        if not self.taping.wants_round(number) or not (found := list(messages)):
            return
        self._enter(number)
        if not self._announced:
            self._announce(found[0][1], len(found))
        if self.features is not None:
            self._sent = {node: ("", arrays) for node, arrays in found}
            self._event("sent", round=number, nodes=list(self._sent))
            return
        groups: dict[str, list[int]] = {}
        for node, arrays in found:
            self._sent[node] = self._payload(number, arrays, "sent")
            groups.setdefault(self._sent[node][0], []).append(node)
        for file, nodes in groups.items():
            self._event("sent", round=number, nodes=nodes, file=file)

    @_harmless
    def received(self, number: int, replies: Iterable[ClientReply]) -> None:
        """Replies of a round, as they came: before clipping, tampering or aggregation."""
        if not self.taping.wants_round(number):
            return
        self._enter(number)
        for reply in replies:
            if reply.masked:
                self._heard("masked", number, reply, **_said(reply))
            elif reply.arrays is None:
                self._heard("failed", number, reply, reason=reply.failure)
            elif self.taping.sums_only and not self.taping.is_left_out(reply.node, reply.client):
                self._mean.add(reply.arrays, 1.0 if reply.num_examples is None else reply.num_examples)
                self._heard("passed_over", number, reply)
            elif not self.taping.wants_client(reply.node, reply.client):
                self._heard("passed_over", number, reply)
            elif self.features is not None:
                self._replies.append(reply)
                self._heard("received", number, reply, **_said(reply))
            else:
                self._reply(number, reply, reply.arrays)

    @_harmless
    def aggregate(self, number: int, find: Callable[[], Arrays | None], *, final: bool = False) -> None:
        """The model that came out of a round, if any did, after all its replies; `final`: kept whatever the round."""
        if not (final or self.taping.wants_round(number)):
            return
        self._enter(number)
        if self.features is None:
            self._write_sum(number)
            arrays = find()
        else:
            arrays = find()
            self._compute(self.features, number, arrays)
            if not final and number != self._last_round:
                return
        if arrays:
            self._event("aggregate", round=number, file=self._payload(number, arrays, "aggregate")[0])

    @_harmless
    def end(self) -> None:
        """The federation ended as it should."""
        if self.round is not None:
            self._write_sum(self.round)
        self._event("end", bytes=self.bytes, seconds=round(self.seconds, 3))
        _LOG.info("taped to %s: %s, %.1f s", self.folder, in_words(self.bytes), self.seconds)

    def _compute(self, features: OnlineFeatures, number: int, arrays: Arrays | None) -> None:
        """The features of a round that is over; its models are then forgotten."""
        if not self._sent:
            return  # computed already: this is the model that came out of the last round
        from memberscope.federated.features import Reply as Seen

        sent, self._sent = self._sent, {}
        replies, self._replies = self._replies, []
        mean, self._mean = self._mean, RunningMean()
        self._make_room(size := features.round_bytes(len(replies)))
        places = {node: place for place, node in enumerate(sorted(self._known))}
        seen = [
            Seen(places[r.node] if r.client is None else r.client, r.arrays, r.num_examples, sent[r.node][1])
            for r in replies
            if r.arrays is not None and r.node in sent
        ]
        models = [model for _, model in sent.values()]
        outcome = models[0] if arrays is None else arrays  # nothing came out: the model stays what it was
        for left_out in features.round(number, models, seen, outcome, dict(mean.mean()) if mean.weight > 0 else None):
            _LOG.warning("left out: %s", left_out)
        self.bytes += size

    def _open(self) -> None:
        taping, path = self.taping, self.folder / HEADER
        header = {
            "format": FORMAT,
            "view": self.view,
            "precision": taping.precision,
            "every": taping.every,
            "rounds": None if taping.rounds is None else sorted(taping.rounds),
            "clients": None if taping.clients is None else sorted(taping.clients),
            "max_bytes": taping.max_bytes,
            **({} if self.features is None else {"kept": FEATURES_ONLY}),
        }
        if path.exists():
            self._check_header(path, header)
        else:
            write_json(path, header)
        try:
            self.bytes = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
            with (self.folder / EVENTS).open("ab") as log:
                if log.tell():
                    log.write(b"\n")  # a crash may have cut the last line short: it must not take the next one with it
        except OSError as error:
            raise MemberscopeError(
                f"cannot write {self.folder / EVENTS}: {error.strerror or error}", "record into another folder"
            ) from error

    def _check_header(self, path: Path, header: Mapping[str, Any]) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in ("format", "view", "precision", "kept") if found.get(key) != header.get(key)]
        except (OSError, ValueError, AttributeError) as error:
            raise RunFolderError(f"cannot read {path}: {error}", "record into another folder") from None
        if other:
            key = other[0]
            raise RunFolderError(
                f"{self.folder} holds a transcript with {key} = {found.get(key)!r}, not {header.get(key)!r}",
                "record into another folder",
            )

    def _enter(self, number: int) -> None:
        """A new round begins; what came out of the last one is kept in mind, as it is what is sent now."""
        if number == self.round:
            return
        if self.round is not None:
            self._write_sum(self.round)
        self.round = number
        self._payloads = dict(list(self._payloads.items())[-1:])
        self._sent, self._replies = {}, []

    def _payload(self, number: int, arrays: Arrays, kind: str) -> tuple[str, Arrays]:
        """The file that holds these arrays, written unless this round or the end of the last one wrote them."""
        for known in self._payloads.values():
            if known[1] is arrays:
                return known
        key = digest(arrays)
        if key not in self._payloads:
            self._payloads[key] = self._write(number, kind, arrays), arrays
        return self._payloads[key]

    def _reply(self, number: int, reply: ClientReply, arrays: Arrays) -> None:
        base = self._sent.get(reply.node)
        change = None if base is None or self.taping.precision == "float32" else halved(arrays, base[1])
        if change is None:
            base = None
            file = self._write(number, f"from_{reply.node}", arrays)
        else:
            file = self._write(number, f"from_{reply.node}", change[0], change[1])
        self._heard("received", number, reply, file=file, base=None if base is None else base[0], **_said(reply))

    def _heard(self, event: str, number: int, reply: ClientReply, **facts: Any) -> None:
        self._event(event, round=number, node=reply.node, client=reply.client, **facts)

    def _write_sum(self, number: int) -> None:
        if self.features is not None:
            return
        mean, self._mean = self._mean, RunningMean()
        if mean.weight > 0:
            file = self._write(number, "sum", dict(mean.mean()))
            self._event("sum", round=number, file=file, examples=mean.weight, replies=mean.count)

    def _write(self, number: int, name: str, arrays: Arrays, scales: Mapping[str, float] | None = None) -> str:
        self._make_room(sum(a.nbytes for a in arrays.values()))
        file, again = f"round_{number:05d}/{name}.safetensors", 1
        while (self.folder / file).exists():  # of an attempt at this round before a restart: nothing is overwritten
            again += 1
            file = f"round_{number:05d}/{name}_{again}.safetensors"
        self.bytes += write_arrays(self.folder / file, arrays, scales=scales)
        return file

    def _make_room(self, size: int) -> None:
        if self.bytes + size > self.taping.max_bytes:
            raise _StopError(f"the limit of {in_words(self.taping.max_bytes)} is reached (max_bytes)")
        if shutil.disk_usage(self.folder).free < size + _RESERVE:
            raise _StopError(f"the disk of {self.folder} is nearly full: {in_words(_RESERVE)} are left alone")

    def _event(self, event: str, **facts: Any) -> None:
        told = {key: value for key, value in facts.items() if value is not None}
        line = json.dumps({"event": event, **told}, default=str).encode() + b"\n"
        with (self.folder / EVENTS).open("ab") as log:
            log.write(line)
        self.bytes += len(line)

    def _announce(self, arrays: Arrays, replies: int) -> None:
        """Say beforehand what taping will take, and whether it fits."""
        self._announced = True
        model = sum(a.nbytes for a in arrays.values())
        if self.taping.without and self._known:  # they take part like the others, but are passed over
            replies = round(replies * (1 - len(self.taping.without) / len(self._known)))
        a_round = self.taping.round_bytes(model, replies)
        text = f"taping to {self.folder}: {in_words(a_round)} a round ({replies} clients, {in_words(model)} a model)"
        if self.features is not None:
            seen = 0 if self.taping.sums_only else replies
            a_round = self.features.round_bytes(seen)
            text = (
                f"features to {self.features.writer.folder}: {seen + 2} models a round are asked about "
                f"{self.features.n_records:,} records, {in_words(a_round)} a round, and no model is kept"
            )
        if self._total_rounds is not None:
            rounds = self.taping.recorded(self._total_rounds)
            text += f", {rounds} rounds: {in_words(rounds * a_round)}"
            left, free = self.taping.max_bytes - self.bytes, shutil.disk_usage(self.folder).free - _RESERVE
            room = max(min(left, free), 0)
            if rounds * a_round > room:
                _LOG.warning(
                    "%s, but %s %s: taping will stop after about %d of them. Record fewer rounds (every=...), or in "
                    "float16.",
                    text,
                    "max_bytes leaves" if left <= free else "the disk has room for",
                    in_words(room),
                    room // a_round,
                )
                return
        _LOG.info("%s (limit %s)", text, in_words(self.taping.max_bytes))

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        _LOG.warning("taping stopped in round %s: %s. The federation goes on without it.", self.round, reason)
        with contextlib.suppress(OSError):
            self._event("stopped", round=self.round, reason=reason)


def _said(reply: ClientReply) -> dict[str, Any]:
    return {"num_examples": reply.num_examples, "metrics": reply.metrics or None}
