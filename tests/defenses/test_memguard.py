"""MemGuard: the guard guesses, the class stays, the budget is kept, and asking twice gains nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.defenses.memguard import MemGuard, unsure
from memberscope.errors import ConfigError
from memberscope.training.defended import probabilities_of
from memberscope.training.model_files import load, save
from memberscope.training.recipe import Recipe


class Linear(nn.Module):
    """A guard whose judgement is known: members have a largest probability above 0.7."""

    def forward(self, p):
        return 8 * (p[:, -1:] - 0.7)


def answers(n=200, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return np.sort(probabilities_of(2 * rng.normal(size=(n, classes))), axis=1)


def test_noise_brings_the_guard_to_a_half_and_keeps_the_class():
    plain = answers()
    noisy = unsure(Linear(), plain)
    np.testing.assert_allclose(noisy.sum(axis=1), 1, atol=1e-5)
    assert (noisy.argmax(axis=1) == 3).all()
    before, after = (8 * (p[:, 3] - 0.7) for p in (plain, noisy))
    assert (before * after <= 1e-6).mean() > 0.95, "turned, where noise was found"
    assert np.abs(after).mean() < 0.5 < np.abs(before).mean()
    needed = 2 * np.abs(plain[:, 3] - 0.7)  # what is taken from one class is given to others
    size = np.abs(noisy - plain).sum(axis=1)
    assert (size >= needed - 1e-4).all()
    assert np.median(size / needed) < 1.5, "little more than is needed"


def test_the_guard_learns_to_tell_them_apart():
    rng = np.random.default_rng(0)
    sharp, flat = probabilities_of(5 * rng.normal(size=(300, 4))), probabilities_of(0.5 * rng.normal(size=(200, 4)))
    learnt = MemGuard(Recipe(memguard=1.0)).learn(sharp, flat, 3)
    again = MemGuard(Recipe(memguard=1.0)).learn(sharp, flat, 3)
    assert all(np.array_equal(learnt[k], again[k]) for k in learnt)
    layers = nn.Sequential(*[p for a, b in ((4, 256), (256, 128), (128, 64)) for p in (nn.Linear(a, b), nn.ReLU())])
    layers.append(nn.Linear(64, 1))
    layers.load_state_dict({k.removeprefix("memguard/"): torch.from_numpy(v) for k, v in learnt.items()})
    found = [layers(torch.from_numpy(np.sort(p, axis=1)).float())[:, 0] > 0 for p in (sharp, flat)]
    assert found[0].float().mean() > 0.8
    assert found[1].float().mean() < 0.2


@pytest.fixture(scope="module")
def guarded(pool):
    return pool.train(epochs=6, memguard=0.2)


def test_answers_keep_class_and_budget_and_repeat_themselves(guarded, pool):
    raw, seen = (probabilities_of(guarded.query(pool.x, raw=r)[0]) for r in (True, False))
    assert (raw.argmax(axis=1) == seen.argmax(axis=1)).all()
    moved = np.abs(raw - seen).sum(axis=1)
    assert (moved > 1e-6).any()
    assert moved.mean() < 0.2 + 3 * moved.std() / np.sqrt(len(moved)), "the expected distortion is within the budget"
    fresh = dataclasses.replace(guarded, drawn={})
    np.testing.assert_allclose(probabilities_of(fresh.query(pool.x[10:16])[0]), seen[10:16], atol=1e-3)
    plain = pool.train(epochs=6)
    assert plain.weights_sha256 == guarded.weights_sha256, "it acts on answers alone"


def test_the_guard_is_kept_with_the_model(guarded, pool, tmp_path):
    save(guarded, tmp_path, membership=pool.member, dataset_name="d", dataset_fingerprint="f")
    loaded = load(tmp_path, device="cpu")
    np.testing.assert_allclose(loaded.query(pool.x[:5]), guarded.query(pool.x[:5]), atol=1e-4)
    (tmp_path / "guard.safetensors").unlink()
    with pytest.raises(Exception, match=r"guard.safetensors is missing or damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memguard": 1.0, "label_only": True}, "a class has no probability to perturb"),
        ({"memguard": 1.0, "hamp": 0.9}, "its answers are those to random inputs already"),
        ({"memguard": 1.0, "dmp": 2.0}, "the validation records that its guard needs"),
        ({"memguard": 1.0, "dp_noise": 1.0}, "its guard is trained on the answers to members without noise"),
        ({"memguard": -1.0}, "memguard = -1.0 is out of range"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)
