"""The audit of somebody else's federation: an app directory that is run here, or what a tap recorded elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memberscope.config import to_flags
from memberscope.errors import ConfigError, ModelError
from memberscope.events import Events
from memberscope.federated.foreign import FlowerApp, inside, read_app, run_app, seeded
from memberscope.federated.foreign_records import ForeignRecords, check_repeatable, load_records
from memberscope.federated.taping import Precision, Taping
from memberscope.federated.transcript import Transcript

if TYPE_CHECKING:
    from flwr.serverapp import Grid
    from torch import nn

    from memberscope.federated.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ForeignSettings:
    """What must be known of somebody else's federation, and how it is run and recorded.

    Parameters
    ----------
    model
        Makes the model that the federation trains: ``package.module:factory``, or a name of ours.
    records
        The records with who trained on which: ``package.module:function`` or FILE.npz.
    clients
        How many there are; default: as the app's pyproject says.
    run_config
        Changes to the app's config, as for `flwr run`: ``num-server-rounds=5 lr=0.1``.
    classes
        How many there are, where the records do not show all.
    learning_rate
        Of the clients' optimiser; default: the app's setting of that name, if it has one.
    malicious
        Run the app once more with a malicious server: ``isolate:K``.
    record_every
        Record one round in so many.
    record_precision
        Of the recording.
    record_megabytes
        Size at which recording stops.
    sums_only
        Record the seat of a server behind secure aggregation.
    nodes
        Of a recording: node id and number of the client, as ``ID=K``.
    seed
        Of the app's global generators.
    device
        Where the audit asks the models; the app computes where it wants to.
    """

    model: str
    records: str
    clients: int | None = None
    run_config: str = ""
    classes: int | None = None
    learning_rate: float | None = None
    malicious: str = ""
    record_every: int = 1
    record_precision: Precision = "float32"
    record_megabytes: int = 20_000
    sums_only: bool = False
    nodes: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.clients is not None and self.clients < 1:
            raise ConfigError(f"clients = {self.clients}", "at least 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate = {self.learning_rate:g}", "more than 0")

    @property
    def flags(self) -> str:
        """What is not at its default, as flags; the seed is the audit's, the device this machine's."""
        settings = asdict(self)
        del settings["seed"], settings["device"]
        if settings["records"].endswith(".npz"):
            settings["records"] = Path(settings["records"]).name
        return to_flags(settings, {f.name: f.default for f in fields(self)})

    @property
    def taping(self) -> Taping:
        """What to record."""
        return Taping(
            every=self.record_every,
            precision=self.record_precision,
            sums_only=self.sums_only,
            max_bytes=self.record_megabytes * 2**20,
        )


def of_app(
    folder: Path, settings: ForeignSettings, out: Path, *, events: Events | None = None
) -> tuple[Subject, list[Subject]]:
    """Run an app directory and make it ready for an audit.

    Parameters
    ----------
    folder
        Of the app; nothing in it is changed, but the app itself may write into it.
    settings
        What must be known.
    out
        Folder for what is recorded: ``transcript``, and ``malicious`` of a run with a malicious server.

    Returns
    -------
    The federation, and those with a malicious party.

    Raises
    ------
    MemberscopeError
        The app, its model or its records cannot be used; says why.
    """
    events = events or Events()
    app = read_app(folder, settings.run_config)
    malice = None if not settings.malicious else malicious_server(settings.malicious)
    number = app.n_clients if settings.clients is None else settings.clients
    if number is None:
        raise ConfigError(f"{app.name} does not say how many clients it has", "give the number with --clients")
    if settings.nodes:
        raise ConfigError("--nodes was given with an app", "nodes are numbered so in recordings alone: --transcript")
    if malice is not None and int(settings.malicious.rpartition(":")[2]) >= number:
        raise ConfigError(f"malicious = {settings.malicious!r}: there are {number} clients", "they count from 0")
    settings = replace(settings, records=_where(settings.records, app.folder))
    events.stage("Loading the records of the app")  # before the app is run: what cannot be used is told at once
    out = out.resolve()
    runs: list[tuple[str, Callable[[Grid], Grid] | None]] = [("transcript", None)]
    if malice is not None:
        runs.append(("malicious", malice))
    subjects = []
    with inside(app.folder), seeded(settings.seed):  # imported once: a split made at import is that of the clients
        records, module = _loaded(settings, list(range(number)), app.config)
        events.note(str(records))
        for name, party in runs:
            events.stage(f"Running {app.name}" + (f" with a malicious server ({settings.malicious})" if party else ""))
            transcript = run_app(
                app, out / name, n_clients=number, taping=settings.taping, malice=party, seed=settings.seed
            )
            subject = _subject(transcript, module, records, settings, app.name, _facts(app, number))
            subjects.append(replace(subject, command=f"{shlex.quote(app.folder.name)} {settings.flags}"))
    return subjects[0], subjects[1:]


def of_recording(transcript: Path, settings: ForeignSettings, *, app: Path | None = None) -> Subject:
    """Make what a tap recorded ready for an audit.

    Parameters
    ----------
    transcript
        Its folder.
    settings
        What must be known.
    app
        Folder from which model and records are imported, with the config of its pyproject.

    Raises
    ------
    MemberscopeError
        The recording, the model or the records cannot be used; says why.
    """
    transcript = transcript.resolve()
    recorded = Transcript.open(transcript, nodes=_nodes(settings.nodes))
    number = settings.clients
    facts: dict[str, Any] = {}
    config: Mapping[str, Any] = {}
    if app is not None and (app / "pyproject.toml").is_file():
        known = read_app(app, settings.run_config)
        number = known.n_clients if number is None else number
        config, facts = known.config, _facts(known, 0)
    if number is None and recorded.observer is not None:
        raise ConfigError(
            f"{transcript.name} was recorded by client {recorded.observer}, who does not know how many there are",
            "give the number with --clients",
        )
    number = max(recorded.clients, default=-1) + 1 if number is None else number
    facts["clients"] = number
    folder = (app or Path.cwd()).expanduser().resolve()
    settings = replace(settings, records=_where(settings.records, folder))
    with inside(folder), seeded(0):
        records, module = _loaded(settings, list(range(number)), config)
        subject = _subject(recorded, module, records, settings, transcript.name, facts)
    with inside(folder), seeded(1):  # imported anew, as the clients did
        check_repeatable(records, settings.records, list(range(number)), config)
    source = "" if app is None else f"{shlex.quote(app.resolve().name)} "
    return replace(subject, command=f"{source}--transcript {shlex.quote(transcript.name)} {settings.flags}")


def malicious_server(text: str) -> Callable[[Grid], Grid]:
    """A malicious server by name: ``isolate:K``. Gives what puts it around a tapped grid.

    Raises
    ------
    ConfigError
        An unknown name.
    """
    from memberscope.federated import tamper

    name, _, client = text.partition(":")
    if name != "isolate" or not client.isdigit():
        raise ConfigError(
            f"malicious = {text!r} is unknown",
            "isolate:K cuts client K off; other parties are put together in Python (memberscope.federated.tamper)",
        )
    return lambda grid: tamper.attach_grid(grid, tamper.Isolate(int(client)))


def _where(records: str, app: Path) -> str:
    """A file of records by its whole path: it is looked for here, then in the app's folder."""
    if not records.endswith(".npz"):
        return records
    path = Path(records).expanduser()
    for place in (path.resolve(), app / path):
        if place.is_file():
            return str(place)
    raise ConfigError(f"there is no file of records {path.resolve()}", f"nor is there one in {app}")


