"""A transcript gives back what was recorded, survives a crash, and never costs the federation anything."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from memberscope.errors import ConfigError, RunFolderError
from memberscope.federated import recorder as recorder_module
from memberscope.federated.array_files import read_arrays, write_arrays
from memberscope.federated.recorder import Recorder
from memberscope.federated.taping import ClientReply, Taping
from memberscope.federated.transcript import Transcript, flat

NODES = (10_000, 10_001, 10_002)


def _model(seed: int, size: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "z.weight": rng.standard_normal((size, 3)).astype(np.float32),
        "a.bias": rng.standard_normal(3).astype(np.float32),
        "counter": np.int64(seed) * np.ones((), np.int64),
    }


def _moved(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        k: v + 0.01 * rng.standard_normal(v.shape).astype(np.float32) if v.dtype.kind == "f" else v + 1
        for k, v in arrays.items()
    }


def _replies(round_: int, **more: object) -> list[ClientReply]:
    return [ClientReply(n, _moved(_model(round_), 100 * round_ + n), 10.0 + n, {"loss": 0.5}, **more) for n in NODES]


def _record(folder: Path, rounds: int = 3, taping: Taping | None = None, end: bool = True) -> Recorder:
    recorder = Recorder(folder, taping=taping)
    recorder.begin(lambda: {"strategy": "FedAvg", "total_rounds": rounds})
    recorder.nodes(lambda: NODES)
    for r in range(1, rounds + 1):
        recorder.sent(r, [(n, _model(r)) for n in NODES])
        recorder.received(r, _replies(r))
        recorder.aggregate(r, lambda r=r: _model(r + 1))
    if end:
        recorder.end()
    return recorder


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def test_what_was_recorded_comes_back_bit_by_bit_and_in_order(tmp_path: Path) -> None:
    _record(tmp_path)
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2, 3]
    assert t.clients == [0, 1, 2]
    assert not t.clients_reported
    assert t.view == "server"
    assert t.strategy == "FedAvg"
    assert t.problems == ()
    for r in t.rounds:
        assert t.clients_of(r) == t.asked(r) == [0, 1, 2]
        _equal(t.sent(r), _model(r))
        _equal(t.sent_to(r, 1), _model(r))
        aggregate = t.aggregate(r)
        assert aggregate is not None
        _equal(aggregate, _model(r + 1))
        for k in t.clients:
            _equal(t.received(r, k), _replies(r)[k].arrays)
            assert t.num_examples(r, k) == 10_010 + k
            assert t.metrics(r, k) == {"loss": 0.5}
            update = t.update(r, k)
            assert list(update) == ["z.weight", "a.bias"]  # integers do not point along a gradient
            np.testing.assert_array_equal(update["a.bias"], _model(r)["a.bias"] - _replies(r)[k].arrays["a.bias"])
    _equal(t.final(), _model(4))
    assert flat(t.sent(1), ["a.bias", "z.weight"]).shape == (3 + 1200,)


def test_a_model_that_is_sent_to_all_and_comes_out_of_the_round_before_is_written_once(tmp_path: Path) -> None:
    _record(tmp_path)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors"))
    # Round 1 wrote what was sent; each round wrote what came out of it, which is what the next one sent.
    assert sum("from_" in n for n in names) == 9
    assert [n for n in names if "from_" not in n] == [
        "round_00001/aggregate.safetensors",
        "round_00001/sent.safetensors",
        "round_00002/aggregate.safetensors",
        "round_00003/aggregate.safetensors",
    ]


def test_what_differs_between_clients_is_kept_apart(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.begin(dict)
    recorder.sent(1, [(10, _model(1)), (11, _model(9)), (12, _model(1))])
    t = Transcript.open(tmp_path)
    _equal(t.sent(1), _model(1))
    _equal(t.sent_to(1, 1), _model(9))
    assert t.problems == (
        "not taped to its end (round 1 has 0 of 3 replies): the federation was killed, or is still running",
    )


def test_half_precision_keeps_every_change_to_half_a_per_mille(tmp_path: Path) -> None:
    _record(tmp_path / "full")
    _record(tmp_path / "half", taping=Taping(precision="float16"))
    full, half = Transcript.open(tmp_path / "full"), Transcript.open(tmp_path / "half")
    _equal(half.sent(2), full.sent(2))
    names = ["z.weight", "a.bias"]
    for k in full.clients:
        exact, rounded = flat(full.update(2, k), names), flat(half.update(2, k), names)
        assert 0 < np.linalg.norm(exact - rounded) < 5e-4 * np.linalg.norm(exact)
        np.testing.assert_allclose(half.received(2, k)["z.weight"], full.received(2, k)["z.weight"], atol=2e-5)
        assert half.received(2, k)["counter"] == full.received(2, k)["counter"]
    size = {t: sum(p.stat().st_size for p in (tmp_path / t).rglob("from_*")) for t in ("full", "half")}
    assert size["half"] < 0.6 * size["full"]


def test_half_precision_keeps_tiny_huge_and_broken_changes(tmp_path: Path) -> None:
    sent = {"w": np.zeros(4, np.float32)}
    recorder = Recorder(tmp_path, taping=Taping(precision="float16"))
    recorder.sent(1, [(n, sent) for n in NODES])
    tiny = np.float32([1e-12, -3e-12, 2e-12, 0])
    recorder.received(1, [ClientReply(NODES[0], {"w": tiny}), ClientReply(NODES[1], {"w": tiny * 1e20})])
    recorder.received(1, [ClientReply(NODES[2], {"w": np.float32([np.nan, np.inf, 1, 2])})])
    assert recorder.stopped is None
    t = Transcript.open(tmp_path)
    np.testing.assert_allclose(t.received(1, 0)["w"], tiny, rtol=1e-3)
    np.testing.assert_allclose(t.received(1, 1)["w"], tiny * 1e20, rtol=1e-3)
    np.testing.assert_allclose(t.received(1, 2)["w"], [np.nan, np.inf, 1, 2], rtol=1e-3)


def test_behind_secure_aggregation_only_the_mean_is_kept(tmp_path: Path) -> None:
    _record(tmp_path / "full")
    _record(tmp_path / "sums", taping=Taping(sums_only=True))
    full, sums = Transcript.open(tmp_path / "full"), Transcript.open(tmp_path / "sums")
    assert sums.view == "server behind secure aggregation"
    assert sums.only_sums
    assert sums.clients_of(2) == []
    assert sums.asked(2) == [0, 1, 2]
    assert not list((tmp_path / "sums").rglob("from_*"))
    with pytest.raises(RunFolderError, match="only sums are kept"):
        sums.received(2, 0)
    weights = np.array([10.0 + n for n in NODES])
    expected = np.tensordot(weights / weights.sum(), [r.arrays["z.weight"] for r in _replies(2)], 1)
    for t in (full, sums):
        np.testing.assert_allclose(t.sum(2)["z.weight"], expected, rtol=1e-6)
        assert t.total_examples(2) == weights.sum()


def test_rounds_and_clients_can_be_chosen(tmp_path: Path) -> None:
    _record(tmp_path / "every", 7, Taping(every=3))
    assert Transcript.open(tmp_path / "every").rounds == [3, 6]
    _record(tmp_path / "rounds", 7, Taping(rounds=(1, 7), clients=(10_001,)))
    t = Transcript.open(tmp_path / "rounds")
    assert t.rounds == [1, 7]
    assert t.clients_of(7) == [1]
    assert t.asked(7) == [0, 1, 2]
    aggregate = t.aggregate(1)
    assert aggregate is not None
    _equal(aggregate, _model(2))
    for bad in ({"every": 0}, {"precision": "float8"}, {"max_bytes": 0}):
        with pytest.raises(ConfigError):
            Taping(**bad)


def test_reported_identities_number_the_clients_and_a_shared_one_is_told(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.nodes(lambda: [77, 5, 900])
    recorder.sent(1, [(n, _model(1)) for n in (77, 5, 900)])
    recorder.received(1, [ClientReply(77, _model(2), client=0), ClientReply(900, _model(4), client=1)])
    recorder.end()
    t = Transcript.open(tmp_path)
    assert {t.node(k): k for k in t.clients} == {77: 0, 900: 1, 5: 2}
    assert not t.clients_reported
    assert t.problems == ()
    recorder.received(1, [ClientReply(5, _model(3), client=1)])
    t = Transcript.open(tmp_path)
    assert t.problems == ("2 nodes reported to be client 1: only the first keeps the number",)
    _equal(t.received(1, 2), _model(3))


def test_clients_can_be_numbered_by_whoever_knows_the_nodes(tmp_path: Path) -> None:
    _record(tmp_path)
    t = Transcript.open(tmp_path, nodes={10_000: 7, 10_001: 0, 10_002: 1})
    assert t.clients == [0, 1, 7]
    assert t.clients_reported
    _equal(t.received(1, 7), _replies(1)[0].arrays)
    some = Transcript.open(tmp_path, nodes={10_002: 0})
    assert [some.node(k) for k in some.clients] == [10_002, 10_000, 10_001]
    with pytest.raises(ConfigError, match="no node 5 is on record"):
        Transcript.open(tmp_path, nodes={5: 0})
    with pytest.raises(ConfigError, match="same number"):
        Transcript.open(tmp_path, nodes={10_000: 0, 10_001: 0})


def test_failures_are_on_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.sent(1, [(n, _model(1)) for n in NODES])
    recorder.received(1, [*_replies(1)[:2], ClientReply(NODES[2], None, failure="no disk")])
    t = Transcript.open(tmp_path)
    assert t.failures(1) == {2: "no disk"}
    assert t.clients_of(1) == [0, 1]
    with pytest.raises(RunFolderError, match="no reply of client 2 in round 1"):
        t.received(1, 2)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_transcript_that_a_crash_cut_short_is_read_and_continued(tmp_path: Path, cut: int) -> None:
    _record(tmp_path, 2, end=False)
    events = tmp_path / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-cut])
    (tmp_path / "round_00002" / ".from_1.safetensors.part").write_bytes(b"half a file")
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2]
    _equal(t.sent(2), _model(2))
    again = Recorder(tmp_path)  # the federation is resumed at round 2, and goes another way
    again.begin(dict)
    again.sent(2, [(n, _model(50)) for n in NODES[:2]])
    again.received(2, [ClientReply(NODES[0], _model(51))])
    again.end()
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2]
    assert t.clients_of(1) == [0, 1, 2]
    assert t.clients_of(2) == [0]
    _equal(t.sent(2), _model(50))
    _equal(t.received(2, 0), _model(51))
    assert t.aggregate(2) is None
    assert all("cannot be read" in p for p in t.problems)
    assert len(t.problems) == (cut > 1)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no transcript"):
        Transcript.open(tmp_path)
    _record(tmp_path, 1)
    file = next(tmp_path.rglob("from_*"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(RunFolderError, match="damaged or cut short"):
        Transcript.open(tmp_path).received(1, int(file.stem.removeprefix("from_")) - NODES[0])
    with (tmp_path / "events.jsonl").open("a") as log:
        log.write(json.dumps({"event": "sent", "round": 9, "nodes": [1], "file": "../../etc/x.safetensors"}) + "\n")
    t = Transcript.open(tmp_path)
    assert t.rounds == [1]
    assert len(t.problems) == 1
    with pytest.raises(RunFolderError, match="round 9 is not on record"):
        t.sent(9)
    with pytest.raises(RunFolderError, match="no client 8"):
        t.received(1, 8)
    with pytest.raises(RunFolderError, match="precision = 'float32', not 'float16'"):
        Recorder(tmp_path, taping=Taping(precision="float16"))
    (tmp_path / "transcript.json").write_text('{"format": 99}')
    with pytest.raises(RunFolderError, match="format 1"):
        Transcript.open(tmp_path)


def test_taping_stops_at_its_limit_with_a_message_and_stays_readable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "memberscope.tap"):
        recorder = Recorder(tmp_path, taping=Taping(max_bytes=60_000))
        recorder.begin(lambda: {"total_rounds": 19})
        for r in range(1, 20):
            recorder.sent(r, [(n, _model(r)) for n in NODES])
            recorder.received(r, _replies(r))
            recorder.aggregate(r, lambda r=r: _model(r + 1))
    told = caplog.messages
    assert "19 rounds" in told[0]
    assert "max_bytes leaves 59.8 kB: taping will stop after about 3 of them" in told[0]
    assert "the limit of 60 kB is reached" in told[1]
    assert len(told) == 2
    t = Transcript.open(tmp_path)
    assert t.bytes <= 60_000 + 300
    assert t.rounds == [1, 2, 3]
    assert "taping stopped early: the limit of 60 kB is reached (max_bytes)" in t.problems
    for r in t.rounds:
        for k in t.clients_of(r):
            _equal(t.received(r, k), _replies(r)[k].arrays)


def test_a_full_disk_stops_the_taping_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0

    def full(*args: object, **kwargs: object) -> int:
        nonlocal writes
        writes += 1
        if writes > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_arrays(*args, **kwargs)

    monkeypatch.setattr(recorder_module, "write_arrays", full)
    recorder = _record(tmp_path)
    assert recorder.stopped == f"cannot write to {tmp_path}: No space left on device"
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2]  # what round 2 sent was on disk already
    assert t.clients_of(1) == [0, 1, 2]
    assert t.clients_of(2) == []
    assert any("No space left" in p for p in t.problems)


def test_arrays_of_all_kinds_come_back(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=">f4").reshape(2, 3).T,
        "a": np.array(3.5),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "f": np.arange(4, dtype=np.int64)[::2],
    }
    write_arrays(tmp_path / "x.safetensors", arrays)
    back = read_arrays(tmp_path / "x.safetensors")
    assert list(back) == list(arrays)
    for name, value in arrays.items():
        assert back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
