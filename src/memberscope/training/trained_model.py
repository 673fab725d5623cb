"""A trained model and how it is asked."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.defenses.registry import outputs
from memberscope.errors import ConfigError, ModelError
from memberscope.training.batches import Normalisation, Records
from memberscope.training.defended import defended
from memberscope.training.hardware import cpu_threads, exact_fp32
from memberscope.training.recipe import Recipe

QUERIES = ("none", "flip")
_CHUNK = 8192


@dataclass(eq=False, repr=False)
class TrainedModel:
    """A model with all that is needed to ask it and to train it again.

    Parameters
    ----------
    module
        In evaluation mode, float32, on `device`.
    recipe
        As asked for; `precision` tells what its ``auto`` came to.
    normalisation
        Of the inputs: statistics of the members, or what the owner of a brought model gave.
    input_shape
        (C, H, W) or (d,).
    n_classes
        Number of classes.
    device
        cpu, cuda:0, ...
    channels_last
        Images go in, and weights lie, channels last in memory.
    precision
        fp32 or bf16: arithmetic of the training. Queries are float32 always.
    history
        A record an epoch: epoch, train_loss, train_acc, val_loss, val_acc, seconds. Losses (cross-entropy without
        label smoothing) and accuracies in evaluation mode after the epoch, in the arithmetic of the training, on at
        most 5,000 members drawn once and on all validation records (None without any). Empty for a brought model.
    seed
        Of the training; None for a brought model.
    images_per_second
        Records a second in the training steps of this process; None if it made none.
    stopped_epoch
        Epochs that were trained.
    best_epoch
        The epoch whose weights these are.
    threads
        CPU threads of queries; None: as many as torch uses.
    checkpoint
        The file with the state of the training, if there is one; `save` removes it.
    privacy
        The guarantee of a differentially private training (`defenses.accountant.Guarantee.to_dict`), or None.
    guard
        What a defense of the answers learnt in training, by name.
    drawn
        What defenses of the answers computed for earlier questions; it follows from the model.
    """

    module: nn.Module
    recipe: Recipe
    normalisation: Normalisation
    input_shape: tuple[int, ...]
    n_classes: int
    device: str
    channels_last: bool
    precision: str
    history: tuple[dict[str, Any], ...] = ()
    seed: int | None = None
    images_per_second: float | None = None
    stopped_epoch: int = 0
    best_epoch: int = 0
    threads: int | None = None
    checkpoint: Path | None = None
    privacy: dict[str, Any] | None = None
    guard: dict[str, NDArray[Any]] = field(default_factory=dict)
    drawn: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32 [C] or [d], of inputs in 0..1 or of features."""
        return self.normalisation.mean

    @property
    def std(self) -> NDArray[np.float32]:
        """float32 [C] or [d], likewise."""
        return self.normalisation.std

    @property
    def parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 (hex) of all weights and buffers, with names, shapes and types."""
        digest = hashlib.sha256()
        for name, value in sorted(plain_state(self.module).items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def query(
        self, x: NDArray[Any], *, batch_size: int = 128, augmentations: Sequence[str] = ("none",), raw: bool = False
    ) -> NDArray[np.float32]:
        """Ask the model about records, as its users can: through the defenses of its answers.

        Parameters
        ----------
        x
            uint8 [n, C, H, W] or float32 [n, d], as in the pool.
        batch_size
            Records at once.
        augmentations
            A query each: ``none``, or ``flip`` (mirrored left to right).
        raw
            Whoever holds the weights passes by the defenses of the answers.

        Returns
        -------
        float32 [A, n, classes]
            Logits, computed in float32 whatever the model was trained in; where a defense acts on answers, the
            logarithms of what is answered.

        Raises
        ------
        ModelError
            The records have another shape or type than those the model was trained on.
        ConfigError
            An unknown augmentation, or one of feature rows.
        """
        self._check_query(x, augmentations)
        logits = np.empty((len(augmentations), len(x), self.n_classes), np.float32)
        defenses = [] if raw else outputs(self.recipe)
        with cpu_threads(self.threads), exact_fp32(), evaluating(self.module):
            for start in range(0, len(x), _CHUNK):
                records = Records(x[start : start + _CHUNK], self.normalisation, torch.device(self.device))
                for row, name in enumerate(augmentations):
                    for first in range(0, len(records), batch_size):
                        batch = records.batch(slice(first, first + batch_size), flipped=name == "flip")
                        answers = self.module(batch if self.channels_last else batch.contiguous())
                        end = start + first + len(answers)
                        logits[row, start + first : end] = answers.float().cpu().numpy()
                    if defenses:
                        asked = x[start : start + _CHUNK]
                        asked = np.flip(asked, axis=3) if name == "flip" else asked
                        part = logits[row, start : start + _CHUNK]
                        part[:] = defended(
                            self, defenses, part, asked, lambda z: self.query(z, batch_size=batch_size, raw=True)[0]
                        )
        return logits

    def accuracy(self, x: NDArray[Any], y: NDArray[np.int64]) -> float:
        """Share of records x whose predicted class is y [n]; NaN without records."""
        if len(x) == 0:
            return float("nan")
        return float(np.mean(self.query(x)[0].argmax(axis=1) == y))

    def _check_query(self, x: NDArray[Any], augmentations: Sequence[str]) -> None:
        kind = "uint8" if len(self.input_shape) == 3 else "float32"
        if x.dtype != kind or x.shape[1:] != self.input_shape:
            raise ModelError(
                f"model {self.recipe.model!r} takes {kind} records of shape {list(self.input_shape)}, "
                f"found {x.dtype} {list(x.shape[1:])}"
            )
        for name in augmentations:
            if name not in QUERIES:
                raise ConfigError(f"query {name!r} is unknown", f"one of {', '.join(QUERIES)}")
        if "flip" in augmentations and len(self.input_shape) != 3:
            raise ConfigError("feature rows have no left and right to flip", "ask with 'none' alone")

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        trained = f"{self.stopped_epoch} epochs in {self.precision}" if self.history else "brought by the user"
        last = self.history[self.best_epoch - 1] if self.history else None
        figures = f", train accuracy {last['train_acc']:.3f}" if last else ""
        return (
            f"TrainedModel({self.recipe.model!r}: {shape} -> {self.n_classes} classes, "
            f"{self.parameters:,} parameters, {trained}{figures}, on {self.device})"
        )


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as contiguous copies on the CPU: what is hashed and written, whatever the memory layout."""
    state = module.state_dict()
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def place(module: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> bool:
    """Move a module to a device; True: it is channels last in memory and takes images so."""
    module.to(device)
    if len(input_shape) != 3:
        return False
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    probe = torch.zeros(2, *input_shape, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with evaluating(module):
            module(probe)
    except RuntimeError:  # x.view(len(x), -1), as in many a textbook, works on the default layout alone
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
    return True


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
