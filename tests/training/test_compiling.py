"""Compiled training steps are the plain ones up to rounding; where they cannot be compiled, that is said."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from memberscope.training import compiling
from memberscope.training.bank_files import ModelFile, model_path
from memberscope.training.bank_training import TrainModel
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import fit_stacked
from memberscope.training.train_target import fit

CLASSES = 4
RNG = np.random.default_rng(0)
Y = RNG.integers(0, CLASSES, 60)
ROWS = (RNG.normal(size=(60, 10)) + Y[:, None]).astype(np.float32)
IMAGES = (RNG.integers(0, 120, (60, 3, 16, 16)) + 30 * Y[:, None, None, None]).astype(np.uint8)
MEMBERS = np.array([np.arange(60) % 2 == 0, np.arange(60) % 2 == 1])
compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler, none is here"
)


def same(one, other, x, atol):
    expected = other.query(x)
    np.testing.assert_allclose(one.query(x), expected, atol=atol * np.abs(expected).max())


@compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "error:training steps")
@pytest.mark.parametrize(
    ("settings", "x"),
    [
        ({"model": "mlp", "dropout": 0.3, "optimizer": "adam"}, ROWS),
        pytest.param(
            {"model": "simplecnn", "augmentation": ("flip",), "precision": "bf16"}, IMAGES, marks=pytest.mark.slow
        ),
        pytest.param({"model": "resnet18", "learning_rate": 1e-4}, IMAGES, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_training_is_the_plain_one_up_to_rounding(settings, x):
    recipe = Recipe(**{"epochs": 2, "batch_size": 8, **settings})
    shared = {"n_classes": CLASSES, "seed": 3, "device": "cpu", "threads": 1}
    before = torch.random.get_rng_state()
    compiled, plain = (fit(recipe, x, Y, MEMBERS[0], compiled=flag, **shared) for flag in (True, False))
    assert torch.equal(before, torch.random.get_rng_state())
    # Batch normalisation and ReLU make much of little: an activation near 0 changes its side.
    near = {"mlp": 1e-3, "simplecnn": 0.1, "resnet18": 0.1}[recipe.model]
    same(compiled, plain, x, near)
    for now, then in zip(compiled.history, plain.history, strict=True):
        assert now["train_loss"] == pytest.approx(then["train_loss"], rel=near)


@compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "error:training steps")
def test_compiled_models_trained_at_once_are_those_of_fit(tmp_path, monkeypatch):
    recipe = Recipe(model="mlp", epochs=2, batch_size=8, precision="fp32")
    shared = {"n_classes": CLASSES, "device": "cpu", "threads": 1}
    stacked = fit_stacked(recipe, ROWS, Y, MEMBERS, seeds=[5, 6], compiled=True, **shared)
    for k in (0, 1):
        same(stacked[k], fit(recipe, ROWS, Y, MEMBERS[k], seed=5 + k, **shared), ROWS, 1e-4)
    task = TrainModel(
        tmp_path, "bank", recipe, CLASSES, ("none",), 3, "float32", False, "cpu", threads=1, compiled=True
    )
    task({"x": ROWS, "y": Y, "pool": np.ones(60, bool)}, 0, lambda fraction: None)
    assert ModelFile.read(model_path(tmp_path, 0)).about["compiled"] is True


def played(monkeypatch, error: Exception, from_call: int):
    """A compiler whose code fails from some call on."""
    calls = []

    def compile_(step, **options):
        def run(*given):
            calls.append(given)
            if len(calls) >= from_call:
                raise error
            return step(*given)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.parametrize("from_call", [1, 3])
def test_what_cannot_be_compiled_runs_plainly_and_says_so(monkeypatch, from_call):
    calls = played(monkeypatch, RuntimeError("no compiler here\nand so on"), from_call)
    recipe = Recipe(model="mlp", epochs=2, batch_size=8)
    shared = {"n_classes": CLASSES, "seed": 3, "device": "cpu", "threads": 1}
    with pytest.warns(UserWarning, match="^training steps are not compiled: no compiler here and so on$"):
        compiled = fit(recipe, ROWS, Y, MEMBERS[0], compiled=True, **shared)
    assert len(calls) == from_call
    plain = fit(recipe, ROWS, Y, MEMBERS[0], **shared)
    assert compiled.weights_sha256 == plain.weights_sha256


@pytest.mark.parametrize("from_call", [1, 3])
def test_too_many_shapes_are_no_end_of_a_training(monkeypatch, from_call):
    """The compiler's error is then no RuntimeError."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    calls = played(monkeypatch, FailOnRecompileLimitHit("Hard failure due to fullgraph=True"), from_call)
    x = torch.ones(3, requires_grad=True)

    def train():
        run = compiling.compiled(lambda x: 2 * x, torch.device("cpu"), x)
        return [run(torch.ones(n)) for n in range(1, 5)]

    with pytest.warns(UserWarning, match="^training steps are not compiled: Hard failure due to fullgraph=True$"):
        answers = train()
    assert all(torch.equal(answer, torch.full((n,), 2.0)) for n, answer in enumerate(answers, 1))
    assert len(calls) == from_call


