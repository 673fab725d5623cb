"""Canary clients in real federations: the known epsilon is found, and nobody takes them for clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation_settings import settings

from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.federated.canary_clients import CanaryClients, CanaryLengths, fixed_length
from memberscope.federated.federation import Federation, federate
from memberscope.federated.outcome import client_privacy
from memberscope.federated.transcript import Transcript
from memberscope.records.pool import Dataset

Run = Callable[..., Federation]


@pytest.mark.parametrize(("clip_at", "noise"), [("server", 2.0), ("client", 1.0), ("server", 6.0)])
def test_the_epsilon_of_known_noise_is_found(run: Run, clip_at: str, noise: float) -> None:
    trained = run(rounds=4, local_epochs=1, central_noise=noise, central_clip=0.5, clip_at=clip_at, canary_clients=60)
    told, promised = trained.summary["canaries"], trained.summary["privacy"]
    assert promised["mu"] == pytest.approx(2.0 / noise)
    # The cosines of 60 canaries have a standard deviation of 1: their mean is off by no more than 0.5, surely.
    assert told["mu"]["value"] == pytest.approx(promised["mu"], abs=0.5)
    assert told["mu"]["low"] < told["mu"]["value"] < told["mu"]["high"]
    assert (told["took_part"], told["rounds"], told["length"]) == (60, 4.0, 0.5)
    assert 0.7 < told["unseen_spread"] < 1.3


def test_nobody_takes_a_canary_for_a_client(run: Run, digits: Dataset) -> None:
    trained = run(rounds=2, local_epochs=1, canary_clients=6, record="updates", local_epsilon=500.0)
    assert trained.summary["clients"] == trained.design.n_clients == 4
    assert np.array_equal(trained.design.owner, run(rounds=1).design.owner)
    assert [[c["client"] for c in r["clients"]] for r in trained.history] == [[0, 1, 2, 3]] * 2
    assert [r["canaries"] for r in trained.history] == [[4, 5, 6, 7, 8, 9]] * 2
    tape = Transcript.open(trained.transcript)
    assert tape.clients_of(1) == [0, 1, 2, 3]
    sums = run(rounds=2, local_epochs=1, canary_clients=6, secure_aggregation=True, record="updates", local_epsilon=500)
    alone = Transcript.open(sums.transcript)
    assert sums.summary["weights_sha256"] == trained.summary["weights_sha256"]
    for name, mean in alone.sum(2).items():  # what the auditor's own clients sent is not in the sum
        np.testing.assert_allclose(mean, tape.sum(2)[name], atol=1e-6)


def test_without_clipping_canaries_are_as_long_as_the_clients_updates(run: Run) -> None:
    trained = run(rounds=3, canary_clients=5, fraction=1.0, drop_out=0.2)
    lengths = [(r["canary_length"], r["next_length"]) for r in trained.history]
    assert lengths[0][0] == 0
    assert trained.history[0]["canaries"] == []  # nobody knew yet how long an update is
    assert [now for now, _ in lengths[1:]] == [following for _, following in lengths[:-1]]
    assert 0 < lengths[2][0] == trained.summary["canaries"]["length"]
    told = trained.summary["canaries"]
    assert told["took_part"] == 5
    assert told["epsilon"]["low"] > 1  # no noise hides them


class _Stop(Events):
    def federation_round(self, record: object, rounds: int, seconds_left: float) -> None:
        if record["round"] == 2:  # type: ignore[index]
            raise KeyboardInterrupt


@pytest.mark.parametrize("more", [{}, {"central_noise": 1.0, "central_clip": 0.5}])
def test_resumed_federations_say_the_same(digits: Dataset, tmp_path: Path, more: dict[str, float]) -> None:
    config = settings(rounds=4, canary_clients=5, fraction=0.8, **more)
    whole = federate(config, dataset=digits, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        federate(config, dataset=digits, folder=tmp_path / "stopped", events=_Stop())
    resumed = federate(config, dataset=digits, folder=tmp_path / "stopped", resume=True)
    for key in ("weights_sha256", "canaries", "privacy"):
        assert resumed.summary[key] == whole.summary[key]
    assert json.loads((tmp_path / "stopped/federation.json").read_text())["canaries"] == whole.summary["canaries"]


def test_too_few_that_took_part_say_nothing(run: Run) -> None:
    told = run(rounds=1, fraction=0.3, canary_clients=5, canary_length=1.0).summary["canaries"]
    assert told["epsilon"] is None
    assert "of 5 canary clients took part" in told["reason"]


def test_statistics_of_a_batch_normalisation_are_left_alone() -> None:
    config = settings(canary_clients=5, canary_length=3.0)
    sent = {"w": np.zeros(50, np.float32), "running_var": np.full(4, 1e-3, np.float32), "count": np.array(3)}
    reply, weight = CanaryClients(config, 4, 70, ["w"]).reply(4, sent, {})
    assert weight == 70
    assert np.linalg.norm(reply["w"]) == pytest.approx(3.0)
    assert reply["running_var"] is sent["running_var"]


def test_how_long_a_canary_is() -> None:
    assert fixed_length(settings(canary_clients=5)) is None
    assert fixed_length(settings(canary_clients=5, central_noise=1.0, central_clip=0.3)) == 0.3
    assert fixed_length(settings(canary_clients=5, local_epsilon=1.0, local_clip=0.7)) == 0.7
    assert fixed_length(settings(canary_clients=5, canary_length=2.0, local_epsilon=1.0)) == 2.0
    lengths = CanaryLengths(settings(canary_clients=5), 4)
    lengths.after([{"partition-id": 0, "update-norm": 3.0}, {"partition-id": 5, "update-norm": 0.0}])
    assert lengths.after([{"partition-id": 7, "update-norm": 0.0}]) == {
        "canaries": [7],
        "canary_length": 3.0,
        "next_length": 3.0,
    }


def test_what_cannot_be_is_refused() -> None:
    for changes, told in (
        ({"canary_clients": 3}, "say too little"),
        ({"canary_length": 1.0}, "without --canary-clients"),
        ({"canary_clients": 10, "strategy": "qfedavg"}, "no"),
    ):
        with pytest.raises(ConfigError, match=told):
            settings(**changes)


def test_fewer_replies_are_a_weaker_promise() -> None:
    """The noise was scaled to the mean of all that were asked: of half as many, each counts twice."""
    config = settings(central_noise=2.0, central_clip=1.0, rounds=4)
    all_there = client_privacy(config, 4, [{"clients": [0, 1, 2, 3]}] * 4)
    half = client_privacy(config, 4, [{"clients": [0, 1]}] * 4)
    nobody = client_privacy(config, 4, [{"clients": [0, 1, 2, 3]}] * 3 + [{"clients": []}])
    assert all_there is not None
    assert half is not None
    assert nobody is not None
    assert all_there["mu"] == pytest.approx(1.0)
    assert half["mu"] == pytest.approx(2.0)
    assert nobody["mu"] == pytest.approx(np.sqrt(3) / 2)
    other = client_privacy(settings(central_noise=2.0, central_clip=1.0, strategy="fedadam"), 4, [])
    assert other is not None
    assert other["epsilon"] is None
    assert "fedadam makes more" in other["reason"]


def test_an_audit_tells_the_estimate_beside_the_accountant(run: Run, tmp_path: Path) -> None:
    from memberscope.federated.audit import Asked, audit_federation
    from memberscope.federated.study import _seats
    from memberscope.report.wording import significant
    from memberscope.summary import summary_lines

    trained = run(rounds=2, record="updates", central_noise=3.0, central_clip=0.5, canary_clients=8)
    found = audit_federation(trained.folder, Asked(records=40, attacks=("fl-cosine",)))
    promised, canaries = (found.document["federation"]["privacy"][key] for key in ("clients", "canaries"))
    assert (promised, canaries) == (trained.summary["privacy"], trained.summary["canaries"])
    (printed,) = (line for line in summary_lines(found.document) if line.startswith("Canary clients: "))
    assert "an estimate from 8 canary clients" in printed
    assert f"the accountant's bound is {significant(promised['epsilon'])}" in printed
    report = (found.save(tmp_path / "audit") / "report.html").read_text(encoding="utf-8")
    assert "Estimated by canary clients" in report
    assert "Promised to a client" in report
    for line in _seats(found.document, trained.summary):
        assert line["epsilon_of_a_client"] == promised["epsilon"]
        assert line["epsilon_by_canaries_low"] <= line["epsilon_by_canaries"] <= line["epsilon_by_canaries_high"]
        assert line["canary_clients"] == 8