def _loaded(
    settings: ForeignSettings, clients: list[int], config: Mapping[str, Any]
) -> tuple[ForeignRecords, tuple[nn.Module, nn.Module]]:
    """The records, and the model made twice."""
    from memberscope.training.hardware import resolve_device
    from memberscope.training.models import build

    device = resolve_device(settings.device)
    records = load_records(settings.records, clients, config)
    classes = settings.classes or records.n_classes
    if classes < records.n_classes:
        raise ConfigError(
            f"--classes {classes}, but the records have class {records.n_classes - 1}", "classes count from 0"
        )
    try:
        one, other = (build(settings.model, records.x.shape[1:], classes).to(device) for _ in range(2))
    except ModelError as error:
        hint = f"{error.hint}; wrap it if it answers more than logits; --classes N where the records do not show all"
        raise ModelError(error.problem, hint) from None
    return records, (one, other)


def _subject(
    transcript: Transcript,
    made: tuple[nn.Module, nn.Module],
    records: ForeignRecords,
    settings: ForeignSettings,
    name: str,
    facts: Mapping[str, Any],
) -> Subject:
    from memberscope.federated.prober import staying
    from memberscope.federated.subject import of_transcript

    module, again = made
    first = transcript.rounds[0] if transcript.rounds and transcript.keeps_models else None
    kept = staying(module, again, list(transcript.sent(first))) if first is not None else frozenset()
    subject = of_transcript(
        transcript,
        module,
        records.x,
        records.y,
        records.owner,
        records.member,
        name=name,
        learning_rate=settings.learning_rate or _rate(facts),
        model=settings.model,
        settings={**facts, "records": settings.records} | ({"weights_kept": sorted(kept)} if kept else {}),
        kept=kept,
    )
    if settings.classes is not None:
        names = tuple(map(str, range(settings.classes)))
        subject = replace(
            subject, classes=names, dataset={**subject.dataset, "classes": list(names), "n_classes": len(names)}
        )
    return subject


def _rate(facts: Mapping[str, Any]) -> float | None:
    """The learning rate among the settings of an app, whose name is a custom of Flower's templates."""
    found = (facts.get(f"app_{name}") for name in ("learning-rate", "learning_rate", "lr"))
    return next((float(rate) for rate in found if isinstance(rate, int | float) and rate > 0), None)


def _facts(app: FlowerApp, clients: int) -> dict[str, Any]:
    return {"app": app.name, "clients": clients, **{f"app_{key}": value for key, value in app.config.items()}}


def _nodes(pairs: tuple[str, ...]) -> dict[int, int]:
    found = {}
    for pair in pairs:
        node, equals, client = pair.partition("=")
        if not equals or not node.isdigit() or not client.isdigit():
            raise ConfigError(f"{pair!r} is no ID=K", "for example --nodes 15766987747404701145=0 ...")
        found[int(node)] = int(client)
    return found
