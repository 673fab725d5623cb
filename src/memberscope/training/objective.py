"""What a step minimises: the records, targets and their loss, as the defenses of the recipe change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor, nn

from memberscope.defenses.base import Attached, DataDefense, LossDefense
from memberscope.defenses.registry import in_force
from memberscope.training.recipe import Recipe

_functional = nn.functional


class Objective:
    """Cross-entropy with the labels, unless a defense or a teacher says otherwise.

    Parameters
    ----------
    recipe
        Whose defenses act.
    n_classes
        Number of classes.
    taught
        float32 [n, classes]: what the trained records are taught instead of their labels, or None.
    temperature
        That logits are divided by while they are taught so; the loss is scaled by its square (Hinton et al. 2015,
        section 2), so that gradients keep their size.
    """

    def __init__(self, recipe: Recipe, n_classes: int, taught: Tensor | None = None, temperature: float = 1.0) -> None:
        defenses = in_force(recipe)
        self._smoothing, self._classes = recipe.label_smoothing, n_classes
        self._taught, self._temperature = taught, temperature
        self._data = [d for d in defenses if isinstance(d, DataDefense)]
        self._loss = next((d for d in defenses if isinstance(d, LossDefense)), None)

    def attach(self, attached: Attached) -> None:
        """The training begins: what a loss needs of it."""
        if self._loss is not None:
            self._loss.attach(attached)

    def epoch(self, rng: np.random.Generator) -> None:
        """An epoch begins: what a loss draws is drawn by this generator."""
        if self._loss is not None:
            self._loss.epoch(rng)

    def state(self) -> dict[str, Tensor]:
        """What the loss learnt so far."""
        return {} if self._loss is None else self._loss.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        if self._loss is not None and state:
            self._loss.load(state)

    def batch(self, x: Tensor, labels: Tensor, index: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Give the batch that is trained on: records, and their targets.

        Parameters
        ----------
        x
            float32 [B, ...].
        labels
            int64 [B].
        index
            int64 [B]: which of the trained records these are.
        rng
            Of this epoch, for defenses that act on data.

        Returns
        -------
        Records [B, ...], and targets: labels int64 [B] where nothing softens them, else float32 [B, classes].
        """
        if self._taught is None and not self._data and self._loss is None:
            return x, labels
        targets = _functional.one_hot(labels, self._classes).float() if self._taught is None else self._taught[index]
        for defense in self._data:
            x, targets = defense.alter(x, targets, rng)
        return x, targets

    def losses(
        self, logits: Tensor, targets: Tensor, epoch: int, reduction: Literal["mean", "none"] = "mean"
    ) -> Tensor:
        """Loss of a batch (``mean``), or float32 [B] of each record (``none``).

        Parameters
        ----------
        logits
            float32 [B, classes].
        targets
            As `batch` gives them.
        epoch
            From 1.
        """
        if self._loss is not None:
            losses = self._loss.losses(logits, targets, epoch)
            return losses.mean() if reduction == "mean" else losses
        if self._temperature == 1:
            return _functional.cross_entropy(logits, targets, label_smoothing=self._smoothing, reduction=reduction)
        softened = logits / self._temperature
        loss = _functional.cross_entropy(softened, targets, label_smoothing=self._smoothing, reduction=reduction)
        return loss * self._temperature**2
