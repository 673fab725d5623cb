"""Weights that others wrote: safetensors and PyTorch state dicts, read without running anything that a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memberscope.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


def load_weights(path: Path, module: nn.Module) -> None:
    """Load weights into a module: safetensors, or a PyTorch state dict read weights-only. Nothing in a file is run.

    A state dict may lie under ``state_dict``, ``model_state_dict`` or ``model``, its names may begin with ``module.``
    (DataParallel) or ``_orig_mod.`` (torch.compile).

    Raises
    ------
    ModelError
        The file is missing, damaged, or of another kind; or it does not fit: names missing, unexpected and misshapen
        entries; or it holds NaN or infinite weights.
    """
    path = Path(path)
    state = _read_state(path)
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    _check_fit(path, state, module.state_dict())
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{path}: {name} holds NaN or infinite weights", "such a model answers nothing; export it again"
            )
    module.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror or error}", "check the path") from error
    if head[8:9] == b"{":  # eight bytes of length, then a JSON header
        return _read_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":  # torch's zip archive, or its older bare pickle
        return _read_pytorch(path)
    raise ModelError(
        f"{path} is neither a safetensors file nor a PyTorch state dict",
        "save the weights with safetensors.torch.save_file(model.state_dict(), path)",
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}", "copy or export it again") from error
    return state


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    remedy = "save the weights alone: torch.save(model.state_dict(), path), or better as safetensors"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Its text is long and advises weights_only=False: exactly what must not be done with a file from elsewhere.
        raise ModelError(
            f"{path} is damaged, or holds more than weights (Python objects, which could run code): it was not loaded",
            remedy,
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state dict (names and tensors) but {type(content).__name__}", remedy)
    return {str(name): value for name, value in content.items()}


def _check_fit(path: Path, state: dict[str, Tensor], expected: dict[str, Any]) -> None:
    problems = []
    for title, names in (
        ("missing", sorted(expected.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{title}: {', '.join(names[:_SHOWN])}{more}")
    for name in sorted(expected.keys() & state.keys()):
        if state[name].shape != expected[name].shape:
            problems.append(f"{name} is {list(state[name].shape)}, expected {list(expected[name].shape)}")
    if problems:
        raise ModelError(
            f"the weights {path} do not fit the model; {'; '.join(problems)}",
            "name the architecture they were trained with (--model), and the dataset with its classes",
        )
