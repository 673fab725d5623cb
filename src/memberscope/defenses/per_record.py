"""The sum of clipped per-record gradients, exactly, at about the cost of an ordinary step.

Two ways, both exact in float32:

* **by layer** (book-keeping, Bu et al. 2023, ICML, section 3): one forward and one backward pass to the outputs of
  the layers. The gradient of a layer's weights is a product of its input and the gradient of its output, so the norm
  of each record's gradient follows without forming it where that is cheaper (ghost norm, Li et al. 2022, ICLR, section
  4), and the clipped sum is one more product. For linear and convolutional layers, group and layer normalisation.
* **by record**: `torch.func.vmap` of `torch.func.grad`, for any module that it can transform; each record's gradient of
  all weights is formed.

Whether a module really is what its layers say (a weight could be used outside of its layer, or twice) is not taken on
trust: `ClippedSum` compares the two ways on a few records first, and takes the second where they differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from memberscope.errors import ModelError

Losses = Callable[[Tensor, Tensor], Tensor]
"""From logits [b, classes] and their targets to the losses [b]."""
_TINY = 1e-12
_TOLERANCE = 1e-3
_TRIED = 3
_WIDE = 8
"""Channels from which on copying whole rows of windows is faster than `unfold`."""


class ClippedSum:
    """Sums of clipped per-record gradients of one module.

    Parameters
    ----------
    module
        In training mode while sums are asked for.
    microbatch
        Records at once: memory grows with it.
    """

    def __init__(self, module: nn.Module, microbatch: int) -> None:
        self.module, self._microbatch = module, microbatch
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._layers = _layers(module)
        self.by_layer: bool | None = None if self._layers else False
        """Whether layers are taken; None: not tried yet."""

    def sum(self, x: Tensor, targets: Tensor, losses: Losses, clip: float) -> tuple[dict[str, Tensor], Tensor]:
        """Give the sum over records of gradient * min(1, clip / |gradient|), by parameter, and the losses [B].

        Parameters
        ----------
        x, targets
            B records as the module takes them, and what `losses` takes beside their logits. B may be 0.
        losses
            The loss of each record; it may depend on no other.
        clip
            Largest norm of a record's gradient.
        """
        total = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        told = [x.new_zeros(0)]
        if self.by_layer is None and len(x):
            self.by_layer = self._agrees(x[:_TRIED], targets[:_TRIED], losses)
        way = self._by_layer if self.by_layer else self._by_record
        for start in range(0, len(x), self._microbatch):
            part = slice(start, start + self._microbatch)
            gradients, loss, _ = way(x[part], targets[part], losses, clip)
            for name, gradient in gradients.items():
                total[name] += gradient
            told.append(loss)
        return total, torch.cat(told)

    def norms(self, x: Tensor, targets: Tensor, losses: Losses) -> Tensor:
        """Norm of each record's gradient before clipping, float32 [B]."""
        way = self._by_layer if self.by_layer else self._by_record
        return way(x, targets, losses, 1.0)[2]

    def _agrees(self, x: Tensor, targets: Tensor, losses: Losses) -> bool:
        """Whether both ways find the same on these records, with what is random left out."""
        state = _without_chance(self.module)
        try:
            one, _, norms = self._by_layer(x, targets, losses, 1.0)
            other, _, expected = self._by_record(x, targets, losses, 1.0)
        except RuntimeError:
            return False
        finally:
            for part, probability in state:
                part.p = probability
        close = torch.allclose(norms, expected, rtol=_TOLERANCE, atol=1e-6)
        return close and all(torch.allclose(one[n], other[n], rtol=_TOLERANCE, atol=1e-5) for n in other)

    def _by_layer(
        self, x: Tensor, targets: Tensor, losses: Losses, clip: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        seen: list[tuple[_Layer, Tensor, Tensor]] = []

        def note(layer: _Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
                del module
                if not answer.requires_grad:
                    answer.requires_grad_()  # the first layer: nothing before it is differentiated
                seen.append((layer, given[0].detach(), answer))

            return hook

        hooks = [layer.module.register_forward_hook(note(layer)) for layer in self._layers]
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)  # the backward pass then goes to the outputs of layers alone
        try:
            loss = losses(self.module(x), targets)
            if len(seen) != len(self._layers):
                raise RuntimeError("a layer was used twice, or not at all")
            slopes = torch.autograd.grad(loss.sum(), [answer for _, _, answer in seen])
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
        with torch.no_grad():
            works = [layer.start(a, g) for (layer, a, _), g in zip(seen, slopes, strict=True)]
            squares = torch.stack([work.squares() for work in works]).sum(0)
            norms = squares.sqrt()
            factor = (clip / norms.clamp_min(_TINY)).clamp_max(1.0)
            gradients = {name: value for work in works for name, value in work.weighted(factor).items()}
        return gradients, loss.detach(), norms

    def _by_record(
        self, x: Tensor, targets: Tensor, losses: Losses, clip: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        module, fixed = self.module, dict(self.module.named_buffers())
        frozen = {name: p.detach() for name, p in module.named_parameters() if name not in self._parameters}

        def one(weights: dict[str, Tensor], record: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            logits = functional_call(module, {**weights, **frozen, **fixed}, (record[None],))
            loss = losses(logits, target[None])[0]
            return loss, loss

        weights = {name: p.detach() for name, p in self._parameters.items()}
        try:
            each = vmap(grad(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
            gradients, loss = each(weights, x, targets)
        except RuntimeError as error:
            raise ModelError(
                f"no gradient of each record can be computed for this model: {str(error).splitlines()[0]}",
                "differential privacy needs a model that treats each record by itself",
            ) from error
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        factor = (clip / norms.clamp_min(_TINY)).clamp_max(1.0)
        return {n: torch.tensordot(factor, g, dims=1) for n, g in gradients.items()}, loss.detach(), norms


class _Layer:
    """A layer with weights, and the names of its trained parameters."""

    def __init__(self, module: nn.Module, names: dict[str, str]) -> None:
        self.module, self.names = module, names

    def start(self, given: Tensor, slope: Tensor) -> _Work:
        """Begin with a layer's input and the gradient of its output."""
        if isinstance(self.module, nn.Linear):
            return _Linear(self, given, slope)
        if isinstance(self.module, nn.Conv2d):
            return _Conv(self, given, slope)
        return _Norm(self, given, slope)


class _Work(ABC):
    """The gradients of one layer's parameters for each record of a batch."""

    def __init__(self, layer: _Layer, given: Tensor, slope: Tensor) -> None:
        self.layer, self.given, self.slope = layer, given, slope

    @abstractmethod
    def squares(self) -> Tensor:
        """Squared norm of each record's gradient, [B]."""

    @abstractmethod
    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        """Sum over records of factor [B] times gradient, by the parameter's name in the whole module."""

    def named(self, **values: Tensor) -> dict[str, Tensor]:
        """Those of weight and bias that are trained, under their full names."""
        return {self.layer.names[kind]: value for kind, value in values.items() if kind in self.layer.names}


class _Product(_Work):
    """Weights whose gradient is a sum over T places of slopes [B, T, out] times inputs [B, T, in]."""

    inputs: Tensor
    slopes: Tensor
    shifts: Tensor

    def prepare(self, inputs: Tensor, slopes: Tensor) -> None:
        """Choose between forming each record's gradient and its norm alone: by the numbers to compute and keep."""
        self.inputs, self.slopes, self.shifts = inputs, slopes, slopes.sum(1)
        places = inputs.shape[1]
        self.ghost = 2 * places * places < inputs.shape[2] * slopes.shape[2]
        self.each = None if self.ghost else torch.bmm(slopes.transpose(1, 2), inputs)

    def squares(self) -> Tensor:
        found = torch.zeros(len(self.slopes), device=self.slopes.device)
        if "weight" in self.layer.names:
            if self.each is not None:
                found = found + self.each.flatten(1).square().sum(1)
            elif self.inputs.shape[1] == 1:
                found = found + self.inputs.square().sum((1, 2)) * self.slopes.square().sum((1, 2))
            else:
                pairs = torch.bmm(self.inputs, self.inputs.transpose(1, 2))
                found = found + (pairs * torch.bmm(self.slopes, self.slopes.transpose(1, 2))).sum((1, 2)).clamp_min(0)
        if "bias" in self.layer.names:
            found = found + self.shifts.square().sum(1)
        return found

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        if self.each is not None:
            weight = torch.tensordot(factor, self.each, dims=1)
        else:
            weight = (self.slopes * factor[:, None, None]).flatten(0, 1).T @ self.inputs.flatten(0, 1)
        return self.named(weight=self.shaped(weight), bias=factor @ self.shifts)

    def shaped(self, weight: Tensor) -> Tensor:
        """The gradient [out, in] in the shape of the layer's weight."""
        return weight


class _Linear(_Product):
    def __init__(self, layer: _Layer, given: Tensor, slope: Tensor) -> None:
        super().__init__(layer, given, slope)
        count = len(given)
        self.prepare(given.reshape(count, -1, given.shape[-1]), slope.reshape(count, -1, slope.shape[-1]))


class _Conv(_Product):
    def __init__(self, layer: _Layer, given: Tensor, slope: Tensor) -> None:
        super().__init__(layer, given, slope)
        conv = layer.module
        assert isinstance(conv, nn.Conv2d)
        wide = given.shape[1] >= _WIDE and given.is_contiguous(memory_format=torch.channels_last)
        self.rows = wide and conv.dilation == (1, 1)
        if self.rows:
            inputs = _windows(given, conv)
        else:
            assert not isinstance(conv.padding, str)
            inputs = nn.functional.unfold(given, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
            inputs = inputs.transpose(1, 2)
        self.prepare(inputs, slope.flatten(2).transpose(1, 2))

    def shaped(self, weight: Tensor) -> Tensor:
        conv = self.layer.module
        assert isinstance(conv, nn.Conv2d)
        out, inside, high, wide = conv.weight.shape
        if self.rows:
            return weight.view(out, high, wide, inside).permute(0, 3, 1, 2)
        return weight.view(out, inside, high, wide)


def _windows(given: Tensor, conv: nn.Conv2d) -> Tensor:
    """The windows of a channels-last image [B, C, H, W] as [B, places, kernel rows * kernel columns * C].

    Rows of a window lie together in memory, so this copies a few times faster than `unfold` gathers.
    """
    assert not isinstance(conv.padding, str)
    (high, wide), (down, right), (top, left) = conv.kernel_size, conv.stride, conv.padding
    rows = nn.functional.pad(given.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    count, height, width, channels = rows.shape
    shape = (count, (height - high) // down + 1, (width - wide) // right + 1, high, wide * channels)
    line = width * channels
    strides = (height * line, down * line, right * channels, line, 1)
    return rows.as_strided(shape, strides).reshape(count, shape[1] * shape[2], high * wide * channels)


class _Norm(_Work):
    """Group and layer normalisation: the scale's gradient is slope times normalised input, the shift's is the slope."""

    def __init__(self, layer: _Layer, given: Tensor, slope: Tensor) -> None:
        super().__init__(layer, given, slope)
        norm = layer.module
        if isinstance(norm, nn.GroupNorm):
            normal = nn.functional.group_norm(given, norm.num_groups, eps=norm.eps)
            self.weight = (slope * normal).flatten(2).sum(2)
            self.bias = slope.flatten(2).sum(2)
        else:
            assert isinstance(norm, nn.LayerNorm)
            normal = nn.functional.layer_norm(given, norm.normalized_shape, eps=norm.eps)
            between = tuple(range(1, given.ndim - len(norm.normalized_shape)))
            self.weight = (slope * normal).sum(between) if between else slope * normal
            self.bias = slope.sum(between) if between else slope

    def squares(self) -> Tensor:
        parts = [p for kind, p in (("weight", self.weight), ("bias", self.bias)) if kind in self.layer.names]
        return torch.stack([p.flatten(1).square().sum(1) for p in parts]).sum(0)

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        return self.named(
            weight=torch.tensordot(factor, self.weight, dims=1), bias=torch.tensordot(factor, self.bias, dims=1)
        )


def _layers(module: nn.Module) -> list[_Layer]:
    """The layers that hold all trained parameters, each its own; empty: not all of them are known here."""
    layers, held = [], 0
    for path, part in module.named_modules(remove_duplicate=False):
        own = {kind: p for kind, p in part.named_parameters(recurse=False, remove_duplicate=False) if p.requires_grad}
        if not own:
            continue
        if not _known(part):
            return []
        layers.append(_Layer(part, {kind: f"{path}.{kind}" if path else kind for kind in own}))
        held += len(own)
    tied = held != sum(p.requires_grad for p in module.parameters())
    return [] if tied else layers


def _known(part: nn.Module) -> bool:
    if type(part) is nn.Conv2d:
        return part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return type(part) in (nn.Linear, nn.GroupNorm, nn.LayerNorm)


def _without_chance(module: nn.Module) -> list[tuple[nn.modules.dropout._DropoutNd, float]]:
    """Switch dropout off, and give what is needed to switch it on again."""
    layers = [part for part in module.modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
    state = [(part, part.p) for part in layers]
    for part in layers:
        part.p = 0.0
    return state
