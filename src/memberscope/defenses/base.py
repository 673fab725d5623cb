"""What a defense is: where it acts, which settings of the recipe switch it on, and what the trainer asks of it.

A defense acts in one or more of five places, in the order in which a training passes them:

=========== ==================== =====================================================================================
place       class                what the trainer asks
=========== ==================== =====================================================================================
data        `DataDefense`        another batch, with another soft target for each record
loss        `LossDefense`        the loss of a batch
gradient    `GradientDefense`    the gradient of a step, written into the parameters
training    `Procedure`          the trainings that go before, and what the last one is taught
output      `OutputDefense`      the probabilities that a user gets to see
=========== ==================== =====================================================================================

Those that are a flag of the ordinary trainer (dropout, early stopping, ...) derive from `Defense` alone. Nothing here
imports torch when it is loaded: the recipe asks which defenses are in force before anything is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from memberscope.training.recipe import Recipe

Place = Literal["data", "loss", "gradient", "training", "output"]


@dataclass(frozen=True)
class Card:
    """What a user should know before relying on a defense.

    Parameters
    ----------
    paper
        Where it comes from, with the section or equation.
    formula
        What it does.
    cost
        Of training and of answering, against an undefended model.
    traps
        What it does not protect from.
    """

    paper: str
    formula: str
    cost: str
    traps: str


class Defense(ABC):
    """One defense, with the settings of one recipe.

    Parameters
    ----------
    recipe
        The recipe that it is in force in.
    """

    name: ClassVar[str]
    """As it is listed."""
    title: ClassVar[str]
    """One line."""
    acts: ClassVar[tuple[Place, ...]]
    """Where, in the order of a training."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Of the recipe; the first one switches the defense on. None: it is another package's, named by ``--defenses``."""
    card: ClassVar[Card]
    clashes: ClassVar[Mapping[str, str]] = {}
    """Name of another defense -> why the two do not go together."""
    unstackable: ClassVar[str] = ""
    """Why models that are trained with it cannot be trained at once on a GPU (`training.stacked`); empty: they can."""
    needs_validation: ClassVar[bool] = False
    """Whether the training uses validation records, which then are nobody's population."""

    blind_inputs: ClassVar[bool] = False
    """Whether the normalisation of inputs must not depend on the members."""
    images: ClassVar[bool] = False
    """Whether it is for images alone."""
    full_precision: ClassVar[bool] = False
    """Whether ``auto`` means fp32."""
    untimed: ClassVar[Mapping[str, Any]] = {}
    """Settings that leave a step as long, and leave out what goes before the training: for measuring its speed."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @classmethod
    def active(cls, recipe: Recipe) -> bool:
        """Whether a recipe switches this defense on."""
        if not cls.settings:
            return cls.name in dict(recipe.added_defenses)
        value = getattr(recipe, cls.settings[0])
        return value is not None and bool(value)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse settings of a recipe, in which this defense is on, that contradict it.

        Raises
        ------
        ConfigError
            Names the contradiction.
        """
        del recipe

    @classmethod
    def work(cls, recipe: Recipe) -> float:
        """Time of a training in times of one with the settings `untimed`; an estimate for plans."""
        del recipe
        return 1.0

    def module(self, module: nn.Module) -> nn.Module:
        """Change the architecture; called before the first step, and again wherever weights are loaded."""
        return module

    @property
    def strength(self) -> float:
        """The number after the = in ``--defenses name=number`` (1 without any): what another package's defense has."""
        return dict(self.recipe.added_defenses).get(self.name, 1.0)


