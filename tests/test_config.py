"""Settings: refused early and by name, and the same after a passage through TOML."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.config import AuditConfig, Protocol, default_output_dir, from_settings, to_toml
from memberscope.defenses.registry import DEFENSES
from memberscope.errors import ConfigError
from memberscope.membership import PROTOCOLS
from memberscope.training.recipe import SINCE_FIRST, Recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
SETTINGS = st.fixed_dictionaries(
    {"dataset": TEXT},
    optional={
        "data_dir": TEXT,
        "unverified_data": st.booleans(),
        "protocol": st.sampled_from(list(PROTOCOLS)),
        "validation_fraction": st.floats(0, 0.5),
        "attacks": st.lists(TEXT, min_size=1, max_size=3),
        "folds": st.integers(2, 100),
        "confidence": st.floats(0.5, 1, exclude_max=True),
        "seed": st.integers(0, 2**63),
        "device": TEXT,
        "threads": st.integers(1, 64),
        "load": st.booleans(),
        "ignore": st.lists(TEXT, max_size=3),
        "pictures": st.integers(0, 100),
        "out": TEXT,
        "model": TEXT,
        "epochs": st.integers(1, 1000),
        "learning_rate": st.floats(1e-12, 1e3, exclude_min=True),
        "weight_decay": st.floats(0, 1),
        "dropout": st.floats(0, 1, exclude_max=True),
        "augmentation": st.lists(st.sampled_from(["flip", "crop"]), unique=True),
        "schedule": st.sampled_from(["constant", "cosine", "step"]),
    },
)


@given(SETTINGS)
def test_settings_survive_toml(settings: dict[str, Any]) -> None:
    config = from_settings(settings)
    text = to_toml(config.to_dict())
    assert from_settings(tomllib.loads(text)) == config
    assert to_toml(from_settings(tomllib.loads(text)).to_dict()) == text


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]+", fullmatch=True),
        TEXT
        | st.integers(-(2**62), 2**62)
        | st.booleans()
        | st.floats(allow_nan=False)
        | st.lists(TEXT)
        | st.lists(st.floats(allow_nan=False)),
    )
)
def test_toml_is_what_a_toml_reader_reads(settings: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(settings)) == settings


def test_every_setting_has_its_own_name_and_is_written() -> None:
    own, of_recipe = ({f.name for f in fields(cls)} for cls in (AuditConfig, Recipe))
    assert not own & of_recipe
    full = AuditConfig(
        dataset="digits",
        data_dir=Path("d"),
        unverified_data=True,
        weights=Path("w"),
        membership=Path("m"),
        mean=(0.5,),
        std=(0.2,),
        threads=2,
        ignore=("MIA013",),
        policy=Path("p"),
        out=Path("o"),
        models_dir=Path("s"),
        shadows=2,
        preset="quick",
        bank=Path("b"),
        subset=100,
        canaries=0,
        recipe=Recipe(learning_rate=0.1, augmentation=("flip",)),
    )
    assert set(full.to_dict()) == (own | of_recipe) - {"recipe"} - set(SINCE_FIRST)
    assert from_settings(tomllib.loads(to_toml(full.to_dict()))) == full
    assert set(get_args(Protocol)) == set(PROTOCOLS)


def test_the_command_gives_the_settings_back_without_folders_of_the_machine():
    import shlex

    from memberscope.cli import app

    settings = {
        "dataset": "npz:my data.npz", "protocol": "random-half", "shadows": 8, "targets": 3,
        "kind": ["blank", "duplicated"], "canaries": 20, "attacks": ["loss", "difficulty-midpoint(phi)"],
        "confidence": 0.9, "policy": "my policy.toml",
        "model": "mlp", "epochs": 7, "learning_rate": 0.02, "augmentation": ["flip", "crop"], "label_only": True,
        "hamp": 0.9, "hamp_output": False, "unverified_data": True,
    }  # fmt: skip
    config = from_settings(settings)
    here = {"out": "/somewhere", "models_dir": "/elsewhere", "data_dir": "/data", "resume": True, "threads": 2}
    command = from_settings(here, config).to_command()
    assert "/" not in command
    program, *words = shlex.split(command)
    _, bound, _ = app.parse_args(words, exit_on_error=False)
    assert (program, bound.arguments["config"]) == ("memberscope", config)
    assert from_settings({"dataset": "digits", "epochs": 10}).to_command() in (
        "memberscope audit --dataset digits",
        "memberscope audit --dataset digits --epochs 10",
    )


@pytest.mark.parametrize("defense", [d for d in DEFENSES.values() if set(d.settings) <= set(SINCE_FIRST)])
def test_every_setting_of_a_defense_survives_toml(defense):
    """They are written where they are in use, and one that is not at its default is in use."""
    values = {"hamp": 0.9, "hamp_output": False, "top_answers": 3, "round_answers": 2, "label_only": True}
    values |= {"dp_delta": 1e-6, "dp_microbatch": 32, "relaxloss_upper": 0.5, "selena": 5, "selena_left_out": 2}
    settings = {name: values.get(name, 0.7) for name in defense.settings if name != "dp_noise"}
    config = AuditConfig(dataset="digits", recipe=Recipe(**settings))
    text = to_toml(config.to_dict())
    again = from_settings(tomllib.loads(text))
    assert again == config
    assert set(settings) <= set(tomllib.loads(text))


def test_what_means_the_same_is_taken() -> None:
    loose = from_settings(
        {
            "dataset": "digits",
            "folds": np.int64(3),
            "confidence": np.float64(0.9),
            "attacks": "loss",
            "ignore": ["MIA001"],
            "out": "runs",
            "epochs": np.int32(7),
            "augmentation": ["flip"],
            "load": np.bool_(True),
            "weights": "w",
            "membership": "m",
            "mean": 0.5,
            "std": np.array([0.1, 0.2, 0.3]),
        }
    )
    strict = AuditConfig(
        dataset="digits",
        folds=3,
        confidence=0.9,
        attacks=("loss",),
        ignore=("MIA001",),
        out=Path("runs"),
        load=True,
        recipe=Recipe(epochs=7, augmentation=("flip",)),
        weights=Path("w"),
        membership=Path("m"),
        mean=(0.5,),
        std=(0.1, 0.2, 0.3),
    )
    assert loose == strict
    assert type(loose.folds) is int
    assert AuditConfig(dataset="digits", attacks="loss", out="runs").to_dict()["out"] == "runs"  # type: ignore[arg-type]


REFUSED = [
    ({"folds": 1}, "folds = 1 is out of range", "expected from 2 to 100"),
    ({"folds": 101}, "folds = 101 is out of range", "expected from 2 to 100"),
    ({"folds": 2.5}, "folds = 2.5 is not a whole number", "expected from 2 to 100"),
    ({"folds": "5"}, "folds = '5' is not a whole number", "expected from 2 to 100"),
    ({"folds": True}, "folds = True is not a whole number", "expected from 2 to 100"),
    ({"confidence": 1}, "confidence = 1 is out of range", "expected in [0.5, 1)"),
    ({"confidence": 95}, "confidence = 95 is out of range", "expected in [0.5, 1)"),
    ({"confidence": float("nan")}, "confidence = nan is out of range", "expected in [0.5, 1)"),
    ({"confidence": "high"}, "confidence = 'high' is not a number", "expected in [0.5, 1)"),
    ({"validation_fraction": 0.6}, "validation_fraction = 0.6 is out of range", "expected in [0, 0.5]"),
    ({"seed": -1}, "seed = -1 is out of range", "expected at least 0"),
    ({"seed": None}, "seed = None is not a whole number", "expected at least 0"),
    ({"threads": 0}, "threads = 0 is out of range", "expected at least 1"),
    ({"pictures": -1}, "pictures = -1 is out of range", "expected at least 0"),
    ({"protocol": "half"}, "protocol = 'half' is unknown", "one of holdout, random-half"),
    ({"load": "yes"}, "load = 'yes' is neither true nor false", ""),
    ({"dataset": ""}, "dataset = '' is no name", "`memberscope list datasets` shows them all"),
    ({"attacks": ()}, "no attack was asked for", "auto runs all that the evidence allows"),
    ({"weights": "w"}, "--weights was given without --membership", "an existing model is audited with both"),
    ({"membership": "m"}, "--membership was given without --weights", "an existing model is audited with both"),
    ({"mean": 0.5, "std": 0.2}, "--mean and --std belong to --weights", "a model trained here is normalised"),
    ({"weights": "w", "membership": "m", "mean": 0.5}, "--mean and --std go together", "give one number a channel"),
    ({"weights": "w", "membership": "m", "mean": 0.5, "std": 0}, "std = (0,) is not positive", "standard deviations"),
    (
        {"weights": "w", "membership": "m", "mean": 0.5, "std": float("nan")},
        "mean = (0.5,), std = (nan,) are not all numbers",
        "one number a channel",
    ),
    ({"epoch": 3}, "unknown setting 'epoch'", "did you mean 'epochs'?"),
    ({"xyzzy": 3}, "unknown setting 'xyzzy'", "see AuditConfig"),
    ({"epochs": 0}, "epochs = 0 is out of range", "expected at least 1"),
    (
        {"recipe": {"epochs": 3}},
        "recipe = {'epochs': 3} is no Recipe",
        "its settings can be named one by one: epochs=5",
    ),
]


@pytest.mark.parametrize(("settings", "problem", "hint"), REFUSED)
def test_a_setting_that_cannot_be_used_is_refused_by_name(settings: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        from_settings({"dataset": "digits", **settings})
    assert refusal.value.problem == problem
    assert refusal.value.hint.startswith(hint)


def test_a_dataset_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="no dataset was named\n  for example dataset='digits'"):
        from_settings({"epochs": 3})


def test_a_base_gives_what_is_not_named() -> None:
    base = AuditConfig(dataset="digits", seed=3, recipe=Recipe(epochs=9, dropout=0.5))
    changed = from_settings({"epochs": 2, "seed": 4}, base)
    assert changed == AuditConfig(dataset="digits", seed=4, recipe=Recipe(epochs=2, dropout=0.5))
    assert base.seed == 3
    assert from_settings({"recipe": Recipe(epochs=5), "dropout": 0.1}, base).recipe == Recipe(epochs=5, dropout=0.1)


def test_folders_follow_the_environment_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AuditConfig(dataset="digits")
    for variable in ("MEMBERSCOPE_OUTPUT_DIR", "MEMBERSCOPE_MODELS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert (config.output_dir, config.model_dir) == (Path("outputs"), Path("models"))
    monkeypatch.setenv("MEMBERSCOPE_OUTPUT_DIR", "there")
    monkeypatch.setenv("MEMBERSCOPE_MODELS_DIR", "")
    assert (config.output_dir, default_output_dir(), config.model_dir) == (Path("there"), Path("there"), Path("models"))
    assert AuditConfig(dataset="digits", out=Path("here"), models_dir=Path("m")).output_dir == Path("here")


def test_importing_the_settings_imports_nothing_heavy() -> None:
    heavy = {"torch", "scipy", "sklearn", "pandas", "matplotlib", "pydantic"}
    program = f"import sys, memberscope.config; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "set()"
