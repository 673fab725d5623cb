"""A bank that grows on a cluster: the same trainings, claimed by the process that hands them out.

Where a node sees the bank's folder (shared storage) it writes there, and goes on from the checkpoint of a node that was
lost. Where it does not, the model is trained in a folder of the node's own and its file is sent back. Each node finds
out by itself, model by model, so a cluster may be mixed.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memberscope.errors import ConfigError, ModelError
from memberscope.files import write_bytes
from memberscope.training import bank_plan
from memberscope.training import layout as layouts
from memberscope.training.bank_files import claim, model_path, remove_unfinished
from memberscope.training.bank_plan import Choice
from memberscope.training.bank_training import Outcome, TrainModel, sound
from memberscope.training.layout import Layout
from memberscope.training.recipe import Precision, Recipe
from memberscope.training.scheduler import Arrays, Listener, Tell, shares_storage

if TYPE_CHECKING:
    from memberscope.training.ray_cluster import Cluster, Share
    from memberscope.training.scheduler_ray import RayWorkers

_SHOWS_WITHIN_SECONDS = 90.0
"""Network file systems remember for a while that a file was not there."""
_MOST_ON_A_GPU = 8


@dataclass(frozen=True)
class OnNode:
    """The task of a cluster's workers: train model k, which the bank's process has claimed.

    Parameters
    ----------
    task
        The training, with the bank's folder as the bank's process sees it.
    token
        Written into the claim of each model: a node that can read it there shares the bank's storage.
    """

    task: TrainModel
    token: str

    def __call__(self, arrays: Arrays, k: int, tell: Tell, /) -> bytes | None:
        """Give the model's file, or None where it was written to the bank's folder."""
        path = model_path(self.task.folder, k)
        if self._shared(path):
            remove_unfinished(path)  # by an attempt on a node that was lost
            if sound(path, self.task.bank, k, self.task.member(arrays, k)) is None:  # lost before it could say so
                self.task.train(arrays, k, tell)
            return None
        with tempfile.TemporaryDirectory(prefix="memberscope-") as folder:
            replace(self.task, folder=Path(folder)).train(arrays, k, tell)
            return model_path(Path(folder), k).read_bytes()

    def _shared(self, path: Path) -> bool:
        return shares_storage(path.with_suffix(".lock"), self.token)


def train_on(
    place: RayWorkers, task: TrainModel, arrays: Arrays, models: Sequence[int], listener: Listener
) -> Iterator[tuple[int, Outcome]]:
    """Train models on a cluster and yield each with its outcome.

    Parameters
    ----------
    place
        The cluster's workers, with the bank's arrays.
    task
        What trains one. Its folder is absolute.
    arrays
        The bank's: who is trained on follows from them.
    models
        To be trained.
    listener
        Hears of fractions and deaths.
    """
    on_node = OnNode(task, secrets.token_hex(16))
    claims: dict[int, contextlib.ExitStack] = {}
    outcomes: dict[int, Outcome] = {}

    def unclaimed() -> Iterator[int]:
        """Claim models one after the other, as the cluster takes them."""
        for k in models:
            path, stack = model_path(task.folder, k), contextlib.ExitStack()
            if not stack.enter_context(claim(path)):
                outcomes[k] = "busy"
            elif sound(path, task.bank, k, task.member(arrays, k)) is not None:
                outcomes[k] = "there"
                stack.close()
            else:
                path.with_suffix(".lock").write_text(on_node.token, encoding="ascii")
                claims[k] = stack
                yield k

    work = place.run(on_node, unclaimed(), listener)
    try:
        for k, sent in work:
            path = model_path(task.folder, k)
            if sent is not None:
                write_bytes(path, sent)
            _check_arrived(path, task, arrays, k)
            claims.pop(k).close()
            yield k, "trained"
    finally:
        work.close()  # type: ignore[attr-defined]  # a generator: it stops what still runs before the claims are given up
        for stack in claims.values():
            stack.close()
    yield from outcomes.items()


def choose(
    cluster: Cluster,
    recipe: Recipe,
    *,
    classes: int,
    shape: tuple[int, ...],
    members: int,
    models: int,
    threads: int,
    device: str,
    precision: Precision | None,
) -> tuple[str, Recipe, Choice, Share]:
    """Choose device, precision, and how many models are trained at once.

    Parameters
    ----------
    cluster
        Where.
    recipe
        How models are trained.
    classes, shape, members
        Number of classes, shape of one record, and records that one model is trained on.
    models
        How many are missing.
    threads
        Of each training on a CPU.
    device
        auto (GPUs if the cluster has any), cpu or cuda.
    precision
        As noted in the bank; None: not yet.

    Raises
    ------
    ConfigError
        The cluster has no such device, or no node has room for one training.
    """
    gpu = on_gpus(cluster, recipe, classes, shape, device, precision)
    if gpu is None:
        _, resolved, _ = bank_plan.resolve(recipe, classes, shape, "cpu", precision)
    else:
        resolved = replace(recipe, precision=gpu[0])
    share = share_of(resolved, shape, classes, members, threads, gpu[1] if gpu else None)
    at_once = max(1, min(cluster.slots(share), models))
    nodes = len(cluster.nodes())
    reason = f"Ray, {nodes} node{'s' * (nodes != 1)}"
    return "cuda" if gpu else "cpu", resolved, Choice(Layout(at_once, threads), None, reason), share


def share_of(
    recipe: Recipe, shape: tuple[int, ...], classes: int, members: int, threads: int, free: int | None
) -> Share:
    """What the training of one model occupies on a node.

    Parameters
    ----------
    recipe
        How it is trained.
    shape
        Of one record.
    classes
        Number of classes.
    members
        Records that it is trained on.
    threads
        Of the training.
    free
        Bytes that are free on a GPU of the cluster; None: it is trained on CPUs.
    """
    from memberscope.training.ray_cluster import Share

    record_bytes = members * math.prod(shape) * (1 if len(shape) == 3 else 4)
    memory = layouts.WORKER_BYTES + 2 * record_bytes
    if free is None:
        return Share(threads, memory=memory)
    from memberscope.training.stacked import group_size

    return Share(1, gpus=1 / min(_MOST_ON_A_GPU, group_size(recipe, shape, classes, free, record_bytes)), memory=memory)


def on_gpus(
    cluster: Cluster, recipe: Recipe, classes: int, shape: tuple[int, ...], device: str, precision: Precision | None
) -> tuple[Precision, int] | None:
    """Ask a node with a GPU for the precision of trainings there and its free bytes; None: train on CPUs.

    Raises
    ------
    ConfigError
        A device that no cluster has, or a GPU where no node has one.
    """
    if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device = {device!r} on a cluster", "auto, cpu or cuda")
    if device == "cpu":
        return None
    if not any(resources.get("GPU", 0) >= 1 for resources in cluster.nodes()):
        if device == "auto":
            return None
        raise ConfigError(f"device = {device!r}: no node of the Ray cluster has a GPU", "use auto or cpu")
    found: tuple[Precision, int] | None = cluster.ask(look_at_gpu, recipe, classes, shape, device, precision, gpus=1)
    return found


def look_at_gpu(
    recipe: Recipe, classes: int, shape: tuple[int, ...], device: str, precision: Precision | None
) -> tuple[Precision, int] | None:
    """Run on a node: the precision of trainings on its GPU and the bytes that are free there; None: torch sees none."""
    import torch

    where, resolved, _ = bank_plan.resolve(recipe, classes, shape, device, precision)
    return (resolved.precision, int(torch.cuda.mem_get_info(where)[0])) if where.type == "cuda" else None


def _check_arrived(path: Path, task: TrainModel, arrays: Arrays, k: int) -> None:
    member, end = task.member(arrays, k), time.monotonic() + _SHOWS_WITHIN_SECONDS
    while sound(path, task.bank, k, member) is None:
        if time.monotonic() > end:
            raise ModelError(
                f"reference model {k} was trained on a node, but its file {path.name} does not show in {path.parent}",
                "see whether the storage that the nodes share works; the same command trains the model again",
            )
        time.sleep(0.5)
        os.listdir(path.parent)  # makes a network file system look again
