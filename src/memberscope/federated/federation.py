"""The federated pipeline: share the records out, train on Flower, leave a run folder that explains itself."""

from __future__ import annotations

import contextlib
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
from memberscope.files import write_json, write_text

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from memberscope.federated.apps import Site
    from memberscope.federated.mods import Mod
    from memberscope.records.pool import Dataset
    from memberscope.training.trained_model import TrainedModel

CONFIG, SUMMARY, MODEL, TRANSCRIPT = "config.toml", "federation.json", "model", "transcript"
_FORMAT = "memberscope federation 1"


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
    """Train a federation in this process.

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
    from memberscope.federated import apps, malice
    from memberscope.federated.engine import run_in_process

    events = events or Events()
    events.stage("Loading records")
    pool = dataset or load(config.dataset, config.data_dir, unverified=config.unverified_data)
    events.stage("Sharing the records out")
    design = design or plan(config, pool)
    folder = folder or new_run_folder(config)
    if resume:
        _check_same(folder, pool, design)
    prepare(folder, config, pool, design)
    events.stage(f"Training the federation ({config.strategy})")
    events.federation(
        model=config.recipe.model,
        clients=design.n_clients,
        records=int(design.member.sum()),
        rounds=config.rounds,
    )
    site = apps.Site(config, lambda: pool, lambda _: design, resident=True)
    if config.malicious:
        if resume:
            raise ConfigError(
                "a federation with a malicious party cannot be resumed: what the party remembers is gone",
                "train it again in one go",
            )
        party, its_mods = malice.put_in_place(
            malice.parse(config.malicious), config.recipe, pool, design, site.local.normalisation
        )
        tamper, client_mods = party, (*client_mods, *its_mods)

    def prepared(strategy: Strategy) -> Strategy:
        return taped(strategy if tamper is None else tamper(strategy), config, folder)

    server = apps.server_app(site, folder, events=events, prepare=prepared, resume=resume)
    with quiet_flower():
        run_in_process(
            server,
            apps.client_app(site, client_mods),
            n_clients=design.n_clients,
            on_error=lambda client, error: None,  # told with the round, from the reply
            on_reply=events.federation_client,
        )
    return finish(site, folder, events)


def plan(config: FederationConfig, dataset: Dataset) -> Design:
    """The design that a config's seed draws from a pool."""
    return designs.plan(
        dataset,
        partition=config.partition,
        n_clients=config.clients,
        held_fraction=config.held_fraction,
        seed=config.seed,
    )


def finish(site: Site, folder: Path, events: Events) -> Federation:
    """Write the global model, the curves and the summary of a federation whose rounds are done."""
    from memberscope.federated import standing
    from memberscope.federated.packing import unpack
    from memberscope.report.federation_plots import learning_curves
    from memberscope.training.model_files import save

    kept = standing.read(folder)
    if kept is None or kept.round < site.config.rounds:
        raise RunFolderError(f"the federation in {folder} is not finished", f"go on with --resume {folder}")
    events.stage("Writing the run folder")
    privacy = _weakest_guarantee(site, kept.history)
    model = site.local.model(unpack(kept.arrays), tuple(_as_epochs(kept.history)), privacy)
    dataset, design = site.dataset, site.design
    save(
        model,
        folder / MODEL,
        membership=design.member,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )
    learning_curves(folder / "learning_curves.png", kept.history)
    summary = _summary(site.config, dataset, design, model, kept.history)
    write_json(folder / SUMMARY, summary)
    return Federation(folder, site.config, dataset, design, model, kept.history, summary)


def read_finished(config: FederationConfig, folder: Path, events: Events) -> Federation:
    """Finish a federation whose rounds another process ran."""
    from memberscope.data_loader import load
    from memberscope.federated import apps

    pool = load(config.dataset, config.data_dir, unverified=config.unverified_data)
    design = plan(config, pool)
    _check_same(folder, pool, design)
    return finish(apps.Site(config, lambda: pool, lambda _: design, resident=True), folder, events)


