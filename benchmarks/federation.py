"""What does Flower cost? Seconds a round, start-up and memory of federations in process, beside a bare loop and Ray.

SimpleCNN on 32x32 colour images, FedAvg. The bare loop makes the same training calls and averages the weights in place;
no Flower, no messages, nothing on disk. Loop and engine take turns, one thread each; medians over the turns, with the
smallest and largest. Then the tape's own cost, 1,000 clients with 100 a round in a process of their own, and (with
--ray PYTHON, an interpreter that has flwr[simulation] and this package's dependencies) Flower's simulation on Ray, in
turns with the engine, each in a process of its own.

Ray is started on the loopback address and told to begin a cluster: at the host's own address it may not reach itself
(containers, firewalls), and what a killed cluster left in Ray's own temporary folder sends it to that one.

Random images: speed does not depend on what is on them. About two minutes on two free cores, and one a turn for Ray.
Usage: python benchmarks/federation.py [--clients 10] [--records 500] [--rounds 4] [--turns 5]
                                       [--ray PYTHON] [--ray-turns 3]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import memberscope
from memberscope.records.pool import Dataset

OF_NOBODY = 500


def images(members: int) -> Dataset:
    rng = np.random.default_rng(0)
    n = members + OF_NOBODY
    x = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return Dataset("random-images", x, rng.integers(0, 10, n), tuple("0123456789"), np.arange(n) < members, "", True)


def config(clients: int, rounds: int, **more):
    from memberscope.federated.config import FederationConfig
    from memberscope.training.recipe import Recipe

    settings = {"record": "nothing", "held_fraction": 0.0, "threads": 1, "device": "cpu", **more}
    return FederationConfig(
        dataset="random-images", clients=clients, rounds=rounds, recipe=Recipe(batch_size=64), **settings
    )


class Watch:
    """Seconds on the wall and of the processor."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def each(self, rounds: int) -> tuple[float, float]:
        """Both of a round, since the watch was made."""
        return (time.perf_counter() - self.wall) / rounds, (time.process_time() - self.cpu) / rounds


def bare_loop(local, design, rounds: int) -> tuple[float, float]:
    """Seconds a round of the training calls alone, with a running weighted mean."""
    state = local.state()
    watch = Watch()
    for round_ in range(1, rounds + 1):
        total, weight = None, 0
        for client in range(design.n_clients):
            trained, outcome = local.train(state, client, first_epoch=round_, epochs=1)
            weight += outcome.examples
            if total is None:
                total = {name: value * outcome.examples for name, value in trained.items()}
            else:
                for name, value in trained.items():
                    total[name].add_(value, alpha=outcome.examples)
        state = {name: value / weight for name, value in total.items()}
        local.watch(state)
    return watch.each(rounds)


def engine(site, design, rounds: int, *, taped: bool = False) -> tuple[tuple[float, float], float]:
    """Seconds a round in process on Flower, each round left on disk; and megabytes a round of the tape."""
    from memberscope.events import Events
    from memberscope.federated import apps
    from memberscope.federated.engine import run_in_process
    from memberscope.federated.federation import quiet_flower
    from memberscope.federated.tap import watch

    with tempfile.TemporaryDirectory() as folder, quiet_flower():
        tape = Path(folder) / "transcript"
        prepare = (lambda strategy: watch(strategy, tape)) if taped else (lambda strategy: strategy)
        server = apps.server_app(site, Path(folder), events=Events(), prepare=prepare)
        watch_ = Watch()
        run_in_process(server, apps.client_app(site), n_clients=design.n_clients)
        seconds = watch_.each(rounds)
        size = sum(file.stat().st_size for file in tape.rglob("*") if file.is_file()) if taped else 0
    return seconds, size / rounds / 1e6


