"""A tiny pool that every defense is tried on."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

CLASSES = 4


class Pool:
    """Images whose brightness tells the class, not quite: half members, a quarter validation."""

    classes = CLASSES

    def __init__(self, n=160, seed=0):
        rng = np.random.default_rng(seed)
        self.y = rng.integers(CLASSES, size=n)
        x = rng.integers(0, 130, size=(n, 3, 8, 8)) + 40 * self.y[:, None, None, None]
        self.x = x.astype(np.uint8)
        part = np.arange(n) % 4
        self.member, self.validation = part < 2, part == 2

    def train(self, seed=1, more=None, **settings):
        base = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "precision": "fp32"}
        options = {"n_classes": CLASSES, "device": "cpu", "validation": self.validation, **(more or {})}
        return fit(Recipe(**{**base, **settings}), self.x, self.y, self.member, seed=seed, **options)


@pytest.fixture(scope="session")
def pool():
    return Pool()


class StopAfter:
    """Interrupts a training after so many epochs, counted over all its stages."""

    def __init__(self, epoch):
        self.epoch, self.heard = epoch, []

    def on_step(self, epoch, step, steps, loss):
        pass

    def on_epoch(self, record, epochs, seconds_left):
        self.heard.append((record["epoch"], epochs))
        if record["epoch"] == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture
def listener():
    """Hears of a training and lets it end."""
    return StopAfter(None)


@pytest.fixture
def resumed(pool, tmp_path, monkeypatch):
    """Train with settings, whole and interrupted after each of some epochs; gives both models."""
    from memberscope.training import train_target

    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)

    def both(after=(2,), **settings):
        whole = pool.train(**settings)
        path = tmp_path / "checkpoint"
        for number, epoch in enumerate(after):
            with pytest.raises(KeyboardInterrupt):
                pool.train(more={"checkpoint": path, "progress": StopAfter(epoch), "resume": number > 0}, **settings)
        return whole, pool.train(more={"checkpoint": path, "resume": True}, **settings)

    return both
