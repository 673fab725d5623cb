"""The pages of CONTRIBUTING.md, tried: a dataset, a model and an attack from a package that is not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = """
import numpy as np
import torch
from memberscope.attacks.base import Attack, Card, InformedAttack
from memberscope.data_loader import Dataset, DatasetEntry
from memberscope.evidence import Knowledge


def load_stripes(request):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (rng.random((400, 1, 8, 8)) * 128 + 64 * y[:, None, None, None]).astype(np.uint8)
    return Dataset(
        name="stripes", x=x, y=y, classes=("dark", "bright"), is_train=np.arange(400) < 200,
        source="made by load_stripes", verified=True,
    )


stripes = DatasetEntry(load_stripes, "Stripes", "bright and dark images, 400 records")


class SecondLook(Attack):
    name = "second-look"
    title = "Margin over the runner-up class"
    needs = frozenset({Knowledge.PROBABILITIES})
    card = Card("a paper, section 1", "p_(1) - p_(2)", "one query a record", "known traps")

    def score(self, evidence):
        return evidence.signals.top_two_gap


def make(n_classes, in_channels):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * in_channels, n_classes))
"""
ENTRY_POINTS = """
[memberscope.attacks]
second-look = stripes_package:SecondLook

[memberscope.datasets]
stripes = stripes_package:stripes
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds the package as pip would install it."""
    (tmp_path / "stripes_package.py").write_text(PACKAGE)
    info = tmp_path / "stripes_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def memberscope(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from memberscope.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False)


def test_dataset_model_and_attack_of_another_package(installed: Path) -> None:
    done = memberscope(
        installed, "audit", "--dataset", "stripes", "--model", "stripes_package:make", "--epochs", "3",
        "--attacks", "second-look", "loss",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "second-look" in done.stdout
    assert (installed / "outputs").is_dir()


def test_the_lists_name_them(installed: Path) -> None:
    assert "second-look" in memberscope(installed, "list", "attacks").stdout
    assert "stripes" in memberscope(installed, "list", "datasets").stdout


def test_an_entry_point_that_is_no_attack_is_refused(installed: Path) -> None:
    info = installed / "stripes_package-1.0.dist-info" / "entry_points.txt"
    info.write_text("[memberscope.attacks]\nbroken = stripes_package:make\n")
    done = memberscope(installed, "list", "attacks")
    assert done.returncode == 3
    assert "not a subclass of Attack" in done.stderr
