"""A study of federations: each defense from every seat, run once, gone on with after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from memberscope.cli import main as run_command
from memberscope.errors import ConfigError
from memberscope.federated import study

TEXT = """
name = "tiny"
fpr = 0.1
[base]
dataset = "digits"
model = "mlp"
clients = 3
rounds = 2
local_epochs = 8
batch_size = 16
records = 80
[rows.none]
references = 1
[rows.sums]
secure_aggregation = true
canary_clients = 5
[axes]
seed = [0]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    return path


def test_a_study_has_a_line_for_each_defense_and_seat(file: Path, tmp_path: Path) -> None:
    config = study.read_study(file)
    lines = study.run(config, {"out": tmp_path, "device": "cpu"})
    measured = {(line["row"], line["seat"]) for line in lines if line["status"] == "measured"}
    assert {("none", "curious server"), ("none", "curious client"), ("sums", "curious client")} <= measured
    assert ("sums", "curious server") not in measured
    server = next(line for line in lines if (line["row"], line["seat"]) == ("none", "curious server"))
    assert 0.5 < server["auc"] <= 1
    assert server["auc_low"] <= server["auc"] <= server["auc_high"]
    folder = tmp_path / "tiny"
    assert (folder / "tradeoff_curious_server.png").is_file()
    assert "curious server" in (folder / "study.md").read_text()
    sums = next(line for line in lines if line["row"] == "sums" and line["status"] == "measured")
    assert sums["canary_clients"] == 5
    assert sums["epsilon_by_canaries_low"] < sums["epsilon_by_canaries"] < sums["epsilon_by_canaries_high"]
    assert server["epsilon_by_canaries"] is None
    assert "(client, by canaries)" in (folder / "study.md").read_text()
    header = (folder / "study.csv").read_text().splitlines()[0].split(",")
    assert {"canary_clients", "epsilon_by_canaries", "epsilon_by_canaries_low"} <= set(header)
    results = json.loads((folder / server["run"] / "audit/results.json").read_bytes())
    assert results["federation"]["references"] == 1
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*/audit/results.json")}
    assert len(stamps) == 2
    assert study.run(config, {"out": tmp_path, "device": "cpu"}) == lines
    assert {p: p.stat().st_mtime_ns for p in folder.glob("cells/*/audit/results.json")} == stamps


def test_federations_made_at_once_are_those_made_one_after_the_other(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace("references = 1", "dropout = 0.2").replace("canary_clients = 5", ""))
    config = study.read_study(file)
    here, there = (
        study.run(config, {"out": tmp_path / str(workers), "device": "cpu", "threads": 1, "workers": workers})
        for workers in (1, "2")
    )
    assert [line["status"] for line in here].count("measured") >= 6
    for one, other in zip(here, there, strict=True):
        assert {k: v for k, v in one.items() if k != "minutes"} == {k: v for k, v in other.items() if k != "minutes"}
    with pytest.raises(ConfigError, match="workers = 'many'"):
        study.run(config, {"out": tmp_path, "workers": "many"})


def test_the_command_hands_its_settings_on(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(["federate", "study", str(file), "--out", str(tmp_path), "--workers", "many"])
    assert end.value.code == 3
    assert "workers = 'many'" in capsys.readouterr().err
    given = {"out": tmp_path, "device": "cpu", "threads": 2, "workers": "4", "data_dir": None}
    assert study.where_of(**given, models_dir=tmp_path) == {k: v for k, v in given.items() if v is not None}


def test_a_table_of_what_is_there_trains_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(["federate", "study", str(file), "--out", str(tmp_path), "--table", "--json"])
    assert end.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str((tmp_path / "tiny").resolve())
    assert {(line["row"], line["status"]) for line in document["lines"]} == {("none", "missing"), ("sums", "missing")}
    assert (tmp_path / "tiny" / "study.md").is_file()
    assert not (tmp_path / "tiny" / "cells").exists()


def test_settings_of_federations_are_checked_before_any_is_trained(file: Path) -> None:
    file.write_text(TEXT.replace("secure_aggregation = true", "secure_agregation = true"))
    with pytest.raises(ConfigError, match=r"audit \(sums, seed 0\): unknown setting 'secure_agregation'"):
        study.read_study(file)


def test_shipped_studies_of_federations_are_studies() -> None:
    shipped = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "studies").glob("*_federated.toml"))
    assert shipped
    for path in shipped:
        assert study.read_study(path).cells()
