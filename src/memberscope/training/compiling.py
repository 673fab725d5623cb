"""Training steps compiled by `torch.compile`, where the user asks for it.

A small model leaves a GPU idle between the launches of its kernels. Compiled, the kernels of a step are fewer, and on a
GPU they are replayed as one CUDA graph. Compiling takes a minute the first time. On a CPU it gains little or nothing;
there it was tested for equality with plain steps, up to rounding. On a GPU neither was measured: none was at hand.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOST_SHAPES = 64
"""Variants of one step that a process compiles before its trainings go on plainly; torch's own limit is 8."""


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
        There is no compiler, it does not know what the step does, or it compiled the step for too many shapes already.
    """
    refusals, more_shapes = _limit()
    options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}  # dropout draws as ever
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    fast: Callable[..., Tensor] | None = torch.compile(step, dynamic=False, fullgraph=True, options=options)
    seen: set[tuple[torch.Size, ...]] = set()

    def run(*given: Any) -> Tensor:
        nonlocal fast
        if fast is None:
            return step(*given)
        try:
            if device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # All trainings of the process share the code of a step, and what was compiled of it: each brings shapes of
            # its own. The limit is raised for a shape that is new here, not in each step: that would cost 17 us.
            shapes = tuple(each.shape for each in given if isinstance(each, Tensor))
            with contextlib.nullcontext() if shapes in seen else more_shapes():
                answer = fast(*given)
            seen.add(shapes)
            return answer
        except torch.OutOfMemoryError:
            raise
        except refusals as error:
            fast = None
            _warn(error)
            return step(*given)

    try:
        run(*example).sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except refusals as error:
        fast = None
        _warn(error)
    return run


def _limit() -> tuple[tuple[type[Exception], ...], Callable[[], contextlib.AbstractContextManager[Any]]]:
    """What a compiler raises that gives up, and a context in which it gives up after `_MOST_SHAPES` variants."""
    import torch._dynamo  # slow to import, and needed by those who compile alone

    # Too many shapes are no RuntimeError. Older versions of torch name both otherwise.
    names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")
    found: list[type[Exception]] = [
        getattr(torch._dynamo.exc, name) for name in names if hasattr(torch._dynamo.exc, name)
    ]
    config = torch._dynamo.config
    setting = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"

    def more_shapes() -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = config.patch(
            {setting: max(_MOST_SHAPES, getattr(config, setting))}
        )
        return context

    return (RuntimeError, *found), more_shapes


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    warnings.warn(f"training steps are not compiled: {reason}", stacklevel=3)
