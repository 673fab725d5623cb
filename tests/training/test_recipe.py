"""The recipe: equal trainings have equal hashes, and every bad setting is named."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.defenses.registry import DEFENSES
from memberscope.errors import ConfigError
from memberscope.training.recipe import AUGMENTATIONS, Recipe

recipes = st.builds(
    Recipe,
    model=st.sampled_from(["simplecnn", "mlp", "a.b:c"]),
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 4096),
    optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
    learning_rate=st.none() | st.floats(1e-6, 10),
    momentum=st.floats(0, 0.99),
    weight_decay=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "step"]),
    dropout=st.floats(0, 0.9),
    label_smoothing=st.floats(0, 0.9),
    early_stopping=st.integers(0, 10),
    augmentation=st.lists(st.sampled_from(AUGMENTATIONS)).map(tuple),
    clip_norm=st.floats(0, 100),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
)


@given(recipes)
def test_a_recipe_survives_json(recipe):
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.digest == recipe.digest
    assert hash(again) == hash(recipe)


def test_the_hash_follows_what_is_trained_not_how_it_was_written():
    assert Recipe(learning_rate=0.02).digest == Recipe().digest
    assert Recipe(augmentation=("crop", "flip", "flip")).digest == Recipe(augmentation=("flip", "crop")).digest
    assert Recipe(weight_decay=0).digest == Recipe(weight_decay=0.0).digest
    assert len({Recipe().digest, Recipe(epochs=21).digest, Recipe(optimizer="adam").digest}) == 3


def test_the_learning_rate_follows_the_optimizer_where_none_is_named():
    assert Recipe().rate == 0.02
    assert Recipe(optimizer="adam").rate == Recipe(optimizer="adamw").rate == 0.001
    assert Recipe(optimizer="adam", learning_rate=0.5).rate == 0.5


def test_every_defense_is_a_setting_that_is_off_by_default():
    assert not any(defense.active(Recipe()) for defense in DEFENSES.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"epochs = 0 is out of range\n  expected at least 1"),
        ({"epochs": 2.5}, r"epochs = 2.5 is not a whole number"),
        ({"epochs": True}, r"epochs = True is not a whole number"),
        ({"batch_size": -1}, r"batch_size = -1 is out of range"),
        ({"learning_rate": 0.0}, r"learning_rate = 0 trains nothing"),
        ({"learning_rate": float("nan")}, r"learning_rate = nan is out of range"),
        ({"learning_rate": "fast"}, r"learning_rate = 'fast' is not a number"),
        ({"dropout": 1.0}, r"dropout = 1.0 is out of range\n  expected in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing = -0.1 is out of range"),
        ({"weight_decay": float("inf")}, r"weight_decay = inf is out of range"),
        ({"optimizer": "lion"}, r"optimizer = 'lion' is unknown\n  one of sgd, adam, adamw"),
        ({"schedule": "linear"}, r"schedule = 'linear' is unknown\n  one of constant, cosine, step"),
        ({"precision": "fp16"}, r"precision = 'fp16' is unknown\n  one of auto, fp32, bf16"),
        ({"augmentation": ["mixup"]}, r"augmentation 'mixup' is unknown\n  any of flip, crop"),
        ({"augmentation": "flip"}, r"augmentation = 'flip' is no list of names"),
        ({"model": ""}, r"model = '' is no name"),
        ({"nesterov": "yes"}, r"nesterov = 'yes' is neither true nor false"),
        ({"nesterov": True, "optimizer": "adam"}, r"nesterov needs sgd with momentum above 0"),
        ({"warmup_epochs": 30}, r"warmup_epochs = 30 is more than epochs = 20"),
        ({"momentun": 0.5}, r"unknown recipe setting 'momentun'\n  did you mean 'momentum'\?"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(settings)


def test_a_recipe_needs_no_torch():
    code = (
        "import sys; from memberscope.training.recipe import Recipe; Recipe().digest; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
