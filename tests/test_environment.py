"""What a run ran on: enough to repeat it, nothing that says where or by whom."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest

from memberscope.environment import PACKAGES, describe, package_version


def test_versions_and_hardware() -> None:
    facts = describe()
    assert facts["python"] == platform.python_version()
    assert facts["device"] == "cpu"
    assert facts["cores"] >= 1
    assert facts["processor"]
    assert facts["packages"]["numpy"] == version("numpy")
    assert {"memberscope", "torch", "scikit-learn"} <= set(facts["packages"]) <= set(PACKAGES)
    assert json.loads(json.dumps(facts)) == facts


def test_nothing_names_the_user_the_host_or_a_path() -> None:
    facts = describe()
    assert set(facts) == {"python", "system", "processor", "cores", "device", "packages"}
    assert facts["system"] == f"{platform.system()} {platform.machine()}"
    assert "/" not in json.dumps(facts)


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_version("no-such-package-at-all") is None
    monkeypatch.setattr("memberscope.environment.PACKAGES", ("numpy", "no-such-package-at-all"))
    assert describe()["packages"] == {"numpy": version("numpy")}
