"""A federation under audit: what was recorded of it, its records, and the truth about them."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from memberscope.errors import DataError, RunFolderError
from memberscope.events import Events
from memberscope.federated import malice, online
from memberscope.federated.online import Drawing, fingerprint_of
from memberscope.federated.outcome import took_part
from memberscope.federated.partition import Partition
from memberscope.federated.prober import Prober
from memberscope.federated.transcript import Transcript
from memberscope.training.optimisation import rate_factor
from memberscope.training.recipe import Recipe

FEATURES = "features"
ASKED_FOR_ACCURACY = 5000


@dataclass(frozen=True, eq=False)
class Subject:
    """A federation under audit.

    Parameters
    ----------
    transcript
        What one seat saw.
    prober
        From pool indices int64 [n] to what asks models about these records.
    labels, owner, member
        int64, int32 and bool [N]: class, client that holds the record (-1: nobody), whether it trained on it.
    by_coin
        Whether a coin decided which of a client's records it trained on.
    classes
        C names.
    dataset, target, settings
        For the report, as in the document of any audit. `target` lacks the accuracies, which the audit adds.
    features
        Folder in which features of the rounds are kept.
    name
        Of the federation.
    code
        Digest of what the model computes beside its weights; empty: its name says it.
    command
        What names it after `memberscope federate audit`, without folders of this machine; empty: its name.
    rate_of
        From a round to the mean learning rate of the clients' optimiser in it, where the server sets it; None: unknown.
    content
        From pool indices to the records themselves, for the checks; None: not at hand.
    privacy
        What a client is promised: clients (of `outcome.client_privacy`) and canaries (of `CanaryClients.outcome`), each
        None where there is none.
    drawing
        How the records were drawn that features were computed for while it trained; None: models are on record.
    took_part
        The clients that answered in some round, where that is known beside the transcript; None: those on record did.
    ascended
        Clients int64 [n] and pool indices int64 [n] of the pairs whose records a malicious party moved models up the
        loss of (`memberscope.federated.malice`); None: no party did, or it is not known of which.
    """

    transcript: Transcript
    prober: Callable[[NDArray[np.int64]], Prober]
    labels: NDArray[np.int64]
    owner: NDArray[np.int32]
    member: NDArray[np.bool_]
    by_coin: bool
    classes: tuple[str, ...]
    dataset: Mapping[str, Any]
    target: Mapping[str, Any]
    settings: Mapping[str, Any]
    features: Path
    name: str
    rate_of: Callable[[int], float] | None = None
    content: Callable[[NDArray[np.int64]], NDArray[Any]] | None = field(default=None, repr=False)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    drawing: Drawing | None = None
    ascended: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    command: str = ""
    code: str = ""
    took_part: frozenset[int] | None = None

    @property
    def holders(self) -> NDArray[np.int64]:
        """int64: clients that hold records to be trained on."""
        return np.unique(self.owner[self.member]).astype(np.int64)

    @property
    def clients(self) -> NDArray[np.int64]:
        """int64: those of them that are asked about, since they took part; where replies are on record, in one of them.

        What the others hold nobody trained on. A client that recorded what it saw does not ask about itself.
        """
        if self.transcript.observer is not None:
            return np.setdiff1d(self.holders, [self.transcript.observer])
        on_record = {k for r in self.transcript.rounds for k in self.transcript.clients_of(r)}
        answered = on_record or self.took_part
        if not answered:
            answered = {k for r in self.transcript.rounds for k in self.transcript.took_part(r)}
        return self.holders[np.isin(self.holders, sorted(answered))] if answered else self.holders

    def accuracy(self) -> float | None:
        """Accuracy of the last global model on records that nobody trains on, as its rounds were watched or now."""
        history = self.target.get("history") or []
        if history:
            last: float | None = history[-1].get("val_acc")
            return last
        rows = np.flatnonzero(~self.member)[:ASKED_FOR_ACCURACY]
        prober = self.prober(rows)
        prober.take_on(self.transcript.final())
        return float((prober.logits().argmax(axis=1) == self.labels[rows]).mean())

    def skew(self) -> float:
        """Mean distance of a client's class mix from everybody's, in [0, 1]."""
        clients = int(self.owner.max()) + 1
        return Partition(self.owner, clients).skew(self.labels, len(self.classes))

    def identity(self) -> dict[str, Any]:
        """What features depend on beside the models and the records asked about."""
        header = hashlib.sha256(repr(sorted(self.transcript.header.items())).encode()).hexdigest()
        told = {"transcript": header, "dataset": self.dataset.get("fingerprint"), "model": self.target.get("model")}
        return told | ({"code": self.code} if self.code else {})


def of_run(folder: str | Path, *, device: str | None = None, events: Events | None = None) -> Subject:
    """A federation that `memberscope federate` trained, from its run folder.

    Parameters
    ----------
    folder
        Of the run.
    device
        Where its models are asked; default: that of its settings or, with a note, auto where there is none such here.
    events
        Is told the note.

    Raises
    ------
    ConfigError
        There is no such device here.
    RunFolderError
        It is no such folder, it is not finished, or nothing was recorded.
    """
    from memberscope.federated import federation

    folder = Path(folder)
    trained = federation.read(folder, device=device, events=events)
    if trained.transcript is None:
        raise RunFolderError(
            f"nothing was recorded of the federation in {folder}",
            "train it with --record updates, or --record features where disk is short",
        )
    model, config, pool = trained.model, trained.config, trained.dataset

    def prober(rows: NDArray[np.int64]) -> Prober:
        return Prober.of_records(
            model.module,
            pool.x[rows],
            pool.y[rows],
            model.normalisation,
            device=model.device,
            threads=config.threads,
        )

    return Subject(
        transcript=Transcript.open(trained.transcript),
        prober=prober,
        labels=pool.y,
        owner=trained.design.owner,
        member=trained.design.member,
        by_coin=config.held_fraction > 0,
        classes=pool.classes,
        dataset={
            "name": pool.name,
            "source": pool.source,
            "verified": pool.verified,
            "fingerprint": pool.fingerprint,
            "n_records": pool.n,
            "n_classes": pool.n_classes,
            "classes": list(pool.classes),
            "input_shape": list(pool.input_shape),
        },
        target={
            "model": model.recipe.model,
            "epochs": model.recipe.epochs,
            "recipe": model.recipe.to_dict(),
            "trained": True,
            "origin": f"federation of {trained.design.n_clients} clients, {config.rounds} rounds ({config.strategy})",
            "weights_sha256": model.weights_sha256,
            "parameters": model.parameters,
            "precision": model.precision,
            "device": model.device,
            "images_per_second": None,
            "history": list(model.history),
            "defenses": config.defenses,
            "privacy": model.privacy,
        },
        settings=config.to_dict(),
        features=folder / FEATURES,
        name=str(folder),
        command=shlex.quote(folder.resolve().name),
        rate_of=lambda round_: _mean_rate(model.recipe, (round_ - 1) * config.local_epochs, config.local_epochs),
        content=lambda rows: pool.x[rows],
        drawing=online.read(folder),
        took_part=took_part(trained.history),
        ascended=malice.ascended(malice.parse(config.malicious), trained.design) if config.malicious else None,
        privacy={"clients": trained.summary["privacy"], "canaries": trained.summary.get("canaries")},
    )


def of_transcript(
    transcript: Transcript,
    module: nn.Module,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    owner: NDArray[np.int32],
    member: NDArray[np.bool_],
    *,
    name: str,
    features: Path | None = None,
    classes: Sequence[str] | None = None,
    learning_rate: float | None = None,
    by_coin: bool = False,
    model: str = "",
    settings: Mapping[str, Any] | None = None,
    kept: frozenset[str] = frozenset(),
) -> Subject:
    """Anybody's federation.

    Parameters
    ----------
    transcript
        What was recorded of it.
    module
        An instance of the model that it trains.
    x, labels
        float32 [N, ...] as the model takes them, and int64 [N].
    owner, member
        int32 [N], client that holds the record, -1 for nobody; bool [N], whether it trained on it.
    name
        Of the federation.
    features
        Where features are kept; default: beside the transcript.
    classes
        Names; default: their numbers.
    learning_rate
        Of the clients' optimiser, if it is known.
    by_coin
        Whether a coin decided which records a client trains on; if not, non-members are matched by class.
    model
        Its name, for the report.
    settings
        For the report.
    kept
        Names of weights that do not travel: as they are in `module`.

    Raises
    ------
    DataError
        Arrays that do not fit.
    """
    if not len(x) == len(labels) == len(owner) == len(member):
        raise DataError(
            f"{len(x):,} records, {len(labels):,} labels, {len(owner):,} owners and {len(member):,} memberships",
            "one of each a record",
        )
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(labels.max()) + 1)))
    parameters = list(module.parameters())

    def prober(rows: NDArray[np.int64]) -> Prober:
        return Prober.of_inputs(module, x[rows], labels[rows], kept=kept)

    return Subject(
        transcript=transcript,
        prober=prober,
        labels=labels,
        owner=owner,
        member=member,
        by_coin=by_coin,
        classes=names,
        dataset={
            "name": name,
            "source": "records given by the user",
            "verified": None,
            "fingerprint": fingerprint_of(x),
            "n_records": len(x),
            "n_classes": len(names),
            "classes": list(names),
            "input_shape": list(x.shape[1:]),
        },
        target={
            "model": model or type(module).__name__,
            "epochs": len(transcript.rounds),
            "recipe": None,
            "trained": False,
            "origin": f"federation {name}, read from what was recorded of it",
            "weights_sha256": None,
            "parameters": sum(p.numel() for p in parameters),
            "precision": "fp32",
            "device": str(parameters[0].device),
            "images_per_second": None,
            "defenses": None,
            "history": [],
        },
        settings=dict(settings or {}),
        features=features or transcript.folder / FEATURES,
        name=name,
        code=code_of(module),
        rate_of=None if not learning_rate else lambda round_: learning_rate,
        content=lambda rows: x[rows],
        drawing=None if features is not None else online.read(transcript.folder),
    )


def code_of(module: nn.Module) -> str:
    """SHA-256 of a module's structure and of the source text of its classes, as far as they are not torch's."""
    kinds = sorted({type(part) for part in module.modules()}, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
    text = [repr(module)]
    for kind in kinds:
        if not kind.__module__.startswith("torch."):
            with contextlib.suppress(OSError, TypeError):  # typed into a prompt
                text.append(inspect.getsource(kind))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _mean_rate(recipe: Recipe, done: int, epochs: int) -> float:
    return recipe.rate * sum(rate_factor(recipe, done + epoch) for epoch in range(epochs)) / epochs
