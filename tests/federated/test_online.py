"""Features computed while a federation trains are those that its tape would give, and take no models to disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_settings import settings

from memberscope.errors import ConfigError, RunFolderError
from memberscope.events import Events
from memberscope.federated import audit, online, subject, tap
from memberscope.federated.audit import Asked, audit_federation
from memberscope.federated.federation import Federation, federate
from memberscope.records.pool import Dataset

Run = Callable[..., Federation]
TINY: dict[str, Any] = {"rounds": 3, "record_candidates": 60, "local_epochs": 6}
ASKED = Asked(records=60, attacks=("fl-global-loss", "fl-sum-cosine"))


def test_features_of_an_earlier_recording_in_the_same_folder_are_computed_anew(run: Run) -> None:
    first, second = (run(record="updates", **TINY, **more) for more in ({}, {"learning_rate": 1e-4}))
    (before, _), (expected, _) = rounds_of(first), rounds_of(second)
    assert not np.array_equal(before.rounds.features.reply_phi, expected.rounds.features.reply_phi)
    shutil.rmtree(first.folder / "transcript")
    shutil.copytree(second.folder / "transcript", first.folder / "transcript")
    (after, _), (again, _) = rounds_of(first), rounds_of(first)
    for found in (after, again):
        np.testing.assert_array_equal(found.rounds.features.reply_phi, expected.rounds.features.reply_phi)


def rounds_of(run: Federation, asked: Asked = ASKED) -> Any:
    about = subject.of_run(run.folder)
    chosen = audit.choose(about, asked)
    return audit.observe(about, chosen, asked, Events()), chosen


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"secure_aggregation": True},
        {"record_every": 2, "rounds": 5},
        {"central_noise": 0.1, "central_clip": 1.0, "canary_clients": 5},
    ],
)
def test_they_are_those_of_the_tape_to_the_bit(run: Run, more: dict[str, Any]) -> None:
    taped = run(record="updates", **TINY | more)
    watched = run(record="features", **TINY | more)
    assert watched.summary["weights_sha256"] == taped.summary["weights_sha256"]
    (theirs, chosen), (ours, drawn) = rounds_of(taped), rounds_of(watched)
    for field in fields(drawn):
        np.testing.assert_array_equal(getattr(drawn, field.name), getattr(chosen, field.name))
    for field in fields(theirs.rounds.features):
        expected, found = (getattr(e.rounds.features, field.name) for e in (theirs, ours))
        assert (expected is None) == (found is None), field.name
        if expected is not None:
            assert expected.dtype == found.dtype
            np.testing.assert_array_equal(found, expected, err_msg=field.name)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    assert ours.rounds.knowledge == theirs.rounds.knowledge
    models = list((watched.folder / "transcript").rglob("*.safetensors"))
    assert len(models) == 1  # the one that came out of the last round


def test_an_audit_takes_them(run: Run) -> None:
    taped, watched = (run(record=record, **TINY) for record in ("updates", "features"))
    theirs, ours = (audit_federation(r.folder, ASKED).document for r in (taped, watched))
    for one, other in zip(ours["attacks"], theirs["attacks"], strict=True):
        assert one["evaluation"] == other["evaluation"]
    assert ours["settings"]["audit_records"] == 60
    audit_federation(watched.folder, Asked(records=1000, every=2, attacks=("fl-global-loss",), seed=5))


class _Stop(Events):
    def federation_round(self, record: object, rounds: int, seconds_left: float) -> None:
        if record["round"] == 2:  # type: ignore[index]
            raise KeyboardInterrupt


def test_a_killed_federation_goes_on_with_the_same_features(run: Run, digits: Dataset, tmp_path: Path) -> None:
    whole = run(record="features", **TINY)
    config = settings(record="features", **TINY)
    with pytest.raises(KeyboardInterrupt):
        federate(config, dataset=digits, folder=tmp_path / "run", events=_Stop())
    # What a kill between a round's features and its standing leaves: the round is trained, and computed, again.
    (tmp_path / "run/features/online/round_00003.npz").write_bytes(b"of a round that did not happen")
    resumed = federate(config, dataset=digits, folder=tmp_path / "run", resume=True)
    ours, theirs = (rounds_of(r)[0].rounds.features for r in (resumed, whole))
    for name in ("sent_phi", "next_phi", "reply_phi", "reply_along", "sum_along"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_clients_that_never_took_part_are_not_asked_about(run: Run) -> None:
    sparse = run(record="features", fraction=0.5, **TINY | {"rounds": 1})
    there = {c["client"] for c in sparse.history[0]["clients"]}
    seen, chosen = rounds_of(sparse)
    assert set(chosen.client.tolist()) == there
    assert len(there) == 2
    assert set(seen.rounds.features.clients.tolist()) == there


def test_a_full_disk_ends_the_features_and_not_the_federation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from memberscope.federated.features import FeatureWriter

    written = FeatureWriter.round

    def full(self: FeatureWriter, number: int, *args: Any, **more: Any) -> None:
        if number == 3:
            raise OSError(28, "No space left on device")
        written(self, number, *args, **more)

    monkeypatch.setattr(FeatureWriter, "round", full)
    stopped = run(record="features", **TINY)
    assert len(stopped.history) == 3
    about = subject.of_run(stopped.folder)
    assert any("No space left" in problem for problem in about.transcript.problems)
    assert rounds_of(stopped)[0].rounds.features.rounds.tolist() == [1, 2]


def test_what_cannot_be_told_is_refused(run: Run) -> None:
    watched = run(record="features", **TINY)
    about = subject.of_run(watched.folder)
    with pytest.raises(RunFolderError, match="no models are on record"):
        about.transcript.received(1, 0)
    asked = watched.folder / "features/online/asked.json"
    asked.write_text(json.dumps({**json.loads(asked.read_bytes()), "seed": 4}))
    with pytest.raises(RunFolderError, match="features of other records"):
        rounds_of(watched)
    with pytest.raises(ConfigError, match="malicious party did"):
        settings(record="features", malicious="isolate:0")


def test_somebody_elses_federation(tmp_path: Path) -> None:
    import torch
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    from memberscope.federated.engine import run_in_process
    from memberscope.federated.subject import of_transcript
    from memberscope.federated.transcript import Transcript

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(240, 6)).astype(np.float32), rng.integers(0, 3, 240)
    owner = np.repeat(np.array([0, 1, 2, -1], np.int32), 60)
    member = (rng.random(240) < 0.5) & (owner >= 0)

    def net() -> torch.nn.Module:
        return torch.nn.Linear(6, 3)

    clients = ClientApp()

    @clients.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        arrays = {k: a.numpy() for k, a in message.content["arrays"].items()}
        moved = ArrayRecord({k: Array(a + np.float32(0.1 * (client + 1))) for k, a in arrays.items()})
        return Message(RecordDict({"arrays": moved, "m": MetricRecord({"num-examples": 5})}), reply_to=message)

    def run_once(out: Path, **more: Any) -> None:
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = tap.watch(FedAvg(fraction_evaluate=0.0, min_available_nodes=3), out, **more)
            start = ArrayRecord({"weight": Array(np.eye(3, 6, dtype=np.float32)), "bias": Array(np.zeros(3, "f4"))})
            strategy.start(grid=grid, initial_arrays=start, num_rounds=2)

        run_in_process(server, clients, n_clients=3, seed=0)

    run_once(tmp_path / "tape")
    features = online.features(
        tmp_path / "seen", net(), x, y, owner, member, per_client=40, population=20, by_coin=True
    )
    run_once(tmp_path / "seen", features=features)
    found = []
    for name in ("tape", "seen"):
        recorded = Transcript.open(tmp_path / name)
        about = of_transcript(recorded, net(), x, y, owner, member, name=name, by_coin=True)
        asked = Asked(records=40, population=20)
        found.append(audit.observe(about, audit.choose(about, asked), asked, Events()))
        assert about.accuracy() is not None
    for name in ("reply_phi", "reply_along", "next_phi", "sum_along"):
        np.testing.assert_array_equal(*(getattr(f.rounds.features, name) for f in found))
