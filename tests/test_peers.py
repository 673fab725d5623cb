"""The harness that holds published packages beside memberscope: what an adapter tells, whatever the package does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PEERS = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"

ADAPTER = """
import sys
sys.path.insert(0, {peers!r})
from contest import Case, main

def endless(case):
    while True:
        try:
            sum(range(1000))
        except Exception:  # a package that swallows whatever is raised
            pass

def broken(case):
    raise ValueError("no such thing")

print("a package may print what it likes")
main({{"phi": lambda case: case.phi, "endless": endless, "broken": broken}}, "1.2")
"""


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter and a case of 40 records, two classes, four models."""
    adapter, case = tmp_path / "adapter.py", tmp_path / "case.npz"
    adapter.write_text(ADAPTER.format(peers=str(PEERS)))
    rng = np.random.default_rng(0)
    np.savez(
        case,
        logits=np.stack([np.linspace(-3, 3, 40), np.zeros(40)], axis=-1),
        labels=np.zeros(40, np.int64),
        member=np.arange(40) >= 20,
        reference_logits=rng.normal(size=(4, 40, 2)),
        reference_membership=rng.random((4, 40)) < 0.5,
    )
    return adapter, case


def told(given: tuple[Path, Path], folder: Path, *asked: str, said: str = "") -> list[dict[str, Any]]:
    adapter, case = given
    command = [sys.executable, str(adapter), str(case), str(folder), "0.2", *asked]
    result = subprocess.run(command, capture_output=True, text=True, check=True, input=said)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_an_attack_that_fails_or_takes_too_long_is_told_and_the_others_run(given, tmp_path) -> None:
    first, phi, endless, broken = told(given, tmp_path)
    assert first == {"version": "1.2", "attacks": ["phi", "endless", "broken"]}
    np.testing.assert_allclose(np.load(tmp_path / phi["file"]), np.linspace(-3, 3, 40), atol=1e-12)
    assert phi["seconds"] >= 0
    assert endless["failed"] == "not done after 0.2 s"
    assert broken["failed"] == "ValueError: no such thing"


def test_attacks_are_run_as_they_are_asked_for_line_by_line(given, tmp_path) -> None:
    _, *lines = told(given, tmp_path, "-", said="phi\nbroken\nphi\n")
    assert [line["attack"] for line in lines] == ["phi", "broken", "phi"]
    assert lines[0]["file"] == lines[2]["file"]


def test_figures_of_repeated_splits_are_means_with_the_interval_of_one(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    import run

    rng = np.random.default_rng(0)
    member = rng.random(2000) < 0.5
    scores = member + rng.normal(size=(5, 2000))
    np.save(tmp_path / "one.npy", scores[0])
    np.save(tmp_path / "five.npy", scores.T)
    one, five = (run.figures(tmp_path / f"{name}.npy", member) for name in ("one", "five"))
    assert five["note"] == "mean of 5 splits"
    value, low, high = five["auc"]
    assert low < value < high
    assert high - low == pytest.approx(one["auc"][2] - one["auc"][1], rel=0.1)
    assert value == pytest.approx(0.76, abs=0.01)  # Phi(1 / sqrt 2)
