"""The places where defenses act: nothing changes where none is on, and what contradicts itself is refused."""

import dataclasses
import importlib.metadata
import sys

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.defenses import registry
from memberscope.defenses.base import Card, DataDefense, GradientDefense, LossDefense, OutputDefense, Procedure
from memberscope.errors import ConfigError, DataError
from memberscope.training.batches import Records, draw, measure
from memberscope.training.checkpoint import digest_of, key
from memberscope.training.models import build
from memberscope.training.optimisation import rate_factor
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit
from memberscope.training.trained_model import place

CLASSES = 3
KINDS = {
    "data": DataDefense,
    "loss": LossDefense,
    "gradient": GradientDefense,
    "output": OutputDefense,
}


def pool(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=n)
    x = rng.integers(0, 160, size=(n, 3, 8, 8)) + 40 * y[:, None, None, None]
    return x.astype(np.uint8), y, np.arange(n) % 2 == 0


X, Y, MEMBER = pool()
BASE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "precision": "fp32"}


def bare_loop(recipe, seed):
    """The trainer as it was before there were defenses: the records, the generators and the step, written out."""

    def sequence(purpose, epoch=0):
        purposes = ("initialisation", "batching", "augmentation", "dropout", "watching")
        return np.random.SeedSequence(seed, spawn_key=(purposes.index(purpose), epoch))

    def number(purpose, epoch=0):
        return int(sequence(purpose, epoch).generate_state(1, np.uint64)[0] >> 1)

    with torch.random.fork_rng([]):
        torch.manual_seed(number("initialisation"))
        module = build(recipe.model, X.shape[1:], CLASSES, dropout=recipe.dropout)
        place(module, X.shape[1:], torch.device("cpu"))
        optimizer = torch.optim.SGD(
            module.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay, fused=True
        )
        records, labels = Records(X[MEMBER], measure(X, MEMBER), torch.device("cpu")), torch.from_numpy(Y[MEMBER])
        for epoch in range(1, recipe.epochs + 1):
            torch.manual_seed(number("dropout", epoch))
            generators = [np.random.default_rng(sequence(name, epoch)) for name in ("batching", "augmentation")]
            draws = draw(len(records), recipe.batch_size, recipe.augmentation, records.padding, *generators)
            module.train()
            for step, chosen in enumerate(draws.on(torch.device("cpu"))):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate * rate_factor(recipe, epoch - 1 + step / len(draws.batches))
                logits = module(records.batch(*chosen))
                truth = labels[chosen.positions]
                loss = nn.functional.cross_entropy(logits, truth, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.3, "label_smoothing": 0.1, "weight_decay": 1e-3, "augmentation": ("flip", "crop")}],
    ids=["plain", "ordinary-defenses"],
)
def test_the_undefended_path_is_bit_identical_to_a_bare_loop(settings):
    recipe = Recipe(**BASE, **settings)
    trained = fit(recipe, X, Y, MEMBER, n_classes=CLASSES, seed=4, device="cpu").module.state_dict()
    bare = bare_loop(recipe, 4)
    assert trained.keys() == bare.keys()
    assert all(torch.equal(trained[name], bare[name]) for name in bare)


