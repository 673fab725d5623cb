"""The apps of a federation as processes of a real deployment load them: from the settings that lie beside them.

`memberscope.federated.deploy` writes a Flower app of a few lines that calls these two functions; a SuperLink hands it
to its nodes. Every node has memberscope and the records on its own disk, and draws from the settings' seed who trains
on what, so that nothing but models and metrics travels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from memberscope.events import Events
from memberscope.federated import apps
from memberscope.federated import config as settings
from memberscope.federated.federation import alone_at, plan, prepare, taped

if TYPE_CHECKING:
    from memberscope.records.pool import Dataset

DATA_DIR, RUN_FOLDER, RESUME = "data-dir", "run-folder", "resume"


def client_app(config_file: Path) -> ClientApp:
    """The ClientApp of a SuperNode, started with ``--node-config 'partition-id=K'``.

    ``data-dir="PATH"`` there names the folder of the dataset's files; default: $MEMBERSCOPE_DATA_DIR of the node.
    """
    config = settings.read(config_file)
    site = apps.Site(config, _records(config.dataset), lambda pool: plan(config, pool), resident=False)

    def at_home(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        if DATA_DIR in context.node_config:
            os.environ["MEMBERSCOPE_DATA_DIR"] = str(context.node_config[DATA_DIR])
        return call_next(message, context)

    return apps.client_app(site, [at_home])


def server_app(config_file: Path) -> ServerApp:
    """The ServerApp of the SuperLink: rounds, tape and standing go to the folder that the run config names."""
    config = settings.read(config_file)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        site = apps.Site(config, _records(config.dataset), lambda pool: plan(config, pool), resident=False)
        folder = Path(str(context.run_config[RUN_FOLDER]))
        inner = apps.server_app(
            site,
            folder,
            events=Events(),
            prepare=lambda strategy: taped(strategy, site, folder),
            resume=bool(context.run_config[RESUME]),
        )
        with alone_at(folder):
            prepare(folder, config, site.dataset, site.design)
            inner(grid, context)
        context.state = RecordDict()

    return app


def _records(name: str) -> Callable[[], Dataset]:
    def load_() -> Dataset:
        from memberscope.data_loader import load

        return load(name, progress=False, download=False)

    return load_
