"""The pages of CONTRIBUTING.md, tried: a dataset, a model, a defense and attacks from a package that is not ours.

The package (`tests/example_package`) is built and installed by pip into a folder of its own, entry points and all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parent / "example_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the package."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-index", "--no-build-isolation", "--no-deps", "--no-compile", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(folder / "site"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named pip" in done.stderr or "Cannot import 'setuptools" in done.stderr:
        pytest.skip("pip or setuptools is not installed here")
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Path:
    """A folder to work in, with the package installed beside it."""
    return shutil.copytree(site, tmp_path / "site")


def memberscope(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from memberscope.cli import main; main()"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MEMBERSCOPE_")}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=site.parent, env=plain, capture_output=True, text=True, check=False
    )


def test_dataset_model_and_attack_of_another_package(installed: Path) -> None:
    done = memberscope(
        installed, "audit", "--dataset", "stripes", "--model", "stripes_package:make", "--epochs", "3",
        "--attacks", "second-look", "loss",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "second-look" in done.stdout
    assert (installed.parent / "outputs").is_dir()


def test_an_attack_with_reference_models_of_another_package(installed: Path) -> None:
    rng = np.random.default_rng(0)
    n, k = 1000, 8
    inside, member = np.argsort(rng.random((k, n)), axis=0) < k // 2, rng.random(n) < 0.5
    phi = 2 * rng.normal(size=n) + 2 * np.vstack([member[None], inside]) + rng.normal(size=(k + 1, n))
    logits = np.stack([-phi / 2, phi / 2], axis=-1)
    np.savez(
        installed.parent / "answers.npz", logits=logits[0], labels=np.ones(n, int), member=member,
        reference_logits=logits[1:], reference_membership=inside,
    )  # fmt: skip
    done = memberscope(installed, "score", "answers.npz", "--attacks", "odds-against-median", "loss")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("odds-against-median")]
    assert "0.9" in line or "0.8" in line


def test_a_defense_of_another_package_trains_the_target_and_the_reference_models(installed: Path) -> None:
    settings = ("audit", "--dataset", "stripes", "--model", "stripes_package:make", "--epochs", "1", "--shadows", "2")
    settings += ("--protocol", "random-half", "--attacks", "difficulty-calibration", "--json", "--defenses")
    done = memberscope(installed, *settings, "noisy-labels=0.9")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"]["defenses"] == ["noisy-labels"]
    (manifest,) = (installed.parent / "models" / "banks").glob("*/*.json")
    assert json.loads(manifest.read_text())["identity"]["recipe"]["defenses"] == ["noisy-labels=0.9"]
    refused = memberscope(installed, *settings, "noisy-label")
    assert refused.returncode == 3
    assert "did you mean 'noisy-labels'?" in refused.stderr


def test_the_lists_name_them(installed: Path) -> None:
    assert "second-look" in memberscope(installed, "list", "attacks").stdout
    assert "Margin over the runner-up class. Paper:" in memberscope(installed, "list", "attacks", "second-look").stdout
    assert "stripes" in memberscope(installed, "list", "datasets").stdout
    assert "--defenses noisy-labels. take this share of the labels" in memberscope(installed, "list", "defenses").stdout


def test_an_entry_point_that_is_no_attack_is_refused(installed: Path) -> None:
    (points,) = installed.glob("stripes_package-*.dist-info/entry_points.txt")
    points.write_text("[memberscope.attacks]\nbroken = stripes_package:make\n")
    done = memberscope(installed, "list", "attacks")
    assert done.returncode == 3
    assert "not a subclass of Attack" in done.stderr
