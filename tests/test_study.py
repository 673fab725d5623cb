"""Studies: the grid, what is run and what is skipped, what a kill loses, the tables and the front."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memberscope import study as study_module
from memberscope.cli import main
from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.report.tradeoff import tradeoff
from memberscope.study import run, state
from memberscope.study_config import StudyConfig, read_study
from memberscope.study_files import markdown
from memberscope.study_plan import plan
from memberscope.study_table import Point, common_rate, mark_front

HALF = {"protocol": "random-half", "validation_fraction": 0, "model": "mlp", "attacks": ["loss", "rmia-online"]}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1200)
    x = (rng.normal(size=(1200, 6)) + y[:, None]).astype(np.float32)
    path = tmp_path_factory.mktemp("records") / "toy.npz"
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def make(records: str, **changes) -> StudyConfig:
    base = {"dataset": records, "epochs": 2, "shadows": 2, **HALF}
    rows = {"none": {}, "dropout": {"dropout": 0.5}}
    return StudyConfig(**{"name": "toy", "base": base, "rows": rows, "axes": {}, "fpr": 0.01} | changes)


@pytest.fixture(scope="module")
def finished(records: str, tmp_path_factory: pytest.TempPathFactory):
    """A study of two rows with canaries, and where it lies."""
    where = {"out": tmp_path_factory.mktemp("out"), "models_dir": tmp_path_factory.mktemp("models")}
    base = {"dataset": records, "epochs": 20, "shadows": 2, "canaries": 260, **HALF}
    config = make(records, base=base)
    return config, where, run(config, where)


def test_the_grid_is_every_row_at_every_point(records):
    config = make(records, axes={"seed": (0, 1), "epochs": (1, 2)})
    cells = config.cells()
    assert [(c.row, c.axes["seed"], c.axes["epochs"]) for c in cells[:3]] == [
        ("none", 0, 1),
        ("dropout", 0, 1),
        ("none", 0, 2),
    ]
    assert len(cells) == len({c.key for c in cells}) == 8
    assert cells[1].config({}).recipe.dropout == 0.5
    assert cells[1].config({}).shadows == 2
    assert cells[-1].config({"threads": 1}).threads == 1


def test_a_cell_is_known_by_its_settings_alone(records):
    one, two = make(records), make(records, rows={"dropout": {"dropout": 0.5}, "none": {}}, fpr=0.1)
    assert {c.key for c in one.cells()} == {c.key for c in two.cells()}
    other = make(records, base={"dataset": records, "epochs": 3, **HALF})
    assert not {c.key for c in one.cells()} & {c.key for c in other.cells()}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": {}}, "no rows"),
        ({"name": "a/b"}, "names no folder"),
        ({"fpr": 0}, "fpr = 0"),
        ({"rows": {"a": {"droput": 0.5}}}, r"audit \(a\): unknown setting 'droput'"),
        ({"rows": {"a": {}, "b": {"dropout": 0.0, "epochs": 2}, "c": {"dropout": 0.0}}}, "are the same audit"),
        ({"rows": {"a": {"dropout": 2}}}, r"audit \(a\): dropout = 2 is out of range"),
        ({"rows": {"a": {"seed": 1}}, "axes": {"seed": (0, 1)}}, "both set seed"),
        ({"rows": {"a": 3}}, "no table"),
        ({"axes": {"seed": 3}}, "axis seed = 3"),
        ({"rows": {"a": {"threads": 1}}}, "cannot set threads"),
        ({"rows": {"a": {"weights": "w"}}}, "cannot set weights"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(records, changes, told):
    with pytest.raises(ConfigError, match=told):
        make(records, **changes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows = [", "cannot be read"),
        ("nome = 'x'", "did you mean 'name'"),
        ("base = 3", "base is no table"),
        ("[base]\ndataset = 'digits'", "the study has no rows"),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path, text, told):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        read_study(tmp_path / "s.toml")
    assert "s.toml" in str(caught.value)


def test_a_study_is_read_from_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[base]\ndataset = "digits"\n[rows.none]\n[rows."L2, 5e-4"]\nweight_decay = 5e-4\n[axes]\nseed = [0, 1]\n'
    )
    config = read_study(path)
    assert config.name == "mine"
    assert [str(c) for c in config.cells()] == [
        "none, seed 0", "L2, 5e-4, seed 0", "none, seed 1", "L2, 5e-4, seed 1",
    ]  # fmt: skip


def test_every_audit_is_a_run_folder_and_a_line(finished):
    config, _, study = finished
    assert study.complete
    lines = study.lines()
    assert [line["row"] for line in lines] == ["none", "dropout"]
    for line in lines:
        document = json.loads((study.folder / line["run"] / "results.json").read_text())
        assert line["test_acc_low"] < line["test_acc"] == document["target"]["test_acc"] < line["test_acc_high"]
        assert line["reference_models"] == 2
        assert line["attack"] in ("rmia-online", "rank-fusion")
        assert line["auc_low"] < line["auc"] < line["auc_high"]
        assert line["lowest_fpr"] == 0.1
        assert line["tpr_at_0.01"] is None
        assert line["canary_kind"] == "mislabelled"
        assert line["epsilon_at_least_canaries"] == document["bounds"]["canaries"]["epsilon"]
    assert config.cells()[1].config({}).recipe.dropout == 0.5


def test_tables_say_the_same_in_every_format(finished):
    _, _, study = finished
    with (study.folder / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = study.lines()
    assert [float(row["auc"]) for row in rows] == [line["auc"] for line in lines]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(study.folder / "study.parquet").to_pylist()
    assert [row["auc"] for row in table] == [line["auc"] for line in lines]
    with (study.folder / "attacks.csv").open() as file:
        attacks = list(csv.DictReader(file))
    assert {(a["row"], a["records"], a["attack"]) for a in attacks} >= {
        ("none", "population", "loss"), ("dropout", "mislabelled", "rmia-online"),
    }  # fmt: skip
    text = (study.folder / "study.md").read_text()
    assert f"{lines[0]['auc']:.3f} [{lines[0]['auc_low']:.3f}, {lines[0]['auc_high']:.3f}]" in text
    assert (study.folder / "tradeoff.png").stat().st_size > 5000
    assert (study.folder / "tradeoff_canaries.png").stat().st_size > 5000


def test_what_is_there_is_not_made_again(finished, monkeypatch):
    config, where, study = finished
    before = {path: path.stat().st_mtime_ns for path in study.folder.glob("cells/*/results.json")}
    monkeypatch.setattr(sys.modules["memberscope.audit"], "audit", lambda *a, **k: pytest.fail("nothing is missing"))
    assert run(config, where).complete
    assert before == {path: path.stat().st_mtime_ns for path in study.folder.glob("cells/*/results.json")}


def test_an_audit_that_fails_is_told_and_the_others_go_on(records, tmp_path, capsys):
    notes: list[str] = []

    class Listening(Events):
        def note(self, text: str) -> None:
            notes.append(text)

    rows = {"too many": {"canaries": 900}, "fine": {"shadows": 0, "epochs": 1}}
    study = run(make(records, rows=rows), {"out": tmp_path, "models_dir": tmp_path / "m"}, events=Listening())
    assert [line["status"] for line in study.lines()] == ["failed", "done"]
    assert "900 canaries" in study.lines()[0]["reason"]
    assert any("too many" in note for note in notes)
    assert "Failed: too many" in (study.folder / "study.md").read_text()
    assert "Without reference models" in (study.folder / "study.md").read_text()
    assert study.points() == ([], None), "an attacker who is not adaptive is not in the picture"


def test_an_audit_that_another_process_is_at_is_left_to_it(records, tmp_path):
    config = make(records, rows={"none": {"shadows": 0, "epochs": 1}, "short": {"shadows": 0, "epochs": 2}})
    key = config.cells()[0].key
    lock = config.folder(tmp_path) / "cells" / f".{key}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        study = run(config, {"out": tmp_path, "models_dir": tmp_path / "m"})
    assert study.busy == (key,)
    assert [line["status"] for line in study.lines()] == ["missing", "done"]


def test_a_killed_study_goes_on(records, tmp_path):
    path = tmp_path / "killed.toml"
    path.write_text(
        f"fpr = 0.1\n[base]\ndataset = {json.dumps(records)}\n"
        'protocol = "random-half"\nmodel = "mlp"\nattacks = ["loss"]\n'
        "[rows.short]\nepochs = 1\n[rows.long]\nepochs = 100000\n"
    )
    words = ["study", str(path), "--out", str(tmp_path), "--models-dir", str(tmp_path / "m"), "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "memberscope", *words], start_new_session=True)
    short = read_study(path).cells()[0]
    done = tmp_path / "killed" / "cells" / short.key / "results.json"
    deadline = time.monotonic() + 90
    while not done.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = state(read_study(path), tmp_path / "killed")
    assert list(there.documents) == [short.key]
    path.write_text(path.read_text().replace("100000", "2"))
    before = done.stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert state(read_study(path), tmp_path / "killed").complete
    assert done.stat().st_mtime_ns == before


def test_dry_run_counts_trainings_and_writes_nothing(records, tmp_path, capsys):
    path = tmp_path / "dry.toml"
    base = f'dataset = {json.dumps(records)}\nprotocol = "random-half"\nmodel = "mlp"\nshadows = 3\n'
    path.write_text(f"[base]\n{base}[rows.none]\n[rows.long]\nepochs = 200\n")
    words = ["study", str(path), "--out", str(tmp_path / "out"), "--models-dir", str(tmp_path / "m"), "--dry-run"]
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    audits = json.loads(capsys.readouterr().out)["audits"]
    assert [a["trainings"] for a in audits] == [5, 5], "reference models come in pairs"
    assert audits[1]["seconds"] > 5 * audits[0]["seconds"] > 0
    with pytest.raises(SystemExit):
        main(words)
    assert "0 of 2 audits are done. The others train 10 models" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m").exists()


def test_a_dry_run_measures_the_records_that_the_audit_will_use(records, tmp_path):
    base = {"dataset": records, "shadows": 2, **HALF}
    rows = {"all": {}, "few": {"subset": 120}}
    every, few = plan(make(records, base=base, rows=rows), tmp_path, {"models_dir": tmp_path, "device": "cpu"})
    assert every.trainings == few.trainings == 3
    assert few.seconds < 0.5 * every.seconds  # a tenth, up to what a busy machine makes of measuring


def test_levels_and_weaker_adversaries_are_told(finished):
    _, _, study = finished
    documents = json.loads(json.dumps(dict(study.documents)))
    first, second = documents.values()
    assert "Intervals are 95\N{NO-BREAK SPACE}%, over records." in markdown(study)
    for document in (first, second):
        document["settings"]["confidence"] = 0.9
    second["ladder"] = [row for row in second["ladder"] if row["adversary"] not in ("insider", "thief")]
    changed = replace(study, documents=documents)
    wide, narrow = study.lines()[0], changed.lines()[0]
    assert wide["test_acc_low"] < narrow["test_acc_low"] < narrow["test_acc_high"] < wide["test_acc_high"]
    told = markdown(changed)
    assert "Intervals are 90\N{NO-BREAK SPACE}%, over records." in told
    weaker = changed.lines()[1]
    assert f"figures of dropout: {weaker['attack']} of a weaker adversary ({weaker['adversary']}) stands in." in told


def point(name: str, accuracy: float, leak: float) -> Point:
    return Point(name, (accuracy, accuracy - 0.01, accuracy + 0.01), (leak, leak / 2, leak * 2), 1)


def test_the_front_is_who_nobody_beats():
    points = [point("none", 0.9, 0.2), point("worse", 0.8, 0.2), point("private", 0.6, 0.01), point("mid", 0.8, 0.1)]
    assert [p.name for p in mark_front(points) if p.front] == ["none", "private", "mid"]
    twins = mark_front([point("a", 0.9, 0.1), point("b", 0.9, 0.1)])
    assert all(p.front for p in twins)


def test_seeds_are_averaged_with_an_interval_over_trainings():
    mean = study_module.study_table.mean_of([(0.1, 0.0, 1.0), (0.2, 0.0, 1.0), (0.3, 0.0, 1.0)])
    half = 4.3027 * 0.1 / 3**0.5  # the t quantile of two degrees of freedom; the lower end would lie below 0
    assert mean == pytest.approx((0.2, 0.0, 0.2 + half), abs=1e-4)
    assert study_module.study_table.mean_of([(0.1, 0.05, 0.2)]) == (0.1, 0.05, 0.2)
    value, low, high = study_module.study_table.mean_of([(0.1, 0.0, 1.0)] * 3)
    assert value == pytest.approx(0.1)
    assert np.isnan(low)
    assert np.isnan(high)


def test_the_picture_is_at_a_rate_that_all_support():
    lines = [{"lowest_fpr": 0.001}, {"lowest_fpr": 0.01}]
    assert common_rate(lines, 0.001) == 0.01
    assert common_rate(lines, 0.1) == 0.1
    assert common_rate([{"lowest_fpr": None}], 0.1) is None


@pytest.mark.parametrize("leaks", [(0.0, 0.001, 0.2), (0.5, 0.5, 1.0)])
def test_pictures_hold_for_no_leak_and_for_all(tmp_path, leaks):
    points = mark_front([point(f"row {i}", 0.5 + i / 10, leak) for i, leak in enumerate(leaks)])
    nan = float("nan")
    points.append(Point("without interval", (0.5, nan, nan), (0.1, nan, nan), 3))
    for name in ("a", "b"):
        tradeoff(tmp_path / f"{name}.png", points, 0.001, title="t", of_whom="members")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    tradeoff(tmp_path / "none.png", [], None, title="t", of_whom="canaries")
    assert (tmp_path / "none.png").is_file()


def test_documented_studies_are_studies(tmp_path):
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "study.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.toml").write_text(block, encoding="utf-8")
    assert len(read_study(tmp_path / "page.toml").cells()) == 6
    shipped = sorted((root / "benchmarks" / "studies").glob("*_defenses.toml"))
    assert shipped
    for path in shipped:
        assert read_study(path).cells()
