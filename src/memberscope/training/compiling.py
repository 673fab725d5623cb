"""Training steps compiled by `torch.compile`, where the user asks for it.

A small model leaves a GPU idle between the launches of its kernels. Compiled, the kernels of a step are fewer, and on a
GPU they are replayed as one CUDA graph. Compiling takes a minute the first time. On a CPU it gains little or nothing;
there it was tested for equality with plain steps, up to rounding. On a GPU neither was measured: none was at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(step: Callable[..., Tensor], device: torch.device, *example: Any) -> Callable[..., Tensor]:
    """Give `step` compiled; plain, with a warning that says why, where it cannot be.

    Parameters
    ----------
    step
        What a training step does before the gradients: tensors in, a tensor out that has gradients.
    device
        Where it runs.
    example
        What it is tried on, with its gradients; these are then as they were left by this one step.

    Warns
    -----
    UserWarning
        There is no compiler, or it does not know what the step does.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}  # dropout draws as ever
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    fast: Callable[..., Tensor] | None = torch.compile(step, dynamic=False, fullgraph=True, options=options)

    def run(*given: Any) -> Tensor:
        nonlocal fast
        if fast is None:
            return step(*given)
        try:
            if device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return fast(*given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            fast = None
            _warn(error)
            return step(*given)

    try:
        run(*example).sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        fast = None
        _warn(error)
    return run


def _warn(error: RuntimeError) -> None:
    reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    warnings.warn(f"training steps are not compiled: {reason}", stacklevel=3)
