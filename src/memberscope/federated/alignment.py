"""How each record's gradient lies to given directions in weight space: the updates of the clients of a federation.

For a layer that is linear in its weights a record's gradient is the outer product of what went in and of what came
back, so norms and products with K updates come from one backward pass a batch without making the gradient
(I. Goodfellow, arXiv 1510.01799). Models with other layers take the general way, a gradient a record by vmap.

The gradient is that of the cross-entropy at evaluation (no dropout, BatchNorm with its running statistics). What is
sent back through the model is the residual p - onehot, computed in float64 and scaled to 1: the gradient of a confident
record, which float32 would take for zero, keeps its direction and its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from memberscope.round_features import MAX_PARTS
from memberscope.training.gradients import with_float64

_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Alignment:
    """Gradients of N records held against K directions, part by part (P parts of the model, from input to output).

    Parameters
    ----------
    logits
        float32 [N, C], the model's answers.
    log_norm
        float64 [N], natural logarithm of the l2 norm of each record's gradient.
    part_share
        float32 [P, N], share of the squared norm that lies in each part.
    along
        float32 [K, P, N], product of the record's gradient, scaled to length 1 as a whole, with direction k. The sum
        over the parts, divided by the length of the direction, is the cosine.
    """

    logits: NDArray[np.float32]
    log_norm: NDArray[np.float64]
    part_share: NDArray[np.float32]
    along: NDArray[np.float32]


def parts_of(module: nn.Module) -> list[list[str]]:
    """Names of the trainable weights of each part, from input to output: layers, merged into `MAX_PARTS` at most."""
    layers: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    groups = np.array_split(np.arange(len(layers)), min(MAX_PARTS, len(layers)))
    named = list(layers.values())
    return [[name for layer in group for name in named[layer]] for group in groups]


def align(
    module: nn.Module,
    batches: Callable[[int, int], Tensor],
    labels: NDArray[np.int64],
    directions: Sequence[Mapping[str, Tensor]],
    *,
    chunk: int = 256,
) -> Alignment:
    """Hold each record's gradient against directions.

    Parameters
    ----------
    module
        The model; left as it was.
    batches
        From start and end to the normalised records of these positions, float32 [n, ...] on the module's device.
    labels
        int64 [N].
    directions
        K mappings from the name of a trainable weight to its part of the direction, shaped as the weight.
    chunk
        Records at once.
    """
    module, batches = with_float64(module, batches)
    names = [name for name, _ in module.named_parameters()]
    device = next(module.parameters()).device
    stacked = {
        name: torch.stack([d[name].to(device).float().flatten() for d in directions])
        if directions
        else torch.empty(0, dict(module.named_parameters())[name].numel(), device=device)
        for name in names
    }
    part_of = {name: part for part, group in enumerate(parts_of(module)) for name in group}
    n, parts = len(labels), max(part_of.values()) + 1
    log_norm = np.empty(n)
    share = np.empty((parts, n), np.float32)
    along = np.empty((len(directions), parts, n), np.float32)
    logits = None
    was_training = module.training
    module.eval()
    try:
        gradients = _LayerGradients(module, stacked)
        per_batch = gradients if gradients.possible(batches(0, min(2, n))) else _AnyGradients(module, stacked)
        for start in range(0, n, chunk):
            end = min(start + chunk, n)
            y = torch.from_numpy(labels[start:end]).to(device)
            answers, scale, squares, dots = per_batch(batches(start, end), y)
            if logits is None:
                logits = np.empty((n, answers.shape[1]), np.float32)
            logits[start:end] = answers.cpu().numpy()
            square = torch.zeros(parts, end - start, dtype=torch.float64, device=device)
            dot = torch.zeros(len(directions), parts, end - start, dtype=torch.float64, device=device)
            for name in names:
                square[part_of[name]] += squares[name]
                dot[:, part_of[name]] += dots[name].T
            total = square.sum(dim=0).clamp_min(_TINY)
            log_norm[start:end] = (0.5 * total.log() + scale.clamp_min(_TINY).log()).cpu().numpy()
            share[:, start:end] = (square / total).cpu().numpy()
            along[:, :, start:end] = (dot / total.sqrt()).cpu().numpy()
    finally:
        module.train(was_training)
    return Alignment(np.empty((0, 0), np.float32) if logits is None else logits, log_norm, share, along)


_Batch = tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]
"""Logits float32 [B, C], scale float64 [B], and by weight name the squares float64 [B] and products float64 [B, K]."""


def _residual(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the cross-entropy in the logits, float32 [B, C] scaled to a largest entry of 1, and its scale."""
    probabilities = logits.double().softmax(dim=1)
    others = probabilities.scatter(1, labels[:, None], 0.0)
    residual = others.scatter(1, labels[:, None], -others.sum(dim=1, keepdim=True))
    scale = residual.abs().amax(dim=1)
    return (residual / scale.clamp_min(_TINY)[:, None]).float(), scale


