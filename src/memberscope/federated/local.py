"""What a client does with the model it is sent: the trainer of central models, on the client's records.

One model lasts for the whole federation. Only its weights are written over between clients, and its records lie on the
device once, shared by all clients of the process: after pfl-research (Granqvist et al. 2024, section 3.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memberscope import seeds
from memberscope.defenses.dp_sgd import DpSgd
from memberscope.federated.design import Design
from memberscope.records.pool import Dataset
from memberscope.training.batches import Normalisation, Records
from memberscope.training.hardware import cpu_threads, keep_freed_memory, repeatable, resolve_device
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import _Training
from memberscope.training.trained_model import TrainedModel, plain_state

WATCHED_BY_CLIENT = 256
"""Records of its own that a client reports the loss and accuracy on: more would cost a tenth of its training."""
WATCHED_OF_NOBODY = 2_000
"""Records of nobody that the server watches the global model on, each round; at the end it takes all."""


@dataclass(frozen=True)
class Outcome:
    """What a client reports beside its weights.

    Parameters
    ----------
    examples
        Records trained on.
    global_loss, global_acc
        Of the model it was sent, on its own records.
    train_loss, train_acc
        Of the model it sends back, on the same ones.
    epochs
        Passes made.
    """

    examples: int
    global_loss: float
    global_acc: float
    train_loss: float
    train_acc: float
    epochs: int


class LocalTraining:
    """A persistent model that every client of this process trains in turn.

    Parameters
    ----------
    recipe
        How; its epochs are those of the whole federation, so that schedules span it.
    dataset
        The pool.
    design
        Who trains on what. Inputs are normalised by all records that are trained on, so that clients agree.
    seed
        Of initialisation, batches, augmentation, dropout and noise.
    device
        auto, cpu, cuda, ...
    threads
        CPU threads; None: as many as torch uses.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        design: Design,
        *,
        seed: int,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        where = resolve_device(device)
        if where.type == "cpu":
            keep_freed_memory()
        self._seed, self._threads, self._recipe = seed, threads, recipe
        self._forked = [where] if where.type == "cuda" else []
        self._dataset, self._design = dataset, design
        with self._computing():
            self._training = _Training(
                recipe, dataset.x, dataset.y, design.member, None, dataset.n_classes, _number(seed, "model"), where
            )
        self._everyone, self._labels = self._training.members, self._training.labels
        self._place = np.cumsum(design.member) - 1  # of a member of the pool among the resident records
        self._of_nobody: tuple[Records, Tensor] | None = None

    @property
    def normalisation(self) -> Normalisation:
        """Of the inputs."""
        return self._training.normalisation

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights."""
        return plain_state(self._training.module)

    @property
    def trainable(self) -> list[str]:
        """Names of the weights that are trained: without the statistics of a batch normalisation."""
        return [name for name, _ in self._training.module.named_parameters()]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Write over the weights."""
        self._training.module.load_state_dict(state)

    def train(
        self, state: Mapping[str, Tensor], client: int, *, first_epoch: int, epochs: int, proximal_mu: float = 0.0
    ) -> tuple[dict[str, Tensor], Outcome]:
        """Train the model that a client was sent on its records.

        Parameters
        ----------
        state
            The model.
        client
            Whose records.
        first_epoch
            Number of the first epoch in the federation, from 1: it sets the learning rate and the draws.
        epochs
            How many.
        proximal_mu
            Of the term mu/2 |w - w_sent|^2 that FedProx adds to the loss (Li et al. 2020, equation 2).

        Returns
        -------
        The trained state, and what the client reports.

        Raises
        ------
        ModelError
            The training diverged.
        """
        training = self._training
        rows = self._design.trained(client)
        with self._computing():
            self.load(state)
            training.seed = _number(self._seed, f"client {client}")
            training.members, training.labels = self._part(self._place[rows])
            training.watched = _watched(len(rows), WATCHED_BY_CLIENT, self._seed, f"client {client}")
            self._prepare_noise(client)
            training.optimizer.state.clear()  # a client begins each round afresh: momentum belongs to no one else
            before = training._record(0)
            with _proximal(training.optimizer, proximal_mu):
                for epoch in range(first_epoch, first_epoch + epochs):
                    training._epoch(epoch, None)
            after = training._record(0)
        outcome = Outcome(
            len(rows), before["train_loss"], before["train_acc"], after["train_loss"], after["train_acc"], epochs
        )
        return self.state(), outcome

    def guarantee(self, client: int, epochs: int) -> dict[str, Any] | None:
        """What DP-SGD guarantees the records of a client that made so many passes over them; None without it."""
        gradient = self._training.gradient
        if not isinstance(gradient, DpSgd) or epochs == 0:
            return None
        self._prepare_noise(client)
        return gradient.guarantee(self._training.steps, epochs).to_dict()

    @property
    def has_buffers(self) -> bool:
        """The model keeps statistics that travel with its weights (batch normalisation)."""
        return any(True for _ in self._training.module.buffers())

    def watch(self, state: Mapping[str, Tensor]) -> tuple[float, float]:
        """Loss and accuracy of a model on a fixed sample of the records of nobody; NaN where there are none."""
        with self._computing():
            if self._of_nobody is None:
                rows = np.flatnonzero(self._design.nobody)
                rows = rows[_watched(len(rows), WATCHED_OF_NOBODY, self._seed, "nobody")]
                chosen = np.zeros(self._dataset.n, bool)
                chosen[rows] = True
                self._of_nobody = self._training._resident(self._dataset.x, self._dataset.y, chosen)
            records, labels = self._of_nobody
            if not len(records):
                return float("nan"), float("nan")
            self.load(state)
            return self._training._evaluate(records, labels, np.arange(len(records)))

    def model(
        self,
        state: Mapping[str, Tensor],
        history: tuple[dict[str, Any], ...],
        privacy: dict[str, Any] | None = None,
    ) -> TrainedModel:
        """The model of a state, ready to be asked and saved."""
        self.load(state)
        trained = self._training.result(self._recipe)
        return replace(
            trained,
            history=history,
            seed=self._seed,
            stopped_epoch=len(history),
            best_epoch=len(history),
            threads=self._threads,
            privacy=privacy,
        )

    def _prepare_noise(self, client: int) -> None:
        """Steps of an epoch of this client; for DP-SGD with a target epsilon they decide its noise."""
        training, records = self._training, len(self._design.trained(client))
        training.steps = -(-records // self._recipe.batch_size)
        if training.gradient is not None:
            training.gradient.begin(records, training.steps, self._recipe.epochs)

    def _part(self, index: NDArray[np.int64]) -> tuple[Records, Tensor]:
        return self._everyone.part(index), self._labels[torch.from_numpy(index).to(self._labels.device)]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """As many threads as asked for, algorithms that repeat, and torch's global generators left as they were."""
        with cpu_threads(self._threads), repeatable(), torch.random.fork_rng(self._forked):
            yield


def _watched(n: int, most: int, seed: int, name: str) -> NDArray[np.int64]:
    if n <= most:
        return np.arange(n)
    return np.sort(seeds.generator(seed, "training", f"watched by {name}").permutation(n)[:most])


def _number(seed: int, name: str) -> int:
    return int(seeds.sequence(seed, "training", name).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def _proximal(optimizer: torch.optim.Optimizer, mu: float) -> Iterator[None]:
    """Inside the block every step also follows the gradient mu (w - w_sent) of the proximal term."""
    if mu == 0:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sent = [p.detach().clone() for p in parameters]

    def pull(*_: object) -> None:
        with torch.no_grad():
            for parameter, anchor in zip(parameters, sent, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=mu)

    handle = optimizer.register_step_pre_hook(pull)
    try:
        yield
    finally:
        handle.remove()
