"""Models trained at once are those of `fit`, up to rounding; what cannot be stacked is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memberscope.errors import ConfigError, ModelError
from memberscope.training import bank_training, train_target
from memberscope.training.bank_files import ModelFile, claim, model_path
from memberscope.training.bank_training import TrainModel
from memberscope.training.checkpoint import epoch_of
from memberscope.training.models import build
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import fit_stacked, group_size, in_groups, obstacle
from memberscope.training.train_target import fit

CLASSES = 4


def pool_of(shape: tuple[int, ...], n: int = 160):
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, n)
    if len(shape) == 3:
        return (rng.integers(0, 120, (n, *shape)) + 30 * y[:, None, None, None]).astype(np.uint8), y
    return (rng.normal(size=(n, *shape)) + 0.3 * y[:, None]).astype(np.float32), y


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"model": "simplecnn"}, (3, 8, 8)),
        ({"model": "simplecnn", "augmentation": ("flip", "crop"), "nesterov": True}, (1, 8, 8)),
        ({"model": "simplecnn", "clip_norm": 0.1, "weight_decay": 0.01, "schedule": "cosine"}, (3, 8, 8)),
        ({"model": "mlp", "optimizer": "adam", "label_smoothing": 0.1, "warmup_epochs": 1}, (20,)),
        ({"model": "mlp", "optimizer": "adamw", "weight_decay": 0.1, "schedule": "step"}, (20,)),
    ],
)
def test_models_trained_at_once_are_those_trained_alone(settings, shape):
    x, y = pool_of(shape)
    recipe = Recipe(epochs=3, batch_size=24, precision="fp32", **settings)
    rng = np.random.default_rng(1)
    members = np.array([rng.permutation(len(x)) < 80 for _ in range(3)])
    stacked = fit_stacked(recipe, x, y, members, n_classes=CLASSES, seeds=[7, 8, 9], device="cpu", threads=1)
    for member, seed, model in zip(members, (7, 8, 9), stacked, strict=True):
        alone = fit(recipe, x, y, member, n_classes=CLASSES, seed=seed, device="cpu", threads=1)
        expected = alone.query(x)
        np.testing.assert_allclose(model.query(x), expected, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_array_equal(model.mean, alone.mean)
        for now, then in zip(model.history, alone.history, strict=True):
            assert now["train_loss"] == pytest.approx(then["train_loss"], rel=1e-4)
        assert (model.stopped_epoch, model.best_epoch, model.seed) == (3, 3, seed)
    first, second = (model.query(x) for model in stacked[:2])
    assert np.abs(first - second).max() > 0.1  # and they are different models


def test_bf16_stays_near():
    x, y = pool_of((3, 16, 16), 64)
    recipe = Recipe(epochs=1, batch_size=32, precision="bf16")
    members = np.array([np.arange(64) % 2 == 0, np.arange(64) % 2 == 1])
    stacked = fit_stacked(recipe, x, y, members, n_classes=CLASSES, seeds=[1, 2], device="cpu", threads=1)
    for member, seed, model in zip(members, (1, 2), stacked, strict=True):
        alone = fit(recipe, x, y, member, n_classes=CLASSES, seed=seed, device="cpu", threads=1)
        assert model.precision == "bf16"
        np.testing.assert_allclose(model.query(x), alone.query(x), atol=0.05)


class Heard:
    def __init__(self):
        self.steps, self.epochs = [], []

    def on_step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps))

    def on_epoch(self, record, epochs, seconds_left):
        self.epochs.append((record["epoch"], epochs))
        assert seconds_left >= 0


def test_progress_is_told_and_global_randomness_left_alone():
    x, y = pool_of((20,), 40)
    heard, before = Heard(), torch.random.get_rng_state()
    members = np.ones((2, 40), bool)
    recipe = Recipe(model="mlp", epochs=2, batch_size=10)
    fit_stacked(recipe, x, y, members, n_classes=CLASSES, seeds=[1, 2], device="cpu", progress=heard, threads=1)
    assert heard.steps[-1] == (2, 4, 4)
    assert heard.epochs == [(1, 2), (2, 2)]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_training_that_diverges_is_noticed():
    x, y = pool_of((20,), 40)
    members = np.ones((2, 40), bool)
    recipe = Recipe(model="mlp", epochs=2, batch_size=10, learning_rate=1e25)
    with pytest.raises(ModelError, match="diverged"):
        fit_stacked(recipe, x, y, members, n_classes=CLASSES, seeds=[1, 2], device="cpu", threads=1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "resnet18"}, "running statistics"),
        ({"model": "simplecnn", "dropout": 0.5}, "dropout"),
        ({"model": "simplecnn", "early_stopping": 3}, "early stopping"),
        ({"model": "simplecnn"}, None),
    ],
)
def test_what_cannot_be_stacked_is_said(settings, reason):
    recipe = Recipe(epochs=2, **settings)
    found = obstacle(recipe, build(recipe.model, (3, 8, 8), CLASSES, dropout=recipe.dropout))
    assert (found is None) if reason is None else reason in found


def test_stacking_what_cannot_be_stacked_is_refused():
    x, y = pool_of((3, 8, 8), 40)
    members = np.array([np.arange(40) < 20, np.arange(40) < 21])
    with pytest.raises(ConfigError, match="different numbers of members"):
        fit_stacked(Recipe(epochs=1), x, y, members, n_classes=CLASSES, seeds=[1, 2], device="cpu")
    with pytest.raises(ConfigError, match="dropout"):
        fit_stacked(Recipe(dropout=0.1), x, y, members[:1], n_classes=CLASSES, seeds=[1], device="cpu")


def test_groups_are_halved_when_memory_is_short():
    groups, alone = [], []

    def train(group):
        groups.append(list(group))
        if len(group) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return dict.fromkeys(group, "trained")

    outcomes = list(in_groups(range(7), 6, train, lambda k: alone.append(k) or "alone", pytest.fail))
    assert groups == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0, 1], [2, 3], [4, 5]]
    assert outcomes == [(k, "trained") for k in range(6)] + [(6, "alone")]


def test_what_vmap_does_not_know_is_trained_one_by_one():
    for text, told in (("vmap: unsupported\nmore of it", "vmap: unsupported"), ("", "RuntimeError")):

        def train(group, text=text):
            raise RuntimeError(text)

        reasons = []
        assert list(in_groups([3, 4], 8, train, lambda k: k * k, reasons.append)) == [(3, 9), (4, 16)]
        assert reasons == [told]


def test_a_bank_whose_models_vmap_does_not_know_says_once_why_it_takes_longer(tmp_path, monkeypatch):
    x, y = pool_of((12,), 61)  # an odd pool: the even models are grouped, and the odd ones
    arrays = {"x": x, "y": y, "pool": np.ones(61, bool)}
    recipe = Recipe(model="mlp", epochs=1, batch_size=10, precision="fp32")
    task = TrainModel(tmp_path, "bank", recipe, CLASSES, ("none",), 3, "float32", True, "cpu", threads=1)
    monkeypatch.setattr(bank_training, "_free_bytes", lambda device: 10**9)

    def refuse(*args, **more):
        raise RuntimeError("vmap: no batching rule\nand so on")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    notes = []
    outcomes = dict(task.at_once(arrays, range(4), Fractions(), notes.append))
    assert outcomes == dict.fromkeys(range(4), "trained")
    assert notes == ["reference models are trained one by one: vmap: no batching rule"]


def test_the_group_fits_the_memory():
    def size(free: int, batch_size: int = 128) -> int:
        return group_size(Recipe(batch_size=batch_size), (3, 32, 32), 10, free, 25_000 * 3072)

    assert [size(0), size(10**9), size(10**12)] == [1, size(10**9), 64]
    assert 1 < size(10**9, 64) <= size(2 * 10**9, 64) < 64
    assert size(4 * 10**9, 1024) < size(4 * 10**9, 128)


def test_memory_that_torch_keeps_for_later_counts_as_free(monkeypatch):
    kept = [600]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 - sum(kept), 1000))
    assert bank_training._free_bytes("cuda:0") == 1000


class Fractions:
    def __init__(self):
        self.of = {}

    def on_fraction(self, item, fraction):
        self.of.setdefault(item, []).append(fraction)

    def on_death(self, item, reason):
        raise AssertionError(reason)


@pytest.mark.parametrize(("n", "copies"), [(60, 0), (61, 0), (60, 3)], ids=["even", "odd", "copies"])
def test_a_bank_grown_at_once_holds_the_models_of_one_grown_alone(tmp_path, monkeypatch, n, copies):
    """The way of a bank on a GPU, on the CPU: same files, up to rounding, and what others are at is left to them."""
    x, y = pool_of((12,), n)
    tied = np.arange(n)
    tied[1 : 1 + copies] = 0  # of an even pool, halves of 32 and 28
    arrays = {"x": x, "y": y, "pool": np.ones(n, bool), "tied": tied}
    recipe = Recipe(model="mlp", epochs=2, batch_size=10, precision="fp32")
    tasks = []
    for name in ("stacked", "alone"):
        (tmp_path / name).mkdir()
        tasks.append(
            TrainModel(tmp_path / name, "bank", recipe, CLASSES, ("none",), 3, "float32", True, "cpu", threads=1)
        )
    stacked, alone = tasks
    monkeypatch.setattr(bank_training, "_free_bytes", lambda device: 10**9)
    assert alone(arrays, 0, lambda fraction: None) == "trained"
    model_path(tmp_path / "alone", 0).rename(model_path(tmp_path / "stacked", 0))
    listener = Fractions()
    with claim(model_path(tmp_path / "stacked", 3)):
        outcomes = dict(stacked.at_once(arrays, range(6), listener, pytest.fail))
    assert outcomes == {0: "there", 1: "trained", 2: "trained", 3: "busy", 4: "trained", 5: "trained"}
    assert all(listener.of[k][-1] == 1.0 for k in (1, 2, 4, 5))
    for k in (1, 2, 4, 5):
        assert alone(arrays, k, lambda fraction: None) == "trained"
        now, then = (ModelFile.read(model_path(tmp_path / name, k)) for name in ("stacked", "alone"))
        np.testing.assert_array_equal(now.map("membership"), then.map("membership"))
        np.testing.assert_allclose(now.map("logits"), then.map("logits"), atol=1e-4)
        np.testing.assert_allclose(now.map("weights/fc1.weight"), then.map("weights/fc1.weight"), atol=1e-5)
        assert now.about["accuracy"] == then.about["accuracy"]


class Stop(Heard):
    """Ends the training after an epoch."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch(self, record, epochs, seconds_left):
        super().on_epoch(record, epochs, seconds_left)
        if record["epoch"] == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"optimizer": "adam"}], ids=["sgd", "plain sgd", "adam"])
