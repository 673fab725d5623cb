"""Federations are trained, repeatable bit for bit, and go on after a kill -9 as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_settings import SETTINGS, settings

from memberscope.errors import ConfigError, RunFolderError
from memberscope.events import Events
from memberscope.federated.federation import Federation, federate, read
from memberscope.federated.outcome import client_privacy
from memberscope.locks import claim
from memberscope.records.pool import Dataset

Run = Callable[..., Federation]


@pytest.mark.usefixtures("pictures")
def test_it_learns_and_explains_itself(run: Run, digits: Dataset) -> None:
    trained = run(rounds=12)
    accuracy = trained.summary["accuracy"]
    assert accuracy["of_nobody"] > 0.8
    first, last = trained.history[0], trained.history[-1]
    assert last["test_loss"] < first["test_loss"]
    assert [c["client"] for c in last["clients"]] == [0, 1, 2, 3]
    assert sum(c["examples"] for c in last["clients"]) == trained.design.member.sum()
    assert last["clients"][0]["train_loss"] < last["clients"][0]["global_loss"]  # it trained on what it was sent
    for name in ("config.toml", "partition.npy", "membership.npy", "partition.png", "learning_curves.png"):
        assert (trained.folder / name).is_file()
    again = read(trained.folder, dataset=digits)
    assert again.config == trained.config
    assert again.history == trained.history
    np.testing.assert_array_equal(again.model.query(digits.x[:9]), trained.model.query(digits.x[:9]))


def test_the_same_seed_gives_the_same_bits(run: Run) -> None:
    sha = [run(seed=seed, fraction=0.5, dropout=0.3).summary["weights_sha256"] for seed in (1, 1, 2)]
    assert sha[0] == sha[1] != sha[2]


def test_clients_train_on_their_members_alone(run: Run, digits: Dataset) -> None:
    """Whatever the other records are, the model stays the same to the bit."""
    plain = run()
    x = digits.x.copy()
    x[~plain.design.member] = 255 - x[~plain.design.member]
    other = federate(
        plain.config,
        dataset=replace(digits, x=x),
        design=plain.design,
        folder=plain.folder.parent / "other",
    )
    assert other.summary["weights_sha256"] == plain.summary["weights_sha256"]


class _Stop(Events):
    """Kills the run in the middle of a round, as a power cut would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def federation_round(self, record: object, rounds: int, seconds_left: float) -> None:
        if record["round"] == self.after:  # type: ignore[index]
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedavgm"])
def test_resumed_runs_are_bit_identical(run: Run, digits: Dataset, tmp_path: Path, strategy: str) -> None:
    options = {"fedavgm": ("server_momentum=0.9",)}.get(strategy, ())
    config = settings(rounds=4, strategy=strategy, strategy_options=options, fraction=0.5, learning_rate=0.01)
    whole = federate(config, dataset=digits, folder=tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        federate(config, dataset=digits, folder=folder, events=_Stop(after=2))
    with pytest.raises(RunFolderError, match="not finished"):
        read(folder)
    with (folder / "rounds/history.jsonl").open("a") as file:
        file.write('{"round": 3, "half": ')  # a line that a killed run did not finish
    resumed = federate(config, dataset=digits, folder=folder, resume=True)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.history]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in whole.history]


