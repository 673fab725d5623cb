"""Several models of one recipe trained at once on one device, their parameters stacked along a new first axis.

A small model leaves a GPU idle: it waits for the launch of one tiny kernel after the other. `torch.func.vmap` turns the
steps of K models into the launches of one. Each model keeps its own initialisation, membership, normalisation, batches
and augmentation, drawn from its own seed exactly as `fit` draws them; the sums of a product may be taken in another
order, so models are equal to those of `fit` up to rounding, and not bit for bit.

Not every recipe can be stacked: `obstacle` says why not. Tested for equality on a CPU, where stacking gains nothing and
is not used. On a GPU neither its speed nor its numbers were measured yet: no GPU was at hand.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.defenses.registry import in_force
from memberscope.errors import ConfigError
from memberscope.training.batches import Draws, draw
from memberscope.training.hardware import cpu_threads, resolve_device
from memberscope.training.models import build_for
from memberscope.training.optimisation import make_optimizer, rate_factor
from memberscope.training.progress import Progress
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import _Training
from memberscope.training.trained_model import TrainedModel

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
    threads: int | None = None,
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
    device, threads
        As in `fit`.
    progress
        Hears of the steps and epochs of the first model, which are those of all.

    Raises
    ------
    ConfigError
        The recipe cannot be stacked, or the models have different numbers of members.
    ModelError
        The training of one diverged.
    """
    where = resolve_device(device)
    with cpu_threads(threads), torch.random.fork_rng([where] if where.type == "cuda" else []):
        models = [
            _Training(recipe, x, y, member, None, n_classes, seed, where)
            for member, seed in zip(members, seeds, strict=True)
        ]
        reason = obstacle(recipe, models[0].module)
        if reason is None and len({len(model.members) for model in models}) > 1:
            reason = "they have different numbers of members"
        if reason is not None:
            raise ConfigError(f"these models cannot be trained at once: {reason}", "train them one by one")
        stack = _Stack(models)
        for epoch in range(1, stack.recipe.epochs + 1):
            stack.train(epoch, progress)
        stack.part()
    trained = [model.result(recipe) for model in models]
    for model in trained:
        model.threads = threads
    return trained


class _Stack:
    """K trainings whose steps are taken together. The modules' parameters are views of the stacked ones."""

    def __init__(self, models: list[_Training]) -> None:
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
        self._trained = [p for p in self._stacked.values() if p.requires_grad]
        self._optimizer = make_optimizer(self.recipe, nn.ParameterList(self._trained), self.device)

    def train(self, epoch: int, progress: Progress | None) -> None:
        """Train one epoch, and note what `fit` would note."""
        started = time.perf_counter()
        draws = [self._draws(model, epoch) for model in self.models]
        self._skeleton.train()
        steps = len(draws[0].batches)
        total = torch.zeros(len(self.models), device=self.device)
        for step in range(steps):
            loss = self._step(step, draws, epoch - 1 + step / steps)
            total += loss
            if progress is not None and (step + 1 == steps or step % 20 == 0):
                progress.on_step(epoch, step + 1, steps, loss[0].item())
        finite = torch.isfinite(total)
        for parameter in self._trained:
            finite &= torch.isfinite(parameter.detach().flatten(1)).all(1)
        seconds = time.perf_counter() - started
        for model, sound in zip(self.models, finite.tolist(), strict=True):
            model._check_finite(0.0 if sound else math.nan, epoch, steps, steps)
            model.seconds += seconds / len(self.models)
            model.trained_records += len(model.members)
            model.state.history.append({**model._record(epoch), "seconds": seconds / len(self.models)})
            model.state.epoch = epoch
        if progress is not None:
            left = (time.perf_counter() - started) * (self.recipe.epochs - epoch)
            progress.on_epoch(self.models[0].state.history[-1], self.recipe.epochs, left)

    def part(self) -> None:
        """Give each module parameters of its own again."""
        for model in self.models:
            for parameter in model.module.parameters():
                parameter.data = parameter.data.clone()
            if model.channels_last:
                model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _draws(self, model: _Training, epoch: int) -> Draws:
        return draw(
            len(model.members),
            self.recipe.batch_size,
            self.recipe.augmentation,
            model.members.padding,
            model._generator("batching", epoch),
            model._generator("augmentation", epoch),
        )

    def _step(self, step: int, draws: list[Draws], time_: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate * rate_factor(self.recipe, time_)
        index = [d.batches[step] for d in draws]
        batch = torch.stack([m.members.batch(i, d) for m, i, d in zip(self.models, index, draws, strict=True)])
        labels = torch.stack(
            [m.labels[torch.from_numpy(i).to(self.device)] for m, i in zip(self.models, index, strict=True)]
        )
        logits = self._answers(batch)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=self.recipe.label_smoothing, reduction="none"
        )
        loss = losses.view(labels.shape).mean(1)
        self._optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # type: ignore[no-untyped-call]  # each model's part is the gradient of its own loss
        if self.recipe.clip_norm:
            self._clip()
        self._optimizer.step()
        return loss.detach()

    def _answers(self, batch: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            answers: Tensor = torch.func.functional_call(self._skeleton, parameters, (x,))
            return answers

        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            # The dropout layers have p = 0 (see `obstacle`): nothing is drawn.
            logits: Tensor = torch.func.vmap(one, randomness="different")(self._stacked, batch)
        return logits.float()

    def _clip(self) -> None:
        """Clip the norm of each model's gradient, as `torch.nn.utils.clip_grad_norm_` does for one."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


def group_size(recipe: Recipe, input_shape: tuple[int, ...], n_classes: int, record_bytes: int, free_bytes: int) -> int:
    """How many models fit into the free memory of a device at once, by a careful estimate.

    Parameters
    ----------
    recipe
        How they are trained.
    input_shape
        Shape of one record.
    n_classes
        Number of classes.
    record_bytes
        Of the records that one model is trained on: each has its own on the device.
    free_bytes
        Of the device.
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
            except RuntimeError:  # not supported; a true fault will show again with a single model
                outcomes, size = {}, 1
            if not outcomes:
                torch.cuda.empty_cache()  # after the except clause: the error no longer holds the tensors
        yield from outcomes.items()
        waiting = [k for k in waiting if k not in outcomes]