def test_settings_that_came_later_leave_earlier_recipes_what_they_were():
    """Models and banks are found again by these; the numbers are those of the version before there were defenses."""
    assert Recipe().digest == "0f58f10c4a76fc565ee5260f4895db8ac3162c7a7fcf6fe464472f3e537ed761"
    names = ["model", "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "nesterov", "weight_decay"]
    names += ["schedule", "warmup_epochs", "dropout", "label_smoothing", "early_stopping", "augmentation", "clip_norm"]
    assert list(Recipe().to_dict()) == [*names, "precision"]


@pytest.mark.parametrize("defense", registry.DEFENSES.values(), ids=list(registry.DEFENSES))
def test_a_defense_says_where_it_acts_and_acts_there(defense):
    assert defense.name in registry.DEFENSES
    assert defense.acts
    for place_, kind in KINDS.items():
        if issubclass(defense, kind):
            assert place_ in defense.acts
    if issubclass(defense, Procedure):
        assert "training" in defense.acts
    assert set(defense.settings) <= {f.name for f in dataclasses.fields(Recipe)}
    assert set(defense.clashes) <= set(registry.DEFENSES)
    assert all(dataclasses.asdict(defense.card).values())
    assert not defense.active(Recipe())


@pytest.mark.parametrize("defense", registry.DEFENSES.values(), ids=list(registry.DEFENSES))
def test_the_speed_of_a_recipe_is_measured_without_other_records_and_trainings(defense):
    values = {"selena": 12, "dp_epsilon": 1.0, "hamp": 0.9, "augmentation": ("flip",), "label_only": True}
    name = defense.settings[0]
    value = values.get(name, 3 if isinstance(getattr(Recipe(), name), int) else 0.5)
    recipe = Recipe(**{name: value})
    assert defense.active(recipe)
    timed = registry.timed(recipe)
    assert not timed.needs_validation
    assert registry.trainings(timed) == 1
    assert timed.dp_epsilon is None


def test_soft_targets_that_are_the_labels_train_as_the_labels_do():
    """Up to rounding: the sum over classes is another operation."""
    targets = np.eye(CLASSES)[Y]
    options = {"n_classes": CLASSES, "seed": 1, "device": "cpu"}
    recipe = Recipe(**BASE)
    hard = fit(recipe, X, Y, MEMBER, **options)
    soft = fit(recipe, X, Y, MEMBER, soft_targets=targets, **options)
    np.testing.assert_allclose(soft.query(X), hard.query(X), atol=1e-4)
    uniform = np.full_like(targets, 1 / CLASSES)
    flat = fit(recipe, X, Y, MEMBER, soft_targets=uniform, **options).query(X)[0]
    probabilities = np.exp(flat) / np.exp(flat).sum(axis=1, keepdims=True)
    assert np.abs(probabilities - 1 / CLASSES).max() < 0.2, "it learns what it is taught"


def test_soft_targets_are_checked():
    options = {"n_classes": CLASSES, "seed": 1, "device": "cpu"}
    with pytest.raises(DataError, match=r"soft targets have shape \[120, 2\], expected \[120, 3\]"):
        fit(Recipe(**BASE), X, Y, MEMBER, soft_targets=np.ones((120, 2)), **options)
    with pytest.raises(DataError, match="soft targets of members are no probabilities"):
        fit(Recipe(**BASE), X, Y, MEMBER, soft_targets=np.ones((120, 3)), **options)


def test_a_checkpoint_of_other_soft_targets_is_another_training():
    from memberscope.defenses.base import Lesson

    taught = [Lesson(MEMBER, np.full((120, 3), v, np.float32)) for v in (0.1, 0.2)]
    keys = [key(Recipe(), 0, digest_of(X, Y), MEMBER, None, torch.device("cpu"), t) for t in (None, *taught)]
    assert len({k.settings.get("soft targets") for k in keys}) == 3


def test_poisson_sampling_draws_each_record_independently():
    rng = np.random.default_rng(0)
    epochs = [draw(200, 20, (), 0, rng, rng, poisson=True).batches for _ in range(300)]
    sizes = np.array([[len(batch) for batch in batches] for batches in epochs])
    assert sizes.shape == (300, 10)
    assert abs(sizes.mean() - 20) < 5 * np.sqrt(20 * 0.9 / 3000)
    assert abs(sizes.var() - 20 * 0.9) < 3, "binomial"
    for batches in epochs[:20]:
        assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = np.bincount(np.concatenate([np.concatenate(b) for b in epochs]), minlength=200)
    assert abs(counts.mean() - 300) < 3
    assert abs(counts.var() / (3000 * 0.1 * 0.9) - 1) < 0.4


class Doubled(LossDefense):
    name = "doubled"
    title = "twice the cross-entropy"
    card = Card("none", "2 * CE", "none", "none")

    def losses(self, logits, targets, epoch):
        return self.strength * nn.functional.cross_entropy(logits, targets, reduction="none")


def test_names_of_other_packages_are_looked_up(monkeypatch):
    with pytest.raises(ConfigError, match=r"no installed package adds a defense named 'doubled'"):
        Recipe(defenses=("doubled",))
    with pytest.raises(ConfigError, match=r"named 'dropout'\n  it is a setting of its own: dropout"):
        Recipe(defenses=("dropout",))
    monkeypatch.setattr(registry, "all_defenses", lambda: {**registry.DEFENSES, "doubled": Doubled})
    with pytest.raises(ConfigError, match=r"did you mean 'doubled'\?"):
        Recipe(defenses=("doubld",))
    with pytest.raises(ConfigError, match=r"'doubled=x' is no name=number"):
        Recipe(defenses=("doubled=x",))
    recipe = Recipe(**BASE, defenses=("doubled=2",))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.digest != Recipe(**BASE).digest
    options = {"n_classes": CLASSES, "seed": 1, "device": "cpu"}
    twice = fit(recipe, X, Y, MEMBER, **options)
    faster = fit(dataclasses.replace(recipe, defenses=(), learning_rate=0.1), X, Y, MEMBER, **options)
    np.testing.assert_allclose(twice.query(X), faster.query(X), rtol=1e-3, atol=1e-3)


class Unfinished(LossDefense):
    name = "unfinished"
    title = "a loss that it does not have"
    card = Card("none", "none", "none", "none")


@pytest.fixture
def packaged(monkeypatch):
    """Entry points of a package that is this module; those that were found before are forgotten, and after."""
    monkeypatch.setitem(sys.modules, "some_defenses", sys.modules[__name__])

    def install(**points):
        found = [importlib.metadata.EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in points.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
        registry.all_defenses.cache_clear()

    yield install
    registry.all_defenses.cache_clear()


def test_a_packages_defense_is_known_by_its_own_name(packaged):
    """The recipe asks by that name whether it is in force; the entry point's would be taken and switch nothing on."""
    packaged(other_name="some_defenses:Doubled")
    assert [d.name for d in registry.in_force(Recipe(**BASE, defenses=("doubled=2",)))] == ["doubled"]
    with pytest.raises(ConfigError, match="no installed package adds a defense named 'other_name'"):
        Recipe(defenses=("other_name",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("some_defenses:Unfinished", r"entry point '.*' \(some_defenses:Unfinished\) lacks losses"),
        ("some_defenses:BASE", "is not a subclass of Defense"),
        ("some_defenses:Absent", "cannot be loaded: AttributeError"),
    ],
)
def test_a_package_whose_defense_is_none_is_told(packaged, value, message):
    packaged(broken=value)
    with pytest.raises(ConfigError, match=message):
        Recipe(defenses=("broken",))
