"""A workshop (`memberscope.workshop`): trains models by the target's recipe to imitate the answers of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.errors import EvidenceError, ModelError
from memberscope.training.batches import Records, draw, measure
from memberscope.training.hardware import cpu_threads, keep_freed_memory, repeatable, resolve_device, resolve_precision
from memberscope.training.models import build
from memberscope.training.optimisation import make_optimizer, rate_factor
from memberscope.training.recipe import Recipe
from memberscope.training.trained_model import TrainedModel, place
from memberscope.workshop import Imitation


class RecipeWorkshop:
    """Trains by a recipe: its architecture, optimiser, schedule, batches and augmentation, for as many epochs.

    A defense of the target's that acts on its loss, gradients or procedure is left out: it protects members, and these
    models are the adversary's own.

    Parameters
    ----------
    recipe
        The target's.
    x, y
        The pool, uint8 [P, C, H, W] or float32 [P, d], and its classes int64 [P].
    rows
        int64 [N]: the records under audit.
    population
        int64 [Z]: the known non-members, or None.
    n_classes
        Number of classes.
    queries
        Under which models answer about the records.
    device, threads
        Where models are trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        x: NDArray[Any],
        y: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        population: NDArray[np.int64] | None = None,
        n_classes: int,
        queries: tuple[str, ...] = ("none",),
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._recipe, self._x, self._y = recipe, x, y
        self._rows, self._population = rows, population
        self._n_classes, self._queries = n_classes, queries
        self._device, self._threads = device, threads

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> RecipeWorkshop:
        """The workshop for some of the records."""
        return RecipeWorkshop(
            self._recipe,
            self._x,
            self._y,
            self._rows[rows],
            population=self._population,
            n_classes=self._n_classes,
            queries=self._queries,
            device=self._device,
            threads=self._threads,
        )

    def train(self, imitation: Imitation) -> NDArray[np.float32]:
        """Train one model and return its answers on the N records, float32 [S, A, N, C], one for each snapshot.

        Raises
        ------
        EvidenceError
            There is no population to train on, no row, or a teacher of another shape.
        ModelError
            The training diverged.
        """
        x, y = self._material(imitation)
        device = resolve_device(self._device)
        if device.type == "cpu":
            keep_freed_memory()
        forked = [device] if device.type == "cuda" else []
        with cpu_threads(self._threads), repeatable(), torch.random.fork_rng(forked):
            apprentice = _Apprentice(self._recipe, x, y, imitation, self._n_classes, device)
            epochs = self._recipe.epochs
            due = set(np.linspace(0, epochs, min(imitation.snapshots, epochs) + 1).round().astype(int)[1:].tolist())
            answers = []
            for epoch in range(1, epochs + 1):
                apprentice.epoch(epoch)
                if epoch in due:
                    model = apprentice.model(x.shape[1:], self._threads)
                    # Raw: it learnt to answer as the target does, defenses of the answers included.
                    answers.append(model.query(self._x[self._rows], augmentations=self._queries, raw=True))
        return np.stack(answers)

    def _material(self, imitation: Imitation) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if imitation.on == "population" and self._population is None:
            raise EvidenceError("there is no population to train on", "set records aside (--validation-fraction)")
        index = self._rows if imitation.on == "records" or self._population is None else self._population
        if imitation.rows.shape != (len(index),) or imitation.teacher.shape != (len(index), self._n_classes):
            raise EvidenceError(
                f"rows {list(imitation.rows.shape)} and teacher {list(imitation.teacher.shape)} do not fit "
                f"{len(index)} records of {self._n_classes} classes",
                "this is a bug of the attack",
            )
        if not imitation.rows.any():
            raise EvidenceError("a training on no record was asked for", "this is a bug of the attack")
        return self._x[index], self._y[index]


class _Apprentice:
    """One model that imitates another."""

    def __init__(
        self,
        recipe: Recipe,
        x: NDArray[Any],
        y: NDArray[np.int64],
        imitation: Imitation,
        n_classes: int,
        device: torch.device,
    ) -> None:
        self._imitation, self._device, self._n_classes = imitation, device, n_classes
        initialisation, *seeds = np.random.SeedSequence(imitation.seed).spawn(3)
        self._batching, self._augmenting = (np.random.default_rng(seed) for seed in seeds)
        torch.manual_seed(int(initialisation.generate_state(1, np.uint64)[0] >> 1))
        self._module = build(recipe.model, x.shape[1:], n_classes, dropout=recipe.dropout)
        self._channels_last = place(self._module, x.shape[1:], device)
        self._recipe = resolve_precision(recipe, self._module, x.shape[1:], device)
        self._optimizer = make_optimizer(self._recipe, self._module, device)
        self._normalisation = measure(x, imitation.rows)
        self._records = Records(x[imitation.rows], self._normalisation, device)
        self._labels = torch.from_numpy(y[imitation.rows]).to(device)
        self._teacher = torch.from_numpy(imitation.teacher[imitation.rows].astype(np.float32)).to(device)

    def epoch(self, epoch: int) -> None:
        """Train epoch number `epoch`, from 1."""
        recipe, records = self._recipe, self._records
        imitating = epoch > self._imitation.begins * recipe.epochs
        draws = draw(
            len(records), recipe.batch_size, recipe.augmentation, records.padding, self._batching, self._augmenting
        )
        self._module.train()
        total = torch.zeros((), device=self._device)
        for step, chosen in enumerate(draws.on(self._device)):
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.rate * rate_factor(recipe, epoch - 1 + step / len(draws.batches))
            loss = self._loss(records.batch(*chosen), chosen.positions, imitating)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(self._module.parameters(), recipe.clip_norm)
            self._optimizer.step()
            total += loss.detach()
        if not np.isfinite(total.item()):
            raise ModelError(
                f"the training of a model that imitates the target diverged in epoch {epoch} of {recipe.epochs}",
                f"lower the learning rate (--learning-rate, now {recipe.rate:g}), or leave the attack out",
            )

    def model(self, input_shape: tuple[int, ...], threads: int | None) -> TrainedModel:
        """What can be asked; it goes on being trained."""
        self._module.eval()
        return TrainedModel(
            module=self._module,
            recipe=self._recipe,
            normalisation=self._normalisation,
            input_shape=input_shape,
            n_classes=self._n_classes,
            device=str(self._device),
            channels_last=self._channels_last,
            precision=self._recipe.precision,
            threads=threads,
        )

    def _loss(self, batch: Tensor, index: Tensor, imitating: bool) -> Tensor:
        batch = batch if self._channels_last else batch.contiguous()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bf16"):
            logits = self._module(batch)
        logits, weight = logits.float(), self._imitation.weight if imitating else 0.0
        loss = torch.zeros((), device=self._device)
        if weight < 1:
            own = nn.functional.cross_entropy(logits, self._labels[index], label_smoothing=self._recipe.label_smoothing)
            loss = loss + (1 - weight) * own
        if weight > 0:
            loss = loss + weight * self._distance(logits, self._teacher[index])
        return loss

    def _distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        if self._imitation.distance == "probabilities":
            return nn.functional.cross_entropy(logits, teacher.softmax(dim=1))
        own, others = (z - z.mean(dim=1, keepdim=True) for z in (logits, teacher))
        return nn.functional.mse_loss(own, others)
