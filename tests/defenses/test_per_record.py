"""Sums of clipped per-record gradients, against one backward pass a record and against Opacus."""

import copy

import pytest
import torch
from torch import nn

from memberscope.defenses.group_norm import without_batch_norm
from memberscope.defenses.per_record import ClippedSum
from memberscope.training.models import build


def cross_entropy(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def one_by_one(module, x, targets, clip):
    """The slow oracle: a backward pass for each record."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters() if p.requires_grad}
    norms = []
    for record, target in zip(x, targets, strict=True):
        module.zero_grad()
        cross_entropy(module(record[None]), target[None]).sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        norms.append(norm)
        for name, gradient in gradients.items():
            total[name] += gradient * min(1.0, clip / norm.item())
    module.zero_grad()
    return total, torch.stack(norms)


class Tied(nn.Module):
    """A weight used twice, and not by calling its layer: what the layers say is not true."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        return self.last(torch.tanh(nn.functional.linear(x, self.first.weight)))


class Sequence(nn.Module):
    """Linear and layer normalisation over several places."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x.flatten(1).view(len(x), 3, 4))))).mean(1)


def dilated():
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), nn.GroupNorm(2, 4),
        nn.ReLU(), nn.Conv2d(4, 10, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


def frozen():
    module = build("mlp", (12,), 3)
    module.fc1.weight.requires_grad_(False)
    return module


CASES = {
    "simplecnn": (lambda: build("simplecnn", (3, 8, 8), 3), (3, 8, 8), True),
    "mlp": (lambda: build("mlp", (12,), 3), (12,), True),
    "wrn28-2": (lambda: without_batch_norm(build("wrn28-2", (3, 8, 8), 3)), (3, 8, 8), True),
    "dilated": (dilated, (3, 9, 9), True),
    "sequence": (Sequence, (12,), True),
    "frozen": (frozen, (12,), True),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(3)), (4, 8, 8), False
    ),
    "tied": (Tied, (12,), False),
}  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_sum_is_that_of_one_backward_pass_a_record(name, channels_last):
    make, shape, by_layer = CASES[name]
    if channels_last and len(shape) != 3:
        pytest.skip("not an image")
    torch.manual_seed(0)
    module = make()
    x = torch.randn(7, *shape)
    module(x[:1])
    if channels_last:
        module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(3, (7,))
    _, norms = one_by_one(module, x, targets, 1.0)
    clip = norms.median().item()  # some are clipped, some are not
    expected, _ = one_by_one(module, x, targets, clip)
    clipped = ClippedSum(module, 3)
    found, losses = clipped.sum(x, targets, cross_entropy, clip)
    assert clipped.by_layer is by_layer
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(losses, cross_entropy(module(x), targets).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clipped.norms(x, targets, cross_entropy), norms, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in module.parameters())
    assert all(p.requires_grad for n, p in module.named_parameters() if n in expected)


@pytest.mark.filterwarnings("ignore")
def test_the_sum_is_that_of_opacus():
    opacus = pytest.importorskip("opacus.grad_sample")
    torch.manual_seed(0)
    module = build("simplecnn", (3, 16, 16), 10)
    x, targets = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    found, _ = ClippedSum(module, 16).sum(x, targets, cross_entropy, 0.5)
    other = opacus.GradSampleModule(copy.deepcopy(module))
    cross_entropy(other(x), targets).mean().backward()
    samples = {name.removeprefix("_module."): p.grad_sample for name, p in other.named_parameters()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()]).norm(dim=0)
    for name, gradients in samples.items():
        expected = torch.tensordot((0.5 / norms).clamp(max=1), gradients, dims=1)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_no_record_gives_more_than_the_clip_whatever_the_weights():
    torch.manual_seed(0)
    module = build("simplecnn", (1, 8, 8), 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(30)
    clipped = ClippedSum(module, 4)
    for _ in range(5):
        x, target = 10 * torch.randn(1, 1, 8, 8), torch.randint(3, (1,))
        found, _ = clipped.sum(x, target, cross_entropy, 0.1)
        norm = torch.stack([g.norm() for g in found.values()]).norm()
        assert norm <= 0.1 * (1 + 1e-4)


def test_dropout_is_drawn_for_each_record_and_left_as_it_was():
    torch.manual_seed(0)
    module = build("mlp", (12,), 3, dropout=0.5).train()
    clipped = ClippedSum(module, 8)
    x, targets = torch.randn(1, 12).expand(8, 12).contiguous(), torch.zeros(8, dtype=torch.long)
    _, losses = clipped.sum(x, targets, cross_entropy, 1.0)
    assert clipped.by_layer
    assert module.dropout.p == 0.5
    assert len(losses.unique()) > 1


def test_an_empty_batch_sums_to_nothing():
    module = build("mlp", (12,), 3)
    found, losses = ClippedSum(module, 8).sum(torch.zeros(0, 12), torch.zeros(0, dtype=torch.long), cross_entropy, 1.0)
    assert len(losses) == 0
    assert all(not g.any() for g in found.values())


def test_batch_normalisation_gives_way_to_groups():
    module = without_batch_norm(build("resnet18", (3, 8, 8), 3))
    kinds = [type(part) for part in module.modules()]
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert not list(module.buffers())