class _LayerGradients:
    """Gradients of plain linear and convolutional layers, from their inputs and the gradients of their outputs."""

    def __init__(self, module: nn.Module, directions: Mapping[str, Tensor]) -> None:
        self.module, self.directions = module, directions
        owners = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
        self.layers = {name: layer for name, layer in module.named_modules() if name in owners}

    def possible(self, sample: Tensor) -> bool:
        """Whether every weight lies in a layer that this way can treat, each used once on a batch like `sample`."""
        distinct = {id(p) for p in self.module.parameters()}
        if not all(_plain(layer) for layer in self.layers.values()) or len(distinct) != len(self.directions):
            return False
        _, inputs, _ = self._run(sample)
        return all(
            len(inputs[name]) == 1 and inputs[name][0].ndim == (2 if isinstance(layer, nn.Linear) else 4)
            for name, layer in self.layers.items()
        )

    def _run(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        inputs: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.layers}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
                inputs[name].append(given[0].detach())
                outputs[name].append(output)
                return output.clone()  # what follows may work in place

            return hook

        handles = [layer.register_forward_hook(keep(name)) for name, layer in self.layers.items()]
        try:
            with torch.enable_grad():
                return self.module(x), inputs, outputs
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, x: Tensor, y: Tensor) -> _Batch:
        logits, inputs, outputs = self._run(x)
        residual, scale = _residual(logits.detach(), y)
        flat = [outputs[name][0] for name in self.layers]
        back = torch.autograd.grad(logits, flat, grad_outputs=residual.to(logits.dtype))
        squares: dict[str, Tensor] = {}
        dots: dict[str, Tensor] = {}
        for (name, layer), gradient in zip(self.layers.items(), back, strict=True):
            square, dot = self._layer(layer, f"{name}." if name else "", inputs[name][0], gradient)
            squares |= square
            dots |= dot
        return logits.detach().float(), scale, squares, dots

    def _layer(
        self, layer: nn.Module, prefix: str, given: Tensor, back: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weight, bias = f"{prefix}weight", f"{prefix}bias"
        along = self.directions[weight]
        if isinstance(layer, nn.Linear):
            forward = given @ along.view(len(along) * layer.out_features, given.shape[1]).T
            products = (forward.view(len(given), len(along), layer.out_features) * back[:, None]).sum(dim=2)
            squares = {weight: given.double().square().sum(dim=1) * back.double().square().sum(dim=1)}
            bias_gradient = back
        else:
            assert isinstance(layer, nn.Conv2d)
            assert not isinstance(layer.padding, str)
            windows = nn.functional.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            gradient = (back.flatten(2) @ windows.transpose(1, 2)).flatten(1)
            products = gradient @ along.T
            squares = {weight: gradient.double().square().sum(dim=1)}
            bias_gradient = back.sum(dim=(2, 3))
        dots = {weight: products.double()}
        if layer.bias is not None:
            squares[bias] = bias_gradient.double().square().sum(dim=1)
            dots[bias] = (bias_gradient @ self.directions[bias].T).double()
        return squares, dots


def _plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


class _AnyGradients:
    """Gradients of any model, one a record by vmap: takes a batch times the memory of the model."""

    PIECE = 32

    def __init__(self, module: nn.Module, directions: Mapping[str, Tensor]) -> None:
        self.module, self.directions = module, directions

    def __call__(self, x: Tensor, y: Tensor) -> _Batch:
        weights = {name: p.detach() for name, p in self.module.named_parameters()}
        buffers = {name: b.detach() for name, b in self.module.named_buffers()}
        with torch.no_grad():
            logits = self.module(x).float()
        residual, scale = _residual(logits, y)

        def gradient(one: Tensor, back: Tensor) -> dict[str, Tensor]:
            def answer(chosen: Mapping[str, Tensor]) -> Tensor:
                answered: Tensor = functional_call(self.module, {**chosen, **buffers}, (one[None],))
                return answered[0]

            pull = vjp(answer, weights)[1]
            found: dict[str, Tensor] = pull(back)[0]
            return found

        squares: dict[str, list[Tensor]] = {name: [] for name in weights}
        dots: dict[str, list[Tensor]] = {name: [] for name in weights}
        for start in range(0, len(x), self.PIECE):
            piece = slice(start, start + self.PIECE)
            for name, found in vmap(gradient)(x[piece], residual[piece]).items():
                flat = found.flatten(1)
                squares[name].append(flat.double().square().sum(dim=1))
                dots[name].append((flat @ self.directions[name].T).double())
        return logits, scale, {n: torch.cat(s) for n, s in squares.items()}, {n: torch.cat(d) for n, d in dots.items()}
