"""Reference federations: trained beside a run, found again by its audit, refused where they are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_settings import settings

from memberscope.errors import ConfigError, DataError
from memberscope.events import Events
from memberscope.federated import references, subject
from memberscope.federated.audit import Asked, audit_federation
from memberscope.federated.audit_command import run as audit_command
from memberscope.federated.config import FederationConfig
from memberscope.federated.federation import Federation, federate
from memberscope.records.pool import Dataset


@pytest.fixture(scope="module")
def config() -> FederationConfig:
    return settings(record="updates", rounds=3, local_epochs=8, references=2)


@pytest.fixture(scope="module")
def trained(config: FederationConfig, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return federate(config, dataset=digits, folder=tmp_path_factory.mktemp("target") / "run")


def test_they_differ_in_coins_and_draws_alone(trained: Federation) -> None:
    beside = references.finished(trained.folder)
    assert [path.name for path in beside] == ["00", "01"]
    target, *others = (subject.of_run(path) for path in (trained.folder, *beside))
    for other in others:
        np.testing.assert_array_equal(other.owner, target.owner)
        held = target.owner >= 0
        assert 0.35 < (other.member != target.member)[held].mean() < 0.65
        assert other.target["weights_sha256"] != target.target["weights_sha256"]
    assert not np.array_equal(others[0].member, others[1].member)
    references.check(target, others)


def test_the_audit_takes_those_beside_the_run(trained: Federation, tmp_path: Path, capsys: object) -> None:
    asked = Asked(records=60, attacks=("fl-lira-cosine", "fl-cosine"))
    assert audit_command(trained.folder, None, None, asked, out=tmp_path / "audit", quiet=True) == 0
    import json

    told = json.loads((tmp_path / "audit/results.json").read_bytes())
    assert told["federation"]["references"] == 2
    by_name = {a["name"]: a["evaluation"]["auc"] for a in told["attacks"]}
    assert by_name["fl-lira-cosine"]["low"] > 0.5
    assert "--references" in told["reproduce"][0]
    assert "Reference federations" in (tmp_path / "audit/report.html").read_text(encoding="utf-8")


def test_an_interrupted_one_goes_on(
    trained: Federation, config: FederationConfig, digits: Dataset, tmp_path: Path
) -> None:
    class Stop(Events):
        rounds_done = 0

        def federation_round(self, record: object, rounds: int, seconds_left: float) -> None:
            self.rounds_done += 1
            if self.rounds_done == 5:  # in the first reference federation
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        federate(config, dataset=digits, folder=folder, events=Stop())
    assert references.finished(folder) == []
    federate(config, dataset=digits, folder=folder, resume=True)
    for ours, theirs in zip(references.finished(folder), references.finished(trained.folder), strict=True):
        weights = [subject.of_run(path).target["weights_sha256"] for path in (ours, theirs)]
        assert weights[0] == weights[1]


def test_what_is_no_reference_is_refused(trained: Federation, digits: Dataset) -> None:
    target = subject.of_run(trained.folder)
    reference = subject.of_run(references.finished(trained.folder)[0])
    elsewhere = reference.owner.copy()
    elsewhere[np.flatnonzero(elsewhere == 0)[0]] = 1
    for wrong, told in (
        (replace(reference, dataset={**reference.dataset, "fingerprint": "x"}), "other records"),
        (replace(reference, owner=elsewhere), "other clients hold the records"),
        (target, "would give the truth away"),
        (replace(reference, settings={**reference.settings, "local_epochs": 1}), "local_epochs = 1 instead of 8"),
        (replace(reference, settings={**reference.settings, "dropout": 0.5}), "dropout = 0.5 instead of"),
    ):
        with pytest.raises(DataError, match=told):
            audit_federation(target, Asked(records=20), references=[wrong])
    with pytest.raises(ConfigError, match="no client's updates are recorded"):
        federate(settings(references=1), dataset=digits)
