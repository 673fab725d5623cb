"""Per-record gradients: their norms with respect to all weights, and to the record itself.

The gradient is that of the loss at evaluation (no dropout, BatchNorm with its running statistics), so that a record's
gradient depends on that record alone. The softmax is taken in float64: in float32 the probability of a confident member
is exactly 1 and its gradient exactly 0, which ties the surest members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from memberscope.training.batches import Records
from memberscope.training.hardware import cpu_threads, exact_fp32
from memberscope.training.trained_model import TrainedModel

_TINY = 1e-300
WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that have no float64, which gradients of confident records need."""


def reference_white_box(
    model: Callable[[int], TrainedModel], x: NDArray[Any], y: NDArray[np.int64], index: NDArray[np.int64]
) -> Callable[[int, str, NDArray[np.int64]], NDArray[np.float64]]:
    """What the weights of reference models say about records (`memberscope.workshop.ReferenceWhiteBox`).

    Parameters
    ----------
    model
        Gives reference model k: `ModelBank.model`.
    x, y
        The pool.
    index
        int64 [N]: the records under audit.
    """

    def feature(k: int, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return white_box(model(k), x[index[rows]], y[index[rows]])(name)

    return feature


def white_box(model: TrainedModel, x: NDArray[Any], y: NDArray[np.int64]) -> Callable[[str], NDArray[np.float64]]:
    """What the weights say about records, by name.

    ``log_gradient_norm_weights`` and ``log_gradient_norm_input`` are float64 [N]; ``log_gradient_norm_layers`` is
    float64 [N, L], the norms of the gradients of the weights of each layer, in the order of the model.

    Parameters
    ----------
    model
        The target.
    x, y
        The records, uint8 [N, C, H, W] or float32 [N, d], and their classes int64 [N].
    """
    kept: dict[str, NDArray[np.float64]] = {}

    def feature(name: str) -> NDArray[np.float64]:
        if name not in kept:
            device = torch.device(model.device)

            def batches(start: int, end: int) -> Tensor:
                return Records(x[start:end], model.normalisation, device).batch(slice(None))

            of = name.removeprefix("log_gradient_norm_")
            with cpu_threads(model.threads), exact_fp32():
                kept[name] = log_gradient_norms(model.module, batches, y, of=of)
            if of == "layers":  # one pass gives both
                kept["log_gradient_norm_weights"] = 0.5 * np.logaddexp.reduce(2 * kept[name], axis=1)
        return kept[name]

    return feature


def log_gradient_norms(
    module: nn.Module,
    batches: Callable[[int, int], Tensor],
    labels: NDArray[np.int64],
    *,
    of: str,
    chunk: int = 128,
) -> NDArray[np.float64]:
    """Natural logarithm of the l2 norm of each record's gradient.

    Parameters
    ----------
    module
        The model; left as it was.
    batches
        From start and end to the normalised records of these positions, float32 [n, ...] on the module's device.
    labels
        int64 [N].
    of
        ``weights``, ``layers`` (the weights of each layer apart) or ``input``.
    chunk
        Records at once; per-record gradients of all weights take ``chunk`` times the memory of the model.

    Returns
    -------
    float64 [N]; for ``layers`` [N, L].
    """
    module, batches = with_float64(module, batches)
    was_training = module.training
    module.eval()
    weights = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}

    def loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(module, {**weights, **buffers}, (x[None],))
        return nn.functional.cross_entropy(logits.double(), y[None])

    per_record = vmap(grad(loss, argnums=1 if of == "input" else 0), in_dims=(None, 0, 0))
    groups = _groups(list(weights), of)
    out = np.empty((len(labels), len(groups)))
    device = next(iter(weights.values())).device
    try:
        for start in range(0, len(labels), chunk):
            end = min(start + chunk, len(labels))
            y = torch.from_numpy(labels[start:end]).to(device)
            gradient = per_record(weights, batches(start, end), y)
            parts = gradient if isinstance(gradient, dict) else {"": gradient}
            for column, names in enumerate(groups):
                squares = sum(_squared_norm(parts[name]) for name in names)
                assert isinstance(squares, Tensor)
                out[start:end, column] = 0.5 * np.log(np.maximum(squares.cpu().numpy(), _TINY))
    finally:
        module.train(was_training)
    return out if of == "layers" else out[:, 0]


def with_float64(
    module: nn.Module, batches: Callable[[int, int], Tensor]
) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """A module and what gives its batches, on a device that has float64: a copy on the CPU where its own has none."""
    if next(module.parameters()).device.type not in WITHOUT_FLOAT64:
        return module, batches
    return copy.deepcopy(module).cpu(), lambda start, end: batches(start, end).cpu()


def _groups(names: list[str], of: str) -> list[list[str]]:
    """Which gradients belong to one norm."""
    if of == "input":
        return [[""]]
    if of == "weights":
        return [names]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return list(layers.values())


def _squared_norm(gradient: Tensor) -> Tensor:
    """Sum of squares of each record's part, float64 [n]; scaled first, since the square of 1e-30 is 0 in float32."""
    flat = gradient.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return (flat / largest).square().sum(dim=1).double() * largest[:, 0].double().square()