def read(folder: Path, *, dataset: Dataset | None = None, device: str = "auto") -> Federation:
    """Read the run folder of a federation that was trained.

    Raises
    ------
    RunFolderError
        It is no such folder, or the federation is not finished.
    DataError
        The records are others than those it was trained on.
    """
    import json

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
    model = load_model(folder / MODEL, membership=design.member, dataset_fingerprint=pool.fingerprint, device=device)
    kept = standing.read(folder)
    return Federation(folder, config, pool, design, model, kept.history if kept else [], summary)


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
    write_json(folder / "environment.json", environment.describe())
    counts = design.partition.counts(dataset.y, dataset.n_classes)
    partition_map(folder / "partition.png", counts, dataset.classes, config.partition)


def _check_same(folder: Path, dataset: Dataset, design: Design) -> None:
    kept = designs.read(folder)
    if not np.array_equal(kept.owner, design.owner) or not np.array_equal(kept.member, design.member):
        raise RunFolderError(
            f"the records of {dataset.name} are shared out otherwise than in {folder}",
            "resume with the records and settings that the federation was begun with",
        )


def taped(strategy: Strategy, config: FederationConfig, folder: Path) -> Strategy:
    """The strategy with a tap that keeps what the server sees; the tape of an interrupted run is continued."""
    if config.recorded == "nothing":
        return strategy
    from memberscope.federated.tap import watch

    return watch(
        strategy,
        folder / TRANSCRIPT,
        every=config.record_every,
        precision=config.record_precision,
        sums_only=config.recorded == "sums",
        max_bytes=config.record_megabytes * 2**20,
    )


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


def _as_epochs(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds as the history of a central training has its epochs: nobody's records are its validation."""
    return [
        {
            "epoch": record["round"],
            "train_loss": record["train_loss"] if record["train_loss"] is not None else 0.0,
            "train_acc": record["train_acc"] if record["train_acc"] is not None else 0.0,
            "val_loss": record["test_loss"],
            "val_acc": record["test_acc"],
            "seconds": record["seconds"],
        }
        for record in history
    ]


def _summary(
    config: FederationConfig,
    dataset: Dataset,
    design: Design,
    model: TrainedModel,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    x, y = dataset.x, dataset.y
    accuracy = {
        name: model.accuracy(x[rows], y[rows]) if rows.any() else None
        for name, rows in (
            ("trained_on", design.member),
            ("held", ~design.member & ~design.nobody),
            ("of_nobody", design.nobody),
        )
    }
    failed = [entry for record in history for entry in record["failed"]]
    return {
        "format": _FORMAT,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "records": dataset.n},
        "clients": design.n_clients,
        "rounds": config.rounds,
        "records": {
            "trained_on": int(design.member.sum()),
            "held": int((~design.member & ~design.nobody).sum()),
            "of_nobody": int(design.nobody.sum()),
        },
        "records_of_clients": design.partition.sizes.tolist(),
        "skew": design.partition.skew(dataset.y, dataset.n_classes),
        "accuracy": accuracy,
        "failures": {"replies": len(failed), "of": sum(len(r["clients"]) + len(r["failed"]) for r in history)},
        "privacy": _privacy(config),
        "record_privacy": model.privacy,
        "seconds": sum(r["seconds"] for r in history),
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "settings": config.to_dict(),
    }


def _weakest_guarantee(site: Site, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """DP-SGD's guarantee for the records of the client that has the weakest; the steps of all its rounds add up."""
    epochs = [0] * site.design.n_clients
    for record in history:
        for entry in record["clients"]:
            epochs[entry["client"]] += entry["epochs"]
    found = [g for client, made in enumerate(epochs) if (g := site.local.guarantee(client, made)) is not None]
    return max(found, key=lambda g: float("inf") if g["epsilon"] is None else g["epsilon"], default=None)


def _privacy(config: FederationConfig) -> dict[str, Any] | None:
    """The guarantee that central noise gives a client; None without any.

    Each round adds Gaussian noise of z C / n to the mean of n updates of norm C at most: with a client's update in it
    or zeroed, the means differ by C / n. T rounds of it are sqrt(T)/z-GDP (Dong et al. 2022, corollary 3.3); no gain
    from the choice of clients is claimed.
    """
    if not config.central_noise:
        return None
    from memberscope.statistics.gaussian_dp import gdp_epsilon

    mu = config.rounds**0.5 / config.central_noise
    return {
        "unit": "one client's updates, present or zeroed",
        "holds_against": "whoever sees the global models, not the server",
        "delta": config.local_delta,
        "epsilon": gdp_epsilon(mu, config.local_delta),
        "mu": mu,
    }