def test_a_group_goes_on_from_its_checkpoints_and_so_does_fit(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    x, y = pool_of((3, 8, 8), 60)
    recipe = Recipe(epochs=4, batch_size=10, precision="fp32", **settings)
    members = np.array([np.arange(60) % 2 == 0, np.arange(60) % 2 == 1])
    shared = {"n_classes": CLASSES, "device": "cpu", "threads": 1}
    whole = fit_stacked(recipe, x, y, members, seeds=[1, 2], **shared)
    paths = [tmp_path / f"{k}.checkpoint" for k in range(2)]
    with pytest.raises(KeyboardInterrupt):
        fit_stacked(recipe, x, y, members, seeds=[1, 2], checkpoints=paths, progress=Stop(2), **shared)
    alone = tmp_path / "alone"
    alone.write_bytes(paths[1].read_bytes())
    heard = Heard()
    resumed = fit_stacked(recipe, x, y, members, seeds=[1, 2], checkpoints=paths, resume=True, progress=heard, **shared)
    assert heard.epochs[0][0] in (2, 3)  # the second epoch's may not have been begun
    for now, then in zip(resumed, whole, strict=True):
        assert now.weights_sha256 == then.weights_sha256
        assert [r["train_loss"] for r in now.history] == [r["train_loss"] for r in then.history]
    one = fit(recipe, x, y, members[1], seed=2, checkpoint=alone, resume=True, **shared)
    expected = whole[1].query(x)
    np.testing.assert_allclose(one.query(x), expected, atol=1e-4 * np.abs(expected).max())
    paths[0].unlink()
    with pytest.raises(ConfigError, match="checkpoints are of different epochs"):
        fit_stacked(recipe, x, y, members, seeds=[1, 2], checkpoints=paths, resume=True, **shared)


def test_a_bank_goes_on_with_those_that_stand_at_one_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(bank_training, "_free_bytes", lambda device: 10**9)
    x, y = pool_of((12,), 60)
    arrays = {"x": x, "y": y, "pool": np.ones(60, bool)}
    recipe = Recipe(model="mlp", epochs=5, batch_size=10, precision="fp32")
    task, other = (
        TrainModel(tmp_path / name, "bank", recipe, CLASSES, ("none",), 3, "float32", True, "cpu", threads=1)
        for name in ("killed", "whole")
    )

    class Killed(Fractions):
        def on_fraction(self, item, fraction):
            super().on_fraction(item, fraction)
            if fraction > 0.6:
                raise KeyboardInterrupt

    for folder in (task.folder, other.folder):
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        dict(task.at_once(arrays, range(4), Killed(), pytest.fail))
    left = [model_path(task.folder, k).with_suffix(".checkpoint") for k in range(4)]
    assert [epoch_of(path) for path in left] == [3] * 4
    left[1].unlink()
    left[2].write_bytes(b"damaged")
    listener = Fractions()
    assert dict(task.at_once(arrays, range(4), listener, pytest.fail)) == dict.fromkeys(range(4), "trained")
    assert [min(listener.of[k]) > 0.6 for k in range(4)] == [True, False, False, True]
    assert not any(path.exists() for path in left)
    dict(other.at_once(arrays, range(4), Fractions(), pytest.fail))
    for k in range(4):
        now, then = (ModelFile.read(model_path(t.folder, k)) for t in (task, other))
        np.testing.assert_allclose(now.map("logits"), then.map("logits"), atol=1e-4)
