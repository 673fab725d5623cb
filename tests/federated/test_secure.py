"""SecAgg+ as Flower has it: the same model but for rounding, and a server that sees masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from federation_settings import settings
from flwr.app import Message

from memberscope.errors import ConfigError
from memberscope.federated import engine, secure
from memberscope.federated.federation import Federation, federate
from memberscope.federated.transcript import Transcript
from memberscope.records.pool import Dataset

Run = Callable[..., Federation]


def test_the_model_is_the_same_but_for_rounding(run: Run) -> None:
    plain = run(record="updates", rounds=2)
    hidden = run(record="updates", rounds=2, secagg_plus=True)
    mine, yours = plain.model.module.state_dict(), hidden.model.module.state_dict()
    for name, value in mine.items():
        np.testing.assert_allclose(yours[name].numpy(), value.numpy(), atol=1e-4, err_msg=name)
    assert [c["client"] for c in hidden.history[1]["clients"]] == [0, 1, 2, 3]
    tape = Transcript.open(hidden.transcript)
    assert tape.only_sums
    np.testing.assert_allclose(tape.sum(2)["fc3.bias"], hidden.model.module.fc3.bias.detach().numpy(), atol=1e-6)


def test_what_travels_is_masked(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[np.ndarray] = []
    deliver = engine.InProcessGrid._deliver

    def listening(self: engine.InProcessGrid, message: Message, timeout: float | None) -> Message:
        reply = deliver(self, message, timeout)
        assert not reply.has_error(), reply.error
        for record in reply.content.config_records.values():
            for value in record.values():
                if isinstance(value, list) and sum(len(v) for v in value if isinstance(v, bytes)) > 100_000:
                    from flwr.common import bytes_to_ndarray

                    sent.append(np.concatenate([bytes_to_ndarray(b).ravel() for b in value[1:]]))
        assert not any(len(record) for record in reply.content.array_records.values())
        return reply

    monkeypatch.setattr(engine.InProcessGrid, "_deliver", listening)
    trained = federate(settings(rounds=1, secagg_plus=True), dataset=digits, folder=tmp_path / "run")
    weights = np.concatenate([v.numpy().ravel() for v in trained.model.module.state_dict().values()])
    assert [len(vector) for vector in sent] == 4 * [len(weights)]
    for vector in sent:
        assert abs(np.corrcoef(vector.astype(np.float64), weights)[0, 1]) < 0.02


def test_a_client_that_drops_out_does_not_stop_the_sum(run: Run) -> None:
    trained = run(clients=6, rounds=3, secagg_plus=True, drop_out=0.2, seed=3)
    failed = [f for r in trained.history for f in r["failed"]]
    assert failed
    assert all("left the round" in f["reason"] or "broken off" in f["reason"] for f in failed)
    assert trained.history[-1]["test_acc"] > 0.2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": "krum"}, "krum looks at single updates"),
        ({"central_noise": 0.1, "central_clip": 1.0}, "cannot clip it"),
        ({"fraction": 0.5}, "too few to hide in"),
    ],
)
def test_what_the_protocol_cannot_do_is_refused(run: Run, changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run(secagg_plus=True, **changes)
    secure.check(settings(secagg_plus=True), each_round=4, has_buffers=False)
