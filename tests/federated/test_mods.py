"""Defenses on updates: each does what its formula says, and a federation learns under it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from memberscope.federated.engine import _identity
from memberscope.federated.federation import Federation
from memberscope.federated.mods import quantised, sparsified, update_mod
from memberscope.federated.packing import ResidentArray

Run = Callable[..., Federation]


def test_sparsified_keeps_the_largest() -> None:
    update = np.array([0.1, -3.0, 0.5, 2.0, -0.2], np.float32)
    np.testing.assert_array_equal(sparsified(update, 0.4), np.array([0, -3.0, 0, 2.0, 0], np.float32))
    np.testing.assert_array_equal(sparsified(update, 1.0), update)
    assert np.count_nonzero(sparsified(np.arange(1.0, 1001), 0.01)) == 10


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantised_has_so_many_values_and_the_right_mean(bits: int) -> None:
    rng = np.random.default_rng(0)
    update = np.linspace(-1, 0.6, 7)
    draws = np.array([quantised(update, bits, rng) for _ in range(4000)])
    step = 2 / (2**bits - 1)
    assert len(np.unique(draws.round(12))) <= 2**bits
    assert np.abs(draws - update).max() < step
    error = 4 * step / 2 / np.sqrt(4000)  # four standard errors of the widest coin
    np.testing.assert_allclose(draws.mean(axis=0), update, atol=error)
    np.testing.assert_array_equal(quantised(np.zeros(3), bits, rng), np.zeros(3))


def test_a_mod_alters_the_update_alone_and_leaves_whole_numbers() -> None:
    mod = update_mod(lambda update, rng: 10 * update, seed=0)
    received = ArrayRecord({"w": Array(np.ones((2, 2), np.float32)), "n": Array(np.array(5))})
    content = RecordDict({"arrays": received, "config": ConfigRecord({"server-round": 1})})
    context = Context(1, 7, {"partition-id": 3}, RecordDict(), {})

    def inner(message: Message, context: Context) -> Message:
        sent = ArrayRecord()
        sent["w"] = ResidentArray(np.full((2, 2), 1.5, np.float32))
        sent["n"] = ResidentArray(np.array(6))
        return Message(RecordDict({"arrays": sent, "m": MetricRecord({"num-examples": 1})}), reply_to=message)

    with _identity(1):
        reply = mod(Message(content, 7, "train"), context, inner)
    out = reply.content["arrays"]
    np.testing.assert_allclose(out["w"].numpy(), np.full((2, 2), 6.0))
    assert out["n"].numpy() == 6
    assert isinstance(out["w"], ResidentArray)


@pytest.mark.parametrize(
    "defense",
    [
        {"keep_largest": 0.1},
        {"quantise_bits": 6},
        {"local_epsilon": 5000.0, "local_clip": 2.0},
        {"central_noise": 0.01, "central_clip": 2.0, "clip_at": "client"},
        {"keep_largest": 0.5, "quantise_bits": 8, "secure_aggregation": True},
    ],
    ids=lambda d: "+".join(d),
)
def test_a_federation_learns_under_a_defense_and_is_changed_by_it(run: Run, defense: dict[str, float]) -> None:
    plain = run(rounds=8)
    trained = run(rounds=8, **defense)
    assert trained.summary["accuracy"]["of_nobody"] > 0.4
    assert trained.summary["weights_sha256"] != plain.summary["weights_sha256"]
    assert run(rounds=8, **defense).summary["weights_sha256"] == trained.summary["weights_sha256"]