def compare(clients: int, records: int, rounds: int, turns: int) -> None:
    from memberscope.federated import apps
    from memberscope.federated.federation import plan

    settings = config(clients, rounds)
    dataset = images(clients * records)
    design = plan(settings, dataset)
    site = apps.Site(settings, lambda: dataset, lambda _: design, resident=True)
    bare_loop(site.local, design, 1)
    times: dict[str, list[tuple[float, float]]] = {"bare loop": [], "in process": [], "in process, taped": []}
    size = 0.0
    for turn in range(turns):
        order = list(times) if turn % 2 == 0 else list(times)[::-1]
        for name in order:
            if name == "bare loop":
                times[name].append(bare_loop(site.local, design, rounds))
            else:
                seconds, size_ = engine(site, design, rounds, taped="taped" in name)
                size = max(size, size_)
                times[name].append(seconds)
    print(f"{clients} clients of {records} records, 1 local epoch, {turns} turns of {rounds} rounds, one thread:")
    for name, values in times.items():
        walls, processor = ([v[k] for v in values] for k in (0, 1))
        by_wall, by_processor = (
            statistics.median(v[k] / b[k] for v, b in zip(values, times["bare loop"], strict=True)) for k in (0, 1)
        )
        print(
            f"  {name:18} {statistics.median(walls):6.2f} s a round ({min(walls):.2f} to {max(walls):.2f}), "
            f"{by_wall:.3f} times the loop of the same turn; {statistics.median(processor):.2f} s of the processor, "
            f"{by_processor:.3f} times"
        )
    print(f"  the tape keeps {size:.1f} MB a round (float32, {clients} replies)")


def many() -> None:
    """In a process of its own: 1,000 clients, 100 a round."""
    from memberscope.events import Events
    from memberscope.federated.federation import federate

    peaks = []

    class Watch(Events):
        def federation_round(self, record, rounds, left):
            peaks.append((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, record["seconds"]))

    dataset = images(50_000)
    with tempfile.TemporaryDirectory() as folder:
        settings = config(1000, 6, fraction=0.1)
        start = time.perf_counter()
        federate(settings, dataset=dataset, folder=Path(folder) / "run", events=Watch())
        total = time.perf_counter() - start
    print(json.dumps({"peaks": peaks, "total": total}))


def start_up() -> None:
    """In a process of its own: from nothing to the first reply of a federation."""
    start = time.perf_counter()
    from memberscope.events import Events
    from memberscope.federated.federation import federate

    class Watch(Events):
        def federation_round(self, record, rounds, left):
            print(json.dumps({"seconds": time.perf_counter() - start - record["seconds"]}))

    with tempfile.TemporaryDirectory() as folder:
        federate(config(10, 1), dataset=images(1000), folder=Path(folder) / "run", events=Watch())


