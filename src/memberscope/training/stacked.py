"""Several models of one recipe trained at once on one device, their parameters stacked along a new first axis.

A small model leaves a GPU idle: it waits for the launch of one tiny kernel after the other. `torch.func.vmap` turns the
steps of K models into the launches of one. Each model keeps its own initialisation, membership, normalisation, batches
and augmentation, drawn from its own seed exactly as `fit` draws them; the sums of a product may be taken in another
order, so models are equal to those of `fit` up to rounding, and not bit for bit. The records lie on the device once.

Each model has a checkpoint of its own, which `fit` and any other group could go on from.

Not every recipe can be stacked: `obstacle` says why not. Tested for equality on a CPU, where stacking gains nothing and
is not used. On a GPU neither its speed nor its numbers were measured yet: no GPU was at hand.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.defenses.registry import in_force
from memberscope.errors import ConfigError
from memberscope.training import train_target
from memberscope.training.batches import Records, StackedRecords, fixed, upload
from memberscope.training.checkpoint import Writer, digest_of, key
from memberscope.training.compiling import compiled as compiled_step
from memberscope.training.hardware import cpu_threads, repeatable, resolve_device
from memberscope.training.models import build_for
from memberscope.training.optimisation import make_optimizer, rate_factor
from memberscope.training.progress import Progress
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import EVALUATION_BATCH, _Training
from memberscope.training.trained_model import TrainedModel, evaluating

T = TypeVar("T")
_LARGEST_GROUP = 64
_MEMORY_SHARE = 0.6
_STEP_FACTOR = 4
"""Bytes of a training step for each byte of activations: values, gradients, and what convolutions need beside them."""


def obstacle(recipe: Recipe, module: nn.Module) -> str | None:
    """Why models of this recipe are trained one by one; None: they can be stacked.

    Parameters
    ----------
    recipe
        How they are trained.
    module
        One of them.
    """
    for defense in in_force(recipe):
        if defense.unstackable:
            return defense.unstackable
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            return "batch normalisation keeps running statistics"
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return "dropout would draw other numbers"
    if any(True for _ in module.buffers()):
        return "the model has buffers"
    return None


def fit_stacked(
    recipe: Recipe,
    x: NDArray[Any],
    y: NDArray[np.int64],
    members: NDArray[np.bool_],
    *,
    n_classes: int,
    seeds: Sequence[int],
    device: str = "auto",
    progress: Progress | None = None,
    checkpoints: Sequence[Path] | None = None,
    resume: bool = False,
    threads: int | None = None,
    compiled: bool = False,
) -> list[TrainedModel]:
    """Train K models at once; equal to `fit` with each row of `members` and its seed, up to rounding.

    Parameters
    ----------
    recipe
        How; `obstacle` must find nothing in it.
    x, y
        The pool: uint8 [N, C, H, W] images or float32 [N, d] feature rows, and int64 [N] classes.
    members
        bool [K, N]: the records that each model is trained on, as many for each.
    n_classes
        Number of classes.
    seeds
        Of each model.
    device, threads, compiled
        As in `fit`.
    progress
        Hears of the steps and epochs of the first model, which are those of all.
    checkpoints
        Files that hold the states of the models between epochs.
    resume
        Go on from there.

    Raises
    ------
    ConfigError
        The recipe cannot be stacked, the models have different numbers of members, or their checkpoints are of
        different epochs.
    ModelError
        The training of one diverged; a checkpoint is another training's.
    """
    where = resolve_device(device)
    with cpu_threads(threads), repeatable(), torch.random.fork_rng([where] if where.type == "cuda" else []):
        pool = Records(x, fixed(x), where)
        models = [
            _Training(recipe, x, y, member, None, n_classes, seed, where, pool=pool)
            for member, seed in zip(members, seeds, strict=True)
        ]
        reason = obstacle(recipe, models[0].module)
        if reason is None and len({len(model.members) for model in models}) > 1:
            reason = "they have different numbers of members"
        if reason is None and checkpoints is not None:
            digest = digest_of(x, y)
            for model, member, path in zip(models, members, checkpoints, strict=True):
                mine = key(model.recipe, model.seed, digest, member, None, where, compiled=compiled)
                model.keep(path, mine, resume=resume)
            if len({model.state.epoch for model in models}) > 1:
                reason = "their checkpoints are of different epochs"
        if reason is not None:
            raise ConfigError(f"these models cannot be trained at once: {reason}", "train them one by one")
        stack = _Stack(models, compiled=compiled)
        try:
            for epoch in range(models[0].state.epoch + 1, stack.recipe.epochs + 1):
                stack.train(epoch, progress)
                if checkpoints is not None:
                    stack.write_checkpoints()
        finally:
            stack.writer.finish()
        stack.part()
    trained = [model.result(recipe) for model in models]
    for one in trained:
        one.threads = threads
    return trained


class _Stack:
    """K trainings whose steps are taken together. The modules' parameters are views of the stacked ones."""

    def __init__(self, models: list[_Training], *, compiled: bool) -> None:
        self.models, self.recipe, self.device = models, models[0].recipe, models[0].device
        self._skeleton = copy.deepcopy(models[0].module)
        own = [dict(model.module.named_parameters()) for model in models]
        self._stacked: dict[str, Tensor] = {
            name: nn.Parameter(torch.stack([parameters[name].detach() for parameters in own]), first.requires_grad)
            for name, first in own[0].items()
        }
        for k, parameters in enumerate(own):
            for name, parameter in parameters.items():
                parameter.data = self._stacked[name].data[k]
        self._trained = {name: p for name, p in self._stacked.items() if p.requires_grad}
        self._optimizer = make_optimizer(self.recipe, nn.ParameterList(self._trained.values()), self.device)
        self._gather_moments()
        self._records = StackedRecords([model.members for model in models])
        self._labels = torch.stack([model.labels for model in models])
        self._watched = torch.from_numpy(np.stack([model.watched for model in models])).to(self.device)
        self.writer = Writer()
        self._losses = self._compiled() if compiled else self._loss

    def train(self, epoch: int, progress: Progress | None) -> None:
        """Train one epoch, and note what `fit` would note."""
        started = time.perf_counter()
        self._skeleton.train()
        steps = self.models[0].steps
        total = torch.zeros(len(self.models), device=self.device)
        for step, chosen in enumerate(upload([model.draws(epoch) for model in self.models], self.device)):
            batch, labels = self._records.batch(*chosen), self._labels.gather(1, chosen.positions)
            loss = self._step(batch, labels, epoch - 1 + step / steps)
            total += loss
            if progress is not None and (step + 1 == steps or step % 20 == 0):
                progress.on_step(epoch, step + 1, steps, loss[0].item())
        finite = torch.isfinite(total)
        for parameter in self._trained.values():
            finite &= torch.isfinite(parameter.detach().flatten(1)).all(1)
        for model, sound in zip(self.models, finite.tolist(), strict=True):
            model._check_finite(0.0 if sound else math.nan, epoch, steps, steps)
        trained, share = time.perf_counter() - started, 1 / len(self.models)
        losses, right = self._evaluate()
        seconds = time.perf_counter() - started
        for model, loss_, right_ in zip(self.models, losses, right, strict=True):
            model.seconds += trained * share
            model.trained_records += len(model.members)
            record = {"epoch": epoch, "train_loss": loss_, "train_acc": right_, "val_loss": None, "val_acc": None}
            model.state.history.append({**record, "seconds": seconds * share})
            model.state.epoch = epoch
        if progress is not None:
            left = (time.perf_counter() - started) * (self.recipe.epochs - epoch)
            progress.on_epoch(self.models[0].state.history[-1], self.recipe.epochs, left)

    def write_checkpoints(self) -> None:
        """Begin to write the state of each model, if the last ones are some seconds old."""
        if self.writer.due(train_target.CHECKPOINT_SECONDS):
            self._part_moments()
            self.writer.begin(self.models[0].state.epoch, [model.snapshot() for model in self.models])

    def part(self) -> None:
        """Give each module parameters of its own again."""
        for model in self.models:
            for parameter in model.module.parameters():
                parameter.data = parameter.data.clone()
            if model.channels_last:
                model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _gather_moments(self) -> None:
        """Take up what the models' own optimisers hold: the moments of each parameter, and the number of steps."""
        for name, stacked in self._trained.items():
            own = [dict(model.module.named_parameters())[name] for model in self.models]
            states = [model.optimizer.state.get(p, {}) for model, p in zip(self.models, own, strict=True)]
            if not states[0]:
                continue
            self._optimizer.state[stacked].update(
                {
                    entry: value if entry == "step" else torch.stack([state[entry] for state in states])
                    for entry, value in states[0].items()
                }
            )

    def _part_moments(self) -> None:
        """Give each model's own optimiser its part of what the common one holds."""
        for name, stacked in self._trained.items():
            for k, model in enumerate(self.models):
                model.optimizer.state[dict(model.module.named_parameters())[name]] = {
                    entry: value if entry == "step" else value[k]
                    for entry, value in self._optimizer.state.get(stacked, {}).items()
                    if isinstance(value, Tensor)
                }

    def _step(self, batch: Tensor, labels: Tensor, time_: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * rate_factor(self.recipe, time_)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._losses(self._stacked, batch, labels)
        loss.sum().backward()  # type: ignore[no-untyped-call]  # each model's part is the gradient of its own loss
        if self.recipe.clip_norm:
            self._clip()
        self._optimizer.step()
        return loss.detach()

    def _evaluate(self) -> tuple[list[float], list[float]]:
        """Loss and accuracy of each model on the members that are watched, as `fit` notes them."""
        loss, right = (torch.zeros(len(self.models), device=self.device) for _ in range(2))
        with evaluating(self._skeleton):
            for index in torch.split(self._watched, EVALUATION_BATCH, 1):
                labels = self._labels.gather(1, index)
                logits = self._answers(self._stacked, self._records.batch(index))
                loss += _cross_entropy(logits, labels).sum(1)
                right += (logits.argmax(2) == labels).sum(1)
        count = self._watched.shape[1]
        return (loss / count).tolist(), (right / count).tolist()

    def _compiled(self) -> Callable[..., Tensor]:
        count = -(-self._labels.shape[1] // self.models[0].steps)  # as the first batch: one shape less to compile
        index = torch.arange(count, device=self.device).expand(len(self.models), -1)
        batch, labels = self._records.batch(index), self._labels.gather(1, index)
        return compiled_step(self._loss, self.device, self._stacked, batch, labels)

    def _loss(self, stacked: dict[str, Tensor], batch: Tensor, labels: Tensor) -> Tensor:
        """float32 [K]: mean loss of each model on its batch."""
        return _cross_entropy(self._answers(stacked, batch), labels, self.recipe.label_smoothing).mean(1)

    def _answers(self, stacked: dict[str, Tensor], batch: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            answers: Tensor = torch.func.functional_call(self._skeleton, parameters, (x,))
            return answers

        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            # The dropout layers have p = 0 (see `obstacle`): nothing is drawn.
            logits: Tensor = torch.func.vmap(one, randomness="different")(stacked, batch)
        return logits.float()

    def _clip(self) -> None:
        """Clip the norm of each model's gradient, as `torch.nn.utils.clip_grad_norm_` does for one."""
        gradients = [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """float32 [K, B] of logits [K, B, classes]."""
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none"
    )
    return losses.view(labels.shape)


def group_size(
    recipe: Recipe, input_shape: tuple[int, ...], n_classes: int, free_bytes: int, record_bytes: int = 0
) -> int:
    """How many models fit into the free memory of a device at once, by a careful estimate.

    Parameters
    ----------
    recipe
        How they are trained.
    input_shape
        Shape of one record.
    n_classes
        Number of classes.
    free_bytes
        Of the device, without the records that all models share.
    record_bytes
        Of the records that each model has for itself.
    """
    with torch.random.fork_rng([]):
        module = build_for(recipe, input_shape, n_classes)
    activations = 0

    def note(part: nn.Module, given: Any, answer: Any) -> None:
        nonlocal activations
        del part, given
        activations += answer.numel() if isinstance(answer, Tensor) else 0

    for part in module.modules():
        part.register_forward_hook(note)
    with torch.no_grad():
        module.eval()(torch.zeros(1, *input_shape))
    parameters = sum(p.numel() for p in module.parameters())
    states = 4 if recipe.optimizer == "sgd" else 5  # weights, gradients, moments, and a copy while stacking
    model_bytes = record_bytes + 4 * states * parameters + 4 * _STEP_FACTOR * recipe.batch_size * activations
    return max(1, min(_LARGEST_GROUP, int(_MEMORY_SHARE * free_bytes / model_bytes)))


def in_groups(
    models: Sequence[int],
    size: int,
    train: Callable[[Sequence[int]], Mapping[int, T]],
    train_one: Callable[[int], T],
    cannot: Callable[[str], None],
) -> Iterator[tuple[int, T]]:
    """Train models in groups, and yield each with its outcome.

    Groups are halved when the device has no memory for one; models that `torch.func.vmap` cannot stack are trained one
    by one.

    Parameters
    ----------
    models
        To be trained.
    size
        Of the groups at first.
    train
        Trains a group.
    train_one
        Trains one alone.
    cannot
        Hears why groups cannot be trained, before they are trained one by one.
    """
    waiting = list(models)
    while waiting:
        group = waiting[:size]
        if len(group) == 1:
            outcomes: Mapping[int, T] = {group[0]: train_one(group[0])}
        else:
            try:
                outcomes = train(group)
            except torch.cuda.OutOfMemoryError:
                outcomes, size = {}, -(-len(group) // 2)
            except RuntimeError as error:  # not supported; a true fault will show again with a single model
                outcomes, size = {}, 1
                cannot(next(iter(str(error).strip().splitlines()), type(error).__name__))
            if not outcomes:
                torch.cuda.empty_cache()  # after the except clause: the error no longer holds the tensors
        yield from outcomes.items()
        waiting = [k for k in waiting if k not in outcomes]
