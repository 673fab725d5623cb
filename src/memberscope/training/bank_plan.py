"""How a bank will grow: in which arithmetic, with how many workers and threads, in what time, in what space."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memberscope.defenses.registry import work
from memberscope.errors import ConfigError, MemberscopeError
from memberscope.training import layout as layouts
from memberscope.training.layout import Layout, Trial
from memberscope.training.recipe import Precision, Recipe
from memberscope.training.scheduler import Arrays, LocalWorkers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memberscope.training.ray_cluster import Share

SMALL_SECONDS = 30.0
"""A bank that one thread trains in this time is not spread: to start and measure workers takes about ten seconds."""
_EVALUATED = 5_000
_FORWARD = 1 / 3
"""Of the arithmetic of a training step: what an answer costs."""
_INTERPRETER_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """What `ModelBank.grow` is going to do.

    Parameters
    ----------
    missing
        Models to be trained.
    recipe
        With its precision resolved.
    device
        cpu, cuda:0, ...
    layout
        Workers and threads; on other devices than the CPU one worker that computes there.
    seconds
        Estimate for all missing models; None: nothing was measured.
    file_bytes
        Of the files of the missing models.
    reason
        How the layout was chosen.
    share
        On a cluster: what one training occupies of a node.
    """

    missing: tuple[int, ...]
    recipe: Recipe
    device: str
    layout: Layout
    seconds: float | None
    file_bytes: int
    reason: str
    share: Share | None = None

    def describe(self) -> str:
        """The layout and its reason in words."""
        if self.share is not None and self.share.gpus:
            return f"{self.layout.processes} models at once, {self.share.gpus:.2g} of a GPU each ({self.reason})"
        if self.device != "cpu":
            return f"on {self.device}: {self.reason}"
        return f"{self.layout.describe()} ({self.reason})"


@dataclass(frozen=True)
class Choice:
    """A layout, how fast it is, and why it was taken.

    Parameters
    ----------
    layout
        Workers and threads.
    rate
        Records a second of all workers together; None: not measured.
    reason
        In words.
    measured
        Records a second of each layout that was measured now, by its name.
    """

    layout: Layout
    rate: float | None
    reason: str
    measured: Mapping[str, float] = field(default_factory=dict)


def resolve(
    recipe: Recipe, n_classes: int, input_shape: tuple[int, ...], device: str, precision: Precision | None
) -> tuple[torch.device, Recipe, nn.Module]:
    """Give the device, the recipe in the precision that the bank noted or else ``auto`` means there, and a model."""
    import torch

    from memberscope.training.hardware import resolve_device, resolve_precision
    from memberscope.training.models import build_for

    where = resolve_device(device)
    with torch.random.fork_rng([]):
        module = build_for(recipe, input_shape, n_classes)
    resolved = resolve_precision(recipe, module, input_shape, where)
    return where, replace(resolved, precision=precision) if precision else resolved, module


def records_computed(recipe: Recipe, members: int, answered: int) -> float:
    """Training steps of one model in records, with its evaluations and answers as what they cost in such steps."""
    trained = recipe.epochs * (members + _FORWARD * min(members, _EVALUATED))
    return work(recipe) * trained + _FORWARD * answered


def choose(
    arrays: Arrays,
    trial: Trial,
    *,
    models: int,
    work: float,
    member_bytes: int,
    folder: Path,
    workers: int | str,
    fixed: int | None,
    noted: Mapping[str, float] | None,
) -> Choice:
    """Choose workers and threads on this machine's CPU.

    Parameters
    ----------
    arrays
        x, y and pool.
    trial
        The recipe, for measuring.
    models
        How many are missing.
    work
        `records_computed` of one.
    member_bytes
        Of the records that one is trained on.
    folder
        Of the bank, for temporary files.
    workers
        As the user asked.
    fixed
        Threads that the bank's models have, or that the user asked for; None: free to choose.
    noted
        Records a second by layout, as measured on this machine before.
    """
    if models == 0:
        return Choice(Layout(1, fixed or 1), None, "nothing is missing")
    if workers != "auto":
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ConfigError(f"workers = {workers!r}", "auto, a whole number from 1, ray, or the address of a cluster")
        return Choice(Layout(min(workers, models), fixed or 1), None, "as asked")
    cores, most, known = layouts.usable_cores(), layouts.most_workers(models, member_bytes), noted or {}
    alone = Layout(1, fixed or 1)
    rate = known.get(str(alone)) or layouts.speed_here(replace(trial, threads=alone.threads), arrays)
    if models * work / rate <= SMALL_SECONDS or min(cores, most) == 1:
        # Where nothing is gained by spreading, one thread: the same models as with any number of workers.
        reason = "too little work to spread" if min(cores, most) > 1 else "room for one worker"
        return Choice(alone, rate, reason, {str(alone): rate})
    if fixed is not None:
        layout = Layout(max(1, min(cores // fixed, most)), fixed)
        return Choice(layout, known.get(str(layout), rate * layout.processes), "the threads of this bank's models")
    with LocalWorkers(arrays, min(cores, most), folder) as place:
        rates = layouts.measure(trial, layouts.candidates(cores, most), place)
    best = layouts.pick(rates)
    told = ", ".join(f"{layout}: {speed:,.0f}" for layout, speed in rates.items())
    named = {str(layout): round(speed, 1) for layout, speed in rates.items()}
    return Choice(best, rates[best], f"measured; records a second by workers x threads {told}", named)


def seconds(choice: Choice, models: int, work: float) -> float | None:
    """Estimate of the time for all models."""
    if choice.rate is None:
        return None
    starting = _INTERPRETER_SECONDS if choice.layout.processes > 1 else 0.0
    # Whole rounds: the last one may leave workers idle.
    rounds = -(-models // choice.layout.processes)
    return starting + rounds * work * choice.layout.processes / choice.rate


def even(k: int) -> int:
    """A number of models, raised to whole pairs."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"{k!r} reference models", "a whole number from 1")
    return k + k % 2


def check_room(plan: Plan, folder: Path) -> None:
    """Refuse a plan whose files do not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if plan.file_bytes > free:
        raise MemberscopeError(
            f"{len(plan.missing)} reference models take {_size(plan.file_bytes)} in {folder}, "
            f"where {_size(free)} are free",
            "free some space, ask for fewer, or keep their answers as float16; nothing was trained yet",
        )


def room(models: int, shape: tuple[int, int, int], stored: str, parameters: int) -> int:
    """Bytes of the files of models that answer `shape` [A, N, C] and keep so many parameters."""
    answers = int(np.prod(shape)) * np.dtype(stored).itemsize
    return models * (answers + shape[1] // 8 + 4 * parameters + 4096)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
