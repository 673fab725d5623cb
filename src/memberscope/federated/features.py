"""From models to numbers: what every recorded model says about the records, computed once and kept.

Works on a transcript afterwards, or online: whoever holds the models of a round hands them to `FeatureWriter.round`,
and no weights are kept. A round is a file, written whole or not at all, so that a long extraction goes on where it was
killed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memberscope.errors import ModelError, RunFolderError
from memberscope.federated.alignment import Alignment
from memberscope.federated.prober import Arrays, Prober, finite, length
from memberscope.federated.weighted_mean import RunningMean
from memberscope.files import replacing, write_text
from memberscope.round_features import RoundFeatures
from memberscope.signals import logit_scaled_confidence

DIRECTION_BYTES = 1 << 30
"""Updates held against the gradients at once take so much memory at most, however many clients a round has.

Twice that while they are asked about, since they are stacked then, and three models more for the mean of the round."""

FORMAT = 1


class Recorded(Protocol):
    """What is read of a transcript (`memberscope.federated.transcript.Transcript`)."""

    @property
    def rounds(self) -> list[int]: ...  # noqa: D102

    @property
    def only_sums(self) -> bool: ...  # noqa: D102

    @property
    def observer(self) -> int | None: ...  # noqa: D102

    def final(self) -> Any: ...  # noqa: D102

    def clients_of(self, round_: int, /) -> list[int]: ...  # noqa: D102

    def num_examples(self, round_: int, client: int, /) -> float | None: ...  # noqa: D102

    def sent(self, round_: int, /) -> Any: ...  # noqa: D102

    def sent_to(self, round_: int, client: int, /) -> Any: ...  # noqa: D102

    def received(self, round_: int, client: int, /) -> Any: ...  # noqa: D102

    def sum(self, round_: int, /) -> Any: ...  # noqa: D102

    def aggregate(self, round_: int, /) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Reply:
    """One client's model of a round, and the model that it was sent where that is not the global one."""

    client: int
    model: Arrays
    examples: float | None = None
    sent: Arrays | None = None


