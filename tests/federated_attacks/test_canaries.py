"""One-shot canaries against a Gaussian mechanism whose epsilon is known."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.errors import ConfigError, DataError
from memberscope.federated.canaries import Canaries, estimate
from memberscope.statistics.gaussian_dp import gdp_epsilon

CLIP = 0.5


def a_federation(noise: float, *, canaries: int = 60, rounds: int = 4, d: int = 4000, seed: int = 0):
    """Sums of clipped updates with Gaussian noise of `noise` times the clip, every canary in every round."""
    rng = np.random.default_rng(seed)
    planted = Canaries(seed=7, length=CLIP)
    first = {"w": rng.normal(size=(d // 10, 10)).astype(np.float32), "count": np.array([3])}
    model = first
    for _ in range(rounds):
        update = np.zeros(model["w"].shape)
        for canary in range(canaries):
            update += planted.reply(canary, model)["w"] - model["w"].astype(np.float64)
        update += rng.normal(0, noise * CLIP, update.shape)
        model = {"w": (model["w"] + update).astype(np.float32), "count": model["count"]}
    return planted, first, model


@pytest.mark.parametrize("noise", [1.0, 2.0, 5.0])
def test_epsilon_of_a_gaussian_mechanism_is_found(noise: float) -> None:
    rounds = 4
    planted, first, last = a_federation(noise, rounds=rounds)
    found = estimate(planted, first, last, 60)
    mu = np.sqrt(rounds) / noise
    # The canaries' own updates lengthen the way that cosines are taken of: sqrt(1 + m mu^2 / d) at 60 of 4,000.
    assert found.mu.value == pytest.approx(mu / np.sqrt(1 + 60 * mu**2 / 4000), abs=3.5 / np.sqrt(60))
    assert found.mu.low < found.mu.value < found.mu.high
    assert found.epsilon.value == pytest.approx(gdp_epsilon(found.mu.value, 1e-5))
    assert found.epsilon.low <= found.epsilon.value <= found.epsilon.high
    assert 0.7 < found.unseen_spread < 1.3
    assert found.d == 4000


def test_canaries_that_never_took_part_show_nothing() -> None:
    planted, first, last = a_federation(2.0)
    found = estimate(Canaries(seed=8, length=CLIP), first, last, 60)
    assert found.mu.low < 0 < found.mu.high
    assert found.epsilon.low == 0
    assert planted.direction(3, 50) == pytest.approx(Canaries(7, 1.0).direction(3, 50))


def test_a_reply_is_the_model_plus_a_direction_of_the_clipping_length() -> None:
    sent = {"a": np.zeros((3, 4), np.float32), "n": np.array([2]), "b": np.ones(5, np.float32)}
    reply = Canaries(seed=1, length=2.0).reply(0, sent)
    step = np.concatenate([(reply[n] - sent[n]).reshape(-1) for n in ("a", "b")])
    assert np.linalg.norm(step) == pytest.approx(2.0, rel=1e-6)
    assert reply["n"] == sent["n"]
    assert reply["a"].dtype == np.float32


def test_what_tells_nothing_is_refused() -> None:
    planted, first, last = a_federation(1.0, rounds=1)
    with pytest.raises(ConfigError, match="too little"):
        estimate(planted, first, last, 4)
    with pytest.raises(DataError, match="do not differ"):
        estimate(planted, first, first, 60)
    with pytest.raises(DataError, match="arrays"):
        estimate(planted, first, {"w": last["w"][:5]}, 60)
