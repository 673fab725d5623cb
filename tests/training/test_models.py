"""Architectures: what they are, what they take, and what is said about those that do not fit."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from memberscope.errors import ConfigError, ModelError
from memberscope.listing import listing
from memberscope.training import models
from memberscope.training.models import MODELS, ModelEntry, SimpleCNN, available, build


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_simplecnn_is_two_convolutions_and_two_full_layers():
    net = build("simplecnn", (3, 32, 32), 10)
    layers = [(n, tuple(m.weight.shape)) for n, m in net.named_modules() if hasattr(m, "weight")]
    assert layers == [
        ("conv1", (32, 3, 3, 3)),
        ("conv2", (64, 32, 3, 3)),
        ("fc1", (128, 4096)),
        ("fc2", (10, 128)),
    ]
    assert parameters(net) == 545_098


def test_simplecnn_computes_what_the_textbook_writes():
    torch.manual_seed(0)
    net = build("simplecnn", (3, 12, 16), 7).eval()
    x = torch.randn(5, 3, 12, 16)
    y = nn.functional.max_pool2d(torch.relu(net.conv1(x)), 2)
    y = nn.functional.max_pool2d(torch.relu(net.conv2(y)), 2)
    want = net.fc2(torch.relu(net.fc1(y.flatten(1))))
    torch.testing.assert_close(net(x), want)
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last)), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 9, 13)])
def test_every_model_takes_images_of_any_size_and_depth(name, shape):
    logits = build(name, shape, 4).eval()(torch.zeros(3, *shape))
    assert logits.shape == (3, 4)


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11.174), ("wrn28-2", 1.468)])
def test_residual_networks_have_their_published_size(name, millions):
    assert round(parameters(build(name, (3, 32, 32), 10)) / 1e6, 3) == millions


def test_an_mlp_takes_feature_rows():
    assert build("mlp", (446,), 30)(torch.zeros(2, 446)).shape == (2, 30)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_reaches_the_model_and_only_in_training(name):
    net = build(name, (3, 16, 16), 4, dropout=0.5)
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5]
    net.eval()
    assert torch.equal(net(x), net(x))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"unknown model 'simplecn'\n  did you mean 'simplecnn'\?"):
        build("simplecn", (3, 32, 32), 10)


def test_images_and_features_are_told_apart():
    with pytest.raises(ModelError, match=r"'simplecnn' takes images, the records are 30 features\n  use --model mlp"):
        build("simplecnn", (30,), 10)
    with pytest.raises(ModelError, match=r"images of at least 4x4, found 3x9"):
        build("simplecnn", (3, 3, 9), 10)


FACTORIES = """
import torch
from torch import nn

def with_all(*, input_shape, n_classes, in_channels, num_classes):
    assert input_shape[0] == in_channels and n_classes == num_classes
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), n_classes))

class Holder:
    class Net(nn.Sequential):
        def __init__(self, num_classes=3):
            super().__init__(nn.Flatten(), nn.Linear(48, num_classes))

def with_none(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
def failing(): raise RuntimeError("no such weights")
def no_module(): return 7
def probabilities(n_classes): return nn.Sequential(nn.Flatten(), nn.Linear(48, n_classes), nn.Softmax(1))
def two_answers(n_classes):
    class Two(nn.Module):
        def forward(self, x): return x, x
    return Two()
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    yield "their_models"
    sys.modules.pop("their_models", None)


@pytest.mark.parametrize("factory", ["with_all", "Holder.Net", "with_none"])
def test_a_factory_of_the_current_folder_gets_what_it_accepts(own, factory):
    path = list(sys.path)
    assert build(f"{own}:{factory}", (3, 4, 4), 5)(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("failing", r"the factory of model 'their_models:failing' failed: RuntimeError: no such weights"),
        ("no_module", r"gave int, expected a torch.nn.Module"),
        ("number", r"'their_models:number' is int, expected a function or class"),
        ("absent", r"cannot import the model 'their_models:absent': AttributeError"),
        ("probabilities", r"answers with probabilities, expected logits\n  remove the softmax"),
        ("two_answers", r"answers two records with tuple, expected logits \[2, 6\]"),
        ("with_none", r"answers two records with torch.float32 \[2, 5\], expected logits \[2, 6\]"),
    ],
)
def test_a_factory_that_cannot_be_used_is_told_apart(own, factory, message):
    with pytest.raises(ModelError, match=message):
        build(f"{own}:{factory}", (3, 4, 4), 6)


def test_records_of_another_shape_are_said_to_be_the_trouble(own):
    with pytest.raises(ModelError, match=r"cannot take records of shape \[1, 4, 4\]: mat1 and mat2"):
        build(f"{own}:with_none", (1, 4, 4), 5)


def test_a_missing_package_is_named():
    with pytest.raises(ModelError, match=r"cannot import the model 'nowhere.models:net': ModuleNotFoundError"):
        build("nowhere.models:net", (3, 4, 4), 5)


def test_dropout_does_not_vanish_silently(own):
    with pytest.raises(ConfigError, match=r"dropout = 0.5 cannot reach the model 'their_models:with_none'"):
        build(f"{own}:with_none", (3, 4, 4), 5, dropout=0.5)


def test_other_packages_add_models(monkeypatch):
    points = [EntryPoint("tiny", "memberscope.training.models:MODELS", "memberscope.models")]
    monkeypatch.setattr(EntryPoint, "load", lambda self: ModelEntry(SimpleCNN, "theirs"))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == models.ENTRY_POINTS else [])
    assert available()["tiny"].description == "theirs"
    assert isinstance(build("tiny", (1, 4, 4), 2), SimpleCNN)
    points[0] = EntryPoint("mlp", "theirs:net", "memberscope.models")
    with pytest.raises(ModelError, match=r"the package behind 'theirs:net' adds a model named 'mlp'"):
        available()


def test_what_other_packages_cannot_add_is_said(monkeypatch):
    for value, told in (
        ("nowhere_at_all:net", r"entry point 'theirs' \(nowhere_at_all:net\) cannot be loaded: ModuleNotFoundError"),
        (
            "memberscope.training.models:SimpleCNN",
            r"\(memberscope.training.models:SimpleCNN\) is type, expected a ModelEntry",
        ),
    ):
        points = [EntryPoint("theirs", value, models.ENTRY_POINTS)]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group, points=points: points)
        with pytest.raises(ConfigError, match=told):
            available()


def test_models_of_other_packages_are_listed(monkeypatch):
    points = [EntryPoint("theirs", "memberscope.training.models:BRIGHT", models.ENTRY_POINTS)]
    monkeypatch.setattr(models, "BRIGHT", ModelEntry(SimpleCNN, "a bright one"), raising=False)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    assert "theirs                  a bright one\n" in listing("models")