class FeatureWriter:
    """Turns rounds into features, a file a round in `folder`.

    Parameters
    ----------
    prober
        Asks the models about the N records.
    folder
        Where the features are kept. Files of an earlier run with the same `identity` are taken.
    identity
        What the features depend on beside the models: hashed with the labels.
    renew
        What becomes of files with another identity: they are removed (`renewed` tells it), or refused.

    Raises
    ------
    RunFolderError
        The folder holds features of other records or of another federation.
    """

    def __init__(self, prober: Prober, folder: Path, identity: Mapping[str, Any], *, renew: bool = False) -> None:
        self.prober, self.folder = prober, Path(folder)
        self.left_out: list[str] = []
        self.renewed = False
        key = hashlib.sha256(prober.labels.tobytes())
        key.update(json.dumps({**identity, "format": FORMAT}, sort_keys=True, default=str).encode())
        stamp = self.folder / "features.json"
        told = _told(stamp)
        if told is not None and told.get("key") != key.hexdigest():
            if not renew:
                raise RunFolderError(
                    f"{self.folder} holds features of other records or of another federation",
                    "remove that folder, or name another one",
                )
            shutil.rmtree(self.folder)
            told, self.renewed = None, True
        if told is None:
            write_text(stamp, json.dumps({"key": key.hexdigest(), "records": len(prober.labels)}) + "\n")

    def has(self, number: int) -> bool:
        """Whether a round is there already."""
        return self._path(number).is_file()

    def round(
        self,
        number: int,
        sent: Arrays,
        replies: Iterable[Reply],
        *,
        outcome: Arrays | None = None,
        mean: Arrays | None = None,
    ) -> None:
        """Compute and keep the features of one round.

        Parameters
        ----------
        number
            Of the round.
        sent
            The global model.
        replies
            The clients' models, read one by one; empty where only sums are seen.
        outcome
            The global model that came out; None where the next round, which will be recorded too, sends it.
        mean
            The clients' weighted mean; None: computed from the replies.

        Raises
        ------
        ModelError
            No reply, or not the global model, fits the model that is asked; one among others is left out.
        """
        group = _Group(self.prober, sent)
        known: dict[str, list[Any]] = {"client": [], "base": [], "phi": [], "length": []}
        asked: list[Alignment] = []  # of those that were sent a model of their own
        average = RunningMean()
        misfit: ModelError | None = None
        for reply in replies:
            if not finite(reply.model):
                self.left_out.append(f"round {number}, client {reply.client}: its model holds NaN or infinities")
                continue
            apart = None if reply.sent is None or _same(reply.sent, sent) else reply.sent
            try:
                update = self.prober.update(sent if apart is None else apart, reply.model)
                self.prober.take_on(reply.model)
            except ModelError as error:
                misfit = error
                self.left_out.append(f"round {number}, client {reply.client}: {error.problem}")
                continue
            known["phi"].append(self.prober.phi())
            known["client"].append(reply.client)
            known["base"].append(0 if apart is None else len(asked) + 1)
            known["length"].append(length(update))
            if apart is not None:
                self.prober.take_on(apart)
                asked.append(self.prober.align([update]))
                continue
            if mean is None and not asked:
                weight = 1.0 if reply.examples is None else reply.examples
                average.add({name: part.numpy() for name, part in update.items()}, weight)
            group.add(update)
        if misfit is not None and not known["client"]:
            raise misfit
        towards = None
        if mean is not None:
            towards = self.prober.update(sent, mean)
        elif average.weight > 0 and not asked:  # updates of several models have no mean that anything moved by
            towards = {name: torch.from_numpy(np.asarray(part)) for name, part in average.mean().items()}
        if towards is not None:
            group.add(towards)
        self._write(number, [group.finish(), *asked], known, towards, outcome)

    def _write(
        self,
        number: int,
        found: Sequence[Alignment],
        known: dict[str, list[Any]],
        towards: Mapping[str, Tensor] | None,
        outcome: Arrays | None,
    ) -> None:
        labels = self.prober.labels
        content: dict[str, Any] = {
            "sent_phi": np.stack([logit_scaled_confidence(one.logits, labels).astype(np.float32) for one in found]),
            "sent_log_norm": np.stack([one.log_norm.astype(np.float32) for one in found]),
        }
        if towards is not None:
            content |= {"sum_along": found[0].along[-1], "sum_length": np.float32(length(towards))}
        if known["client"]:
            along = [iter(one.along) for one in found]  # of each model that was sent, in the order of its replies
            content |= {
                "reply_client": np.array(known["client"], np.int64),
                "reply_base": np.array(known["base"], np.int64),
                "reply_phi": np.stack(known["phi"]),
                "reply_length": np.array(known["length"], np.float32),
                "reply_along": np.stack([next(along[base]) for base in known["base"]]),
            }
        if outcome is not None:
            self.prober.take_on(outcome)
            logits = self.prober.logits()
            content |= {"next_phi": logit_scaled_confidence(logits, labels).astype(np.float32), "next_logits": logits}
        with replacing(self._path(number)) as path, path.open("wb") as file:
            np.savez(file, **content)

    def _path(self, number: int) -> Path:
        return self.folder / f"round_{number:05d}.npz"


class _Group:
    """Holds updates against the gradients at the model that they set out from, as many at once as memory has room for.

    Parameters
    ----------
    prober
        Is made to take the model on when a group is full.
    sent
        The model.
    """

    def __init__(self, prober: Prober, sent: Arrays) -> None:
        self.prober, self.sent = prober, sent
        self._waiting: list[Mapping[str, Tensor]] = []
        self._along: list[NDArray[np.float32]] = []
        self._last: Alignment | None = None

    def add(self, update: Mapping[str, Tensor]) -> None:
        """One more; a full group is asked about and forgotten."""
        self._waiting.append(update)
        size = sum(part.numel() * 4 for part in update.values())
        if len(self._waiting) >= DIRECTION_BYTES // max(1, size):
            self._ask()

    def finish(self) -> Alignment:
        """What was found of all of them, in the order of their coming."""
        if self._waiting or self._last is None:
            self._ask()
        assert self._last is not None
        return replace(self._last, along=np.concatenate(self._along))

    def _ask(self) -> None:
        self.prober.take_on(self.sent)
        self._last = self.prober.align(self._waiting)
        self._along.append(self._last.along)
        self._waiting = []


