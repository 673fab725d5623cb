"""The model bank: many models of one recipe, each trained on its own half of a pool, kept with their answers.

A bank is a folder: a manifest, and one file a model. It may be killed at any moment and grown further later, by one
process or by several at once; each model is trained once. The halves come in pairs of complements, so that every record
is a member of exactly half of the models. The membership of a model under audit is drawn elsewhere, independently: an
audited model that belonged to the balance could be told by counting the others.

On a CPU a model depends on the bank's seed, its own number, and how many threads train it (they split sums in other
places); it does not depend on the number of workers, their order, or interruptions. The threads are part of the bank:
chosen when it first grows, noted in its manifest, and kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, ModelError
from memberscope.training import bank_cluster, bank_plan
from memberscope.training.bank_answers import BankAnswers, Rows
from memberscope.training.bank_files import ModelFile, exclusively, model_path, read_manifest, write_manifest
from memberscope.training.bank_identity import identity_of, same_identity
from memberscope.training.bank_plan import Plan
from memberscope.training.bank_progress import BankProgress, Tracker, listed
from memberscope.training.bank_training import Outcome, TrainModel, membership_row, sound, until_there
from memberscope.training.layout import Layout, Trial, machine
from memberscope.training.recipe import Recipe
from memberscope.training.scheduler import InProcess, LocalWorkers, Scheduler, is_cluster

if TYPE_CHECKING:
    from torch import nn

    from memberscope.data_loader import Dataset
    from memberscope.training.ray_cluster import Cluster
    from memberscope.training.trained_model import TrainedModel


class ModelBank:
    """Reference models and their answers. Made by `ModelBank.open`, filled by `grow`.

    The bank answers for its first `size` models: those that the last `grow` of this object asked for, and before that
    all whole pairs that are there.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        recipe: Recipe,
        dataset: Dataset,
        pool: NDArray[np.bool_],
        validation: NDArray[np.bool_] | None,
        tied: NDArray[np.int64] | None,
    ) -> None:
        self.folder, self.recipe, self.dataset, self.pool, self.tied = folder, recipe, dataset, pool, tied
        self.queries: tuple[str, ...] = tuple(identity["queries"])
        self.seed: int = identity["seed"]
        self._identity, self._validation = identity, validation
        self._digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()
        self._files: dict[int, ModelFile] = {}
        self.size = self._whole_pairs()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        recipe: Recipe,
        dataset: Dataset,
        pool: NDArray[np.bool_],
        validation: NDArray[np.bool_] | None = None,
        tied: NDArray[np.int64] | None = None,
        queries: Sequence[str] = ("none",),
        seed: int,
        keep_weights: bool = False,
        precision: Literal["float32", "float16"] = "float32",
    ) -> ModelBank:
        """Open the bank in a folder, or begin one there.

        Parameters
        ----------
        folder
            Of this bank alone.
        recipe
            How every model is trained.
        dataset
            The records. Models answer all N of them.
        pool
            bool [N]: records that models may be trained on; the others are members of none.
        validation
            bool [N]: watched by recipes that stop early; else left alone. Never of the pool.
        tied
            int64 [N]: the record whose membership each record shares; None: each has its own. Copies of one record that
            are in together or not at all are tied.
        queries
            What models are asked about every record: ``none``, ``flip``.
        seed
            Of memberships and trainings.
        keep_weights
            Keep weights too (`model`), and not the answers alone.
        precision
            Of the answers on disk. float16 halves them; arithmetic with them is float64 in either case.

        Raises
        ------
        ModelError
            The bank in the folder was made with another recipe, dataset, pool, seed, ...; says with which.
        DataError
            The pool is no mask of the records, too small, or overlaps validation.
        """
        identity = identity_of(recipe, dataset, pool, validation, queries, seed, keep_weights, precision, tied)
        folder = Path(folder)
        with exclusively(folder):
            manifest = read_manifest(folder)
            if manifest is None:
                write_manifest(folder, {"identity": identity})
            else:
                identity = same_identity(folder, manifest.get("identity", {}), identity)
        return cls(folder, identity, recipe, dataset, pool, validation if recipe.needs_validation else None, tied)

    def plan(self, k: int, *, workers: int | str = "auto", threads: int | None = None, device: str = "auto") -> Plan:
        """Say what growing to `k` models will take here: a measurement of a few seconds, if it was not made before.

        Parameters are those of `grow`. Precision and threads are settled for the bank when this is first asked.
        """
        with _connection(workers) as cluster:
            return self._plan(bank_plan.even(k), workers, threads, device, cluster)[0]

    def grow(
        self,
        k: int,
        *,
        workers: int | str = "auto",
        threads: int | None = None,
        device: str = "auto",
        compiled: bool = False,
        progress: BankProgress | None = None,
    ) -> None:
        """Train what is missing of the first `k` models. May be killed at any moment, and run by several processes.

        Parameters
        ----------
        k
            Number of models; an odd one is raised by one, to whole pairs.
        workers
            Processes that train at once on a CPU; auto: as measured to be fastest here. Or a Ray cluster: ``ray`` (this
            machine, or RAY_ADDRESS), ``ray://HOST:PORT`` or ``HOST:PORT``. The models are the same.
        threads
            Threads that train a model. None: as noted in the bank; at first 1, unless with ``workers="auto"`` more are
            measured to be faster.
        device
            auto, cpu, cuda, cuda:1, mps.
        compiled
            Compile training steps (`memberscope.training.compiling`).
        progress
            Hears of it.

        Raises
        ------
        ModelError
            A training diverged, a worker died twice, or other threads were asked for than the bank was begun with.
        MemberscopeError
            There is too little room on the disk, the folder cannot be written, or no cluster answers.
        """
        progress = progress or BankProgress()
        if k % 2:
            progress.on_note(f"{k} reference models were asked for, {k + 1} are trained: they come in pairs")
        k = bank_plan.even(k)
        before = [i for i in range(k) if model_path(self.folder, i).is_file()]
        missing = self._missing(k)
        damaged = sorted(set(before) & set(missing))
        if damaged:
            progress.on_note(f"damaged files of reference models {listed(damaged)}: trained again")
        if missing:
            with _connection(workers) as cluster:
                plan, module = self._plan(k, workers, threads, device, cluster)
                bank_plan.check_room(plan, self.folder)
                progress.on_layout(plan.describe())
                tracker = Tracker(progress, k - len(missing), missing, plan.layout.processes, plan.seconds)
                run, close = self._runner(plan, module, tracker, cluster, compiled)
                try:
                    until_there(run, missing, tracker)
                except KeyboardInterrupt:
                    text = f"interrupted: {k - len(self._missing(k))} of {k} reference models are trained and kept"
                    raise KeyboardInterrupt(f"{text}; the same command goes on from there") from None
                finally:
                    close()
        self.size = k

    @property
    def membership(self) -> NDArray[np.bool_]:
        """bool [K, N]: who each model was trained on."""
        rows = np.empty((self.size, self.dataset.n), np.bool_)
        for k in range(self.size):
            rows[k] = np.unpackbits(self._file(k).map("membership"), count=self.dataset.n)
        return rows

    def logits(self, rows: Rows | None = None) -> BankAnswers:
        """Answers [K, A, n, C] of all models on some records (a mask or indices of the pool; None: all N), on disk."""
        if self.size == 0:
            raise ModelError(f"the model bank {self.folder} has no whole pair of models", "grow it first")
        answers = BankAnswers([partial(self._file(k).map, "logits") for k in range(self.size)])
        return answers if rows is None else answers.take(rows)

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """float64 [K, 2]: share of right answers on a model's members, and on the rest of the pool."""
        return np.array([self._file(k).about["accuracy"] for k in range(self.size)], np.float64).reshape(-1, 2)

    def about(self, k: int) -> dict[str, Any]:
        """What was noted of model k: seed, accuracy, threads, device, precision, seconds, hash of its weights."""
        return dict(self._file(k).about)

    def model(self, k: int, *, device: str = "auto", threads: int | None = None) -> TrainedModel:
        """Model k, ready to be asked.

        Raises
        ------
        ModelError
            The bank keeps no weights.
        """
        from memberscope.training.bank_weights import restored

        if not self._identity["weights"]:
            raise ModelError(f"the model bank {self.folder} keeps no weights", "begin one with keep_weights=True")
        data = self.dataset
        return restored(self._file(k), self.recipe, data.n_classes, data.input_shape, device, threads)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"ModelBank({self.size} models of {self.recipe.model!r} on {self.dataset.name!r}, {self.folder.name})"

    def _plan(
        self, k: int, workers: int | str, threads: int | None, device: str, cluster: Cluster | None = None
    ) -> tuple[Plan, nn.Module]:
        missing, data = tuple(self._missing(k)), self.dataset
        members = -(-int(self.pool.sum()) // 2)
        work = bank_plan.records_computed(self.recipe, members, len(self.queries) * data.n)
        with exclusively(self.folder):  # processes that begin at once must settle on the same
            manifest = read_manifest(self.folder) or {}
            settled: dict[str, Any] = manifest.setdefault("models", {})
            fixed, share = self._fixed(settled.get("threads"), threads), None
            if cluster is not None:
                where, recipe, choice, share = bank_cluster.choose(
                    cluster,
                    self.recipe,
                    classes=data.n_classes,
                    shape=data.input_shape,
                    members=members,
                    models=len(missing),
                    threads=fixed or 1,
                    device=device,
                    precision=settled.get("precision"),
                )
                module = bank_plan.resolve(recipe, data.n_classes, data.input_shape, "cpu", recipe.precision)[2]
            else:
                found, recipe, module = bank_plan.resolve(
                    self.recipe, data.n_classes, data.input_shape, device, settled.get("precision")
                )
                where, choice = str(found), bank_plan.Choice(Layout(1, threads or 1), None, "one process")
            if where == "cpu" and cluster is None:
                choice = bank_plan.choose(
                    self._arrays(),
                    Trial(recipe, data.n_classes, 1),
                    models=len(missing),
                    work=work,
                    member_bytes=members * data.x[:1].nbytes,
                    folder=self.folder,
                    workers=workers,
                    fixed=fixed,
                    noted=manifest.get("layouts", {}).get(machine()),
                )
                manifest.setdefault("layouts", {}).setdefault(machine(), {}).update(choice.measured)
            settled["precision"] = recipe.precision
            if where == "cpu":
                settled["threads"] = choice.layout.threads
            write_manifest(self.folder, manifest)
        kept = sum(p.numel() for p in module.parameters()) if self._identity["weights"] else 0
        shape = (len(self.queries), data.n, data.n_classes)
        plan = Plan(
            missing=missing,
            recipe=recipe,
            device=where,
            layout=choice.layout,
            seconds=bank_plan.seconds(choice, len(missing), work),
            file_bytes=bank_plan.room(len(missing), shape, self._identity["stored"], kept),
            reason=choice.reason,
            share=share,
        )
        return plan, module

    def _fixed(self, settled: int | None, asked: int | None) -> int | None:
        """Threads a model, if the bank or the user settled them."""
        if asked is not None and asked < 1:
            raise ConfigError(f"threads = {asked}", "at least 1")
        if settled is not None and asked not in (None, settled):
            raise ModelError(
                f"the models of the bank {self.folder} are trained with {settled} threads each, not {asked}",
                "leave the threads out, or choose another folder",
            )
        return settled or asked

    def _runner(
        self, plan: Plan, module: nn.Module, tracker: Tracker, cluster: Cluster | None, compiled: bool
    ) -> tuple[Callable[[list[int]], Iterator[tuple[int, Outcome]]], Callable[[], None]]:
        """What trains a list of models and tells each outcome, and how to end it."""
        task = TrainModel(
            folder=self.folder.resolve(),
            bank=self._digest,
            recipe=plan.recipe,
            n_classes=self.dataset.n_classes,
            queries=self.queries,
            seed=self.seed,
            stored=self._identity["stored"],
            keep_weights=self._identity["weights"],
            device=plan.device,
            threads=plan.layout.threads if plan.device == "cpu" else None,
            compiled=compiled,
        )
        if cluster is not None:
            from memberscope.training.scheduler_ray import RayWorkers

            assert plan.share is not None
            arrays = self._arrays()
            there = RayWorkers(arrays, cluster, plan.share, noun="reference model")
            return lambda models: bank_cluster.train_on(there, task, arrays, models, tracker), there.close
        if plan.device.startswith("cuda"):
            from memberscope.training.stacked import obstacle

            reason = obstacle(plan.recipe, module)
            if reason is None:
                return lambda models: task.at_once(self._arrays(), models, tracker, tracker.note), lambda: None
            tracker.note(f"reference models are trained one by one: {reason}")
        place: Scheduler = InProcess(self._arrays())
        if plan.layout.processes > 1:
            place = LocalWorkers(self._arrays(), plan.layout.processes, self.folder, noun="reference model")
        return lambda models: place.run(task, models, tracker), place.close

    def _missing(self, k: int) -> list[int]:
        """Of the first k models those that are not there and sound."""
        return [i for i in range(k) if i not in self._files and not self._look(i)]

    def _look(self, k: int) -> bool:
        path = model_path(self.folder, k)
        member = membership_row(self.pool, k, self.seed, self.tied)
        file = sound(path, self._digest, k, member) if path.is_file() else None
        if file is not None:
            self._files[k] = file
        return file is not None

    def _file(self, k: int) -> ModelFile:
        if k not in self._files and not self._look(k):
            ModelFile.read(model_path(self.folder, k)).verify()  # says what is wrong, where it can
            raise ModelError(
                f"the file of reference model {k} in {self.folder} belongs to another bank", "grow the bank again"
            )
        return self._files[k]

    def _whole_pairs(self) -> int:
        pairs = 0
        while all(model_path(self.folder, 2 * pairs + i).is_file() for i in (0, 1)):
            pairs += 1
        return 2 * pairs

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"x": self.dataset.x, "y": self.dataset.y, "pool": self.pool}
        more = {"validation": self._validation, "tied": self.tied}
        return arrays | {name: array for name, array in more.items() if array is not None}


def _connection(workers: int | str) -> contextlib.AbstractContextManager[Cluster | None]:
    """The cluster that a setting of workers means; None: this machine without one."""
    if not is_cluster(workers):
        return contextlib.nullcontext()
    from memberscope.training.ray_cluster import Cluster

    return Cluster(str(workers))
