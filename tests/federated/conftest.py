"""A tiny federation of the embedded digits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")
sys.path.insert(0, str(Path(__file__).parent))

from federation_settings import settings

from memberscope.data_loader import load
from memberscope.federated.federation import Federation, federate
from memberscope.records.pool import Dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits", progress=False)


@pytest.fixture
def run(digits: Dataset, tmp_path: Path) -> Callable[..., Federation]:
    """Trains a tiny federation with some settings changed."""
    number = iter(range(1000))

    def run_(**changes: Any) -> Federation:
        return federate(settings(**changes), dataset=digits, folder=tmp_path / f"run{next(number)}")

    return run_


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures a run take as long as a tiny federation; the test that looks at them asks for `pictures`."""
    if "pictures" not in request.fixturenames:
        from memberscope.report import federation_plots

        for name in ("partition_map", "learning_curves"):
            monkeypatch.setattr(federation_plots, name, lambda *args, **more: None)


@pytest.fixture
def pictures() -> None:
    """Pictures are drawn in this test."""
