"""Bad weather: whatever clients send or fail to send, the federation goes on and says what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from federation_settings import settings
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from memberscope.errors import ConfigError, MemberscopeError
from memberscope.federated import apps, federation
from memberscope.federated.engine import FIRST_NODE, _identity
from memberscope.federated.federation import Federation, federate
from memberscope.federated.replies import sift
from memberscope.federated.weather import Weather
from memberscope.records.pool import Dataset

Run = Callable[..., Federation]


def _metrics(**changes: float) -> MetricRecord:
    return MetricRecord({"num-examples": 3, "partition-id": 0, "loss": 0.5, **changes})


def _reply(sent: Message, w: np.ndarray, metrics: MetricRecord, name: str = "w") -> Message:
    return Message(RecordDict({"a": ArrayRecord({name: Array(w)}), "m": metrics}), reply_to=sent)


def test_bad_replies_are_told_from_good_ones() -> None:
    model = ArrayRecord({"w": Array(np.zeros((2, 2), np.float32))})
    good = np.ones((2, 2), np.float32)
    with _identity(1):
        sent = [Message(RecordDict({"a": model}), FIRST_NODE + i, "train") for i in range(10)]
        replies = [
            _reply(sent[0], good, _metrics()),
            _reply(sent[1], good * np.nan, _metrics(**{"partition-id": 1})),
            _reply(sent[2], np.ones(3, np.float32), _metrics(**{"partition-id": 2})),
            _reply(sent[3], good, _metrics(**{"partition-id": 3}), name="v"),
            Message(RecordDict({}), reply_to=sent[4]),
            Message(Error(0, "no disk"), reply_to=sent[5]),
            _reply(sent[6], good, _metrics(**{"partition-id": 0})),  # the identity of another
            _reply(sent[7], good, _metrics(**{"partition-id": 7, "num-examples": 0})),
            _reply(sent[8], good, _metrics(**{"partition-id": 8, "loss": float("nan")})),
        ]
        sifted = sift(sent, replies, model, timeout=5)
    assert [m.metadata.src_node_id - FIRST_NODE for m in sifted.good] == [0]
    reasons = {node - FIRST_NODE: reason for node, reason in sifted.reasons.items()}
    for client, told in {
        1: "4 values that are not finite",
        2: "expected shape [2, 2]",
        3: "other arrays",
        4: "sent 0 models",
        5: "no disk",
        6: "answered twice",
        7: "num-examples = 0",
        8: "loss = nan",
        9: "no reply within 5 seconds",
    }.items():
        assert told in reasons[client]
    assert all(m.has_error() for m in sifted.bad)
    assert len(sifted.bad) == 9


def test_clients_drop_out_and_lag_and_are_reported(run: Run) -> None:
    trained = run(clients=10, rounds=4, drop_out=0.2, stragglers=0.2)
    failed = [f for r in trained.history for f in r["failed"]]
    assert {f["reason"].split(": ")[1].split(" (")[0] for f in failed} == {"dropped out of the round", "too late"}
    assert 4 <= len(failed) <= 30
    assert all(len(r["clients"]) + len(r["failed"]) == 10 for r in trained.history)
    assert trained.summary["failures"] == {"replies": len(failed), "of": 40}


def test_stragglers_may_send_a_part_of_their_work(run: Run) -> None:
    trained = run(clients=8, rounds=2, local_epochs=4, stragglers=0.5, late="partial")
    epochs = {c["epochs"] for r in trained.history for c in r["clients"]}
    assert 4 in epochs
    assert epochs & {1, 2, 3}
    assert not any(r["failed"] for r in trained.history)
    with pytest.raises(ConfigError, match="part of 1 local epoch"):
        Weather(settings(stragglers=0.5, late="partial", local_epochs=1))


def test_a_client_that_sends_nan_does_not_spoil_the_model(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = apps.pack

    def broken(state: dict[str, object], *, resident: bool) -> ArrayRecord:
        record = pack(state, resident=resident)
        broken.calls += 1
        if broken.calls % 4 == 2:  # one of the four clients; the first call is the server's
            name = next(iter(record))
            record[name] = Array(np.full(record[name].shape, np.nan, np.float32))
        return record

    broken.calls = 0
    monkeypatch.setattr(apps, "pack", broken)
    trained = federate(settings(), dataset=digits, folder=tmp_path / "run")
    assert [len(r["failed"]) for r in trained.history] == [1, 1, 1]
    assert "not finite" in trained.history[0]["failed"][0]["reason"]
    assert np.isfinite(trained.model.query(digits.x[:5])).all()


def test_silence_ends_the_run_with_its_reason(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: object, round_: int, client: int) -> int:
        raise OSError("no route to host")

    monkeypatch.setattr(Weather, "epochs", gone)
    with pytest.raises(MemberscopeError, match=r"no client gave a usable answer in 3 rounds: OSError: no route"):
        federate(settings(rounds=9), dataset=digits, folder=tmp_path / "run")


def test_a_full_disk_names_the_way_on(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from safetensors import numpy as files

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(MemberscopeError, match="disk full while writing"):
        federate(settings(), dataset=digits, folder=tmp_path / "run")
    monkeypatch.undo()
    resumed = federate(settings(), dataset=digits, folder=tmp_path / "run", resume=True)
    assert len(resumed.history) == 3
    assert federation.read(tmp_path / "run", dataset=digits).history == resumed.history
