"""The trainings that go before the one that is kept: a defense that is a procedure runs them through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.training.progress import Progress
from memberscope.training.recipe import Recipe

if TYPE_CHECKING:
    from memberscope.training.trained_model import TrainedModel


@dataclass(frozen=True, eq=False)
class Stages:
    """What a procedure has to work with. Each stage has a checkpoint of its own, so that a killed run loses little.

    Parameters
    ----------
    recipe
        Of the whole training.
    x, y
        The pool: uint8 [N, C, H, W] or float32 [N, d], and int64 [N].
    member
        bool [N].
    validation
        bool [N] or None.
    n_classes
        Number of classes.
    seed
        Of the whole training.
    run
        Trains one stage: recipe, records bool [N], seed, progress, name.
    progress
        Hears of all stages as of one long training.
    trainings
        How many there are, the last one included.
    """

    recipe: Recipe
    x: NDArray[Any]
    y: NDArray[np.int64]
    member: NDArray[np.bool_]
    validation: NDArray[np.bool_] | None
    n_classes: int
    seed: int
    run: Callable[[Recipe, NDArray[np.bool_], int, Progress | None, str], TrainedModel]
    progress: Progress | None
    trainings: int

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator of the procedure's own."""
        return np.random.default_rng(self._sequence(purpose))

    def train(self, position: int, recipe: Recipe, records: NDArray[np.bool_]) -> TrainedModel:
        """Train stage number `position` (from 0) on some records, or take it up where it was left.

        Parameters
        ----------
        position
            Number of the stage.
        recipe
            Of the stage.
        records
            bool [N].
        """
        seed = int(self._sequence(f"stage {position}").generate_state(1, np.uint64)[0] >> 1)
        return self.run(recipe, records, seed, self.part(position), f"stage-{position}")

    def part(self, position: int) -> Progress | None:
        """What hears of the stage: its epochs are counted on from those of the stages before."""
        if self.progress is None:
            return None
        return Part(self.progress, position * self.recipe.epochs, self.trainings * self.recipe.epochs)

    def _sequence(self, purpose: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, *purpose.encode()])


class Part:
    """The progress of one training as a part of a longer one.

    Parameters
    ----------
    progress
        Hears of the longer one.
    before
        Epochs that went before.
    total
        Epochs of all.
    """

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Count on."""
        self._progress.on_step(self._before + epoch, step, steps, loss)

    def on_epoch(self, record: Mapping[str, Any], epochs: int, seconds_left: float) -> None:
        """Count on; what is left takes as long for each epoch as this one did."""
        done = self._before + record["epoch"]
        left = seconds_left + record.get("seconds", 0.0) * (self._total - self._before - epochs)
        self._progress.on_epoch({**record, "epoch": done}, self._total, left)


def stage_path(checkpoint: Path, name: str) -> Path:
    """The checkpoint of a stage, beside that of the training."""
    return checkpoint.with_name(f"{checkpoint.name}.{name}")


def remove(checkpoint: Path) -> None:
    """Remove the checkpoints of a training and of its stages: they have done their work."""
    checkpoint.unlink(missing_ok=True)
    for path in checkpoint.parent.glob(f"{checkpoint.name}.stage-*"):
        path.unlink(missing_ok=True)
