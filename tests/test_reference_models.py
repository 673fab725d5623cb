"""Reference models in the audit: their cost is said first, each is trained once, an insider answers by them."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope import audit as run_audit
from memberscope import data_loader, presets
from memberscope.attacks.registry import HEADLINE
from memberscope.audit import draw_membership
from memberscope.cli import main
from memberscope.config import AuditConfig, from_settings
from memberscope.errors import ConfigError, ModelError
from memberscope.events import Events
from memberscope.membership import Split
from memberscope.reference_models import notes, open_bank
from memberscope.result import Audit
from memberscope.risk import COLUMNS

ATTACKS = ("loss", "difficulty-calibration", "lira-online-eb", HEADLINE)
N, CLASSES = 600, 3


def write_records(path: Path) -> str:
    """Noise with little class in it, as npz: what a model learns of it is its members."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, CLASSES, N)
    x = rng.normal(size=(N, 20)).astype(np.float32) + 0.3 * y[:, None].astype(np.float32)
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


class Heard(Events):
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, title: str) -> None:
        self.said.append(title)

    def detail(self, text: str) -> None:
        self.said.append(f"  {text}")

    def note(self, text: str) -> None:
        self.said.append(f"! {text}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    dataset = write_records(tmp_path_factory.mktemp("data") / "toy.npz")
    return {"dataset": dataset, "model": "mlp", "epochs": 12, "device": "cpu", "protocol": "random-half"}


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def audited(fast: dict[str, Any], models: Path, heard: Heard) -> Audit:
    return run_audit(**fast, shadows=4, attacks=ATTACKS, models_dir=models, events=heard)


def test_what_it_costs_and_supports_is_said_before_anything_is_trained(audited: Audit, heard: Heard) -> None:
    order = [heard.said.index(stage) for stage in ("What this will take", "Obtaining the target")]
    assert order == sorted(order)
    before = "\n".join(heard.said[order[0] : order[1]])
    assert "1 target: about" in before
    assert "4 reference models: about" in before
    assert "kB in" in before or "MB in" in before
    assert f"What this supports: {presets.claim(4)}." in before


def test_an_insider_answers_by_the_attack_fixed_in_advance(audited: Audit) -> None:
    document = audited.document
    assert document["headline"] == HEADLINE
    assert document["headline_fixed"]
    rows = {row["adversary"]: row for row in document["ladder"]}
    insider, stranger = rows["insider"], rows["stranger"]
    assert (insider["attack"], insider["corrected_for"], insider["confidence"]) == (HEADLINE, 1, 0.95)
    assert insider["fixed"]
    assert not stranger["fixed"]
    own = next(a for a in document["attacks"] if a["name"] == HEADLINE)["evaluation"]["auc"]
    assert insider["auc"]["low"] == pytest.approx(own["low"])
    assert "the attack fixed in advance (taught-fusion)" in repr(audited)
    assert insider["auc"]["value"] > 0.55


def test_thresholds_and_records_are_told_everywhere(audited: Audit, tmp_path: Path) -> None:
    document = json.loads(json.dumps(audited.document))
    entry = next(a for a in document["attacks"] if a["name"] == HEADLINE)
    (point,) = [p for p in entry["calibrated"]["points"] if p["supported"]]
    assert point["fpr"] == 0.1
    assert entry["calibrated"]["models"] == 2  # of four: a played one leaves its place, and one of the other side goes
    assert point["true_fpr"]["k"] == point["false_positives"]
    assert {v["prior"] for v in entry["calibrated"]["ppv"]} == {0.5, 0.1, 0.01}
    assert next(a for a in document["attacks"] if a["name"] == "loss")["calibrated"] is None
    assert "Threshold from reference models for 0.1 FPR: FPR 0." in repr(audited)

    folder = audited.save(tmp_path / "run")
    with (folder / "results.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["attack"] == HEADLINE)
    assert float(row["calibrated_fpr_at_0.1"]) == point["true_fpr"]["value"]
    assert float(row["calibrated_tpr_at_0.1_low"]) == point["tpr"]["low"]
    assert 0 < float(row["calibrated_ppv_at_0.1_prior_0.01"]) < 0.5
    with gzip.open(folder / "scores.csv.gz", "rt") as text:
        records = list(csv.DictReader(text))
    assert [name for name in records[0] if name in COLUMNS] == list(COLUMNS)
    assert all(0 < float(r["posterior"]) < 1 for r in records)
    assert all(float(r["separation_low"]) <= float(r["separation_high"]) for r in records)
    report = (folder / "report.html").read_text()
    for said in (
        "Thresholds as an adversary has them",
        "Single records",
        "Are these probabilities right?",
        "In common",
    ):
        assert said in report


def test_references_are_told_and_checked(audited: Audit) -> None:
    told = audited.document["references"]
    assert (told["models"], told["trained_in_this_run"]) == (4, 4)
    assert 0.5 < told["accuracy_others"] <= told["accuracy_members"] <= 1
    found = {f.code: f for f in audited.findings}
    assert found["MIA003"].status in ("passed", "caution")
    assert found["MIA004"].status == "caution"
    assert found["MIA004"].numbers == {"fewest": 2}


def test_the_bank_is_used_again_and_grows(fast: dict[str, Any], audited: Audit, models: Path) -> None:
    heard = Heard()
    again = run_audit(**fast, shadows=6, attacks=ATTACKS, models_dir=models, load=True, events=heard)
    assert again.document["references"]["trained_in_this_run"] == 2
    assert any("6 reference models, 2 of them missing" in line for line in heard.said)
    assert again.document["target"]["origin"].startswith("loaded")
    fewer = run_audit(**fast, shadows=4, attacks=ATTACKS, models_dir=models, load=True)
    assert fewer.document["references"]["trained_in_this_run"] == 0
    np.testing.assert_array_equal(fewer.scores[HEADLINE], audited.scores[HEADLINE])


def test_a_bank_by_name_and_one_that_is_another(
    fast: dict[str, Any], audited: Audit, models: Path, tmp_path: Path
) -> None:
    (folder,) = (models / "banks").iterdir()
    settings = fast | {"shadows": 4, "attacks": ATTACKS, "bank": folder}
    elsewhere = run_audit(**settings, models_dir=tmp_path)
    np.testing.assert_array_equal(elsewhere.scores[HEADLINE], audited.scores[HEADLINE])
    with pytest.raises(ModelError, match=r"was made with another recipe .epochs 12 there, 26 here"):
        run_audit(**settings | {"epochs": 26}, models_dir=tmp_path)


def test_a_brought_model_and_an_official_split_are_warned_about() -> None:
    config = AuditConfig(dataset="cifar10", shadows=2)
    everyone, nobody = np.ones(60, bool), np.zeros(60, bool)
    most = Split(np.arange(60) < 50, nobody, everyone)
    half = Split(np.arange(60) < 30, nobody, everyone)
    assert "The target learnt 50 records and each reference model learns 30" in notes(config, most)[0]
    assert notes(config, half) == []
    brought = AuditConfig(dataset="cifar10", shadows=2, weights="w.safetensors", membership="m.npy")
    assert "by the recipe that you state (simplecnn, 20 epochs, sgd" in notes(brought, half)[0]


def test_a_brought_model_is_attacked_with_reference_models(
    fast: dict[str, Any], audited: Audit, models: Path, tmp_path: Path
) -> None:
    dataset = data_loader.load(fast["dataset"])
    split = draw_membership(from_settings(fast), dataset)
    weights = next(models.glob("*_mlp_epoch12*")) / "model.safetensors"
    np.save(tmp_path / "m.npy", np.where(split.validation, -1, split.member.astype(int)))
    brought = {"weights": weights, "membership": tmp_path / "m.npy"}
    found = run_audit(**fast, **brought, shadows=2, attacks=ATTACKS, models_dir=tmp_path / "own")
    assert found.document["headline"] == HEADLINE
    assert "by the recipe that you state" in " ".join(found.document["references"]["notes"])


def test_validation_records_are_of_no_model(fast: dict[str, Any], audited: Audit, models: Path) -> None:
    config = from_settings(fast | {"shadows": 4, "models_dir": models})
    dataset = data_loader.load(fast["dataset"])
    split = draw_membership(config, dataset)
    bank = open_bank(config, dataset, split)
    assert bank is not None
    assert not bank.membership[:, split.validation].any()
    np.testing.assert_array_equal(bank.membership.sum(axis=0), np.where(split.audited, bank.size // 2, 0))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shadows": -1}, "shadows = -1 is out of range"),
        ({"preset": "huge"}, "preset = 'huge' is unknown"),
        ({"bank": "somewhere"}, "--bank was given without --shadows"),
        ({"workers": "0"}, "workers = '0'"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        AuditConfig(dataset="digits", **settings)


def test_presets_say_how_many_and_flags_win() -> None:
    expected = {"quick": 0, "standard": 16, "thorough": 64, "forensic": 256}
    assert {name: AuditConfig(dataset="digits", preset=name).n_shadows for name in presets.PRESETS} == expected
    assert AuditConfig(dataset="digits", preset="thorough", shadows=2).n_shadows == 2
    claims = [presets.claim(k) for k in (0, 4, 16, 64, 256)]
    assert len(set(claims)) == len(claims)


def test_killed_in_mid_bank_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_records(tmp_path / "toy.npz")
    command = ["audit", "--dataset", dataset, "--model", "mlp", "--epochs", "60", "--protocol", "random-half"]
    command += ["--shadows", "8", "--workers", "1", "--device", "cpu", "--attacks", "loss", HEADLINE]
    command += ["--models-dir", str(tmp_path / "models"), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(
        [sys.executable, "-m", "memberscope", *command],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(6000):  # five minutes: a busy machine is slow to begin
        there = list((tmp_path / "models").glob("banks/*/model-*.safetensors"))
        if there or running.poll() is not None:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert there
    times = {path: path.stat().st_mtime_ns for path in there}
    policy = tmp_path / "policy.toml"
    policy.write_text('metric = "auc"\nthreshold = 0.4\nowner = "DPO"\nreason = "agreed"\n')
    with pytest.raises(SystemExit) as ended:
        main([*command, "--resume", "--json", "--policy", str(policy)])
    assert ended.value.code == 1  # the model memorised noise: it exceeds the policy
    document = json.loads(capsys.readouterr().out)
    assert document["references"]["models"] == 8
    assert 0 < document["references"]["trained_in_this_run"] < 8
    assert document["target"]["origin"].startswith("loaded")
    assert {path: path.stat().st_mtime_ns for path in times} == times
