"""The three questions, answered in a real terminal, and the run folder that they lead to."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memberscope.prompts import ask

ROOT = Path(__file__).resolve().parents[1]


def answer(*replies: str) -> tuple[object, list[str]]:
    said: list[str] = []
    given = iter(replies)
    wishes = ask(read=lambda question: (said.append(question), next(given))[1], write=said.append)
    return wishes, said


def test_answers_as_in_the_original() -> None:
    wishes, _ = answer("cifar10", "50", "train")
    assert (wishes.dataset, wishes.epochs, wishes.mode) == ("cifar10", 50, "train")


def test_empty_answers_take_the_defaults() -> None:
    wishes, _ = answer("", "", "")
    assert (wishes.dataset, wishes.epochs, wishes.mode) == ("cifar10", 50, "train")


def test_bad_answers_are_explained_and_asked_again() -> None:
    wishes, said = answer("imagenet", "SVHN", "many", "0", "20", "maybe", "load")
    assert (wishes.dataset, wishes.epochs, wishes.mode) == ("svhn", 20, "load")
    text = "\n".join(said)
    assert "'imagenet' is none of cifar10, svhn" in text
    assert "'many' is not a number of epochs" in text
    assert "'maybe' is none of train, load" in text


def in_terminal(answers: str, environment: dict[str, str], seconds: float = 240) -> tuple[int, str]:
    """Run `cd src && python main.py` in a pseudo-terminal and type the answers."""
    mother, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=ROOT / "src", stdin=child, stdout=child, stderr=child,
        env={**os.environ, **environment}, close_fds=True,
    )  # fmt: skip
    os.close(child)
    os.write(mother, answers.encode())
    shown, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready, _, _ = select.select([mother], [], [], 0.2)
        if ready:
            try:
                shown += os.read(mother, 65536)
            except OSError:  # the child has closed the terminal
                break
        elif process.poll() is not None:
            break
    if process.poll() is None:
        process.kill() if time.monotonic() >= deadline else process.wait(30)
    os.close(mother)
    return process.wait(), shown.decode(errors="replace")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A small SVHN in the official layout, and folders of the test's own."""
    from scipy.io import savemat

    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 600), ("test", 300)):
        y = np.arange(n) % 10
        x = rng.integers(0, 255, (32, 32, 3, n), dtype=np.uint8)
        x[:8] = (y * 25).astype(np.uint8)
        savemat(data / f"{part}_32x32.mat", {"X": x, "y": np.where(y == 0, 10, y)[:, None].astype(np.uint8)})
    return {
        "MEMBERSCOPE_DATA_DIR": str(data),
        "MEMBERSCOPE_UNVERIFIED_DATA": "1",
        "MEMBERSCOPE_OUTPUT_DIR": str(tmp_path / "outputs"),
        "MEMBERSCOPE_MODELS_DIR": str(tmp_path / "models"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def test_the_interactive_run_end_to_end(environment: dict[str, str], tmp_path: Path) -> None:
    code, shown = in_terminal("svhn\n2\ntrain\n", environment)
    assert code == 0, shown
    (folder,) = [p for p in (tmp_path / "outputs").iterdir() if p.is_dir()]
    assert re.fullmatch(r"svhn_epoch2_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    names = {path.name for path in folder.iterdir()}
    promised = {"roc_curve", "pr_curve", "confusion_matrix", "accuracy_curve", "loss_curve", "roc_curve_loglog"}
    promised |= {f"class_{k}_{what}" for k in range(10) for what in ("roc_curve", "confidence_histogram")}
    assert {f"{name}.png" for name in promised} | {"results.csv", "report.html"} <= names
    assert (tmp_path / "outputs" / "results.csv").is_file()
    assert "Report:" in shown
    assert "Accuracy: train" in shown

    code, shown = in_terminal("svhn\n2\nload\n", environment)
    assert code == 0, shown
    rows = (tmp_path / "outputs" / "results.csv").read_text().splitlines()
    attacks = len((folder / "results.csv").read_text().splitlines()) - 1
    assert len(rows) == 1 + 2 * attacks
    folders = sorted(p for p in (tmp_path / "outputs").iterdir() if p.is_dir())
    first, second = ((f / "scores.csv.gz").read_bytes() for f in folders)
    assert first == second, "the loaded model gives the same scores as the one that was trained"


def test_load_without_a_model_says_so_and_trains(environment: dict[str, str]) -> None:
    code, shown = in_terminal("svhn\n1\nload\n", environment)
    assert code == 0, shown
    assert "No saved model of svhn_simplecnn_epoch1_seed0" in shown


def test_no_answers(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=ROOT / "src", env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "No audit was run" in done.stderr