def test_the_limit_is_raised_for_a_new_shape_and_then_put_back(monkeypatch):
    config = torch._dynamo.config
    limits = []
    monkeypatch.setattr(
        torch, "compile", lambda step, **options: lambda x: limits.append(config.recompile_limit) or step(x)
    )
    before = config.recompile_limit
    run = compiling.compiled(lambda x: 2 * x, torch.device("cpu"), torch.ones(3, requires_grad=True))
    for n in (3, 4, 4):
        run(torch.ones(n))
    assert limits == [compiling._MOST_SHAPES, before, compiling._MOST_SHAPES, before]
    assert config.recompile_limit == before < compiling._MOST_SHAPES


@compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "error:training steps")
def test_a_step_is_compiled_for_more_shapes_than_torch_would(monkeypatch):
    def step(x):
        return torch.sin(x) * 3

    first = torch.ones(2, requires_grad=True)
    run = compiling.compiled(step, torch.device("cpu"), first)
    for n in range(3, 3 + torch._dynamo.config.recompile_limit + 2):
        torch.testing.assert_close(run(torch.ones(n)), step(torch.ones(n)))
    monkeypatch.setattr(compiling, "_MOST_SHAPES", torch._dynamo.config.recompile_limit)
    with pytest.warns(UserWarning, match="training steps are not compiled"):
        answer = run(torch.ones(99))
    assert torch.equal(answer, step(torch.ones(99)))  # past the limit it goes on plainly


def test_the_shape_that_is_tried_is_that_of_the_first_batch(monkeypatch):
    """Of 30 records in batches of at most 20 each batch has 15; to compile for 20 would be in vain."""
    shapes = []

    def compile_(step, **options):
        return lambda *given: shapes.append(tuple(given[1].shape)) or step(*given)

    monkeypatch.setattr(torch, "compile", compile_)
    recipe = Recipe(model="mlp", epochs=1, batch_size=20)
    shared = {"n_classes": CLASSES, "device": "cpu", "threads": 1, "compiled": True}
    fit(recipe, ROWS, Y, MEMBERS[0], seed=3, **shared)
    fit_stacked(recipe, ROWS, Y, MEMBERS, seeds=[5, 6], **shared)
    assert shapes == [(15, 10)] * 3 + [(2, 15, 10)] * 3


def test_gradients_that_cannot_be_compiled_are_found_out_at_once(monkeypatch):
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            raise RuntimeError("no gradient")

    monkeypatch.setattr(torch, "compile", lambda step, **options: lambda x: Refuses.apply(step(x)))
    x = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match="no gradient"):
        run = compiling.compiled(lambda x: 2 * x, torch.device("cpu"), x)
    run(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))


def test_a_full_device_is_not_taken_for_a_missing_compiler(monkeypatch):
    played(monkeypatch, torch.OutOfMemoryError("no room"), 1)
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError):
        compiling.compiled(lambda x: 2 * x, torch.device("cpu"), x)