class DataDefense(Defense):
    """Alters the records or labels of each batch."""

    acts: ClassVar[tuple[Place, ...]] = ("data",)
    unstackable: ClassVar[str] = "a defense alters the batches of each"
    per_record: ClassVar[bool] = False
    """Whether what becomes of a record depends on no other record of the batch."""

    @abstractmethod
    def alter(self, x: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Give another batch.

        Parameters
        ----------
        x
            float32 [B, C, H, W] (channels last in memory) or [B, d], normalised; a tensor of its own.
        targets
            float32 [B, classes]: the probability of each class, one-hot unless softened before.
        rng
            Of this epoch and this purpose.
        """


class LossDefense(Defense):
    """Replaces the cross-entropy."""

    acts: ClassVar[tuple[Place, ...]] = ("loss",)
    unstackable: ClassVar[str] = "a defense replaces the loss of each"
    per_record: ClassVar[bool] = True
    """Whether the loss of a record depends on no other record of the batch."""
    soft_targets: ClassVar[bool] = True
    """Whether it can use targets that are not one class a record."""

    def attach(self, attached: Attached) -> None:
        """A training begins; called once before its first step."""

    def epoch(self, rng: np.random.Generator) -> None:
        """An epoch begins, with a generator of its own."""

    def state(self) -> dict[str, Tensor]:
        """What it learnt so far, for the checkpoint of the training; empty: nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; called after `attach`."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """Give the loss float32 [B] of each record, or a scalar for the batch where it is not `per_record`.

        Parameters
        ----------
        logits
            float32 [B, classes].
        targets
            float32 [B, classes]: the probability of each class, one-hot unless softened before.
        epoch
            From 1.
        """


@dataclass(frozen=True, eq=False)
class Attached:
    """What a loss may use of the training that it is part of.

    Parameters
    ----------
    n_classes
        Number of classes.
    device
        Of the training.
    seed
        For what it initialises.
    reference
        From a number and a generator to the model's logits, in training mode, of so many random validation records,
        and their one-hot classes.
    """

    n_classes: int
    device: torch.device
    seed: int
    reference: Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]


class GradientDefense(Defense):
    """Computes or alters the gradient of a step."""

    acts: ClassVar[tuple[Place, ...]] = ("gradient",)
    unstackable: ClassVar[str] = "a defense computes the gradients of each"
    per_record: ClassVar[bool] = False
    """Whether it needs the gradient of each record, which then may depend on no other record."""
    poisson: ClassVar[bool] = False
    """Whether each record is in each batch with the same probability, independently of all others."""

    def begin(self, records: int, steps: int, epochs: int) -> None:
        """A training begins, on so many records, with so many steps an epoch, and epochs."""

    def about(self) -> dict[str, str]:
        """What else two trainings must share for one to go on where the other stopped: name -> value."""
        return {}

    def privacy(self, steps: int, epochs: int) -> dict[str, Any] | None:
        """What so many epochs of so many steps guarantee, JSON-able (`accountant.Guarantee`); None: nothing."""
        del steps, epochs
        return None

    @abstractmethod
    def gradient(self, step: Step) -> Tensor:
        """Write the gradient of a step into the parameters of its module, and return the mean loss."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a gradient is computed from.

    Parameters
    ----------
    module
        In training mode, its gradients unset.
    x, targets
        The batch, float32 [B, ...], and its targets, int64 [B] or float32 [B, classes]; B may be 0 where records are
        drawn one by one.
    losses
        From logits [b, classes] of some of the batch, and their targets, to the losses [b].
    expected
        Records of a batch, on average.
    noise
        Of this epoch and this purpose, on the module's device.
    """

    module: nn.Module
    x: Tensor
    targets: Tensor
    losses: Callable[[Tensor, Tensor], Tensor]
    expected: float
    noise: torch.Generator


class Procedure(Defense):
    """Trains other models before, and teaches the last one by them."""

    acts: ClassVar[tuple[Place, ...]] = ("training",)
    unstackable: ClassVar[str] = "a defense trains other models before each"

    @classmethod
    @abstractmethod
    def trainings(cls, recipe: Recipe) -> int:
        """How many trainings there are, the last one included."""

    @abstractmethod
    def lesson(self, stages: Any) -> Lesson:
        """Run the trainings that go before (`training.stages.Stages.train`), and give what the last one is taught."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the model that is kept is taught.

    Parameters
    ----------
    records
        bool [N]: those that it is trained on.
    targets
        float32 [N, classes]: the probability of each class for them; other rows mean nothing.
    temperature
        That its logits are divided by while it learns them.
    """

    records: NDArray[np.bool_]
    targets: NDArray[np.float32]
    temperature: float = 1.0


class OutputDefense(Defense):
    """Alters what the model answers, and nothing else."""

    acts: ClassVar[tuple[Place, ...]] = ("output",)
    labels_only: ClassVar[bool] = False
    """Whether no probabilities are answered at all."""

    @property
    def answers(self) -> bool:
        """Whether the recipe has it act on answers."""
        return True

    def learn(self, members: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> dict[str, NDArray[Any]]:
        """Learn from what the trained model computes; what is returned is kept with it, by name.

        Parameters
        ----------
        members, others
            float64 [n, classes]: probabilities of members, and of validation records; only asked for where the defense
            `needs_validation`.
        seed
            Of the model.
        """
        del members, others, seed
        return {}

    @abstractmethod
    def answer(self, probabilities: NDArray[np.float64], asked: Asked) -> NDArray[np.float64]:
        """Give the probabilities that a user sees, float64 [n, classes], for those that the model computed.

        The same record must get the same answer each time: what is random would be averaged out by asking twice.
        """


@dataclass(frozen=True, eq=False)
class Asked:
    """What an output defense may use.

    Parameters
    ----------
    records
        uint8 [n, C, H, W] or float32 [n, d]: the records that were asked about, as they came.
    ask
        From records to the probabilities that the model computes, float64 [n, classes].
    seed
        Of the model: what one model draws another does not.
    guard
        What a defense learnt in training, by name.
    drawn
        What was computed for earlier questions, by name.
    random
        From a number and a generator to so many random inputs, as `records`.
    """

    records: NDArray[Any]
    ask: Callable[[NDArray[Any]], NDArray[np.float64]]
    seed: int
    guard: Mapping[str, NDArray[Any]]
    drawn: dict[str, NDArray[Any]]
    random: Callable[[int, np.random.Generator], NDArray[Any]]

    def kept(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What was computed under this name for an earlier question, or is computed now."""
        if name not in self.drawn:
            self.drawn[name] = compute()
        return self.drawn[name]
