"""The recipe: everything that determines how a model is trained. Hashable, serialisable, free of torch."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from memberscope.errors import ConfigError

AUGMENTATIONS = ("flip", "crop")

DEFENSES: dict[str, str] = {
    "early_stopping": "stop when validation loss has not improved for this many epochs; the best weights are kept",
    "weight_decay": "L2 regularisation of the weights",
    "dropout": "zero this share of the activations before the last layer",
    "label_smoothing": "train on labels softened by this much",
    "augmentation": "random flips and crops of the training images",
    "clip_norm": "clip the norm of each batch's gradient (no privacy guarantee)",
}
"""Flags of a recipe that reduce what a model gives away, and where each acts."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Parameters
    ----------
    model
        Name (`memberscope list models`) or package.module:factory.
    epochs
        Passes over the members.
    batch_size
        Records a step.
    optimizer
        sgd, adam or adamw.
    learning_rate
        Of the optimiser; default: 0.05 for sgd, 0.001 for the others.
    momentum
        Of sgd.
    nesterov
        Nesterov momentum.
    weight_decay
        L2 regularisation (decoupled for adamw).
    schedule
        constant, cosine (to zero) or step (a tenth after one half and again after three quarters).
    warmup_epochs
        Epochs over which the learning rate rises from zero.
    dropout
        Share of activations zeroed before the last layer.
    label_smoothing
        Softens the labels, in [0, 1).
    early_stopping
        Stop after this many epochs without a better validation loss and keep the best weights; 0: off.
    augmentation
        Any of flip, crop.
    clip_norm
        Largest gradient norm of a step; 0: off.
    precision
        auto (bf16 where the hardware gains by it, else fp32), fp32 or bf16.
    """

    model: str = "simplecnn"
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: int = 0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    early_stopping: int = 0
    augmentation: tuple[str, ...] = ()
    clip_norm: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe of a dictionary.

        Raises
        ------
        ConfigError
            An unknown key or a bad value.
        """
        known = {f.name for f in fields(cls)}
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ConfigError(f"unknown recipe setting {key!r}", f"did you mean {near[0]!r}?" if near else "")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

    @property
    def digest(self) -> str:
        """Sha256 of the recipe, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
