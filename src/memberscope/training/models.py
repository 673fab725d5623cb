"""The architectures by name. Adding one is one class and one line in `MODELS`.

Other packages add theirs through the entry point group ``memberscope.models`` (name -> `ModelEntry`), and any function
or class that makes a `torch.nn.Module` is named as ``package.module:factory``, with no change here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memberscope.defenses.registry import in_force
from memberscope.entry_points import name_of, object_of
from memberscope.errors import ConfigError, ModelError
from memberscope.training.recipe import Recipe
from memberscope.training.relu_pool import relu_max_pool
from memberscope.training.residual import ResNet18, WideResNet

ENTRY_POINTS = "memberscope.models"


@dataclass(frozen=True)
class ModelEntry:
    """An architecture that can be named.

    Parameters
    ----------
    factory
        Makes the module from those of the keyword arguments input_shape, n_classes, in_channels, num_classes and
        dropout that it accepts.
    description
        One line for ``memberscope list models``.
    """

    factory: Callable[..., nn.Module]
    description: str


class SimpleCNN(nn.Module):
    """The original project's network: exactly two convolutional and two fully connected layers.

    Convolutions C-32 and 32-64 of 3x3, each with ReLU and 2x2 max-pooling, then 64*(H//4)*(W//4)-128 and 128-classes:
    545,098 parameters for 32x32 colour images and ten classes.

    Parameters
    ----------
    input_shape
        (C, H, W), with H and W at least 4.
    n_classes
        Number of classes.
    dropout
        Share of the 128 activations zeroed in training.

    Raises
    ------
    ModelError
        The records are feature rows, or smaller than 4x4.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        channels, height, width = _image_shape("simplecnn", input_shape, 4)
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x [B, C, H, W]."""
        x = relu_max_pool(self.conv1(x))
        x = relu_max_pool(self.conv2(x))
        logits: Tensor = self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))
        return logits


class MLP(nn.Module):
    """Two hidden layers of 256 and 128 units with ReLU, for feature rows; images are flattened.

    Parameters
    ----------
    input_shape
        (d,) or (C, H, W).
    n_classes
        Number of classes.
    dropout
        Share of the 128 last activations zeroed in training.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(input_shape), 256)
        self.fc2 = nn.Linear(256, 128)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(128, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of records x [B, ...]."""
        x = torch.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(self.dropout(torch.relu(self.fc2(x))))
        return logits


def _resnet18(input_shape: tuple[int, ...], n_classes: int, dropout: float = 0.0) -> nn.Module:
    return ResNet18(_image_shape("resnet18", input_shape, 1)[0], n_classes, dropout)


def _wrn28_2(input_shape: tuple[int, ...], n_classes: int, dropout: float = 0.0) -> nn.Module:
    return WideResNet(_image_shape("wrn28-2", input_shape, 1)[0], n_classes, dropout, depth=28, widen=2)


MODELS: dict[str, ModelEntry] = {
    "simplecnn": ModelEntry(SimpleCNN, "2 convolutional and 2 fully connected layers (the original project's), images"),
    "mlp": ModelEntry(MLP, "3 fully connected layers (256, 128), feature rows or images"),
    "resnet18": ModelEntry(_resnet18, "ResNet-18 for small images (He et al. 2016): 3x3 stem, no first pooling"),
    "wrn28-2": ModelEntry(_wrn28_2, "wide ResNet 28-2 (Zagoruyko & Komodakis 2016), that of the LiRA paper, images"),
}


def available() -> dict[str, ModelEntry]:
    """Give the built-in architectures and those that installed packages add.

    Raises
    ------
    ModelError
        A package adds a name that exists already.
    ConfigError
        A package adds what cannot be loaded, or is no `ModelEntry`.
    """
    from importlib.metadata import entry_points

    entries = dict(MODELS)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in entries:
            raise ModelError(
                f"the package behind {point.value!r} adds a model named {point.name!r}, which exists already"
            )
        entry = object_of(point)
        if not isinstance(entry, ModelEntry):
            raise ConfigError(
                f"{name_of(point)} is {type(entry).__name__}, expected a ModelEntry", "see CONTRIBUTING.md"
            )
        entries[point.name] = entry
    return entries


def build(name: str, input_shape: tuple[int, ...], n_classes: int, *, dropout: float = 0.0) -> nn.Module:
    """Make a model with fresh weights from torch's global generator, and check what it answers.

    Parameters
    ----------
    name
        A name in `available`, or ``package.module:factory``; modules are also looked for in the current folder.
    input_shape
        Shape of one record: (C, H, W) or (d,).
    n_classes
        Number of classes.
    dropout
        Share of activations zeroed before the last layer.

    Raises
    ------
    ModelError
        An unknown name; a module or factory that is missing or fails; answers that are not logits [B, n_classes].
    ConfigError
        Dropout for a factory that takes none.
    """
    factory = _imported(name) if ":" in name else _named(name).factory
    accepted = _accepted(factory)
    if dropout and "dropout" not in accepted:
        raise ConfigError(
            f"dropout = {dropout} cannot reach the model {name!r}: its factory takes no argument 'dropout'",
            "set it in your own code, or let the factory take it",
        )
    offered = {
        "input_shape": tuple(input_shape),
        "n_classes": n_classes,
        "in_channels": input_shape[0],
        "num_classes": n_classes,
        "dropout": dropout,
    }
    try:
        module = factory(**{key: value for key, value in offered.items() if key in accepted})
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the factory of model {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"the factory of model {name!r} gave {type(module).__name__}, expected a torch.nn.Module")
    _check_answers(module, name, input_shape, n_classes)
    return module


def build_for(recipe: Recipe, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Make the model of a recipe, as `build` does, with what its defenses change in the architecture."""
    module = build(recipe.model, input_shape, n_classes, dropout=recipe.dropout)
    for defense in in_force(recipe):
        module = defense.module(module)
    return module


def _named(name: str) -> ModelEntry:
    entries = available()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        known = f"known: {', '.join(entries)}, or package.module:factory"
        raise ModelError(f"unknown model {name!r}", f"did you mean {near[0]!r}? {known}" if near else known)
    return entries[name]


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # as `python -m` does: a console command alone would not see the user's module
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ModelError(
            f"cannot import the model {name!r}: {type(error).__name__}: {error}",
            "name it as package.module:factory, importable from the current folder or an installed package",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise ModelError(f"{name!r} is {type(found).__name__}, expected a function or class that makes a module")
    factory: Callable[..., Any] = found
    return factory


def _accepted(factory: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in parameters if p.kind in kinds}


def _check_answers(module: nn.Module, name: str, input_shape: tuple[int, ...], n_classes: int) -> None:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            answers = module(torch.zeros(2, *input_shape))
    except Exception as error:
        raise ModelError(
            f"model {name!r} cannot take records of shape {list(input_shape)}: {error}",
            "records come as float32 [B, C, H, W] images or [B, d] feature rows",
        ) from error
    finally:
        module.train(training)
    found = f"{answers.dtype} {list(answers.shape)}" if isinstance(answers, Tensor) else type(answers).__name__
    if not isinstance(answers, Tensor) or not answers.is_floating_point() or answers.shape != (2, n_classes):
        raise ModelError(
            f"model {name!r} answers two records with {found}, expected logits [2, {n_classes}]",
            f"its last layer needs {n_classes} outputs: let the factory take n_classes or num_classes",
        )
    if bool((answers >= 0).all()) and torch.allclose(answers.sum(1), torch.ones(2), atol=1e-4):
        raise ModelError(f"model {name!r} answers with probabilities, expected logits", "remove the softmax at its end")


def _image_shape(name: str, input_shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ModelError(f"model {name!r} takes images, the records are {input_shape[0]} features", "use --model mlp")
    channels, height, width = input_shape
    if min(height, width) < least:
        raise ModelError(f"model {name!r} takes images of at least {least}x{least}, found {height}x{width}", "use mlp")
    return channels, height, width
