"""DP-SGD: the accountant's epsilon, the noise of an epsilon, and a training that is what they assume."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from memberscope.defenses import accountant
from memberscope.defenses.base import Step
from memberscope.defenses.dp_sgd import DpSgd
from memberscope.errors import ConfigError
from memberscope.training import train_target
from memberscope.training.hardware import resolve_precision
from memberscope.training.model_files import load, save
from memberscope.training.models import build, build_for
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import obstacle
from memberscope.training.train_target import fit

pytest.importorskip("opacus")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CLASSES = 3


def pool(n=160, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=n)
    x = rng.integers(0, 160, size=(n, 3, 8, 8)) + 40 * y[:, None, None, None]
    return x.astype(np.uint8), y, np.arange(n) % 2 == 0


X, Y, MEMBER = pool()
BASE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}


def train(seed=1, more=None, **settings):
    recipe = Recipe(**{**BASE, **settings})
    return fit(recipe, X, Y, MEMBER, n_classes=CLASSES, seed=seed, device="cpu", **(more or {}))


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (0.6, 0.1, 200), (4.0, 0.5, 50)])
def test_epsilon_is_that_of_opacus(noise, rate, steps):
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    theirs.history = [(noise, rate, steps)]
    found = accountant.epsilon(noise, rate, steps, 1e-5)
    assert found == pytest.approx(theirs.get_epsilon(delta=1e-5), rel=1e-2)


def test_epsilon_of_one_full_step_is_near_that_of_the_gaussian_mechanism():
    """Balle & Wang 2018, theorem 8, is exact; the accountant's bound must not be below it."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def delta(epsilon, sigma):
        return norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)

    for sigma in (0.5, 1.0, 3.0):
        exact = brentq(lambda e, s=sigma: delta(e, s) - 1e-5, 0, 60)
        found = accountant.epsilon(sigma, 1.0, 1, 1e-5)
        assert exact < found < 1.35 * exact


def test_epsilon_at_the_ends():
    assert accountant.epsilon(1.0, 0.1, 0, 1e-5) == 0
    assert accountant.epsilon(0.0, 0.1, 10, 1e-5) == math.inf
    assert accountant.epsilon(0.01, 0.1, 100, 1e-5) > 1e4, "vacuous, and finite"
    assert accountant.epsilon(2.0, 0.1, 100, 1e-5) < accountant.epsilon(1.0, 0.1, 100, 1e-5)


@pytest.mark.parametrize("target", [0.5, 3.0, 50.0])
def test_the_noise_of_an_epsilon_keeps_it_and_no_less_would(target):
    noise = accountant.noise_for(target, 0.1, 100, 1e-5)
    assert accountant.epsilon(noise, 0.1, 100, 1e-5) <= target
    assert accountant.epsilon(noise * 0.998, 0.1, 100, 1e-5) > target


def test_an_epsilon_that_cannot_be_kept_is_refused():
    with pytest.raises(ConfigError, match=r"dp_epsilon = 1e-09 cannot be kept over 100 steps"):
        accountant.noise_for(1e-9, 0.1, 100, 1e-5)


def test_the_guarantee_is_that_of_the_steps_taken():
    trained = train(dp_epsilon=4.0)
    assert trained.privacy["steps"] == 3 * 5
    assert trained.privacy["sample_rate"] == 1 / 5
    assert 3.9 < trained.privacy["epsilon"] <= 4
    assert trained.privacy["noise_multiplier"] == accountant.noise_for(4.0, 1 / 5, 15, 1e-5)
    same = train(dp_noise=trained.privacy["noise_multiplier"])
    assert same.weights_sha256 == trained.weights_sha256
    clipped = train(dp_noise=0.0)
    assert clipped.privacy["epsilon"] is None, "clipping alone guarantees nothing"
    assert json.dumps(clipped.privacy)
    assert train().privacy is None


def test_the_guarantee_is_kept_with_the_model(tmp_path):
    trained = train(dp_noise=1.0)
    save(trained, tmp_path, membership=MEMBER, dataset_name="d", dataset_fingerprint="f")
    assert load(tmp_path).privacy == trained.privacy
    assert json.loads((tmp_path / "model.json").read_text())["privacy"]["epsilon"] == trained.privacy["epsilon"]


def test_noise_is_drawn_with_the_spread_that_is_accounted_for():
    """A step of no record is noise alone: N(0, (noise * clip)^2) / expected batch size."""
    module = build("mlp", (40,), 3)
    defense = DpSgd(Recipe(dp_noise=1.5, dp_clip=0.4))
    defense.begin(1000, 10, 1)
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(0, 40), torch.zeros(0, dtype=torch.long)
    defense.gradient(Step(module, *none, lambda logits, targets: logits[:, 0], 100.0, generator))
    drawn = torch.cat([p.grad.flatten() for p in module.parameters()]) * 100
    spread = 1.5 * 0.4
    assert drawn.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * len(drawn)))
    assert abs(drawn.mean().item()) < 5 * spread / math.sqrt(len(drawn))


