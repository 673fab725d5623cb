"""Flower's strategies by name; what they remember survives a resume."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("flwr")

from federation_settings import settings
from flwr.app import Array, ArrayRecord

from memberscope.errors import ConfigError
from memberscope.federated import strategies
from memberscope.federated.federation import Federation

OPTIONS = {"qfedavg": ("client_learning_rate=0.02",), "fedadam": ("eta=0.01",), "fedyogi": ("eta=0.01",)}


@pytest.mark.parametrize("name", sorted(strategies.available()))
def test_every_strategy_trains(run: Callable[..., Federation], name: str) -> None:
    trained = run(strategy=name, strategy_options=OPTIONS.get(name, ()), rounds=3, learning_rate=0.05)
    assert trained.summary["accuracy"]["of_nobody"] > 0.2  # chance is 0.1


def test_the_usual_names_are_there() -> None:
    assert {
        "fedavg",
        "fedprox",
        "fedadam",
        "fedavgm",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
    } <= (set(strategies.available()))


def test_the_proximal_term_holds_clients_back(run: Callable[..., Federation]) -> None:
    """With a large mu a client stays near the model that it was sent."""
    losses = {}
    for mu in (0.0, 5.0):
        trained = run(strategy="fedprox", strategy_options=(f"proximal_mu={mu}",), rounds=1, local_epochs=8)
        losses[mu] = trained.history[0]["train_loss"]
    assert losses[5.0] > losses[0.0]
    assert run(strategy="fedprox", rounds=1).summary["weights_sha256"] == run(rounds=1).summary["weights_sha256"]


@pytest.mark.parametrize("clip_at", ["server", "client"])
def test_memory_is_captured_and_restored(clip_at: str) -> None:
    config = settings(strategy="fedadam", central_noise=0.1, central_clip=1.0, clip_at=clip_at)
    wrapped = strategies.make(config, 4)
    inner = wrapped.strategy
    inner.m_t = {"b": np.float32(2), "a": np.arange(3.0)}
    inner.current_arrays = {"a": np.ones(2, np.float32)}
    wrapped.current_arrays = ArrayRecord({"w": Array(np.arange(4))})
    fresh = strategies.make(config, 4)
    strategies.restore(fresh, *strategies.capture(wrapped))
    assert list(fresh.strategy.m_t) == ["b", "a"]
    np.testing.assert_array_equal(fresh.strategy.m_t["a"], np.arange(3.0))
    np.testing.assert_array_equal(fresh.current_arrays["w"].numpy(), np.arange(4))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": "fedavgg"}, "is unknown"),
        ({"strategy_options": ("eta=1",)}, "no option 'eta'"),
        ({"strategy": "fedprox", "strategy_options": ("proximal_nu=1",)}, "did you mean 'proximal_mu'"),
        ({"strategy": "qfedavg"}, "needs client_learning_rate"),
        ({"strategy": "fedprox", "strategy_options": ("proximal_mu=high",)}, "no name=number"),
    ],
)
def test_what_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        strategies.make(settings(**changes), 4)


def test_a_value_that_flower_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(strategies.flower.FedAvg):
        def __init__(self, **more: float) -> None:
            raise ValueError("beta must be below 0.5")

    monkeypatch.setattr(strategies, "available", lambda: {"picky": Picky})
    with pytest.raises(ConfigError, match=r"picky cannot be made: beta must be below 0\.5"):
        strategies.make(settings(strategy="picky"), 4)
