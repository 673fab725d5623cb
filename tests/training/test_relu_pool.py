"""The fast ReLU of a max-pool equals PyTorch's two operations bit for bit, ties and all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from memberscope.training.relu_pool import _fast, relu_max_pool

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def plain(x):
    return torch.relu(functional.max_pool2d(x, 2))


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    dtype=st.sampled_from(TYPES),
    levels=st.sampled_from([1, 2, 1000]),
    seed=st.integers(0, 10_000),
)
def test_values_and_gradients_are_those_of_pytorch(shape, dtype, levels, seed):
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    # Few levels: most windows hold ties, zeros of both signs among them.
    x = torch.randn(batch, channels, 2 * height, 2 * width, generator=generator).mul(levels).round().div(levels)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert _fast(x)
    expected, found = plain(x), relu_max_pool(x)
    assert torch.equal(found, expected)
    assert torch.equal(relu_max_pool(x.detach()), expected)
    upstream = torch.randn(expected.shape, generator=generator).to(dtype)
    assert torch.equal(torch.autograd.grad(found, x, upstream)[0], torch.autograd.grad(expected, x, upstream)[0])


def test_infinities_and_the_sign_of_zero():
    inf = float("inf")
    x = torch.tensor([[-inf, -1.0, inf, 2.0], [-0.0, 0.0, -inf, 3.0]])[None, None]
    x = x.contiguous(memory_format=torch.channels_last)
    found = relu_max_pool(x)
    assert found.flatten().tolist() == [0.0, inf]
    assert not torch.signbit(found).any()


def test_the_gradient_is_the_derivative():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(relu_max_pool, x.contiguous(memory_format=torch.channels_last).requires_grad_())


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 4, 7)])
def test_odd_sizes_go_to_pytorch(shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert not _fast(x)
    assert torch.equal(relu_max_pool(x), plain(x))


def test_the_input_is_left_as_it_was_and_can_be_used_again():
    x = torch.randn(2, 4, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    y = relu_max_pool(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], first)
    assert torch.equal(x.detach(), before)


def test_function_transforms_go_to_pytorch():
    x = torch.randn(3, 2, 4, 4, 4)
    assert torch.equal(torch.func.vmap(relu_max_pool)(x), torch.stack([plain(part) for part in x]))