def test_without_noise_and_with_a_wide_clip_a_step_is_an_ordinary_one():
    """The sum over the batch divided by the expected size is the mean gradient where the batch has that size."""
    module = build("mlp", (40,), 3)
    x, y = torch.randn(20, 40), torch.randint(3, (20,))
    ordinary = torch.autograd.grad(torch.nn.functional.cross_entropy(module(x), y), list(module.parameters()))
    defense = DpSgd(Recipe(dp_noise=0.0, dp_clip=1e6))
    defense.begin(1000, 50, 1)

    def losses(logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    loss = defense.gradient(Step(module, x, y, losses, 20.0, torch.Generator()))
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(module(x), y).item(), rel=1e-5)
    for parameter, expected in zip(module.parameters(), ordinary, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def test_the_microbatch_bounds_memory_and_changes_the_sum_by_rounding_alone():
    one, other = train(dp_noise=0.5, dp_microbatch=128), train(dp_noise=0.5, dp_microbatch=3)
    np.testing.assert_allclose(one.query(X), other.query(X), rtol=1e-3, atol=1e-3)


def test_inputs_are_normalised_by_no_member_and_in_full_precision():
    trained = train(dp_noise=1.0)
    assert trained.mean.tolist() == trained.std.tolist() == [0.5] * 3
    assert trained.precision == "fp32"
    recipe = Recipe(dp_noise=1.0)
    module = build("simplecnn", (3, 32, 32), 10)
    assert resolve_precision(recipe, module, (3, 32, 32), torch.device("cpu")).precision == "fp32"


def test_batch_normalisation_is_replaced_wherever_the_model_is_made():
    module = build_for(Recipe(model="resnet18", dp_noise=1.0), (3, 8, 8), CLASSES)
    assert not [p for p in module.modules() if isinstance(p, torch.nn.BatchNorm2d)]
    assert [p for p in build_for(Recipe(model="resnet18"), (3, 8, 8), CLASSES).modules() if "BatchNorm" in str(type(p))]


class Stop:
    def on_step(self, epoch, step, steps, loss):
        pass

    def on_epoch(self, record, epochs, seconds_left):
        if record["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings", [{"dp_epsilon": 4.0}, {"dp_noise": 0.7, "augmentation": ("flip",), "dropout": 0.2}]
)
def test_it_goes_on_bit_for_bit(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    whole, path = train(**settings), tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(more={"checkpoint": path, "progress": Stop()}, **settings)
    resumed = train(more={"checkpoint": path, "resume": True}, **settings)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.privacy == whole.privacy
    assert train(seed=2, **settings).weights_sha256 != whole.weights_sha256


def test_the_flags_survive_json_and_enter_the_digest():
    recipe = Recipe(dp_epsilon=8.0, dp_delta=1e-6, dp_clip=2.0, dp_microbatch=64)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    digests = {dataclasses.replace(recipe, **c).digest for c in ({}, {"dp_epsilon": 4.0}, {"dp_clip": 1.0})}
    assert len({*digests, Recipe().digest}) == 4
    assert Recipe(dp_epsilon=8).digest == Recipe(dp_epsilon=8.0).digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_epsilon": 1.0, "dp_noise": 1.0}, "dp_epsilon and dp_noise were both given"),
        ({"dp_noise": 1.0, "precision": "bf16"}, "DP-SGD and bf16 do not go together"),
        ({"dp_noise": 1.0, "clip_norm": 1.0}, "clip_norm and dp_sgd do not go together: DP-SGD clips the gradient of"),
        ({"dp_epsilon": 0.0}, r"dp_epsilon = 0.0 is out of range\n  expected above 0"),
        ({"dp_noise": -1.0}, "dp_noise = -1.0 is out of range"),
        ({"dp_noise": 1.0, "dp_delta": 1.0}, r"dp_delta = 1.0 is out of range\n  expected above 0 and below 1"),
        ({"dp_noise": 1.0, "dp_microbatch": 0}, "dp_microbatch = 0 is out of range"),
    ],
)
def test_what_contradicts_it_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)


def test_a_delta_that_could_publish_a_record_is_refused():
    with pytest.raises(ConfigError, match=r"dp_delta = 0.1 is no small probability for 80 members"):
        train(dp_noise=1.0, dp_delta=0.1)


def test_such_models_are_trained_one_by_one():
    recipe = Recipe(dp_noise=1.0)
    assert "different sizes" in (obstacle(recipe, build("mlp", (12,), 3)) or "")
