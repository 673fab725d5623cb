"""Run folders and the shared table: whole or not at all, nothing lost, and refused where they are not ours."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memberscope
from memberscope.errors import MemberscopeError, RunFolderError
from memberscope.report import pictures, run_folder
from memberscope.report.run_folder import append_rows, csv_rows, new_folder, read, rerender, write
from memberscope.result import Audit


def audit_of(n: int = 400, attacks: tuple[str, ...] = ("loss", "gap", "four-features-lr")) -> Audit:
    rng = np.random.default_rng(0)
    labels, member = rng.integers(0, 3, n), rng.permutation(np.arange(n) < n // 2)
    logits = rng.normal(0, 2, (n, 3))
    logits[np.arange(n), labels] += 1 + 2 * member
    return memberscope.score(logits=logits, labels=labels, member=member, attacks=attacks)


@pytest.fixture(scope="module")
def audit() -> Audit:
    return audit_of()


@pytest.fixture(scope="module")
def saved(audit: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(audit, tmp_path_factory.mktemp("runs") / "a_run")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# The folder


def test_a_run_folder_holds_what_the_mission_names(saved: Path) -> None:
    pictures_of = [f"class_{k}_{what}.png" for k in range(3) for what in ("roc_curve", "confidence_histogram")]
    curves = ["accuracy_curve", "confusion_matrix", "loss_curve", "pr_curve", "roc_curve", "roc_curve_loglog"]
    files = ["config.toml", "environment.json", "report.html", "results.csv", "results.json", "scores.csv.gz"]
    assert sorted(p.name for p in saved.iterdir()) == sorted([*pictures_of, *(f"{c}.png" for c in curves), *files])
    assert sorted(p.name for p in saved.parent.iterdir()) == ["a_run"]  # no draft is left


def test_the_document_names_its_run_and_every_file_with_its_hash(saved: Path, audit: Audit) -> None:
    document = read(saved)
    assert document["run"]["id"] == "a_run"
    assert audit.document["run"]["id"] == "not saved"  # the audit itself is as it was
    named = {entry["name"]: entry for entry in document["files"]}
    assert set(named) == set(visible(saved)) - {"results.json", "report.html"}
    for name, entry in named.items():
        content = (saved / name).read_bytes()
        assert entry == {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_scores_of_every_record_and_attack(saved: Path, audit: Audit) -> None:
    with gzip.open(saved / "scores.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "class", "member", "loss", "gap", "four-features-lr", "p_value", "flagged"]
    assert [int(row["index"]) for row in rows] == audit.index.tolist()
    assert [int(row["class"]) for row in rows] == audit.label.tolist()
    assert [row["member"] for row in rows] == [str(int(m)) for m in audit.member]
    for name, scores in audit.scores.items():
        assert [float(row[name]) for row in rows] == scores.tolist()  # to the last bit


def test_settings_and_environment(saved: Path) -> None:
    document = read(saved)
    assert tomllib.loads((saved / "config.toml").read_text(encoding="utf-8")) == document["settings"]
    assert json.loads((saved / "environment.json").read_text(encoding="utf-8")) == document["environment"]


def test_the_report_is_rendered_again_from_the_document_alone(saved: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.json").write_bytes((saved / "results.json").read_bytes())
    assert rerender(alone) == alone / "report.html"
    assert (alone / "report.html").read_bytes() == (saved / "report.html").read_bytes()


def test_permissions_follow_the_users_mask(audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_fill", lambda audit, folder, name: (folder / "results.json").write_text("{}"))
    before = os.umask(0o077)
    try:
        assert write(audit, tmp_path / "run").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("what", ["a file", "a full folder"])
def test_a_run_is_never_overwritten(audit: Audit, tmp_path: Path, what: str) -> None:
    taken = tmp_path / "run"
    if what == "a file":
        taken.write_text("mine")
    else:
        (taken / "inner").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"run exists and is not empty\n  choose another folder"):
        write(audit, taken)
    assert visible(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("error", "expected", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            MemberscopeError,
            "cannot write .*run: No space left on dev",
        ),
        (MemberscopeError("disk full while writing x"), MemberscopeError, "disk full while writing x"),
        (ValueError("a bug"), ValueError, "a bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("claimed", [True, False])
def test_a_run_that_cannot_be_written_leaves_nothing(
    audit: Audit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    expected: Any,
    told: str | None,
    claimed: bool,
) -> None:
    def fail(folder: Path, *arguments: object, **more: object) -> None:
        (folder / "roc_curve.png").write_text("half")
        raise error

    monkeypatch.setattr(pictures, "write_all", fail)
    if claimed:
        (tmp_path / "run").mkdir()
    with pytest.raises(expected, match=told):
        write(audit, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write_there in (lambda: write(audit, tmp_path / "file" / "run"), lambda: new_folder(tmp_path / "file", "run")):
        with pytest.raises(MemberscopeError, match=r"cannot write .*file: .*\n  free some space, or choose another"):
            write_there()


def test_folders_of_one_second_have_different_names(tmp_path: Path) -> None:
    """They are made at once, so that two runs that end together cannot both take one name and lose the second."""
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(new_folder(tmp_path / "runs", "digits"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2
    assert sorted(tmp_path.joinpath("runs").iterdir()) == sorted(made)
    for folder in made:
        assert re.fullmatch(r"digits_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)


# Reading


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "FOLDER is not a run folder: it has no results.json"),
        (b"", "FOLDER/results.json cannot be read: Expecting value"),
        (b'{"schema_version": 1', "FOLDER/results.json cannot be read: Expecting ',' delimiter"),
        (b"\xff\xfe", "FOLDER/results.json cannot be read: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "FOLDER/results.json cannot be read: maximum recursion depth"),
        (b"9" * 5000, "FOLDER/results.json cannot be read: Exceeds the limit"),
        (b"[]", "FOLDER/results.json has schema version None, expected 1"),
        (b"{}", "FOLDER/results.json has schema version None, expected 1"),
        (b'{"schema_version": 2}', "FOLDER/results.json has schema version 2, expected 1"),
        (b'{"schema_version": true}', "FOLDER/results.json has schema version True, expected 1"),
        (b'{"schema_version": 1, "run": {}}', "FOLDER/results.json lacks dataset, records, attacks, headline, ladder"),
    ],
)
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    for use in (read, rerender):
        with pytest.raises(RunFolderError) as refusal:
            use(tmp_path)
        assert refusal.value.problem.replace(str(tmp_path), "FOLDER").startswith(told)
        assert refusal.value.hint
    assert not (tmp_path / "report.html").exists()


def test_a_file_or_nothing_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be read: .*Not a directory"):
        read(tmp_path / "file")
    with pytest.raises(RunFolderError, match=r"nothing is not a run folder: it has no results\.json"):
        read(tmp_path / "nothing")


# The table


def test_one_row_an_attack_with_every_setting(saved: Path) -> None:
    document = read(saved)
    rows = csv_rows(document)
    assert [(row["attack"], row["status"]) for row in rows] == [(n, "run") for n in ("loss", "gap", "four-features-lr")]
    for row, attack in zip(rows, document["attacks"], strict=True):
        evaluation = attack["evaluation"]
        assert row["run"] == "a_run"
        assert row["attack_roc_auc"] == evaluation["auc"]["value"]
        assert (row["attack_roc_auc_low"], row["attack_roc_auc_high"]) == tuple(
            evaluation["auc"][e] for e in ("low", "high")
        )
        assert row["attack_avg_precision"] == evaluation["average_precision"]["value"]
        assert row["optimal_threshold"] == evaluation["optimal_threshold"]
        assert json.loads(row["confusion_matrix"]) == evaluation["confusion_matrix"]
        accuracy = evaluation["accuracy"] or evaluation["accuracy_youden"]
        assert row["attack_accuracy"] == accuracy["value"]
        assert row["tpr_at_fpr_0.1_low"] == evaluation["operating_points"][0]["tpr"]["low"]
        assert row["tpr_at_fpr_0"] == evaluation["tpr_at_zero_fp"]["tpr"]["value"]
        assert row["tpr_at_fpr_0.01"] is None  # too few non-members
    learnt = rows[2]
    (tn, fp), (fn, tp) = json.loads(learnt["accuracy_confusion"])
    assert learnt["attack_accuracy"] == pytest.approx((tn + tp) / (tn + fp + fn + tp))
    assert {k: rows[0][k] for k in rows[0] if k.startswith("setting_")} == {
        f"setting_{key}": json.dumps(value) if isinstance(value, list) else value
        for key, value in document["settings"].items()
    }
    required = "dataset epochs train_acc val_acc test_acc generalization_gap attack attack_accuracy attack_roc_auc"
    required += " attack_avg_precision optimal_threshold confusion_matrix model members nonmembers"
    assert set(required.split()) <= set(rows[0])
    assert [r["attack_roc_auc"] for r in table(saved / "results.csv")] == [str(row["attack_roc_auc"]) for row in rows]


def test_the_target_of_an_audit_is_in_every_row(saved: Path) -> None:
    document = read(saved)
    document["target"] = {
        "epochs": 5,
        "model": "mlp",
        "train_acc": 0.9,
        "val_acc": None,
        "test_acc": 0.7,
        "generalization_gap": 0.2,
    }
    for row in csv_rows(document):
        assert {k: row[k] for k in document["target"]} == document["target"]


def test_an_attack_that_did_not_run_has_its_row_too(saved: Path) -> None:
    document = read(saved)
    document["attacks"][0] = {**document["attacks"][0], "status": "failed", "reason": "a bug", "evaluation": None}
    row = csv_rows(document)[0]
    assert (row["attack"], row["status"], row["reason"], row["attack_roc_auc"]) == ("loss", "failed", "a bug", None)


def test_rows_are_appended_and_new_columns_are_empty_in_the_old_rows(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.csv"
    append_rows(path, [{"run": "a", "auc": 0.1 + 0.2}])
    append_rows(path, [{"run": "b", "note": 'comma, "quote"\nand line ε', "auc": None}, {"run": "c", "new": True}])
    append_rows(path, [])
    assert table(path) == [
        {"run": "a", "auc": "0.30000000000000004", "note": "", "new": ""},
        {"run": "b", "auc": "", "note": 'comma, "quote"\nand line ε', "new": ""},
        {"run": "c", "auc": "", "note": "", "new": "True"},
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"run,auc\na,1,2\n", "is not a table of runs: row 1 has more fields than columns"),
        (b"\xff\xfe\x00", "is not a table of runs: 'utf-8' codec can't decode"),
    ],
)
def test_a_foreign_table_stays_as_it_is(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(RunFolderError) as refusal:
        append_rows(tmp_path / "results.csv", [{"run": "b"}])
    assert told in refusal.value.problem
    assert refusal.value.hint == "move it away, or choose another folder with --out"
    assert (tmp_path / "results.csv").read_bytes() == content


WRITER = """
import sys, time
from pathlib import Path
from memberscope.report.run_folder import append_rows
folder, writer = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready_{writer}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(12):
    new = {"run": f"{writer}-{number}", f"only_{writer}": "x" * 500}
    append_rows(folder / "results.csv", [new, {"run": f"{writer}-{number}b"}])
"""


def test_many_runs_that_end_at_once_lose_nothing_and_readers_see_whole_tables(tmp_path: Path) -> None:
    path, writers = tmp_path / "results.csv", 4
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(k)]) for k in range(writers)]
    while len(list(tmp_path.glob("ready_*"))) < writers:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    sizes = [0]
    while any(process.poll() is None for process in processes):
        if path.exists():
            rows = table(path)
            assert len(rows) % 2 == 0  # two rows at a time
            assert all(None not in row and None not in row.values() for row in rows)
            sizes.append(len(rows))
    assert [process.wait() for process in processes] == [0] * writers
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2  # it was read while it grew
    expected = {f"{writer}-{number}{end}" for writer in range(writers) for number in range(12) for end in ("", "b")}
    rows = table(path)
    assert len(rows) == len(expected)
    assert {row["run"] for row in rows} == expected


def test_a_lock_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemberscopeError, match=r"cannot write .*file: "):
        append_rows(tmp_path / "file" / "results.csv", [{"run": "a"}])
    (tmp_path / "results.csv").mkdir()
    with pytest.raises(MemberscopeError, match=r"cannot write .*: Is a directory"):
        append_rows(tmp_path / "results.csv", [{"run": "a"}])
