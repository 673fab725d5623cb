"""Features of rounds while their models are in memory: no model is kept, and the audit is the same to the bit.

A tape of models grows with clients, rounds and weights; features grow with the records that are asked about. Who they
are is drawn beforehand, as an audit draws them, and written beside the features:

    from memberscope.federated import online, tap
    features = online.features("runs/a", Net(), x, y, owner, member)
    strategy = tap.watch(FedAvg(...), "runs/a", features=features)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.errors import RunFolderError
from memberscope.federated import candidates
from memberscope.federated.candidates import Candidates
from memberscope.federated.features import FeatureWriter, Reply
from memberscope.files import write_json
from memberscope.round_features import MAX_PARTS

if TYPE_CHECKING:
    from torch import nn

    from memberscope.federated.array_files import Arrays
    from memberscope.federated.prober import Prober

FOLDER, ASKED = "features/online", "asked.json"
PER_CLIENT, POPULATION = 1000, 2000
"""Pairs a client and known non-members, at most, unless told otherwise: those of an audit."""


@dataclass(frozen=True)
class Drawing:
    """How the records were drawn that features are computed for.

    Parameters
    ----------
    folder
        Of the features.
    seed
        Of the draw.
    per_client, population
        Pairs a client and known non-members, at most.
    """

    folder: Path
    seed: int
    per_client: int
    population: int

    def choose(
        self, owner: NDArray[np.int32], member: NDArray[np.bool_], labels: NDArray[np.int64], *, by_coin: bool
    ) -> Candidates:
        """The pairs of all clients that hold members, whether or not they ever take part."""
        return candidates.choose(
            owner,
            member,
            labels,
            np.unique(owner[member]).astype(np.int64),
            seeds.generator(self.seed, "membership", "candidates"),
            by_coin=by_coin,
            per_client=self.per_client,
            population=self.population,
        )


def rows_of(chosen: Candidates) -> NDArray[np.int64]:
    """Pool indices of the records that are asked about, ascending."""
    return np.unique(np.r_[chosen.record, chosen.population])


def identity(fingerprint: str | None, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What the features depend on beside the models."""
    return {"dataset": fingerprint, "records": rows.tolist()}


def read(recording: Path) -> Drawing | None:
    """How the records of the features in a folder were drawn; None where none were computed online.

    Raises
    ------
    RunFolderError
        The file that tells it is damaged.
    """
    path = recording / FOLDER / ASKED
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
        return Drawing(path.parent, *(int(told[name]) for name in ("seed", "per_client", "population")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}", "record the federation again") from None


class OnlineFeatures:
    """Turns each round into features as it ends. Made by `features`; a tap feeds it.

    Parameters
    ----------
    writer
        Computes and keeps them.
    """

    def __init__(self, writer: FeatureWriter) -> None:
        self.writer = writer
        self.n_records = len(writer.prober.labels)
        self._begun = False

    def round_bytes(self, replies: int) -> int:
        """Bytes that a round takes at most, whatever the size of the model."""
        return 4 * self.n_records * (MAX_PARTS + 1) * (replies + 1)

    def begin(self, number: int) -> None:
        """A session begins with this round: what an earlier one left of it and of later rounds did not happen."""
        for path in self.writer.folder.glob("round_*.npz"):
            if int(path.stem.rpartition("_")[2]) >= number:
                path.unlink()

    def round(
        self, number: int, sent: Sequence[Arrays], replies: Sequence[Reply], outcome: Arrays, mean: Arrays | None
    ) -> list[str]:
        """Compute and keep the features of a round; returns what was left out, as sentences.

        Parameters
        ----------
        number
            Of the round.
        sent
            What was sent, an entry a client: what most of them got is the global model.
        replies
            The clients' models; empty where only sums are seen.
        outcome
            The global model that came out.
        mean
            The clients' weighted mean, where only sums are seen.
        """
        if not self._begun:
            self._begun = True
            self.begin(number)
        known = len(self.writer.left_out)
        ordered = sorted(replies, key=lambda reply: reply.client)
        self.writer.round(number, _most(sent), ordered, outcome=outcome, mean=mean)
        return self.writer.left_out[known:]


def features(
    recording: str | Path,
    module: nn.Module,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    owner: NDArray[np.int32],
    member: NDArray[np.bool_],
    *,
    per_client: int = PER_CLIENT,
    population: int = POPULATION,
    seed: int = 0,
    by_coin: bool = False,
) -> OnlineFeatures:
    """Make a tap compute features of anybody's federation instead of keeping its models.

    Parameters
    ----------
    recording
        Folder of the transcript: the features go into it.
    module
        An instance of the model that is trained, for this alone.
    x, labels, owner, member
        As `subject.of_transcript` takes them.
    per_client, population
        Pairs a client (half members) and known non-members, at most: the cost of a round grows with them.
    seed
        Of the draw.
    by_coin
        Whether a coin decided which records a client trains on.
    """
    from memberscope.federated.prober import Prober

    drawing = Drawing(Path(recording) / FOLDER, seed, per_client, population)
    rows = rows_of(drawing.choose(owner, member, labels, by_coin=by_coin))
    return watching(drawing, Prober.of_inputs(module, x[rows], labels[rows]), rows, fingerprint_of(x))


def fingerprint_of(x: NDArray[Any]) -> str:
    """SHA-256 of records that were given as an array."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def watching(drawing: Drawing, prober: Prober, rows: NDArray[np.int64], fingerprint: str | None) -> OnlineFeatures:
    """Begin, or go on with, the features of the records that were drawn."""
    writer = FeatureWriter(prober, drawing.folder, identity(fingerprint, rows))
    told = {"seed": drawing.seed, "per_client": drawing.per_client, "population": drawing.population}
    write_json(drawing.folder / ASKED, told)
    return OnlineFeatures(writer)


def _most(sent: Sequence[Arrays]) -> Arrays:
    """What was sent to most; among equals the first. Strategies put one record into the messages to all."""
    counts: dict[int, int] = {}
    for arrays in sent:
        counts[id(arrays)] = counts.get(id(arrays), 0) + 1
    best = max(counts, key=lambda key: counts[key])
    return next(arrays for arrays in sent if id(arrays) == best)
