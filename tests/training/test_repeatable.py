"""Every trainer holds cuDNN to algorithms that repeat themselves, and puts its settings back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from memberscope.training.hardware import exact_fp32, repeatable
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import fit_stacked
from memberscope.training.train_target import fit
from memberscope.training.workshop import RecipeWorkshop
from memberscope.workshop import Imitation

CLASSES = 3
Y = np.arange(40) % CLASSES
X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
MEMBER = np.arange(40) % 2 == 0
RECIPE = Recipe(model="mlp", epochs=1, batch_size=10)
Flags = tuple[bool, ...]
HELD = (True, False, True, False)


def flags() -> Flags:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32


def alone() -> None:
    fit(RECIPE, X, Y, MEMBER, n_classes=CLASSES, seed=0, device="cpu")


def at_once() -> None:
    fit_stacked(RECIPE, X, Y, np.stack([MEMBER, ~MEMBER]), n_classes=CLASSES, seeds=[0, 1], device="cpu")


def workshop() -> None:
    place = RecipeWorkshop(RECIPE, X, Y, np.arange(40), n_classes=CLASSES, device="cpu")
    place.train(Imitation("records", MEMBER, np.zeros((40, CLASSES), np.float32), 0))


def federated() -> None:
    pytest.importorskip("flwr")
    from memberscope.data_loader import load
    from memberscope.federated.design import plan
    from memberscope.federated.local import LocalTraining

    digits = load("digits", progress=False)
    design = plan(digits, partition="iid", n_clients=20, held_fraction=0.5, seed=0)
    local = LocalTraining(RECIPE, digits, design, seed=0, device="cpu")
    local.train(local.state(), 0, first_epoch=1, epochs=1)


@pytest.mark.parametrize("train", [alone, at_once, workshop, federated])
def test_every_trainer_holds_cudnn_to_what_repeats(train: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Flags] = []
    loss = torch.nn.functional.cross_entropy

    def heard(*given: Any, **more: Any) -> torch.Tensor:
        seen.append(flags())
        return loss(*given, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", heard)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        before = flags()
        train()
        assert flags() == before
    assert seen
    assert set(seen) == {HELD}


def test_products_of_matrices_are_left_to_the_user_in_trainings_alone() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with repeatable():
            assert torch.get_float32_matmul_precision() == "medium"
        with exact_fp32():
            assert (torch.get_float32_matmul_precision(), flags()) == ("highest", HELD)
    finally:
        torch.set_float32_matmul_precision(before)
