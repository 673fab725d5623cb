"""Our Flower apps: the ClientApp and the ServerApp of a federation, the same on every engine (Message API)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.federated import secure, strategies
from memberscope.federated.canary_clients import UPDATE_NORM, CanaryClients, follows_updates
from memberscope.federated.config import FederationConfig
from memberscope.federated.design import Design
from memberscope.federated.draws import global_draws
from memberscope.federated.local import LocalTraining, Outcome
from memberscope.federated.mods import Mod, mods
from memberscope.federated.packing import arrays_of, pack, tensors_of, unpack
from memberscope.federated.rounds import Rounds
from memberscope.federated.weather import Weather
from memberscope.records.pool import Dataset

MODEL, SETTINGS, METRICS = "arrays", "config", "metrics"


class Site:
    """What a party has at hand: settings, records, who trains on what, and one model that lasts.

    Parameters
    ----------
    config
        The settings.
    dataset
        The pool, or what gives it when it is needed.
    design
        Who trains on what, or what draws it from the pool.
    resident
        All parties are in this process.
    """

    def __init__(
        self,
        config: FederationConfig,
        dataset: Callable[[], Dataset],
        design: Callable[[Dataset], Design],
        *,
        resident: bool,
    ) -> None:
        self.config, self.resident = config, resident
        self.weather = Weather(config)
        self._dataset, self._design = dataset, design

    @cached_property
    def dataset(self) -> Dataset:
        """The pool."""
        return self._dataset()

    @cached_property
    def design(self) -> Design:
        """Who trains on what."""
        return self._design(self.dataset)

    @property
    def n_nodes(self) -> int:
        """Clients and canary clients."""
        return self.design.n_clients + self.config.canary_clients

    @cached_property
    def canaries(self) -> CanaryClients:
        """The canary clients; none, as a rule."""
        weight = max(1, int(np.median(np.bincount(self.design.owner[self.design.member]))))
        return CanaryClients(self.config, self.design.n_clients, weight, self.local.trainable)

    @cached_property
    def local(self) -> LocalTraining:
        """The model and its trainer."""
        config = self.config
        return LocalTraining(
            config.recipe,
            self.dataset,
            self.design,
            seed=config.seed,
            device=config.device,
            threads=config.threads,
        )


def client_app(site: Site, client_mods: Sequence[Mod] = ()) -> ClientApp:
    """The ClientApp: trains the model it is sent on the records of client `partition-id`.

    Parameters
    ----------
    site
        The client's, or that of all clients in this process.
    client_mods
        Mods around those that the settings ask for.
    """
    app = ClientApp()
    config = site.config
    protocol = secure.mods(lambda: list(site.local.state())) if config.secagg_plus else []

    @app.train(mods=[*protocol, _drawn_from_the_seed(config.seed), *client_mods, *mods(config)])
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        settings: Any = message.content[SETTINGS]
        round_ = int(settings["server-round"])
        epochs = site.weather.epochs(round_, client)
        sent = unpack(message.content[MODEL])  # type: ignore[arg-type]
        norm = 0.0
        if client in site.canaries:
            state, outcome = _canary(site, client, sent, settings)
        else:
            state, outcome = site.local.train(
                sent,
                client,
                first_epoch=1 + (round_ - 1) * config.local_epochs,
                epochs=epochs,
                proximal_mu=float(settings.get("proximal-mu", 0.0)),
            )
            if follows_updates(config):
                norm = site.canaries.norm(arrays_of(sent), arrays_of(state))
        more = {UPDATE_NORM: norm} if follows_updates(config) else {}
        # Central differential privacy is about the mean of clipped updates: each client counts once.
        weight = 1 if config.central_noise else outcome.examples
        metrics = MetricRecord({"num-examples": weight, "partition-id": client, **asdict(outcome), **more})
        content = RecordDict({MODEL: pack(state, resident=site.resident), METRICS: metrics})
        return Message(content, reply_to=message)

    return app


def server_app(
    site: Site,
    folder: Path,
    *,
    events: Events,
    prepare: Callable[[Strategy], Strategy] = lambda strategy: strategy,
    resume: bool = False,
) -> ServerApp:
    """The ServerApp: rounds of Flower's strategy, each left on disk in `folder`.

    Parameters
    ----------
    site
        The server's.
    folder
        The run folder.
    events
        Hears of rounds and clients.
    prepare
        Given the strategy, returns it with a tap on it.
    resume
        Go on from what an earlier run left in `folder`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        check_buffers(site)
        exchange = secure_exchange(site) if site.config.secagg_plus else None
        strategy = prepare(strategies.make(site.config, site.n_nodes))
        initial = pack(site.local.state(), resident=site.resident)
        rounds = Rounds(
            site.config,
            strategy,
            folder,
            n_clients=site.design.n_clients,
            n_nodes=site.n_nodes,
            watch=lambda arrays: site.local.watch(unpack(arrays)),
            events=events,
            exchange=exchange,
        )
        rounds.run(grid, initial, resume=resume, resident=site.resident)

    return app


def check_buffers(site: Site) -> None:
    """Refuse to clip updates of models whose statistics would be clipped, and noised, with their weights.

    Raises
    ------
    ConfigError
        Flower's clipping takes the norm over all that travels: the count of batches of a batch normalisation alone can
        be larger than all weights together.
    """
    if (site.config.central_noise or site.config.local_epsilon) and site.local.has_buffers:
        raise ConfigError(
            f"updates of {site.config.recipe.model} cannot be clipped: the statistics of its batch normalisation "
            "travel with its weights and would be clipped and noised with them",
            "choose a model without batch normalisation (simplecnn, mlp)",
        )


def secure_exchange(site: Site) -> secure.SecureExchange:
    """Flower's SecAgg+ for the rounds of a site, where it can be used."""
    config, design = site.config, site.design
    secure.check(
        config,
        each_round=strategies.chosen_each_round(config, site.n_nodes),
        has_buffers=site.local.has_buffers,
    )
    return secure.SecureExchange(float(max(len(design.trained(k)) for k in range(design.n_clients))))


def _canary(
    site: Site, client: int, sent: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Outcome]:
    """The reply of a canary client; it has no records to report anything on."""
    arrays, weight = site.canaries.reply(client, arrays_of(sent), settings)
    return tensors_of(arrays), Outcome(weight, 0.0, 0.0, 0.0, 0.0, 0)


def _drawn_from_the_seed(seed: int) -> Callable[[Message, Context, Callable[[Message, Context], Message]], Message]:
    """A mod: what mods draw from global generators follows from the seed, the client and the round."""

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        client = int(context.node_config["partition-id"])
        settings: Any = message.content[SETTINGS]
        round_ = settings["server-round"]
        with global_draws(seed, f"mods of client {client} in round {round_}"):
            return call_next(message, context)

    return mod
