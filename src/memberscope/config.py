"""The settings of an audit: typed, from TOML or flags, and back to TOML."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from memberscope.errors import ConfigError
from memberscope.presets import PRESETS, PresetName
from memberscope.training.recipe import Recipe

Protocol = Literal["holdout", "random-half"]
CanaryKind = Literal["mislabelled", "duplicated", "out-of-distribution", "blank"]

_PATHS = ("data_dir", "weights", "membership", "policy", "out", "models_dir", "bank")
_LISTS = ("attacks", "ignore", "mean", "std", "kind", "strategy_options")
Number = tuple[type, float, float, str]
"""Type, smallest, first value above the range, and what is expected."""
_NUMBERS: dict[str, Number] = {
    "validation_fraction": (float, 0, 0.5 + 1e-12, "in [0, 0.5]"),
    "folds": (int, 2, 101, "from 2 to 100"),
    "confidence": (float, 0.5, 1, "in [0.5, 1)"),
    "seed": (int, 0, math.inf, "at least 0"),
    "threads": (int, 1, math.inf, "at least 1"),
    "pictures": (int, 0, math.inf, "at least 0"),
    "shadows": (int, 0, 100_001, "from 0 to 100000"),
    "canaries": (int, 0, math.inf, "at least 0"),
    "subset": (int, 2, math.inf, "at least 2"),
    "targets": (int, 1, 1001, "from 1 to 1000"),
    "prior": (float, 1e-12, 1, "above 0 and below 1"),
}
_OPTIONAL_NUMBERS = ("threads", "shadows", "canaries", "subset")
_FLAGS = ("unverified_data", "load", "resume", "compile")
_OF_THE_MACHINE = (
    "dataset",
    "data_dir",
    "bank",
    "workers",
    "threads",
    "load",
    "resume",
    "compile",
    "out",
    "models_dir",
)
"""Settings that change no figure; and the dataset, which a command names first."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Everything that determines an audit.

    Parameters
    ----------
    dataset
        Name (`memberscope list datasets`), npz:PATH or imagefolder:PATH.
    data_dir
        Folder of the dataset's files, ours or torchvision's; default: $MEMBERSCOPE_DATA_DIR, else ./data.
    unverified_data
        Take files whose checksum is not the official one: you vouch for them.
    subset
        Use this many records of the pool only, drawn by class: for a look, or a study that must be short.
    protocol
        holdout: official training part against test part. random-half: each record a member with probability 1/2.
    validation_fraction
        Share set apart to watch training; never audited.
    recipe
        How the model is trained.
    weights
        Audit these weights (safetensors, or a PyTorch state dict) instead of training; needs --membership.
    membership
        .npy file, one entry a pool record (training part first): 1 trained on, 0 not, -1 left out.
    mean
        With --weights: per-channel mean that the model's inputs are normalised with (after scaling to 0..1).
    std
        With --weights: per-channel standard deviation, likewise.
    shadows
        Reference models, trained by the target's recipe on random halves of the audited records; an odd number is
        raised by one. Default: as the preset says, else none.
    preset
        quick: no reference models. standard: 16. thorough: 64. forensic: 256 and 500 canaries. What each costs here and
        which claims it supports is said before anything is trained. --shadows and --canaries override it.
    bank
        Folder of the reference models; default: one in the folder for trained models, found again by its settings.
    workers
        Reference models that are trained at once: a number, or auto: as measured to be fastest here. Or the Ray cluster
        that trains them: ray, ray://HOST:PORT or HOST:PORT.
    canaries
        Records that a model is likely to memorise, put into the pool by coins and audited apart: the worst case beside
        the average. Default: as the preset says, else none.
    kind
        Of the canaries, one or more: mislabelled, duplicated, out-of-distribution, blank.

    targets
        Models under audit, each with a membership and a seed of its own; all share the reference models.
    prior
        Share of members among those judged, for the probability of each record that it is one.
    attacks
        Names (`memberscope list attacks`); auto: all that the evidence allows.
    folds
        Folds of the cross-fitting; a learnt attack never scores what it was fitted on.
    confidence
        Level of every interval.
    seed
        One seed for membership, training and everything else.
    device
        auto, cpu, cuda, cuda:1, mps.
    threads
        CPU threads; default: all cores. Reference models are then trained this many at once, with a thread each.
    compile
        Compile training steps with torch.compile, and on a GPU replay them as CUDA graphs: for small models on a GPU.
        The first steps take a minute.
    load
        Load the model that an earlier run trained with these settings; where there is none, say so and train.
    resume
        Go on where an interrupted run of the same settings stopped: a finished target is loaded, a half-trained one
        goes on. Reference models that are there are never trained again, with or without it.
    ignore
        Codes of checks to mute, for example MIA013.
    policy
        TOML file with the exposure that you accept; sets the exit code (0 within, 1 exceeds, 2 cannot tell).
    pictures
        Show this many of the most exposed records as pictures in the report.
    out
        Folder for run folders; default: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs.
    models_dir
        Folder for trained models; default: $MEMBERSCOPE_MODELS_DIR, else ./models.
    """

    dataset: str
    data_dir: Path | None = None
    unverified_data: bool | None = None
    subset: int | None = None
    protocol: Protocol = "holdout"
    validation_fraction: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)
    weights: Path | None = None
    membership: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shadows: int | None = None
    preset: PresetName | None = None
    bank: Path | None = None
    workers: str = "auto"
    canaries: int | None = None
    kind: tuple[CanaryKind, ...] = ("mislabelled",)

    targets: int = 1
    prior: float = 0.5
    attacks: tuple[str, ...] = ("auto",)
    folds: int = 5
    confidence: float = 0.95
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    compile: bool = False
    load: bool = False
    resume: bool = False
    ignore: tuple[str, ...] = ()
    policy: Path | None = None
    pictures: int = 0
    out: Path | None = None
    models_dir: Path | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, coerced(f.name, getattr(self, f.name)))
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ConfigError(f"dataset = {self.dataset!r} is no name", "`memberscope list datasets` shows them all")
        if self.protocol not in get_args(Protocol):
            raise ConfigError(f"protocol = {self.protocol!r} is unknown", f"one of {', '.join(get_args(Protocol))}")
        if not isinstance(self.workers, str) or not self.workers:
            raise ConfigError(f"workers = {self.workers!r}", "auto, or a whole number from 1")
        for name, wanted in _NUMBERS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL_NUMBERS:
                check_number(name, getattr(self, name), wanted)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither true nor false")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"preset = {self.preset!r} is unknown", f"one of {', '.join(PRESETS)}")
        if self.bank is not None and self.n_shadows == 0:
            raise ConfigError("--bank was given without --shadows", "say how many of its models to use: --shadows 16")
        if self.workers.isdecimal() and int(self.workers) < 1:
            raise ConfigError(f"workers = {self.workers!r}", "auto, or a whole number from 1")
        for kind in self.kind:
            if kind not in get_args(CanaryKind):
                raise ConfigError(f"kind = {kind!r} is no kind of canary", f"of {', '.join(get_args(CanaryKind))}")
        if self.weights is not None and self.n_canaries:
            raise ConfigError(
                "canaries cannot be put into a model that is trained already", "leave out --canaries, or --weights"
            )
        if self.targets > 1 and self.weights is not None:
            raise ConfigError(
                f"--targets {self.targets} trains models, and --weights brings one that exists",
                "audit an existing model alone",
            )
        if (self.weights is None) != (self.membership is None):
            given, lacking = ("weights", "membership") if self.membership is None else ("membership", "weights")
            raise ConfigError(
                f"--{given} was given without --{lacking}",
                "an existing model is audited with both: its weights, and the records it was trained on",
            )
        if self.weights is None and (self.mean or self.std):
            raise ConfigError(
                "--mean and --std belong to --weights", "a model trained here is normalised by its members"
            )
        if bool(self.mean) != bool(self.std):
            raise ConfigError("--mean and --std go together", "give one number a channel for each")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in (*self.mean, *self.std)):
            raise ConfigError(f"mean = {self.mean}, std = {self.std} are not all numbers", "one number a channel")
        if not all(s > 0 for s in self.std):
            raise ConfigError(f"std = {self.std} is not positive", "standard deviations are positive")
        if not self.attacks:
            raise ConfigError("no attack was asked for", "auto runs all that the evidence allows")

    @property
    def n_shadows(self) -> int:
        """Reference models that are asked for."""
        if self.shadows is not None:
            return self.shadows
        return 0 if self.preset is None else PRESETS[self.preset].shadows

    @property
    def n_canaries(self) -> int:
        """Canaries that are asked for."""
        if self.canaries is not None:
            return self.canaries
        return 0 if self.preset is None else PRESETS[self.preset].canaries

    @property
    def output_dir(self) -> Path:
        """Where run folders go."""
        return self.out or default_output_dir()

    @property
    def model_dir(self) -> Path:
        """Where trained models go."""
        return self.models_dir or default_models_dir()

    def to_dict(self) -> dict[str, Any]:
        """Flat, JSON-able: the recipe's settings stand beside the others, as the flags do. None is left out."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        flat = {**own, **self.recipe.to_dict()}
        return {key: plain(value) for key, value in flat.items() if value is not None and value != ()}

    def to_command(self) -> str:
        """The command that gives the same figures: what is not at its default, without folders of this machine."""
        settings = {key: value for key, value in self.to_dict().items() if key not in _OF_THE_MACHINE}
        flags = to_flags(settings, AuditConfig(dataset=self.dataset).to_dict())
        return f"memberscope audit --dataset {shlex.quote(self.dataset)} {flags}".rstrip()