def own_process(name: str, python: str = sys.executable, **more: str) -> dict:
    ours = str(Path(memberscope.__file__).parents[1])  # another environment has our dependencies, but not us
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ours, **more}
    done = subprocess.run(
        [python, __file__, "--only", name], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


class Memory(threading.Thread):
    """The largest memory of this process and all that it started, in MB: shared pages are counted once (PSS)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        """Look every half second."""
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(_pss, _tree(os.getpid()))) / 1024)

    def stop(self) -> float:
        """The peak; no more looking."""
        self._over.set()
        self.join()
        return self.peak


def _tree(root: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = {root}, {root}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def _pss(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _size() -> tuple[int, int, int]:
    clients, records, rounds = (int(os.environ[k]) for k in ("CLIENTS", "RECORDS", "ROUNDS"))
    return clients, records, rounds


def alone() -> None:
    """In a process of its own: the engine, measured as Ray is."""
    from memberscope.events import Events
    from memberscope.federated.federation import federate

    begun, memory = time.perf_counter(), Memory()
    memory.start()
    clients, records, rounds = _size()
    marks = []

    class Watch(Events):
        def federation_round(self, record, rounds, left):
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        federate(config(clients, rounds), dataset=images(clients * records), folder=Path(folder) / "r", events=Watch())
    _tell(begun, marks, memory)


def _tell(begun: float, marks: list[float], memory: Memory) -> None:
    steady = [b - a for a, b in itertools.pairwise(marks)]
    print(json.dumps({"round": statistics.median(steady), "first": marks[0] - begun, "peak": memory.stop()}))


def ray() -> None:
    """In a process of its own: the same training calls as a ClientApp on Flower's Ray simulation."""
    begun, memory = time.perf_counter(), Memory()
    memory.start()
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from memberscope.federated import apps
    from memberscope.federated.federation import plan
    from memberscope.federated.packing import pack, unpack

    clients, records, rounds = _size()
    settings = config(clients, rounds)
    sites: list[apps.Site] = []

    def site() -> apps.Site:
        if not sites:
            dataset = images(clients * records)
            sites.append(apps.Site(settings, lambda: dataset, lambda pool: plan(settings, pool), resident=False))
        return sites[0]

    app = ClientApp()

    @app.train()
    def train(message, context):
        from flwr.app import Message, RecordDict

        local = site().local  # once in each actor
        round_, client = int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
        state, outcome = local.train(unpack(message.content["arrays"]), client, first_epoch=round_, epochs=1)
        metrics = MetricRecord({"num-examples": outcome.examples})
        return Message(RecordDict({"arrays": pack(state, resident=False), "metrics": metrics}), reply_to=message)

    marks: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        local = site().local
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=clients)

        def watch(round_: int, arrays: ArrayRecord) -> None:
            local.watch(unpack(arrays))
            if round_:  # Flower also watches the model before the first round
                marks.append(time.perf_counter())

        strategy.start(
            grid=grid, initial_arrays=pack(local.state(), resident=False), num_rounds=rounds, evaluate_fn=watch
        )

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        actors = {
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local", "_node_ip_address": "127.0.0.1", "_temp_dir": folder},
        }
        run_simulation(server, app, clients, backend_config=actors)
    _tell(begun, marks, memory)


def beside_ray(python: str, turns: int, **size: str) -> None:
    found: dict[str, list[dict]] = {"in process": [], "Ray": []}
    for turn in range(turns):
        for name in list(found) if turn % 2 == 0 else list(found)[::-1]:
            found[name].append(own_process("ray", python, **size) if name == "Ray" else own_process("alone", **size))
    print(f"each in a process of its own, {turns} turns; Ray has an actor for each core, one thread each:")
    for name, told in found.items():
        parts = [
            f"{statistics.median(t[key] for t in told):{form}} {unit} ({min(t[key] for t in told):{form}} to "
            f"{max(t[key] for t in told):{form}})"
            for key, form, unit in (
                ("round", ".2f", "s a round after the first"),
                ("first", ".1f", "s from nothing to the end of the first"),
                ("peak", ".0f", "MB at the peak, all processes"),
            )
        ]
        print(f"  {name:18} {', '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--clients", 10), ("--records", 500), ("--rounds", 4), ("--turns", 5)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--ray", help="Python of an environment with flwr[simulation]")
    parser.add_argument("--ray-turns", type=int, default=3)
    parser.add_argument("--only", choices=("many", "start_up", "ray", "alone"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        {"many": many, "start_up": start_up, "ray": ray, "alone": alone}[given.only]()
        return
    compare(given.clients, given.records, given.rounds, given.turns)
    print(f"start-up, imports and all: {own_process('start_up')['seconds']:.1f} s until the first round")
    told = own_process("many")
    peaks = [peak for peak, _ in told["peaks"]]
    seconds = statistics.median(second for _, second in told["peaks"])
    print(
        f"1,000 clients of 50 records, 100 a round: {seconds:.2f} s a round; peak memory {peaks[0]:.0f} MB after the "
        f"first round, {peaks[-1]:.0f} MB after {len(peaks)}"
    )
    if given.ray:
        size = {"CLIENTS": str(given.clients), "RECORDS": str(given.records), "ROUNDS": str(given.rounds)}
        beside_ray(given.ray, given.ray_turns, **size)


if __name__ == "__main__":
    main()
