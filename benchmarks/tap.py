"""What a tap costs a federation: milliseconds of processor time and bytes a round, by what is kept.

A federation of 10 clients with SimpleCNN (545,098 weights, 2.2 MB) whose clients train nothing: they add a number and
send the model back, so that what is measured is the tap and not the training. Each way of taping runs in alternation
with none, 3 times 10 rounds; medians, and the range. Processor time, so that other work on the machine counts little:

    python benchmarks/tap.py

prints the table in docs/federated_audit.md.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from memberscope.federated import tap
from memberscope.federated.engine import run_in_process
from memberscope.training.models import build

CLIENTS, ROUNDS, TIMES = 10, 10, 3
WAYS = {
    "nothing": None,
    "every model": {},
    "updates in float16": {"precision": "float16"},
    "sums only": {"sums_only": True},
    "every second round": {"every": 2},
}


def client_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {name: Array(array.numpy() + 1e-3) for name, array in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def seconds(options: dict | None, folder: Path) -> float:
    """One federation; processor seconds of its rounds."""
    model = build("simplecnn", (3, 32, 32), 10)
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    if options is not None:
        strategy = tap.watch(strategy, folder, **options)
    app, taken = ServerApp(), []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        start = time.process_time()
        strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=ROUNDS)
        taken.append(time.process_time() - start)

    run_in_process(app, client_app(), n_clients=CLIENTS, seed=0)
    return taken[0]


def main() -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    size = dict.fromkeys(WAYS, 0)
    for _ in range(TIMES):
        for name, options in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(seconds(options, Path(folder) / "t"))
                size[name] = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    base = statistics.median(taken["nothing"])
    each = 1e3 * base / ROUNDS
    print(f"{CLIENTS} clients, 2.18 MB a model, {ROUNDS} rounds, {TIMES} times: {each:.0f} ms a round without a tap")
    print("| kept | ms more a round | MB a round |\n|---|---|---|")
    for name in list(WAYS)[1:]:
        more = [1e3 * (a - b) / ROUNDS for a, b in zip(taken[name], taken["nothing"], strict=True)]
        low, high = min(more), max(more)
        print(f"| {name} | {statistics.median(more):.0f} ({low:.0f} to {high:.0f}) | {size[name] / ROUNDS / 1e6:.1f} |")


if __name__ == "__main__":
    main()
