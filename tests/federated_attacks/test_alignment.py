"""Products of records' gradients with directions, by either way, against one backward pass a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.federated.alignment import _LayerGradients, align, parts_of
from memberscope.training import gradients


def a_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 3, bias=False),
    )


def a_normalised_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Shared(nn.Module):
    """Uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(72, 72), nn.Linear(72, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        return self.again(torch.relu(self.first(x)))


def by_hand(net: nn.Module, x: torch.Tensor, y: np.ndarray, directions: list[dict[str, torch.Tensor]]):
    norms, dots = [], []
    net.eval()
    for i in range(len(x)):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[i : i + 1]).double(), torch.tensor(y[i : i + 1])).backward()
        gradient = {name: p.grad.double() for name, p in net.named_parameters()}
        norms.append(sum(g.square().sum() for g in gradient.values()).sqrt())
        dots.append([sum((g * d[name]).sum() for name, g in gradient.items()) for d in directions])
    norm = torch.stack(norms)
    return norm.numpy(), (torch.tensor(dots) / norm[:, None]).numpy().T


@pytest.mark.parametrize("make", [a_cnn, a_normalised_cnn, Shared])
def test_both_ways_agree_with_backward(make) -> None:
    torch.manual_seed(0)
    net = make()
    x, y = torch.randn(70, 2, 6, 6), np.random.default_rng(0).integers(0, 3, 70)
    directions = [{name: torch.randn_like(p) for name, p in net.named_parameters()} for _ in range(3)]
    found = align(net, lambda start, end: x[start:end], y, directions, chunk=32)
    norm, dots = by_hand(net, x, y, directions)
    np.testing.assert_allclose(np.exp(found.log_norm), norm, rtol=1e-4)
    np.testing.assert_allclose(found.along.sum(axis=1), dots, atol=1e-4)
    np.testing.assert_allclose(found.part_share.sum(axis=0), 1, rtol=1e-5)
    assert found.along.shape == (3, len(parts_of(net)), 70)
    assert _LayerGradients(net, {n: torch.zeros(1, p.numel()) for n, p in net.named_parameters()}).possible(x[:2]) == (
        make is a_cnn
    )


@pytest.mark.parametrize("make", [a_cnn, a_normalised_cnn])
def test_where_the_device_has_no_float64_the_cpu_computes(make, on_apple, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = make()
    x, y = torch.randn(6, 2, 6, 6), np.arange(6) % 3
    directions = [{name: torch.randn_like(p) for name, p in plain.named_parameters()}]
    expected = align(plain, lambda start, end: x[start:end], y, directions)
    monkeypatch.setattr(gradients, "WITHOUT_FLOAT64", {"cpu"})
    net = on_apple(*plain)
    found = align(net, lambda start, end: x[start:end], y, directions)
    assert not net.on_cpu, "left as it was"
    np.testing.assert_array_equal(found.along, expected.along)
    np.testing.assert_array_equal(found.log_norm, expected.log_norm)


def test_the_surest_records_keep_their_direction() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.mul_(0).add_(torch.tensor([[30.0, 0, 0, 0], [-30.0, 0, 0, 0]]))
        net.bias.zero_()
    x = torch.tensor([[1.0, 2, 0, 0], [1.5, 2, 0, 0]])
    direction = {"weight": torch.tensor([[-1.0, -1, 0, 0], [1, 1, 0, 0]]), "bias": torch.zeros(2)}
    found = align(net, lambda start, end: x[start:end], np.array([0, 0]), [direction])
    # p of the other class is exp(-60) and exp(-90): the residual is (-p, p), the norm p * sqrt(2) * |(x, 1)|.
    expected = np.array([-60.0, -90.0]) + 0.5 * np.log(2) + 0.5 * np.log((x.square().sum(1) + 1).numpy())
    np.testing.assert_allclose(found.log_norm, expected, rtol=1e-6)
    cosine = found.along.sum(axis=1)[0] / 2
    np.testing.assert_allclose(cosine, (x.sum(1) / (x.square().sum(1) + 1).sqrt() / np.sqrt(2)).numpy(), rtol=1e-5)
