"""The federated pipeline: share the records out, train on Flower, leave a run folder that explains itself."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope import environment
from memberscope.config import to_toml
from memberscope.errors import ConfigError, RunFolderError
from memberscope.events import Events
from memberscope.federated import config as settings
from memberscope.federated import design as designs
from memberscope.federated.config import FederationConfig
from memberscope.federated.design import Design
from memberscope.federated.outcome import as_epochs, summarise, weakest_guarantee
from memberscope.files import remove_unfinished, write_json, write_text
from memberscope.locks import claim

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from memberscope.federated.apps import Site
    from memberscope.federated.mods import Mod
    from memberscope.federated.online import OnlineFeatures
    from memberscope.records.pool import Dataset
    from memberscope.training.trained_model import TrainedModel

CONFIG, SUMMARY, MODEL, TRANSCRIPT = "config.toml", "federation.json", "model", "transcript"
ENVIRONMENT = "environment.json"
_WHERE = ("data_dir", "unverified_data", "device", "threads", "out")


@dataclass(frozen=True, eq=False, repr=False)
class Federation:
    """A federation that was trained.

    Parameters
    ----------
    folder
        Its run folder.
    config
        Its settings.
    dataset
        The pool.
    design
        Who holds what, and who trains on what.
    model
        The global model after the last round.
    history
        A record a round: round, test_loss, test_acc (on records of nobody), train_loss, train_acc (clients' mean),
        clients (each with client, examples, epochs, global_loss, global_acc, train_loss, train_acc), failed (each with
        client, node, reason), seconds.
    summary
        What federation.json holds.
    """

    folder: Path
    config: FederationConfig
    dataset: Dataset
    design: Design
    model: TrainedModel
    history: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def transcript(self) -> Path | None:
        """Folder of what the server saw; None where nothing was kept."""
        path = self.folder / TRANSCRIPT
        return path if path.is_dir() else None

    def __repr__(self) -> str:
        return f"Federation({self.design!r}, {len(self.history)} rounds, in {self.folder})"


def federate(
    config: FederationConfig,
    *,
    events: Events | None = None,
    folder: Path | None = None,
    dataset: Dataset | None = None,
    design: Design | None = None,
    resume: bool = False,
    tamper: Callable[[Strategy], Strategy] | None = None,
    client_mods: Sequence[Mod] = (),
) -> Federation:
    """Train a federation in this process, and its reference federations after it.

    Parameters
    ----------
    config
        Everything that determines it.
    events
        Listens.
    folder
        The run folder; default: a new one in `config.output_dir`.
    dataset
        The pool, where it is loaded already.
    design
        Who holds and trains on what; default: drawn from the config's seed. A reference federation has its own.
    resume
        Go on from the last finished round that `folder` holds.
    tamper
        Makes the server malicious (`tamper.attach`); the tape goes around it and keeps what was really sent.
    client_mods
        Flower mods around all that clients do: the place for malicious ones.

    Raises
    ------
    MemberscopeError
        Settings, records or the disk cannot be used; says which and what to do.
    """
    from memberscope.data_loader import load
    from memberscope.federated import apps, references, standing

    events = events or Events()
    references.check_settings(config)
    events.stage("Loading records")
    pool = dataset or load(config.dataset, config.data_dir, unverified=config.unverified_data)
    events.stage("Sharing the records out")
    design = design or plan(config, pool)
    folder = folder or new_run_folder(config)
    with alone_at(folder), going_on(f"memberscope federate --resume {folder}"):
        if resume:
            _check_same(folder, config, pool, design)
        else:
            refuse_begun(folder)
        prepare(folder, config, pool, design)
        site = apps.Site(config, lambda: pool, lambda _: design, resident=True)
        kept = standing.read(folder) if resume else None
        if kept is not None and kept.round < config.rounds and config.malicious:
            events.note("A malicious party remembers what it saw, and that is gone: the federation begins anew.")
            standing.forget(folder)
            kept = None
        if kept is None or kept.round < config.rounds:
            _train(site, folder, events, resume=kept is not None, tamper=tamper, client_mods=client_mods)
        trained = finish(site, folder, events)
        references.train(config, folder, pool, events)
    return trained


@contextlib.contextmanager
def going_on(command: str) -> Iterator[None]:
    """Tell who interrupts the block how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; to go on: {command}") from None


@contextlib.contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """One process at a time trains the federation of a run folder.

    Raises
    ------
    RunFolderError
        Another one does.
    """
    from memberscope.federated import standing

    with claim(folder / ".federation.lock") as ours:
        if not ours:
            raise RunFolderError(
                f"another process is at the federation in {folder}", "wait for it, or name another folder"
            )
        remove_unfinished(folder / standing.STATE)
        yield


def refuse_begun(folder: Path) -> None:
    """Refuse a folder in which a federation was begun: two histories in one would tell nothing.

    Raises
    ------
    RunFolderError
        It holds rounds.
    """
    from memberscope.federated import standing

    if standing.exists(folder):
        raise RunFolderError(
            f"{folder} holds a federation already", f"go on with it by --resume {folder}, or name another folder"
        )


def _train(
    site: Site,
    folder: Path,
    events: Events,
    *,
    resume: bool,
    tamper: Callable[[Strategy], Strategy] | None,
    client_mods: Sequence[Mod],
) -> None:
    """Run the rounds that are left, in this process."""
    from memberscope.federated import apps, malice
    from memberscope.federated.engine import run_in_process

    config, pool, design = site.config, site.dataset, site.design
    events.stage(f"Training the federation ({config.strategy})")
    events.federation(
        model=config.recipe.model,
        clients=design.n_clients,
        records=int(design.member.sum()),
        rounds=config.rounds,
    )
    if config.canary_clients > design.n_clients:
        events.note(
            f"{config.canary_clients} canary clients among {design.n_clients} that learn: their random directions "
            "outweigh what is learnt. The estimate stands; judge accuracy and attacks by a federation without them."
        )
    if config.malicious:
        party, its_mods = malice.put_in_place(
            malice.parse(config.malicious), config.recipe, pool, design, site.local.normalisation
        )
        tamper, client_mods = party, (*client_mods, *its_mods)

    def prepared(strategy: Strategy) -> Strategy:
        return taped(strategy if tamper is None else tamper(strategy), site, folder)

    server = apps.server_app(site, folder, events=events, prepare=prepared, resume=resume)
    with quiet_flower():
        run_in_process(
            server,
            apps.client_app(site, client_mods),
            n_clients=site.n_nodes,
            on_error=lambda client, error: None,  # told with the round, from the reply
            on_reply=events.federation_client,
        )


def plan(config: FederationConfig, dataset: Dataset) -> Design:
    """The design that a config's seed draws from a pool."""
    return designs.plan(
        dataset,
        partition=config.partition,
        n_clients=config.clients,
        held_fraction=config.held_fraction,
        seed=config.seed,
        partition_seed=config.partition_seed,
    )


def finish(site: Site, folder: Path, events: Events) -> Federation:
    """Write the global model, the curves and the summary of a federation whose rounds are done."""
    from memberscope.federated import standing
    from memberscope.federated.packing import arrays_of, unpack
    from memberscope.report.federation_plots import learning_curves
    from memberscope.training.model_files import save

    kept = standing.read(folder)
    if kept is None or kept.round < site.config.rounds:
        raise RunFolderError(f"the federation in {folder} is not finished", f"go on with --resume {folder}")
    events.stage("Writing the run folder")
    privacy = weakest_guarantee(site, kept.history)
    model = site.local.model(unpack(kept.arrays), tuple(as_epochs(kept.history)), privacy)
    dataset, design = site.dataset, site.design
    save(
        model,
        folder / MODEL,
        membership=design.member,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )
    learning_curves(folder / "learning_curves.png", kept.history)
    summary = summarise(site.config, dataset, design, model, kept.history)
    if site.config.canary_clients:
        summary["canaries"] = site.canaries.outcome(
            standing.read_first(folder), arrays_of(unpack(kept.arrays)), kept.history
        )
    write_json(folder / SUMMARY, summary)
    return Federation(folder, site.config, dataset, design, model, kept.history, summary)


def read_finished(config: FederationConfig, folder: Path, events: Events) -> Federation:
    """Finish a federation whose rounds another process ran."""
    from memberscope.data_loader import load
    from memberscope.federated import apps

    pool = load(config.dataset, config.data_dir, unverified=config.unverified_data)
    design = plan(config, pool)
    _check_same(folder, config, pool, design)
    return finish(apps.Site(config, lambda: pool, lambda _: design, resident=True), folder, events)


def read(
    folder: Path, *, dataset: Dataset | None = None, device: str | None = None, events: Events | None = None
) -> Federation:
    """Read the run folder of a federation that was trained.

    Parameters
    ----------
    folder
        Of the run.
    dataset
        The pool; default: read anew.
    device
        Where the model will answer; default: that of its settings or, with a note, auto where there is none such here.
    events
        Is told the note.

    Raises
    ------
    ConfigError
        There is no such device here.
    RunFolderError
        It is no such folder, or the federation is not finished.
    DataError
        The records are others than those it was trained on.
    """
    from memberscope.data_loader import load
    from memberscope.federated import standing
    from memberscope.training.model_files import load as load_model

    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
    except FileNotFoundError:
        known = (folder / CONFIG).is_file()
        problem = f"the federation in {folder} is not finished" if known else f"{folder} is no folder of a federation"
        raise RunFolderError(
            problem, f"go on with --resume {folder}" if known else "give the folder of a run"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder / SUMMARY} is damaged: {error}") from error
    config = settings.read(folder / CONFIG)
    pool = dataset or load(config.dataset, config.data_dir, unverified=config.unverified_data)
    design = designs.read(folder)
    where = _device_here(config, events or Events()) if device is None else device
    model = load_model(folder / MODEL, membership=design.member, dataset_fingerprint=pool.fingerprint, device=where)
    kept = standing.read(folder)
    return Federation(folder, config, pool, design, model, kept.history if kept else [], summary)


def _device_here(config: FederationConfig, events: Events) -> str:
    """The device of the settings; a run may have been trained on another machine, whose devices this one lacks."""
    from memberscope.training.hardware import resolve_device

    try:
        resolve_device(config.device)
    except ConfigError:
        events.note(f"Its device was {config.device}, which is not here: models are asked on {resolve_device('auto')}.")
        return "auto"
    return config.device


def new_run_folder(config: FederationConfig) -> Path:
    """An empty run folder, named after the settings."""
    from memberscope.report.run_folder import new_folder

    dataset = config.dataset.partition(":")[0]
    name = f"{dataset}_federated_{config.clients}clients_{config.rounds}rounds"
    return new_folder(config.output_dir, name)


def prepare(folder: Path, config: FederationConfig, dataset: Dataset, design: Design) -> None:
    """What determines the federation, written before it begins."""
    from memberscope.report.federation_plots import partition_map

    folder.mkdir(parents=True, exist_ok=True)
    written = replace(config, data_dir=config.data_dir.resolve() if config.data_dir else None)
    write_text(folder / CONFIG, to_toml(written.to_dict()))
    designs.write(design, folder)
    write_json(folder / ENVIRONMENT, {**environment.describe(), "records_sha256": dataset.fingerprint})
    counts = design.partition.counts(dataset.y, dataset.n_classes)
    partition_map(folder / "partition.png", counts, dataset.classes, config.partition)


def _check_same(folder: Path, config: FederationConfig, dataset: Dataset, design: Design) -> None:
    """A federation goes on with the settings and the records that it was begun with."""
    begun, now = settings.read(folder / CONFIG).to_dict(), config.to_dict()
    other = [k for k in sorted({*begun, *now} - set(_WHERE)) if begun.get(k) != now.get(k)]
    if other:
        named = ", ".join(f"{k} = {now.get(k)!r} instead of {begun.get(k)!r}" for k in other[:3])
        raise RunFolderError(f"the federation in {folder} was begun with other settings: {named}")
    kept = designs.read(folder)
    same = np.array_equal(kept.owner, design.owner) and np.array_equal(kept.member, design.member)
    if not same or _records_of(folder) not in (None, dataset.fingerprint):
        raise RunFolderError(
            f"the records of {dataset.name} are others, or shared out otherwise, than in {folder}",
            "resume with the records that the federation was begun with",
        )


def _records_of(folder: Path) -> str | None:
    try:
        told = json.loads((folder / ENVIRONMENT).read_bytes()).get("records_sha256")
    except (OSError, ValueError):
        return None
    return str(told) if told else None


def taped(strategy: Strategy, site: Site, folder: Path) -> Strategy:
    """The strategy with a tap that keeps what the server sees; the tape of an interrupted run is continued.

    Canary clients are the auditor's own: their replies are passed over, in sums too.
    """
    config = site.config
    if config.recorded == "nothing":
        return strategy
    from memberscope.federated.tap import watch

    return watch(
        strategy,
        folder / TRANSCRIPT,
        every=config.record_every,
        precision=config.record_precision,
        sums_only=config.sees_sums,
        features=_online(site, folder) if config.record == "features" else None,
        max_bytes=config.record_megabytes * 2**20,
        total_rounds=config.rounds,
        without=range(site.design.n_clients, site.n_nodes),
    )


def _online(site: Site, folder: Path) -> OnlineFeatures:
    """Computes features of the rounds of a site, for the records that its audit will ask about."""
    import torch

    from memberscope.federated import online
    from memberscope.federated.prober import Prober
    from memberscope.training.hardware import resolve_device
    from memberscope.training.models import build_for

    config, pool, design = site.config, site.dataset, site.design
    drawing = online.Drawing(folder / online.FOLDER, config.seed, config.record_candidates, online.POPULATION)
    chosen = drawing.choose(design.owner, design.member, pool.y, by_coin=config.held_fraction > 0)
    rows = online.rows_of(chosen)
    with torch.random.fork_rng([]):
        module = build_for(config.recipe, pool.input_shape, pool.n_classes)
    prober = Prober.of_records(
        module,
        pool.x[rows],
        pool.y[rows],
        site.local.normalisation,
        device=str(resolve_device(config.device)),
        threads=config.threads,
    )
    return online.watching(drawing, prober, rows, pool.fingerprint)


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower without its log of every step, and without telemetry; what matters is told through events."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logger = logging.getLogger("flwr")
    before, passed_on = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False  # Opacus configures the root logger: every line would come twice
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.propagate = passed_on
