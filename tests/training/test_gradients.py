"""Per-record gradient norms against one backward pass a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.training import gradients
from memberscope.training.gradients import log_gradient_norms, white_box
from memberscope.training.models import build
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

N = 7


def oracle(module: nn.Module, x: torch.Tensor, y: np.ndarray, of: str) -> np.ndarray:
    norms = []
    for record, label in zip(x, y, strict=True):
        one = record[None].clone().requires_grad_()
        loss = nn.functional.cross_entropy(module(one).double(), torch.tensor([label]))
        wrt = list(module.parameters()) if of == "weights" else [one]
        parts = torch.autograd.grad(loss, wrt)
        norms.append(float(sum(p.double().square().sum() for p in parts)) ** 0.5)
    return np.log(norms)


@pytest.mark.parametrize("of", ["weights", "input"])
@pytest.mark.parametrize(("name", "shape"), [("simplecnn", (3, 8, 8)), ("mlp", (12,))])
def test_norms_equal_one_backward_pass_a_record(of: str, name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = build(name, shape, 4, dropout=0.5).train()
    x, y = torch.randn(N, *shape), np.arange(N) % 4
    found = log_gradient_norms(module, lambda start, end: x[start:end], y, of=of, chunk=3)
    assert module.training, "left as it was"
    np.testing.assert_allclose(found, oracle(module.eval(), x, y, of), rtol=1e-4)


def test_norms_of_layers_add_up_to_that_of_all_weights() -> None:
    torch.manual_seed(0)
    module = build("simplecnn", (3, 8, 8), 4)
    x, y = torch.randn(N, 3, 8, 8), np.arange(N) % 4
    layers, whole = (
        log_gradient_norms(module, lambda start, end: x[start:end], y, of=of) for of in ("layers", "weights")
    )
    assert layers.shape == (N, len({name.rpartition(".")[0] for name, _ in module.named_parameters()}))
    np.testing.assert_allclose(np.logaddexp.reduce(2 * layers, axis=1) / 2, whole, rtol=1e-6)
    last = [name for name, _ in module.named_parameters()][-1].rpartition(".")[0]
    loss = nn.functional.cross_entropy(module.eval()(x[:1]).double(), torch.tensor([0]))
    parts = torch.autograd.grad(loss, list(module.get_submodule(last).parameters()))
    assert layers[0, -1] == pytest.approx(0.5 * np.log(float(sum(p.double().square().sum() for p in parts))), rel=1e-4)


@pytest.mark.parametrize("of", ["weights", "input"])
def test_where_the_device_has_no_float64_the_cpu_computes(
    of: str, on_apple: type[nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "WITHOUT_FLOAT64", {"cpu"})
    torch.manual_seed(0)
    net = on_apple(nn.Linear(4, 3))
    x, y = torch.randn(N, 4), np.arange(N) % 3
    found = log_gradient_norms(net, lambda start, end: x[start:end], y, of=of)
    assert not net.on_cpu, "left as it was"
    np.testing.assert_allclose(found, oracle(nn.Sequential(*net), x, y, of), rtol=1e-4)


def test_confident_records_do_not_tie() -> None:
    """In a float32 softmax the gradient of all of these would be 0."""
    module = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0], [0.0]]))
    x = torch.tensor([[18.0], [20.0], [22.0], [24.0]])
    found = log_gradient_norms(module, lambda start, end: x[start:end], np.zeros(4, np.int64), of="input")
    np.testing.assert_allclose(found, -x[:, 0].numpy(), atol=1e-3)


def test_white_box_asks_the_model_about_its_own_records() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 3
    member = np.arange(40) < 20
    model = fit(Recipe(epochs=60, batch_size=20, precision="fp32"), x, y, member, n_classes=3, seed=0, device="cpu")
    for name in ("log_gradient_norm_weights", "log_gradient_norm_input"):
        norms = white_box(model, x, y)(name)
        assert norms.shape == (40,)
        assert np.median(norms[member]) < np.median(norms[~member]) - 1, (
            "members of an overfitted model have small gradients"
        )