def _told(stamp: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(stamp.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # damaged: as good as of something else
        told = {}
    return told if isinstance(told, dict) else {}


def extract(
    recorded: Recorded,
    writer: FeatureWriter,
    *,
    rounds: Sequence[int] | None = None,
    on_round: Callable[[int, int, int], None] | None = None,
) -> None:
    """Compute the features of the recorded rounds that are not there yet.

    Parameters
    ----------
    recorded
        The transcript.
    rounds
        Of these rounds only; default all.
    on_round
        Called with the round's number, its position (from 0) and how many there are.
    """
    chosen = [r for r in recorded.rounds if rounds is None or r in rounds]
    upcoming: Any = None  # what the next round sent, where this one had to look
    for position, number in enumerate(chosen):
        if on_round is not None:
            on_round(number, position, len(chosen))
        if writer.has(number):
            upcoming = None
            continue
        sent = recorded.sent(number) if upcoming is None else upcoming
        if not finite(sent):
            if position == 0:
                raise ModelError(
                    f"the global model of round {number}, the first on record, holds NaN or infinities",
                    "the federation diverged: lower its learning rate",
                )
            writer.left_out.append(f"round {number} and all later: the global model holds NaN or infinities")
            return  # a federation that diverged has told all it can
        after = chosen[position + 1] if position + 1 < len(chosen) else None
        upcoming = None if after is None else recorded.sent(after)
        if upcoming is not None and not finite(upcoming):
            after = None
        mean = recorded.sum(number) if recorded.only_sums else None
        outcome = None if after == number + 1 else _outcome(recorded, number, after)
        writer.round(number, sent, _replies(recorded, number), outcome=outcome, mean=mean)


def _outcome(recorded: Recorded, number: int, after: int | None) -> Any:
    """The global model that came out of a round after which the next one is not looked at.

    Where it is not on record: after the last round, the last model that is; else the clients' mean, or what a client
    that recorded it was sent next.
    """
    if after is None:
        final = recorded.final()
        return final if finite(final) else recorded.sent(number)
    outcome = recorded.aggregate(number)
    if outcome is not None:
        return outcome
    return {**recorded.sent(number), **recorded.sum(number)} if recorded.observer is None else recorded.sent(after)


def _replies(recorded: Recorded, number: int) -> Iterable[Reply]:
    if recorded.only_sums or recorded.observer is not None:
        return  # a client sees its own update and no other: it asks the global models about the others' records
    for client in recorded.clients_of(number):
        yield Reply(
            client,
            recorded.received(number, client),
            recorded.num_examples(number, client),
            recorded.sent_to(number, client),
        )


def read_features(
    folder: Path, labels: NDArray[np.int64], *, rounds: Sequence[int] | None = None
) -> tuple[RoundFeatures, NDArray[np.float32]]:
    """Read what `FeatureWriter` kept: the features, and the logits float32 [N, C] of the last global model.

    Parameters
    ----------
    folder
        Of the features.
    labels
        int64 [N].
    rounds
        Of these rounds only; default: all that are there.

    Raises
    ------
    RunFolderError
        No round is there, or a file that cannot be read.
    """
    files = [p for p in sorted(Path(folder).glob("round_*.npz")) if rounds is None or _number(p) in rounds]
    if not files:
        raise RunFolderError(f"{folder} holds no features", "extract them first")
    parts = []
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as file:
                parts.append(dict(file))
        except (OSError, ValueError, EOFError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}", "remove it: it is computed again") from None
    if "next_logits" not in parts[-1]:
        raise RunFolderError(f"{files[-1]} is not the last round", "go on with the extraction")
    numbers = np.array([_number(path) for path in files])
    sizes = [len(p["sent_phi"]) for p in parts]
    main = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    # What came out of a round is what the next one sent, where that is there: the same answers, from one computation.
    last = len(parts) - 1
    following = [
        parts[i + 1]["sent_phi"][0] if i < last and numbers[i + 1] == numbers[i] + 1 else p["next_phi"]
        for i, p in enumerate(parts)
    ]
    more: dict[str, Any] = {}
    if all("sum_along" in p for p in parts):
        more["sum_along"] = np.stack([p["sum_along"] for p in parts])
        more["sum_length"] = np.stack([p["sum_length"] for p in parts])
    replied = [(start, p) for start, p in zip(main, parts, strict=True) if "reply_client" in p]
    if replied:
        more["reply_sent"] = np.concatenate([start + p["reply_base"] for start, p in replied])
        for name in ("reply_client", "reply_phi", "reply_along", "reply_length"):
            more[name] = np.concatenate([p[name] for _, p in replied])
    features = RoundFeatures(
        labels=labels,
        rounds=numbers,
        sent_round=np.repeat(np.arange(len(parts)), sizes),
        main=main,
        sent_phi=np.concatenate([p["sent_phi"] for p in parts]),
        sent_log_norm=np.concatenate([p["sent_log_norm"] for p in parts]),
        next_phi=np.stack(following),
        **more,
    )
    return features, parts[-1]["next_logits"]


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _same(a: Arrays, b: Arrays) -> bool:
    return a is b or (a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a))