def test_kill_9_in_the_middle_of_a_round(digits: Dataset, tmp_path: Path) -> None:
    given = {**SETTINGS, "rounds": 40, "out": tmp_path}
    flags = [f for k, v in given.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "memberscope", "federate", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/rounds/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, told = process.communicate()
    assert list(tmp_path.glob("*/rounds/state.safetensors")), told
    (folder,) = tmp_path.glob("digits_federated_*")
    done = json.loads((folder / "rounds/history.jsonl").read_text().splitlines()[-1])["round"]
    assert done < 40
    config = settings(rounds=40)
    resumed = federate(config, dataset=digits, folder=folder, resume=True)
    whole = federate(config, dataset=digits, folder=tmp_path / "whole")
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_folder_holds_one_federation_and_one_process(run: Run, digits: Dataset) -> None:
    trained = run()
    history = (trained.folder / "rounds/history.jsonl").read_text()
    with pytest.raises(RunFolderError, match="holds a federation already"):
        federate(settings(seed=5), dataset=digits, folder=trained.folder)
    with claim(trained.folder / ".federation.lock") as ours:
        assert ours
        with pytest.raises(RunFolderError, match="another process is at the federation"):
            federate(settings(), dataset=digits, folder=trained.folder, resume=True)
    assert (trained.folder / "rounds/history.jsonl").read_text() == history
    again = federate(settings(), dataset=digits, folder=trained.folder, resume=True)
    assert again.summary["weights_sha256"] == trained.summary["weights_sha256"]


def test_a_resumed_run_needs_the_same_records(run: Run, digits: Dataset) -> None:
    trained = run()
    with pytest.raises(RunFolderError, match="other settings: seed = 5 instead of 0"):
        federate(settings(seed=5), dataset=digits, folder=trained.folder, resume=True)
    other = replace(digits, x=255 - digits.x)
    with pytest.raises(RunFolderError, match="are others, or shared out otherwise"):
        federate(settings(), dataset=other, folder=trained.folder, resume=True)
    with pytest.raises(RunFolderError, match="no folder of a federation"):
        read(trained.folder.parent)


def test_progress_is_told_by_client_and_round(digits: Dataset, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    class Listening(Events):
        def federation_client(self, client: int, done: int, expected: int) -> None:
            told.append((done, expected))

        def federation_round(self, record: object, rounds: int, seconds_left: float) -> None:
            told.append((0, rounds))

    federate(settings(rounds=2), dataset=digits, folder=tmp_path / "run", events=Listening())
    assert told == 2 * [(1, 4), (2, 4), (3, 4), (4, 4), (0, 2)]


def test_a_hundred_sampled_clients_of_many(run: Run) -> None:
    trained = run(clients=100, fraction=0.1, rounds=2, held_fraction=0.0)
    assert [len(r["clients"]) for r in trained.history] == [10, 10]
    assert {c["client"] for c in trained.history[0]["clients"]} != {c["client"] for c in trained.history[1]["clients"]}


def test_central_noise_is_accounted_for(run: Run) -> None:
    trained = run(central_noise=1.0, central_clip=0.5, rounds=4)
    privacy = trained.summary["privacy"]
    assert privacy["mu"] == pytest.approx(2.0)
    assert 8 < privacy["epsilon"] < 10.5  # Gaussian mechanism of mu = 2 at 1e-5
    assert client_privacy(settings(), 4, []) is None


def test_dp_sgd_at_the_clients_is_accounted_for(run: Run) -> None:
    pytest.importorskip("opacus")
    told = run(dp_noise=1.0, rounds=2).summary["record_privacy"]
    more = run(dp_noise=1.0, rounds=4).summary["record_privacy"]
    assert 0 < told["epsilon"] < more["epsilon"]
    assert more["steps"] == 2 * told["steps"]
    aimed = run(dp_epsilon=5.0, rounds=4, fraction=0.5).summary["record_privacy"]
    assert aimed["epsilon"] < 5.0  # a client takes part in some of the rounds only


@pytest.mark.parametrize("defense", [{"central_noise": 0.1, "central_clip": 1.0}, {"local_epsilon": 100.0}])
def test_statistics_are_not_clipped_with_weights(run: Run, defense: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="batch normalisation"):
        run(model="resnet18", rounds=1, **defense)


def test_what_settings_are_refused() -> None:
    for changes, told in (
        ({"rounds": 0}, "out of range"),
        ({"fraction": 1.5}, "out of range"),
        ({"early_stopping": 3}, "early_stopping has no place in a federation"),
        ({"epochs": 7}, "of a central training"),
        ({"central_noise": 1.0}, "go together"),
        ({"late": "never"}, "unknown"),
        ({"clint": 3}, "unknown setting 'clint'"),
        ({"clients": 2.5}, "not a whole number"),
    ):
        with pytest.raises(ConfigError, match=told):
            settings(**changes)
    assert settings(rounds=5, local_epochs=3).recipe.epochs == 15


def test_the_server_keeps_what_it_saw(run: Run) -> None:
    from memberscope.federated.transcript import Transcript

    trained = run(record="updates", rounds=2)
    tape = Transcript.open(trained.transcript)
    assert (tape.rounds, tape.clients_of(2)) == ([1, 2], [0, 1, 2, 3])
    weights = [tape.num_examples(2, k) for k in range(4)]
    mean = sum(w * tape.received(2, k)["fc1.weight"] for k, w in enumerate(weights)) / sum(weights)
    np.testing.assert_allclose(mean, tape.final()["fc1.weight"], atol=1e-6)
    np.testing.assert_array_equal(tape.final()["fc3.bias"], trained.model.module.fc3.bias.detach().numpy())
    sums = run(record="updates", secure_aggregation=True, rounds=2)
    tape = Transcript.open(sums.transcript)
    assert tape.only_sums
    assert sums.summary["weights_sha256"] == trained.summary["weights_sha256"]
