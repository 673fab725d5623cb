"""ReLU of a 2x2 max-pool, several times faster on a CPU than the two operations that it equals bit for bit.

PyTorch's channels-last max-pool writes one 64-bit index for each output and scatters by it in the backward pass; for
the small convolutional nets trained here that takes about as long as a convolution. Two observations remove it:

* After a ReLU only the order of the positive values matters, and non-negative floating-point numbers are ordered as
  their bits read as integers. Integer maxima run at full vector width also for bfloat16, which has no vector
  arithmetic of its own.
* The place of the maximum is the outcome of two comparisons, left with right and top with bottom, kept as integers 0
  and 1: the gradient is sent down by multiplying with them and by subtracting what went the other way.

A NaN with its sign bit set becomes 0; the trainer looks for NaN in the loss and in the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def relu_max_pool(x: Tensor) -> Tensor:
    """Give ``relu(max_pool2d(x, 2))`` of x [B, C, H, W], with the same gradient (ties go to the first in row order).

    The fast way is taken on a CPU for even H and W in channels-last memory; everything else goes to PyTorch.
    """
    if not _fast(x):
        return torch.relu(torch.nn.functional.max_pool2d(x, 2))
    if x.requires_grad and torch.is_grad_enabled():
        pooled: Tensor = _ReluMaxPool.apply(x)  # type: ignore[no-untyped-call]
        return pooled
    return _as_image(_pool(_columns(x))[-1].clamp_min_(0), x.dtype)


def _fast(x: Tensor) -> bool:
    return (
        torch._C._functorch.peek_interpreter_stack() is None  # vmap and grad transforms cannot see into a Function
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and x.is_floating_point()
        and x.shape[-1] % 2 == 0
        and x.shape[-2] % 2 == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _columns(x: Tensor) -> Tensor:
    """The bits of x [B, C, H, W] as integers [B, H, W/2, 2, C], sharing its memory."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(_INTEGERS[x.element_size()]).view(batch, height, width // 2, 2, channels)


def _as_image(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers [B, H, W, C] as the floating-point image [B, C, H, W] whose bits they are."""
    return bits.view(dtype).permute(0, 3, 1, 2)


def _pool(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over columns [B, H/2, 2, W/2, C], and over columns and rows [B, H/2, W/2, C]."""
    batch, height, width, _, channels = columns.shape
    wide = torch.maximum(columns[:, :, :, 0], columns[:, :, :, 1]).view(batch, height // 2, 2, width, channels)
    return wide, torch.maximum(wide[:, :, 0], wide[:, :, 1])


class _ReluMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        columns = _columns(x)
        wide, pooled = _pool(columns)
        # `out` of the operands' own type: comparisons into bool are not vectorised, nor are products with bool.
        left = torch.ge(columns[:, :, :, 0], columns[:, :, :, 1], out=torch.empty_like(columns[:, :, :, 0]))
        top = torch.ge(wide[:, :, 0], wide[:, :, 1], out=torch.empty_like(pooled))
        result = _as_image(pooled.clamp_min_(0), x.dtype)
        ctx.save_for_backward(left, top, result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        left, top, result = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        below = torch.ops.aten.threshold_backward(gradient, result, 0)
        bits = below.permute(0, 2, 3, 1).view(left.dtype)
        batch, height, width, channels = left.shape
        rows = left.new_empty(batch, height // 2, 2, width, channels)
        torch.mul(top, bits, out=rows[:, :, 0])
        torch.sub(bits, rows[:, :, 0], out=rows[:, :, 1])
        rows = rows.view(batch, height, width, channels)
        columns = left.new_empty(batch, height, width, 2, channels)
        torch.mul(left, rows, out=columns[:, :, :, 0])
        torch.sub(rows, columns[:, :, :, 0], out=columns[:, :, :, 1])
        return _as_image(columns.view(batch, height, width * 2, channels), result.dtype)
