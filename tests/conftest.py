"""Fixtures and markers shared by all tests."""

from __future__ import annotations

import random
import sys
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that train for minutes")
    parser.addoption("--reseed", type=int, help="draw other random numbers than a plain run always draws")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reseed") is None:
        hypothesis.settings.register_profile("repeatable", derandomize=True)
        hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no folder of shared data and reference scores at {SHARED}"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="trains for minutes: run with --slow"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none is here"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real images and reference scores beside the repository (tests that use it carry `shared`)."""
    return SHARED


@pytest.fixture(autouse=True)
def own_draws(request: pytest.FixtureRequest) -> None:
    """What a test draws without a seed (Flower draws the order of clients so) depends on its name alone, not on the
    tests that ran before it in the same process: a failure can be seen again."""
    seed = zlib.crc32(f"{request.node.nodeid}/{request.config.getoption('--reseed')}".encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


@pytest.fixture
def on_apple() -> type[Any]:
    """A kind of `nn.Sequential` that stands for a model on a device without float64: it fails but on the CPU."""
    import torch
    from torch import nn

    class OnApple(nn.Sequential):
        on_cpu = False

        def cpu(self) -> OnApple:
            self.on_cpu = True
            return super().cpu()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.on_cpu, "Cannot convert a MPS Tensor to float64 dtype"
            return super().forward(x)

    return OnApple
