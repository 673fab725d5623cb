"""Defenses that are a flag of the ordinary trainer: they are read where they act, in `training/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memberscope.defenses.base import Card, Defense, Place


class EarlyStopping(Defense):
    """Read in `train_target`."""

    name = "early_stopping"
    title = "stop when validation loss has not improved for this many epochs; the best weights are kept"
    acts: ClassVar[tuple[Place, ...]] = ("training",)
    settings = ("early_stopping",)
    needs_validation = True
    untimed: ClassVar[Mapping[str, Any]] = {"early_stopping": 0}
    unstackable = "early stopping ends each training at its own time"
    card = Card(
        "Prechelt 1998 (Neural Networks: Tricks of the Trade), section 2; as a defense Song & Mittal 2021 (USENIX "
        "Security), section 5.3",
        "the weights of the epoch with the lowest validation loss",
        "less than an ordinary training; validation records are needed",
        "what was memorised before the best epoch stays; audit the epoch that is used",
    )


class WeightDecay(Defense):
    """Read in `optimisation`."""

    name = "weight_decay"
    title = "L2 regularisation of the weights"
    acts: ClassVar[tuple[Place, ...]] = ("loss",)
    settings = ("weight_decay",)
    card = Card(
        "Shokri et al. 2017 (S&P), section VIII",
        "loss + weight_decay / 2 * |weights|^2 (decoupled for adamw)",
        "none",
        "as strong as it helps accuracy it protects little",
    )


class Dropout(Defense):
    """Read in `models`."""

    name = "dropout"
    title = "zero this share of the activations before the last layer"
    acts: ClassVar[tuple[Place, ...]] = ("training",)
    settings = ("dropout",)
    card = Card(
        "Srivastava et al. 2014 (JMLR); as a defense Salem et al. 2019 (NDSS), section VI",
        "activations times Bernoulli(1 - dropout) / (1 - dropout) in training",
        "none",
        "narrows the gap between members and others; single records stay exposed",
    )


class LabelSmoothing(Defense):
    """Read in `objective`."""

    name = "label_smoothing"
    title = "train on labels softened by this much"
    acts: ClassVar[tuple[Place, ...]] = ("loss",)
    settings = ("label_smoothing",)
    card = Card(
        "Szegedy et al. 2016 (CVPR), section 7",
        "(1 - s) * one-hot + s / classes",
        "none",
        "may help attackers: it makes members uniformly confident (Kaya, Hong & Dumitras 2020; Hintersdorf et al. "
        "2022); judge it with reference models, not with confidence thresholds",
    )


class Augmentation(Defense):
    """Read in `batches`."""

    name = "augmentation"
    title = "random flips and crops of the training images"
    acts: ClassVar[tuple[Place, ...]] = ("data",)
    settings = ("augmentation",)
    card = Card(
        "Kaya & Dumitras 2021 (ICML)",
        "each image mirrored with probability 1/2 and shifted by up to an eighth of its height, anew in each epoch",
        "a few per cent of the training time",
        "an adversary asks about the same alterations: the queries of the audit follow the recipe",
    )


class ClipNorm(Defense):
    """Read in `train_target`."""

    name = "clip_norm"
    title = "clip the norm of each batch's gradient (no privacy guarantee)"
    acts: ClassVar[tuple[Place, ...]] = ("gradient",)
    settings = ("clip_norm",)
    card = Card(
        "Pascanu et al. 2013 (ICML), section 3.2",
        "gradient * min(1, clip_norm / |gradient|)",
        "none",
        "bounds what a batch does, not what a record does: dp_sgd does that",
    )