def default_models_dir() -> Path:
    """Where trained models go unless told otherwise: $MEMBERSCOPE_MODELS_DIR, else ./models."""
    return Path(os.environ.get("MEMBERSCOPE_MODELS_DIR") or "models")


def default_output_dir() -> Path:
    """Where run folders go unless told otherwise: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs."""
    return Path(os.environ.get("MEMBERSCOPE_OUTPUT_DIR") or "outputs")


def from_settings(settings: Mapping[str, Any], base: AuditConfig | None = None) -> AuditConfig:
    """A config from flat keyword settings, those of the recipe among them; `base` gives what is not named.

    Raises
    ------
    ConfigError
        An unknown setting (the nearest known one is named), or a value that cannot be used.
    """
    import difflib

    own = {f.name for f in fields(AuditConfig)} - {"recipe"}
    of_recipe = {f.name for f in fields(Recipe)}
    for key in settings:
        if key not in own | of_recipe | {"recipe"}:
            near = difflib.get_close_matches(key, own | of_recipe, n=1)
            raise ConfigError(f"unknown setting {key!r}", f"did you mean {near[0]!r}?" if near else "see AuditConfig")
    recipe = settings.get("recipe") or (base.recipe if base else Recipe())
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe = {recipe!r} is no Recipe", "its settings can be named one by one: epochs=5")
    changed = {k: coerced(k, v) for k, v in settings.items() if k in of_recipe}
    recipe = Recipe.from_dict({**recipe.to_dict(), **changed})
    mine = {k: v for k, v in settings.items() if k in own}
    if base is not None:
        return replace(base, recipe=recipe, **mine)
    if "dataset" not in mine:
        raise ConfigError("no dataset was named", "for example dataset='digits'; see memberscope.list_datasets()")
    return AuditConfig(recipe=recipe, **mine)


