"""Cells of a study made at once: the same as one after the other, wherever they are made and whatever fails."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope import data_loader, study
from memberscope.errors import DataError
from memberscope.events import Events
from memberscope.locks import claim
from memberscope.study_cells import Job, MakeCell, run_at_once, run_here
from memberscope.study_config import read_study

TEXT = """
name = "tiny"
[base]
dataset = "digits"
model = "mlp"
epochs = 2
attacks = ["loss"]
[rows.none]
[rows.dropout]
dropout = 0.5
[rows."attack that is none"]
attacks = ["no-such-attack"]
"""
with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra cluster)")


class Heard(Events):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def job_of(folder: Path, *, text: str = TEXT) -> Job:
    file = folder / "tiny.toml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    where = {"device": "cpu", "threads": 1, "workers": "1", "models_dir": folder / "models"}
    return Job(study.make_audit, read_study(file).cells(), folder / "cells", "results.json", "audit", where)


def figures(job: Job) -> list[Any]:
    """What is in the results, but for times and places."""
    found = []
    for cell in job.cells:
        if job.made(cell):
            content = json.loads((job.folder / cell.key / job.done).read_bytes())
            found.append((cell.row, content["attacks"][0]["evaluation"], content["target"]["weights_sha256"]))
    return found


def test_at_once_the_audits_are_those_made_one_after_the_other(tmp_path: Path) -> None:
    here, at_once = job_of(tmp_path / "here"), job_of(tmp_path / "at_once")
    told, heard = Heard(), Heard()
    one_by_one = {o.cell.row: o.failure for o in run_here(here, told)}
    together = {o.cell.row: o.failure for o in run_at_once(at_once, 2, heard)}
    assert together == one_by_one
    assert [row for row, failure in together.items() if failure] == ["attack that is none"]
    assert figures(here) == figures(at_once)
    assert len(figures(here)) == 2
    assert any("(dropout) is done; " in note for note in heard.notes)
    assert any("Audit 3 of 3 (attack that is none) failed: " in note for note in heard.notes)
    assert not [p for p in at_once.folder.iterdir() if p.is_file()]  # no lock and no file of records
    again = [o.cell.row for o in run_at_once(at_once, 2, Events())]
    assert again == ["attack that is none"]  # the others are there


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    for run in (run_here, lambda job, events: run_at_once(job, 2, events)):
        job, heard = job_of(tmp_path / str(len(list(tmp_path.iterdir())))), Heard()
        job = replace(job, cells=job.cells[:2])
        with claim(job.folder / f".{job.cells[0].key}.lock") as ours:
            assert ours
            outcomes = {o.cell.row: (o.busy, o.failure) for o in run(job, heard)}
        assert outcomes == {"none": (True, ""), "dropout": (False, "")}
        assert "Audit 1 of 2 (none): another process is at it." in heard.notes


def test_a_worker_without_the_study_s_folder_sends_its_files_back(tmp_path: Path) -> None:
    job = replace(job_of(tmp_path / "study"), cells=job_of(tmp_path / "study").cells[:1])
    elsewhere = replace(job, folder=tmp_path / "nowhere" / "cells")
    digits = data_loader.load("digits")
    about = {"name": digits.name, "classes": digits.classes, "source": digits.source, "verified": True}
    other = digits.x[::-1]  # told apart from the installed ones
    arrays = {"x of digits": other, "y of digits": digits.y, "is_train of digits": digits.is_train}
    failure, files = MakeCell(elsewhere, "token", {"digits": about})(arrays, 0, lambda fraction: None)
    assert failure == ""
    assert list(files)[-1] == "results.json"
    assert {"report.html", "results.csv", "config.toml"} <= set(files)
    assert not elsewhere.folder.exists()
    assert not (tmp_path / "study" / "models").exists()
    fingerprint = json.loads(files["results.json"])["dataset"]["fingerprint"]
    assert fingerprint == replace(digits, x=other).fingerprint != digits.fingerprint
    assert data_loader.load("digits").fingerprint == digits.fingerprint  # as before


def test_datasets_that_came_with_the_work_are_given_inside_alone() -> None:
    digits = data_loader.load("digits")
    with data_loader.provided({"elsewhere": digits}):
        assert data_loader.load("elsewhere") is digits
    with pytest.raises(DataError, match="elsewhere"):
        data_loader.load("elsewhere")


@pytest.mark.parametrize(("shadows", "slots", "first"), [(8, 8, True), (64, 64, False), (0, 2, True), (4, 1, True)])
def test_a_cluster_is_used_where_it_is_quicker(tmp_path: Path, shadows: int, slots: int, first: bool) -> None:
    """Of twelve audits with 8 reference models 8 slots make 8 at once; of two with 64, the models of one go first."""
    rows = 2 if shadows == 64 else 12
    text = TEXT.split("[rows.none]")[0] + f"shadows = {shadows}\n" * bool(shadows)
    text += "".join(f'[rows."{k}"]\nseed = {k}\n' for k in range(rows))
    assert study.audits_first(job_of(tmp_path, text=text), slots) is first


@with_ray
def test_on_ray_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memberscope.training.ray_cluster import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here, there = job_of(tmp_path / "here"), job_of(tmp_path / "there")
    expected = {o.cell.row: o.failure for o in run_here(here, Events())}
    with Cluster("ray") as cluster:
        assert {o.cell.row: o.failure for o in run_at_once(there, cluster, Events())} == expected
    assert figures(here) == figures(there)


@with_ray
def test_a_study_on_ray_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT.replace('[rows."attack that is none"]\nattacks = ["no-such-attack"]\n', ""))
    found = study.run(read_study(file), {"out": tmp_path / "out", "models_dir": tmp_path / "m", "workers": "ray"})
    assert found.complete
    assert np.isfinite([line["auc"] for line in found.lines()]).all()
