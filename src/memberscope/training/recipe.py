"""The recipe: everything that determines how a model is trained. Hashable, serialisable, free of torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from memberscope.errors import ConfigError

AUGMENTATIONS = ("flip", "crop")

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Precision = Literal["auto", "fp32", "bf16"]

DEFAULT_RATES: dict[str, float] = {"sgd": 0.02, "adam": 0.001, "adamw": 0.001}
"""Learning rate of each optimiser where the recipe names none."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
}
_POSITIVE = 1e-300
# name: (smallest, first value above the range)
_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "learning_rate": (0, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "dropout": (0, 1),
    "label_smoothing": (0, 1),
    "early_stopping": (0, math.inf),
    "clip_norm": (0, math.inf),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "relaxloss": (0, math.inf),
    "relaxloss_upper": (_POSITIVE, 1 + 1e-12),
    "hamp": (0, 1),
    "hamp_regularisation": (0, math.inf),
    "selena": (0, math.inf),
    "selena_left_out": (1, math.inf),
    "dmp": (0, math.inf),
    "adversarial": (0, math.inf),
    "memguard": (0, math.inf),
    "round_answers": (0, 16),
    "top_answers": (0, math.inf),
    "dp_epsilon": (_POSITIVE, math.inf),
    "dp_noise": (0, math.inf),
    "dp_delta": (_POSITIVE, 1),
    "dp_clip": (_POSITIVE, math.inf),
    "dp_microbatch": (1, math.inf),
}
_OPTIONAL = ("learning_rate", "dp_epsilon", "dp_noise")
"""Settings that may be left unset."""
_WHOLE = (
    "epochs",
    "batch_size",
    "warmup_epochs",
    "early_stopping",
    "dp_microbatch",
    "selena",
    "selena_left_out",
    "round_answers",
    "top_answers",
)
_SWITCHES = ("nesterov", "hamp_output", "label_only")
OF_ANSWERS: tuple[str, ...] = ("hamp_output", "round_answers", "top_answers", "label_only")
"""Settings that change what a model answers and not how it is trained: they do not enter the digest."""
SINCE_FIRST: tuple[str, ...] = (
    "mixup",
    "cutmix",
    "relaxloss",
    "relaxloss_upper",
    "hamp",
    "hamp_regularisation",
    "dp_epsilon",
    "dp_noise",
    "dp_delta",
    "dp_clip",
    "dp_microbatch",
    *OF_ANSWERS,
    "selena",
    "selena_left_out",
    "dmp",
    "adversarial",
    "memguard",
    "defenses",
)
"""Settings that came later. They are written, and hashed, where they are not at their default: models and banks of
earlier versions stay what they were."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Parameters
    ----------
    model
        Name (`memberscope list models`) or package.module:factory.
    epochs
        Passes over the members. Not in a federation, which has rounds and local epochs.
    batch_size
        Records a step.
    optimizer
        sgd, adam or adamw.
    learning_rate
        Of the optimiser; default: 0.02 for sgd, 0.001 for the others.
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
    mixup
        Mix records and labels of a batch with weights from Beta(mixup, mixup); 0: off.
    cutmix
        Paste rectangles of other images, their area from Beta(cutmix, cutmix); 0: off.
    relaxloss
        RelaxLoss: the level that the training loss is kept at; 0: off.
    relaxloss_upper
        RelaxLoss: largest probability of the class in a flattened label.
    hamp
        HAMP: share of the largest entropy that training labels have; 0: off, 0.95 in the paper.
    hamp_regularisation
        HAMP: weight of the entropy of the answers in the loss.
    hamp_output
        HAMP: answer with the scores of a random input, in the true order.
    dp_epsilon
        DP-SGD with as much noise as keeps within this epsilon (add or remove one record).
    dp_noise
        DP-SGD with this noise multiplier instead; 0: each record's gradient is clipped, and nothing is guaranteed.
    dp_delta
        Of the guarantee of DP-SGD; below 1 / members.
    dp_clip
        Largest norm of a record's gradient in DP-SGD.
    dp_microbatch
        Records whose gradients are computed at once in DP-SGD: memory grows with it, batch_size does not.
    selena
        SELENA: sub-models that teach the members they were not trained on; 0: off, 25 in the paper.
    selena_left_out
        SELENA: sub-models that each member is left out by.
    dmp
        DMP: temperature of a teacher whose answers to validation records the model is trained on; 0: off.
    adversarial
        Adversarial regularisation: weight of the inference model's gain in the loss; 0: off, 6 in its authors' code.
    memguard
        MemGuard: how far answers are moved to confuse a guard, in L1 and on average at most; 0: off.
    round_answers
        Answer probabilities with this many digits; 0: all.
    top_answers
        Answer the probabilities of this many classes, the likeliest; 0: all.
    label_only
        Answer the predicted class alone.
    defenses
        Defenses that other packages add, as name or name=number.

    Raises
    ------
    ConfigError
        A setting is unknown, of the wrong type or out of range, or contradicts another; it is named.
    """

    model: str = "simplecnn"
    epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_epochs: int = 0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    early_stopping: int = 0
    augmentation: tuple[str, ...] = ()
    clip_norm: float = 0.0
    precision: Precision = "auto"
    mixup: float = 0.0
    cutmix: float = 0.0
    relaxloss: float = 0.0
    relaxloss_upper: float = 1.0
    hamp: float = 0.0
    hamp_regularisation: float = 0.001
    hamp_output: bool = True
    dp_epsilon: float | None = None
    dp_noise: float | None = None
    dp_delta: float = 1e-5
    dp_clip: float = 1.0
    dp_microbatch: int = 128
    selena: int = 0
    selena_left_out: int = 10
    dmp: float = 0.0
    adversarial: float = 0.0
    memguard: float = 0.0
    round_answers: int = 0
    top_answers: int = 0
    label_only: bool = False
    defenses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"model = {self.model!r} is no name", "a registered name, or package.module:factory")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither true nor false")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is unknown", f"one of {', '.join(choices)}")
        for name, bounds in _RANGES.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                _check_number(name, getattr(self, name), *bounds)
        if self.learning_rate == 0:
            raise ConfigError("learning_rate = 0 trains nothing", "leave it out for the optimiser's default")
        self._check_augmentation()
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError("nesterov needs sgd with momentum above 0", "drop nesterov, or set the two")
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs = {self.warmup_epochs} is more than epochs = {self.epochs}", "warm up for fewer epochs"
            )
        self._check_defenses()

    def _check_defenses(self) -> None:
        from memberscope.defenses.registry import check

        if not isinstance(self.defenses, tuple) or not all(isinstance(d, str) for d in self.defenses):
            raise ConfigError(f"defenses = {self.defenses!r} is no list of names", "name, or name=number, of each")
        object.__setattr__(self, "defenses", tuple(sorted(set(self.defenses))))
        check(self)

    def _check_augmentation(self) -> None:
        if not isinstance(self.augmentation, tuple):
            raise ConfigError(
                f"augmentation = {self.augmentation!r} is no list of names", f"any of {', '.join(AUGMENTATIONS)}"
            )
        for name in self.augmentation:
            if name not in AUGMENTATIONS:
                raise ConfigError(f"augmentation {name!r} is unknown", f"any of {', '.join(AUGMENTATIONS)}")
        # One order and no repeats: equal trainings have equal hashes.
        object.__setattr__(self, "augmentation", tuple(a for a in AUGMENTATIONS if a in self.augmentation))

    @property
    def added_defenses(self) -> tuple[tuple[str, float], ...]:
        """Name and number of each defense that another package adds.

        Raises
        ------
        ConfigError
            What follows the = is no number.
        """
        found = []
        for text in self.defenses:
            name, _, number = text.partition("=")
            try:
                found.append((name, float(number) if number else 1.0))
            except ValueError:
                raise ConfigError(f"defenses: {text!r} is no name=number", "for example noisy-labels=0.1") from None
        return tuple(found)

    @property
    def needs_validation(self) -> str:
        """The name of a defense that trains by validation records, which then are nobody's population; or empty."""
        from memberscope.defenses.registry import needs_validation

        return needs_validation(self)

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return DEFAULT_RATES[self.optimizer] if self.learning_rate is None else float(self.learning_rate)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same recipe back. Later settings are there where they are in use."""
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        unused = [f.name for f in fields(self) if f.name in SINCE_FIRST and getattr(self, f.name) == f.default]
        return {k: v for k, v in content.items() if k not in unused}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe of a dictionary; settings that it does not name have their defaults.

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
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**settings)

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the recipe with its learning rate in force: equal trainings, equal digests.

        The trainer hashes the recipe with the precision it resolved ``auto`` to (`precision.resolve`).
        """
        content = {**self.to_dict(), "learning_rate": self.rate}
        content = {k: float(v) if k in _RANGES and k not in _WHOLE and v is not None else v for k, v in content.items()}
        content = {k: v for k, v in content.items() if k not in OF_ANSWERS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def answers_digest(self) -> str:
        """Sha256 (hex) of the recipe with the defenses of its answers: equal models that answer alike.

        It is `digest` where no defense acts on answers alone.
        """
        unset = {f.name: f.default for f in fields(self)}
        of_answers = {k: v for k in OF_ANSWERS if (v := getattr(self, k)) != unset[k]}
        if not of_answers:
            return self.digest
        return hashlib.sha256((self.digest + json.dumps(of_answers, sort_keys=True)).encode()).hexdigest()


def _check_number(name: str, value: Any, least: float, limit: float) -> None:
    whole = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ConfigError(f"{name} = {value!r} is not {'a whole number' if whole else 'a number'}")
    if not least <= value < limit:
        if least == _POSITIVE:
            expected = "above 0" if limit == math.inf else f"above 0 and below {limit:g}"
            raise ConfigError(f"{name} = {value!r} is out of range", f"expected {expected}")
        expected = f"at least {least:g}" if limit == math.inf else f"in [{least:g}, {limit:g})"
        raise ConfigError(f"{name} = {value!r} is out of range", f"expected {expected}")
