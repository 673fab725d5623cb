"""A training whose promise of differential privacy is broken on purpose is caught, and a sound one is not accused.

Every record is a canary with a random label, so that whatever the model knows of it was memorised. The accountant
counts on clipped gradients and noise; the training then forgets one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memberscope.signals import Signals
from memberscope.statistics.privacy_bounds import Comparison, bound, compare_with_accountant
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

pytest.importorskip("opacus")

N, FEATURES, CLASSES = 400, 300, 10
EPSILON, DELTA = 1.0, 1e-5


def audit(seed: int, *, scale: float = 1.0, **changes: Any) -> Comparison:
    """Train on coins, score by the logit of the given label, and hold the one-run bound against the accountant."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(N, FEATURES))).astype(np.float32)
    y, member = rng.integers(0, CLASSES, N), rng.random(N) < 0.5
    settings: dict[str, Any] = {"epochs": 40, "batch_size": N, "learning_rate": 0.5} | changes
    recipe = Recipe(model="mlp", dp_epsilon=EPSILON, dp_delta=DELTA, **settings)
    model = fit(recipe, x, y, member, n_classes=CLASSES, seed=seed, device="cpu", threads=1)
    assert model.privacy is not None
    assert model.privacy["epsilon"] <= EPSILON
    scores = Signals(model.query(x)[0], y).phi
    found = bound(scores, member, design="coin-flips", delta=DELTA, rng=rng)
    return compare_with_accountant(found, model.privacy["epsilon"], model.privacy["delta"])


def forget_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from memberscope.defenses.dp_sgd import DpSgd

    honest: Callable[..., Any] = DpSgd.gradient

    def silent(self: DpSgd, *given: Any) -> Any:
        noise, self._noise = self._noise, 0.0
        try:
            return honest(self, *given)
        finally:
            self._noise = noise  # the accountant goes on counting on it

    monkeypatch.setattr(DpSgd, "gradient", silent)


def forget_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    from memberscope.defenses.per_record import ClippedSum

    honest: Callable[..., Any] = ClippedSum.sum
    monkeypatch.setattr(ClippedSum, "sum", lambda self, x, targets, losses, clip: honest(self, x, targets, losses, 1e9))


def test_a_sound_training_is_not_accused():
    found = audit(0)
    assert found.verdict == "within"
    assert found.lower.ceiling > EPSILON, "the audit could have contradicted the claim"


def test_forgotten_noise_is_caught(monkeypatch):
    forget_noise(monkeypatch)
    found = audit(0)
    assert found.verdict == "contradiction"
    assert found.lower.epsilon > 3
    assert "BROKEN DP CLAIM" in found.text


@pytest.mark.parametrize("forgotten", [False, True], ids=["clipped", "not clipped"])
def test_forgotten_clipping_is_caught(monkeypatch, forgotten):
    """Inputs of a large scale have large gradients, which stand out of noise that was made for a norm of 1."""
    if forgotten:
        forget_clipping(monkeypatch)
    found = audit(0, scale=100, learning_rate=0.005)
    assert (found.verdict == "contradiction") == forgotten
