"""How many processes of how many threads train fastest on this machine: a short measurement with the real recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memberscope.defenses.registry import timed
from memberscope.training.recipe import Recipe
from memberscope.training.scheduler import Arrays, LocalWorkers, Tell

SECONDS = 0.4
"""Of training steps in one measurement of one layout."""
_ROUNDS = 2
_GOOD_ENOUGH = 0.96
"""Fewer threads a model are taken from this share of the best rate on: close races then end alike each time."""
WORKER_BYTES = 700_000_000
"""Of a worker beside its records: the interpreter with torch, and a training step."""
_MEMORY_SHARE = 0.7


@dataclass(frozen=True, order=True)
class Layout:
    """So many processes, each with so many threads. The result of a training depends on the threads alone."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"

    def describe(self) -> str:
        """The layout in words."""
        models = "one model at a time" if self.processes == 1 else f"{self.processes} models at once"
        return f"{models}, {self.threads} thread{'s' * (self.threads != 1)} each"


@dataclass(frozen=True)
class Trial:
    """A task for workers: train for a moment and tell the speed.

    Parameters
    ----------
    recipe
        The real one; only its length is changed.
    n_classes
        Number of classes.
    threads
        CPU threads.
    seconds
        Of training steps.
    """

    recipe: Recipe
    n_classes: int
    threads: int
    seconds: float = SECONDS

    def __call__(self, arrays: Arrays, item: int, tell: Tell, /) -> float:
        """Records a second in training steps. Arrays: x, y and pool (who may be trained on)."""
        del item, tell
        records = 2 * self.recipe.batch_size
        for seconds in (0.15 * self.seconds, self.seconds):  # the first steps of a process are slow: they warm up
            records = int(self._rate(arrays, records) * seconds)
        return self._rate(arrays, records)

    def _rate(self, arrays: Arrays, records: int) -> float:
        from memberscope.training.train_target import fit

        chosen = np.flatnonzero(arrays["pool"])[: max(records, self.recipe.batch_size)]
        member = np.zeros(len(arrays["pool"]), np.bool_)
        member[chosen] = True
        epochs = max(1, round(records / len(chosen)))
        recipe = replace(timed(self.recipe), epochs=epochs, warmup_epochs=0)
        trained = fit(
            recipe,
            arrays["x"],
            arrays["y"],
            member,
            n_classes=self.n_classes,
            seed=0,
            device="cpu",
            threads=self.threads,
        )
        return float(trained.images_per_second or 0.0)


def speed_here(trial: Trial, arrays: Arrays) -> float:
    """Records a second of one model in this process."""
    return trial(arrays, 0, lambda fraction: None)


def measure(trial: Trial, layouts: Iterable[Layout], workers: LocalWorkers) -> dict[Layout, float]:
    """Records a second of all processes of each layout together: the better of two measurements, taken in turns."""
    rates: dict[Layout, float] = {}
    widest_first = sorted(layouts, reverse=True)  # all workers then start at the same time
    for _ in range(_ROUNDS):
        for layout in widest_first:
            task = replace(trial, threads=layout.threads)
            rate = sum(speed for _, speed in workers.run(task, range(layout.processes)))
            rates[layout] = max(rate, rates.get(layout, 0.0))
    return {layout: rates[layout] for layout in sorted(rates)}


def pick(rates: dict[Layout, float]) -> Layout:
    """The fastest layout, or one of fewer threads a model that is nearly as fast."""
    good = [layout for layout, rate in rates.items() if rate >= _GOOD_ENOUGH * max(rates.values())]
    return min(good, key=lambda layout: (layout.threads, -rates[layout]))


def candidates(cores: int, most: int) -> list[Layout]:
    """Layouts that use all cores: 1, 2, 4, ... processes, and as many as there are cores or as `most` allows."""
    top = max(1, min(cores, most))
    counts = {2**i for i in range(top.bit_length()) if 2**i <= top} | {top}
    return [Layout(count, cores // count) for count in sorted(counts)]


def most_workers(models: int, record_bytes: int) -> int:
    """How many workers make sense: one a model, as many as memory holds.

    Parameters
    ----------
    models
        To be trained.
    record_bytes
        Of the records that one model is trained on.
    """
    available = available_memory()
    if available is None:
        return models
    return max(1, min(models, int(_MEMORY_SHARE * available / (WORKER_BYTES + 2 * record_bytes))))


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def machine() -> str:
    """What a measured layout holds for: processor, cores and version of torch."""
    from memberscope.environment import describe

    facts: dict[str, Any] = describe()
    return f"{facts['processor']}, {usable_cores()} cores, torch {facts['packages'].get('torch')}"
