"""mixup, CutMix, RelaxLoss and HAMP's training: each formula by hand, each changes training, and resumes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.defenses.hamp import Hamp, most_sure
from memberscope.defenses.mixing import CutMix, Mixup
from memberscope.defenses.relaxloss import RelaxLoss
from memberscope.errors import ConfigError
from memberscope.training.models import build
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import obstacle

FLAGS = [
    {"mixup": 0.4},
    {"cutmix": 1.0},
    {"relaxloss": 1.0},
    {"hamp": 0.9, "hamp_output": False},
    {"mixup": 0.4, "label_smoothing": 0.1, "dropout": 0.2},
    {"hamp": 0.5, "cutmix": 1.0, "augmentation": ("flip",)},
]


@pytest.mark.parametrize("settings", FLAGS, ids=str)
def test_it_changes_training_repeats_itself_and_goes_on_bit_for_bit(settings, pool, resumed):
    whole, again = resumed(**settings)
    assert whole.weights_sha256 == again.weights_sha256
    others = {k: v for k, v in settings.items() if k not in ("mixup", "cutmix", "relaxloss", "hamp")}
    assert pool.train(**others).weights_sha256 != whole.weights_sha256
    assert pool.train(2, **settings).weights_sha256 != whole.weights_sha256


@pytest.mark.parametrize("settings", FLAGS, ids=str)
def test_it_survives_json_and_is_trained_one_by_one(settings):
    recipe = Recipe(**settings)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert obstacle(recipe, build("mlp", (3, 8, 8), 4))


def batch(n=6, classes=4):
    torch.manual_seed(0)
    x = torch.randn(n, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    return x, torch.eye(classes)[torch.arange(n) % classes]


def test_mixup_takes_the_same_share_of_records_and_labels():
    x, targets = batch()
    mixed, labels = Mixup(Recipe(mixup=0.3)).alter(x.clone(), targets, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    share, other = rng.beta(0.3, 0.3), rng.permutation(6)
    torch.testing.assert_close(mixed, (share * x + (1 - share) * x[other]).float())
    torch.testing.assert_close(labels, (share * targets + (1 - share) * targets[other]).float())


def test_the_shares_of_mixup_follow_beta():
    rng, x, targets = np.random.default_rng(0), torch.zeros(2, 1), torch.eye(2)
    defense, found = Mixup(Recipe(mixup=0.5)), []
    for _ in range(4000):
        _, labels = defense.alter(x, targets, rng)
        if labels[0, 1] > 0:  # not mixed with itself
            found.append(labels[0, 0].item())
    assert abs(np.mean(found) - 0.5) < 0.03
    assert abs(np.var(found) - 0.25 / 2) < 0.01, "ab / ((a + b)^2 (a + b + 1)) = 1/8 for a = b = 1/2"


def test_cutmix_pastes_a_rectangle_and_weights_labels_by_its_area():
    x, targets = batch()
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(50):
        mixed, labels = CutMix(Recipe(cutmix=1.0)).alter(x.clone(), targets, rng)
        changed = (mixed != x).any(dim=1)
        area = changed.flatten(1).sum(1)
        for i in range(6):
            if not area[i]:
                continue
            rows, columns = changed[i].any(1), changed[i].any(0)
            assert area[i] == rows.sum() * columns.sum(), "a rectangle"
            share = 1 - area[i].item() / 64
            other = [j for j in range(6) if torch.equal(mixed[i][:, changed[i]], x[j][:, changed[i]])]
            torch.testing.assert_close(labels[i], share * targets[i] + (1 - share) * targets[other[0]])
            sizes.add(area[i].item())
    assert len(sizes) > 5


def relaxed(logits, labels, level, upper, epoch):
    """The released code, line by line."""
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    mean = each.mean()
    if epoch % 2 == 0:
        return (mean - level).abs()
    if mean > level:
        return mean
    classes = logits.shape[1]
    correct = (logits.argmax(1) == labels).float()
    sure = torch.clamp(torch.softmax(logits, 1)[torch.arange(len(labels)), labels], 0.0, upper)
    rest = (1.0 - sure) / (classes - 1)
    hot = torch.eye(classes)[labels]
    soft = hot * sure[:, None].repeat(1, classes) + (1 - hot) * rest[:, None].repeat(1, classes)
    softly = -(soft * torch.log_softmax(logits, 1)).sum(1)
    return ((1 - correct) * softly - 1.0 * each).mean()


@pytest.mark.parametrize("level", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("upper", [0.4, 1.0])
def test_relaxloss_and_its_gradient_are_those_of_the_released_code(level, epoch, upper):
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 4), torch.randint(4, (16,))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = RelaxLoss(Recipe(relaxloss=level, relaxloss_upper=upper)).losses(ours, torch.eye(4)[labels], epoch)
    expected = relaxed(theirs, labels, level, upper, epoch - 1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_relaxloss_keeps_the_loss_up(pool):
    plain, relaxed_ = pool.train(epochs=20), pool.train(epochs=20, relaxloss=0.8)
    assert plain.history[-1]["train_loss"] < 0.4
    assert 0.4 < relaxed_.history[-1]["train_loss"] < 1.4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_hamp_labels_have_the_share_of_entropy(share, classes):
    sure = most_sure(share, classes)
    label = np.full(classes, (1 - sure) / (classes - 1))
    label[0] = sure
    entropy = -sum(p * math.log(p) for p in label if p > 0)
    assert entropy == pytest.approx(share * math.log(classes), abs=1e-6)
    assert sure > 1 / classes


def test_hamp_loss_is_the_divergence_less_the_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 3, 0])
    found = Hamp(Recipe(hamp=0.7, hamp_regularisation=0.05)).losses(logits, torch.eye(4).double()[labels], 1)
    sure = most_sure(0.7, 4)
    for row, label in enumerate(labels.tolist()):
        p = torch.softmax(logits[row], 0).numpy()
        soft = np.where(np.arange(4) == label, sure, (1 - sure) / 3)
        expected = (soft * np.log(soft / p)).sum() + 0.05 * (p * np.log(p)).sum()
        assert found[row].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.2, "cutmix": 1.0}, "mixup and cutmix do not go together: each mixes the records"),
        ({"relaxloss": 1.0, "hamp": 0.9}, "relaxloss and hamp do not go together: each replaces the loss"),
        ({"relaxloss": 1.0, "mixup": 0.2}, "mixup gives records soft targets, and relaxloss needs one class a record"),
        ({"relaxloss": 1.0, "label_smoothing": 0.1}, "it softens the labels of the cross-entropy, which relaxloss"),
        ({"hamp": 0.9, "label_smoothing": 0.1}, "it softens the labels of the cross-entropy, which hamp"),
        ({"mixup": 0.2, "dp_noise": 1.0}, "dp_sgd needs the gradient of each record alone, and mixup mixes"),
        ({"relaxloss": 1.0, "dp_epsilon": 1.0}, "dp_sgd needs the gradient of each record alone, and relaxloss mixes"),
        ({"hamp": 1.0}, r"hamp = 1.0 is out of range"),
        ({"mixup": -1.0}, r"mixup = -1.0 is out of range"),
        ({"hamp_output": 1}, "hamp_output = 1 is neither true nor false"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)


def test_cutmix_of_feature_rows_is_refused(pool):
    from memberscope.training.train_target import fit

    rows = pool.x.reshape(len(pool.x), -1).astype(np.float32)
    with pytest.raises(ConfigError, match="cutmix is for images"):
        fit(Recipe(model="mlp", cutmix=1.0), rows, pool.y, pool.member, n_classes=4, seed=0, device="cpu")


def test_hamp_and_dp_sgd_go_together(pool):
    trained = pool.train(epochs=1, hamp=0.5, dp_noise=0.5)
    assert trained.privacy["steps"] == 5
