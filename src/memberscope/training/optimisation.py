"""The optimiser of a recipe, and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from memberscope.errors import ModelError
from memberscope.training.recipe import Recipe


def make_optimizer(recipe: Recipe, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Make the recipe's optimiser of a module's trainable parameters, fused where torch has it so.

    Raises
    ------
    ModelError
        There is no parameter to train.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(f"model {recipe.model!r} has no parameter to train")
    fused = device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
    shared: dict[str, Any] = {"lr": recipe.rate, "weight_decay": recipe.weight_decay, "fused": fused}
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda **more: torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **more),
        "adam": lambda **more: torch.optim.Adam(parameters, **more),
        "adamw": lambda **more: torch.optim.AdamW(parameters, **more),
    }
    return makers[recipe.optimizer](**shared)


def rate_factor(recipe: Recipe, done: float) -> float:
    """Share of the full learning rate after `done` epochs."""
    factor = 1.0
    if recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done / recipe.epochs))
    elif recipe.schedule == "step":
        factor = 1.0 if done < recipe.epochs / 2 else 0.1 if done < 0.75 * recipe.epochs else 0.01
    if done < recipe.warmup_epochs:
        factor *= (done + 1e-3) / recipe.warmup_epochs  # not quite zero: the first step counts too
    return factor
