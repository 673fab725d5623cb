"""`fit`: trains one model, fast.

On a CPU the same seed gives the same weights, bit for bit, on one machine with the same number of threads. On a GPU
cuDNN is held to deterministic algorithms and float32 convolutions without TF32, but the gradient of max-pooling adds by
atomics, so that last digits may differ; how far was never measured: no GPU was at hand.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.defenses.base import Attached, GradientDefense, Lesson, Step
from memberscope.defenses.registry import in_force, procedure, trainings
from memberscope.errors import ModelError
from memberscope.files import remove_unfinished
from memberscope.training import checkpoint as checkpoints
from memberscope.training.batches import Chosen, Draws, Records, draw, fixed, measure
from memberscope.training.compiling import compiled as compiled_step
from memberscope.training.defended import taught_guards
from memberscope.training.fit_checks import check_defenses, check_records, lesson_of
from memberscope.training.hardware import cpu_threads, keep_freed_memory, repeatable, resolve_device, resolve_precision
from memberscope.training.model_files import load, save, wrap
from memberscope.training.models import build_for
from memberscope.training.objective import Objective
from memberscope.training.optimisation import make_optimizer, rate_factor
from memberscope.training.progress import Progress
from memberscope.training.recipe import Recipe
from memberscope.training.stages import Stages, stage_path
from memberscope.training.trained_model import TrainedModel, evaluating, place, plain_state
from memberscope.training.weight_files import load_weights

__all__ = ["TrainedModel", "fit", "load", "load_weights", "save", "wrap"]

WATCHED_MEMBERS = 5_000
"""Members whose loss and accuracy enter the history; all of them would cost a quarter of the training time."""
CHECKPOINT_SECONDS = 5.0
"""Least time between two checkpoints, which are written beside the training: a killed run loses little."""
_NOTICE_SECONDS = 0.1
EVALUATION_BATCH = 250
# One generator a purpose; the order is part of every result.
_PURPOSES = ("initialisation", "batching", "augmentation", "dropout", "watching", "mixing", "noise", "reference")


def fit(
    recipe: Recipe,
    x: NDArray[Any],
    y: NDArray[np.int64],
    member: NDArray[np.bool_],
    *,
    validation: NDArray[np.bool_] | None = None,
    soft_targets: NDArray[np.floating] | None = None,
    n_classes: int,
    seed: int,
    device: str = "auto",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    threads: int | None = None,
    compiled: bool = False,
) -> TrainedModel:
    """Train one model on the members of a pool.

    Parameters
    ----------
    recipe
        How.
    x
        uint8 [N, C, H, W] images or float32 [N, d] feature rows.
    y
        int64 [N] classes.
    member
        bool [N]: trained on, and the source of the inputs' normalisation.
    validation
        bool [N]: watched, and used by defenses that need records of nobody; else never trained on.
    soft_targets
        float [N, classes]: what the members are taught instead of their classes (distillation); the history goes by y.
    n_classes
        Number of classes.
    seed
        Of initialisation, batches, augmentation and dropout. torch's global generators are left as they were.
    device
        auto, cpu, cuda, cuda:1, mps.
    progress
        Hears of it.
    checkpoint
        File for the state of the training, written after an epoch when the last one is some seconds old.
    resume
        Go on from `checkpoint`, if there is one; on a CPU with as many threads the result is bit-identical to that of
        an uninterrupted run.
    threads
        CPU threads; None: as many as torch uses.
    compiled
        Compile training steps (`memberscope.training.compiling`): equal up to rounding. Not those of DP-SGD.

    Raises
    ------
    DataError
        No members, or a validation record among them.
    ConfigError
        The recipe asks for what the data or the device cannot give.
    ModelError
        The model cannot be made or does not fit the data; the training diverged; the checkpoint is another training's.
    KeyboardInterrupt
        Its text says how to go on.
    """
    check_records(recipe, x, member, validation)
    lesson = None if soft_targets is None else lesson_of(recipe, member, soft_targets, n_classes)
    where = resolve_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    digest = "" if checkpoint is None else checkpoints.digest_of(x, y)

    def one(
        recipe: Recipe,
        records: NDArray[np.bool_],
        seed: int,
        progress: Progress | None,
        stage: str = "",
        lesson: Lesson | None = None,
    ) -> TrainedModel:
        # What the model is trained on cannot be watched.
        watched = None if validation is None or (validation & records).any() else validation
        training = _Training(recipe, x, y, records, watched, n_classes, seed, where, lesson, compiled=compiled)
        if checkpoint is not None:
            key = checkpoints.key(training.recipe, seed, digest, records, watched, where, lesson, compiled=compiled)
            key.settings.update(training.gradient.about() if training.gradient is not None else {})
            training.keep(stage_path(checkpoint, stage) if stage else checkpoint, key, resume=resume)
        try:
            training.run(progress, to_be_kept=bool(stage))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(training.farewell()) from None
        return training.result(recipe)

    with cpu_threads(threads), repeatable(), torch.random.fork_rng([where] if where.type == "cuda" else []):
        taught = procedure(recipe)
        if taught is not None:
            count = trainings(recipe)
            stages = Stages(recipe, x, y, member, validation, n_classes, seed, one, progress, count)
            lesson, progress = taught.lesson(stages), stages.part(count - 1)
        trained = one(recipe, member if lesson is None else lesson.records, seed, progress, "", lesson)
        trained.guard = taught_guards(trained, x, member, validation)
    trained.threads = threads
    return trained


class _Training:
    """One training: what it needs, and where it stands."""

    def __init__(
        self,
        recipe: Recipe,
        x: NDArray[Any],
        y: NDArray[np.int64],
        member: NDArray[np.bool_],
        validation: NDArray[np.bool_] | None,
        n_classes: int,
        seed: int,
        device: torch.device,
        lesson: Lesson | None = None,
        *,
        pool: Records | None = None,
        compiled: bool = False,
    ) -> None:
        check_defenses(recipe, validation, lesson)
        self.seed, self.device, self.n_classes = seed, device, n_classes
        self.input_shape: tuple[int, ...] = x.shape[1:]
        torch.manual_seed(self._seed("initialisation"))
        self.module = build_for(recipe, self.input_shape, n_classes)
        self.channels_last = place(self.module, self.input_shape, device)
        self.recipe = resolve_precision(recipe, self.module, self.input_shape, device)
        self.optimizer = make_optimizer(self.recipe, self.module, device)
        defenses = in_force(self.recipe)
        self.gradient = next((d for d in defenses if isinstance(d, GradientDefense)), None)
        self.normalisation = fixed(x) if any(d.blind_inputs for d in defenses) else measure(x, member)
        if pool is None:
            self.members, self.labels = self._resident(x, y, member)
        else:  # the records of all trainings lie on the device once
            self.members = pool.chosen(np.flatnonzero(member), self.normalisation)
            self.labels = torch.from_numpy(y[member]).to(device)
        self.steps = -(-len(self.members) // recipe.batch_size)
        if self.gradient is not None:
            self.gradient.begin(len(self.members), self.steps, recipe.epochs)
        taught = None if lesson is None else torch.from_numpy(lesson.targets[member]).to(device)
        self.objective = Objective(self.recipe, n_classes, taught, 1.0 if lesson is None else lesson.temperature)
        self.watched = np.arange(len(self.members))
        if len(self.members) > WATCHED_MEMBERS:
            self.watched = np.sort(self._generator("watching").permutation(len(self.members))[:WATCHED_MEMBERS])
        self.validation = None if validation is None else self._resident(x, y, validation)
        self.objective.attach(Attached(n_classes, device, self._seed("reference"), self._of_nobody))
        self.state = checkpoints.State(epoch=0, model={}, optimizer={})
        self._forward = self._compiled() if compiled and self.gradient is None else self._plain
        self.seconds = 0.0
        self.trained_records = 0
        self._checkpoint: tuple[Path, checkpoints.Key] | None = None
        self._writer = checkpoints.Writer()

    def keep(self, path: Path, key: checkpoints.Key, *, resume: bool) -> None:
        """Write checkpoints to this file; with `resume`, go on from the one that is there."""
        self._checkpoint = (path, key)
        remove_unfinished(path, seconds=3600.0)  # whoever writes one for an hour is no longer alive
        state = checkpoints.read(path, key) if resume else None
        if state is None:
            return
        self.state = state
        self._writer = checkpoints.Writer(state.epoch)
        self.module.load_state_dict(state.model)
        self.objective.load(state.extra)
        for number, parameter in enumerate(self._parameters()):
            # In the layout of the parameter: fused optimisers walk through both memories side by side.
            self.optimizer.state[parameter] = {
                name: torch.empty_like(parameter).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)  # the number of steps: fused optimisers want it beside the weights
                for name, value in state.optimizer.get(number, {}).items()
            }

    def run(self, progress: Progress | None, *, to_be_kept: bool = False) -> None:
        """Train the epochs that are left; `to_be_kept`: the last one too is written. Nothing is being written after."""
        try:
            self._train(progress)
            if to_be_kept:
                self.write_checkpoint(now=True)
        finally:
            self._writer.finish()

    def _train(self, progress: Progress | None) -> None:
        while self.state.epoch < self.recipe.epochs and not self._stopped():
            started = time.perf_counter()
            self._epoch(self.state.epoch + 1, progress)
            record = self._record(self.state.epoch + 1)
            record["seconds"] = time.perf_counter() - started
            self.state.history.append(record)
            self.state.epoch += 1
            self._remember_best(record)
            self.write_checkpoint()
            if progress is not None:
                recent = [r["seconds"] for r in self.state.history[-5:]]
                left = (self.recipe.epochs - self.state.epoch) * sum(recent) / len(recent)
                progress.on_epoch(record, self.recipe.epochs, 0.0 if self._stopped() else left)

    def result(self, recipe: Recipe) -> TrainedModel:
        """Give the model, with the best weights if the recipe stops early."""
        best_epoch = self.state.epoch
        if self.state.best is not None:
            weights, _, best_epoch = self.state.best
            self.module.load_state_dict(weights)
        self.module.eval()
        written = self._checkpoint is not None and self._checkpoint[0].is_file()
        return TrainedModel(
            module=self.module,
            recipe=recipe,
            normalisation=self.normalisation,
            input_shape=self.input_shape,
            n_classes=self.n_classes,
            device=str(self.device),
            channels_last=self.channels_last,
            precision=self.recipe.precision,
            history=tuple(self.state.history),
            seed=self.seed,
            images_per_second=self.trained_records / self.seconds if self.seconds else None,
            stopped_epoch=self.state.epoch,
            best_epoch=best_epoch,
            checkpoint=self._checkpoint[0] if self._checkpoint is not None and written else None,
            privacy=None if self.gradient is None else self.gradient.privacy(self.steps, self.state.epoch),
        )

    def farewell(self) -> str:
        """What an interrupted user is told."""
        text = f"interrupted in epoch {self.state.epoch + 1} of {self.recipe.epochs}"
        epoch = self._writer.epoch
        if self._checkpoint is None or epoch == 0:
            return f"{text}; no checkpoint was written yet, the training starts anew next time"
        return f"{text}; run the same command with --resume to go on after epoch {epoch} ({self._checkpoint[0]})"

    def _epoch(self, epoch: int, progress: Progress | None) -> None:
        torch.manual_seed(self._seed("dropout", epoch))
        draws = self.draws(epoch)
        mixing = self._generator("mixing", epoch)
        self.objective.epoch(self._generator("reference", epoch))
        noise = None if self.gradient is None else torch.Generator(self.device).manual_seed(self._seed("noise", epoch))
        self.module.train()
        started = noticed = time.perf_counter()
        steps = len(draws.batches)
        total = torch.zeros((), device=self.device)
        for step, chosen in enumerate(draws.on(self.device)):
            self._set_rate(epoch - 1 + step / steps)
            loss = self._step(chosen, epoch, mixing, noise)
            total += loss
            now = time.perf_counter()
            if now - noticed > _NOTICE_SECONDS or step + 1 == steps:
                noticed = now
                self._check_finite(total.item(), epoch, step + 1, steps)
                if progress is not None:
                    progress.on_step(epoch, step + 1, steps, loss.item())
        self.seconds += time.perf_counter() - started
        self.trained_records += sum(map(len, draws.batches))
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters()):
            self._check_finite(math.nan, epoch, steps, steps)

    def draws(self, epoch: int) -> Draws:
        """The order of the records in an epoch, and their augmentation."""
        return draw(
            len(self.members),
            self.recipe.batch_size,
            self.recipe.augmentation,
            self.members.padding,
            self._generator("batching", epoch),
            self._generator("augmentation", epoch),
            poisson=self.gradient is not None and self.gradient.poisson,
        )

    def _set_rate(self, time_: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * rate_factor(self.recipe, time_)

    def _step(self, chosen: Chosen, epoch: int, mixing: np.random.Generator, noise: torch.Generator | None) -> Tensor:
        index = chosen.positions
        batch, targets = self.objective.batch(self.members.batch(*chosen), self.labels[index], index, mixing)
        if self.gradient is None or noise is None:
            loss = self.objective.losses(self._answers(batch, self._forward), targets, epoch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        else:

            def losses(logits: Tensor, truth: Tensor) -> Tensor:
                return self.objective.losses(logits.float(), truth, epoch, "none")

            self.optimizer.zero_grad(set_to_none=True)
            batch = batch if self.channels_last else batch.contiguous()
            expected = len(self.members) / self.steps
            loss = self.gradient.gradient(Step(self.module, batch, targets, losses, expected, noise))
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _answers(self, batch: Tensor, forward: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Tensor:
        return (forward or self._plain)(self.module, batch if self.channels_last else batch.contiguous())

    def _plain(self, module: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits: Tensor = module(batch)
        return logits.float()

    def _compiled(self) -> Callable[..., Tensor]:
        """Try it on a copy: batch statistics are not to change."""
        trial = copy.deepcopy(self.module).train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            count = -(-len(self.members) // self.steps)  # as large as the first batch: one shape less
            batch = self.members.batch(torch.arange(count, device=self.device))
            return compiled_step(self._plain, self.device, trial, batch if self.channels_last else batch.contiguous())

    def _of_nobody(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Logits and one-hot classes of n random validation records, for a defense that needs records of nobody."""
        assert self.validation is not None, "fit() asks for them"
        records, labels = self.validation
        index = torch.from_numpy(rng.integers(len(records), size=n)).to(self.device)
        return self._answers(records.batch(index)), nn.functional.one_hot(labels[index], self.n_classes).float()

    def _record(self, epoch: int) -> dict[str, Any]:
        train_loss, train_acc = self._evaluate(self.members, self.labels, self.watched)
        record = {"epoch": epoch, "train_loss": train_loss, "train_acc": train_acc, "val_loss": None, "val_acc": None}
        if self.validation is not None:
            records, labels = self.validation
            record["val_loss"], record["val_acc"] = self._evaluate(records, labels, np.arange(len(records)))
        return record

    def _evaluate(self, records: Records, labels: Tensor, index: NDArray[np.int64]) -> tuple[float, float]:
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device)
        with evaluating(self.module):
            for part in torch.from_numpy(index).to(self.device).tensor_split(-(-len(index) // EVALUATION_BATCH)):
                logits = self._answers(records.batch(part))
                loss += nn.functional.cross_entropy(logits, labels[part], reduction="sum")
                right += (logits.argmax(1) == labels[part]).sum()
        return loss.item() / len(index), right.item() / len(index)

    def _remember_best(self, record: dict[str, Any]) -> None:
        if not self.recipe.early_stopping:
            return
        if self.state.best is None or record["val_loss"] < self.state.best[1]:
            self.state.best = (plain_state(self.module), record["val_loss"], record["epoch"])

    def _stopped(self) -> bool:
        patience = self.recipe.early_stopping
        return bool(patience and self.state.best and self.state.epoch - self.state.best[2] >= patience)

    def write_checkpoint(self, *, now: bool = False) -> None:
        """Begin to write the state, if the last one is some seconds old or it must be `now`."""
        if self._checkpoint is not None and (now or self._writer.due(CHECKPOINT_SECONDS)):
            self._writer.begin(self.state.epoch, [self.snapshot()])

    def snapshot(self) -> checkpoints.Snapshot:
        """The state as it is now; `keep` said where it goes."""
        assert self._checkpoint is not None
        self.state.model = self.module.state_dict()  # copied there, with all else
        self.state.extra = self.objective.state()
        self.state.optimizer = {
            number: {k: v for k, v in self.optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
            for number, p in enumerate(self._parameters())
        }
        return checkpoints.snapshot(self._checkpoint[0], self.state, self._checkpoint[1])

    def _check_finite(self, loss: float, epoch: int, step: int, steps: int) -> None:
        if not math.isfinite(loss):
            raise ModelError(
                f"the training diverged: loss or weights are no longer finite in epoch {epoch}, step {step} of {steps}",
                f"lower the learning rate (--learning-rate, now {self.recipe.rate:g}), raise it slowly "
                "(--warmup-epochs 1) or clip gradients (--clip-norm 1)",
            )

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def _resident(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.bool_]) -> tuple[Records, Tensor]:
        labels = torch.from_numpy(y[chosen]).to(self.device)
        return Records(x[chosen], self.normalisation, self.device), labels

    def _sequence(self, purpose: str, epoch: int = 0) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(_PURPOSES.index(purpose), epoch))

    def _generator(self, purpose: str, epoch: int = 0) -> np.random.Generator:
        return np.random.default_rng(self._sequence(purpose, epoch))

    def _seed(self, purpose: str, epoch: int = 0) -> int:
        return int(self._sequence(purpose, epoch).generate_state(1, np.uint64)[0] >> 1)