def to_toml(settings: Mapping[str, Any]) -> str:
    """Flat settings as TOML, keys in their order; `memberscope audit --config FILE` reads it back."""
    lines = [f"{key} = {_toml(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def to_flags(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Those of flat settings that differ from `defaults`, as flags of the command line."""
    words = []
    for key, value in settings.items():
        if value is None or plain(value) in ([], plain(defaults.get(key))):
            continue
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


def check_setting(name: str, value: Any) -> None:
    """Refuse a number that an audit would refuse for the setting of this name, as `check_number` does."""
    check_number(name, value, _NUMBERS[name])


def coerced(name: str, value: Any) -> Any:
    """Python values in the type that the setting has, where they mean the same."""
    if hasattr(value, "tolist"):  # NumPy
        value = value.tolist()
    if name in _PATHS and value is not None:
        return Path(value)
    if name == "workers" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name in _LISTS and isinstance(value, str | int | float):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def check_number(name: str, value: Any, wanted: Number) -> None:
    """Refuse what is no number, or out of range; a whole number does for a fraction.

    Raises
    ------
    ConfigError
        Names the setting, its value and what was expected.
    """
    kind, least, limit, expected = wanted
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ConfigError(
            f"{name} = {value!r} is not a {'whole ' if kind is int else ''}number", f"expected {expected}"
        )
    if not least <= value < limit:
        raise ConfigError(f"{name} = {value!r} is out of range", f"expected {expected}")


def plain(value: Any) -> Any:
    """A setting as TOML and JSON have it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML basic string, but for the one control character it leaves
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
