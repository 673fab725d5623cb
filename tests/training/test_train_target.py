"""`fit`: learns, repeats itself, goes on after being killed, and says what is wrong."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.errors import ConfigError, DataError, ModelError
from memberscope.training import train_target
from memberscope.training.optimisation import rate_factor
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

CLASSES = 3


def pool(n=240, shape=(3, 8, 8), seed=0):
    """Images whose brightness tells the class, not quite."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=n)
    x = rng.integers(0, 160, size=(n, *shape)) + 40 * y.reshape(-1, *[1] * len(shape))
    part = np.arange(n) % 4
    return x.astype(np.uint8), y, part < 2, part == 2


X, Y, MEMBER, VALIDATION = pool()
BASE = {"epochs": 4, "batch_size": 32, "learning_rate": 0.05}


def train(seed=1, *, x=X, y=Y, member=MEMBER, validation=VALIDATION, more=None, **settings):
    recipe = Recipe(**{**BASE, **settings})
    options = {"n_classes": CLASSES, "device": "cpu", **(more or {})}
    return fit(recipe, x, y, member, validation=validation, seed=seed, **options)


def weights(trained):
    return {name: value.clone() for name, value in trained.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Listener:
    def __init__(self, stop_after=None):
        self.steps, self.records, self.left, self.stop_after = [], [], [], stop_after

    def on_step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps, loss))

    def on_epoch(self, record, epochs, seconds_left):
        self.records.append(dict(record))
        self.left.append(seconds_left)
        if record["epoch"] == self.stop_after:
            raise KeyboardInterrupt


VARIANTS = [
    {},
    {"model": "mlp", "optimizer": "adam", "learning_rate": None},
    {"optimizer": "adamw", "learning_rate": 0.002, "schedule": "cosine", "dropout": 0.3, "precision": "bf16"},
    {"augmentation": ("flip", "crop"), "label_smoothing": 0.1, "clip_norm": 1.0, "warmup_epochs": 2, "nesterov": True},
    {"model": "wrn28-2", "epochs": 2, "schedule": "step", "precision": "bf16"},
]
IDS = ["simplecnn-sgd", "mlp-adam", "dropout-bf16", "augmented", "batchnorm-bf16"]


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(settings):
    first, second, other = train(1, **settings), train(1, **settings), train(2, **settings)
    assert same(weights(first), weights(second))
    assert np.array_equal(first.query(X), second.query(X))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("settings", VARIANTS, ids=IDS)
def test_an_interrupted_training_goes_on_bit_for_bit(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    whole = train(**settings)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt, match=r"interrupted in epoch 2 of .* with --resume to go on after epoch 1"):
        train(more={"checkpoint": path, "progress": Listener(stop_after=1)}, **settings)
    rest = Listener()
    resumed = train(more={"checkpoint": path, "resume": True, "progress": rest}, **settings)
    assert [r["epoch"] for r in rest.records] == list(range(2, whole.stopped_epoch + 1))
    assert same(weights(resumed), weights(whole))
    untimed = [[{k: v for k, v in r.items() if k != "seconds"} for r in t.history] for t in (whole, resumed)]
    assert untimed[0] == untimed[1]


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from memberscope.training import train_target
import test_train_target as t
train_target.CHECKPOINT_SECONDS = 0
class Slow(t.Listener):
    def on_epoch(self, record, epochs, seconds_left):
        print("epoch", record["epoch"], flush=True)
        time.sleep(0.0 if resume else 0.2)
resume = sys.argv[1] == "resume"
trained = t.train(epochs=12, more=dict(checkpoint=Path({path!r}), resume=resume, progress=Slow(), threads=1))
print("digest", trained.weights_sha256, trained.stopped_epoch)
"""


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint"
    script = KILLED.format(tests=os.path.dirname(__file__), path=str(path))
    command = [sys.executable, "-W", "error", "-c", script]
    with subprocess.Popen([*command, "start"], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == "epoch 3":
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(60) == -signal.SIGKILL
    assert path.is_file()
    resumed = subprocess.run([*command, "resume"], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "epoch 1\n" not in resumed
    assert "epoch 12\n" in resumed
    whole = train(epochs=12, more={"threads": 1})
    assert resumed.splitlines()[-1] == f"digest {whole.weights_sha256} 12"


def test_a_killed_training_can_have_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    path = tmp_path / "checkpoint"
    whole = train(more={"checkpoint": path})
    assert whole.checkpoint == path
    again = train(more={"checkpoint": path, "resume": True})
    assert same(weights(again), weights(whole))
    assert again.images_per_second is None


def test_a_checkpoint_is_written_only_every_few_seconds_and_not_without_need(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt, match="no checkpoint was written yet, the training starts anew next time"):
        train(more={"checkpoint": path, "progress": Listener(stop_after=2)})
    assert not path.exists()
    assert same(weights(train(more={"checkpoint": path, "resume": True})), weights(train()))


@pytest.fixture
def left(tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    train(more={"checkpoint": tmp_path / "checkpoint"})
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"momentum": 0.5}, "another recipe"),
        ({"seed": 2}, "another seed"),
        ({"member": ~MEMBER & ~VALIDATION}, "another membership"),
        ({"validation": None}, "another validation records"),
        ({"x": X ^ 1}, "another records"),
        ({"seed": 2, "momentum": 0.5}, "another recipe, another seed"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(left, changed, what):
    with pytest.raises(ModelError, match=f"was left by a training with {what}\n  start without --resume"):
        train(**{"more": {"checkpoint": left, "resume": True}, **changed})


def test_without_resume_the_training_starts_anew(left):
    listener = Listener()
    train(momentum=0.5, more={"checkpoint": left, "progress": listener})
    assert [r["epoch"] for r in listener.records] == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_named(left):
    left.write_bytes(left.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"the checkpoint .* is damaged: .*\n  start without --resume"):
        train(more={"checkpoint": left, "resume": True})
    left.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=r"is no checkpoint: expected format .*, found 'none'"):
        train(more={"checkpoint": left, "resume": True})


def test_other_surroundings_are_told(left):
    threads = torch.get_num_threads()
    with pytest.warns(UserWarning, match=rf"threads {threads} -> {threads + 1}: the result will not be bit-identical"):
        train(more={"checkpoint": left, "resume": True, "threads": threads + 1})


def test_early_stopping_keeps_the_best_weights(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(CLASSES, size=len(Y))  # nothing to learn: validation loss soon rises
    trained = train(y=noise, epochs=30, early_stopping=2)
    losses = [r["val_loss"] for r in trained.history]
    assert trained.stopped_epoch == len(losses) < 30
    assert trained.best_epoch == 1 + int(np.argmin(losses)) == trained.stopped_epoch - 2
    logits = torch.from_numpy(trained.query(X[VALIDATION])[0])
    found = nn.functional.cross_entropy(logits, torch.from_numpy(noise[VALIDATION])).item()
    assert found == pytest.approx(min(losses), rel=1e-4)


def test_early_stopping_survives_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    noise = np.random.default_rng(0).integers(CLASSES, size=len(Y))
    settings = {"y": noise, "epochs": 30, "early_stopping": 2}
    whole = train(**settings)
    path = tmp_path / "checkpoint"
    stop = Listener(stop_after=whole.best_epoch + 1)
    with pytest.raises(KeyboardInterrupt):
        train(more={"checkpoint": path, "progress": stop}, **settings)
    resumed = train(more={"checkpoint": path, "resume": True}, **settings)
    assert (resumed.best_epoch, resumed.stopped_epoch) == (whole.best_epoch, whole.stopped_epoch)
    assert same(weights(resumed), weights(whole))


def test_history_tells_loss_and_accuracy_of_members_and_validation():
    listener = Listener()
    trained = train(more={"progress": listener})
    assert list(trained.history) == listener.records
    assert [r["epoch"] for r in trained.history] == [1, 2, 3, 4]
    last = trained.history[-1]
    for name, chosen in (("train", MEMBER), ("val", VALIDATION)):
        logits = torch.from_numpy(trained.query(X[chosen])[0])
        truth = torch.from_numpy(Y[chosen])
        assert last[f"{name}_acc"] == pytest.approx((logits.argmax(1) == truth).float().mean().item())
        assert last[f"{name}_loss"] == pytest.approx(nn.functional.cross_entropy(logits, truth).item(), rel=1e-4)
    assert last["train_acc"] == trained.accuracy(X[MEMBER], Y[MEMBER])
    assert last["seconds"] > 0
    assert listener.left[-1] == 0
    assert listener.left[0] == pytest.approx(3 * listener.records[0]["seconds"])
    assert [s[:3] for s in listener.steps if s[1] == s[2]] == [(e, 4, 4) for e in range(1, 5)]


def test_only_some_members_are_watched(monkeypatch):
    monkeypatch.setattr(train_target, "WATCHED_MEMBERS", 50)
    few = train(validation=None)
    assert {r["train_acc"] * 50 % 1 for r in few.history} == {0}
    assert few.history[-1]["val_acc"] is None
    monkeypatch.undo()
    assert same(weights(few), weights(train(validation=None)))


def test_it_learns():
    trained = train(epochs=20)
    assert trained.accuracy(X[MEMBER], Y[MEMBER]) > 0.95
    test = ~MEMBER & ~VALIDATION
    assert trained.accuracy(X[test], Y[test]) > 0.8


def test_nothing_but_the_members_enters_the_weights():
    x, y = X.copy(), Y.copy()
    x[~MEMBER] = 255 - x[~MEMBER]
    y[~MEMBER] = 0
    assert same(weights(train(x=x, y=y)), weights(train()))


def test_a_step_is_the_step_of_the_formula():
    """One epoch of one batch, against SGD written out on the plain module."""
    trained = train(epochs=1, batch_size=1000, weight_decay=0.01, label_smoothing=0.2, precision="fp32")
    torch.manual_seed(0)
    start = fit(
        Recipe(epochs=1, batch_size=1000, learning_rate=1e-30), X, Y, MEMBER, n_classes=CLASSES, seed=1, device="cpu"
    )
    net = start.module
    x = (torch.from_numpy(X[MEMBER]).float() / 255 - torch.from_numpy(start.mean).view(-1, 1, 1)) / torch.from_numpy(
        start.std
    ).view(-1, 1, 1)
    loss = nn.functional.cross_entropy(net(x), torch.from_numpy(Y[MEMBER]), label_smoothing=0.2)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    for before, after, gradient in zip(net.parameters(), trained.module.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.05 * (gradient + 0.01 * before), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step():
    before = weights(train(epochs=1, batch_size=1000, learning_rate=1e-30))
    after = weights(train(epochs=1, batch_size=1000, learning_rate=1.0, clip_norm=0.001, momentum=0.0))
    moved = math.sqrt(sum(float((after[name] - before[name]).double().pow(2).sum()) for name in before))
    assert moved == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "done", "factor"),
    [
        ({}, 7.0, 1.0),
        ({"schedule": "cosine"}, 0.0, 1.0),
        ({"schedule": "cosine"}, 5.0, 0.5),
        ({"schedule": "cosine"}, 10.0, 0.0),
        ({"schedule": "step"}, 4.9, 1.0),
        ({"schedule": "step"}, 5.0, 0.1),
        ({"schedule": "step"}, 7.5, 0.01),
        ({"warmup_epochs": 2}, 1.0, 0.5005),
        ({"warmup_epochs": 2}, 2.0, 1.0),
    ],
)
def test_schedules(settings, done, factor):
    assert rate_factor(Recipe(epochs=10, **settings), done) == pytest.approx(factor, abs=1e-9)


def test_the_global_generator_and_the_threads_are_left_alone():
    torch.manual_seed(3)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(3)
    train(epochs=1, dropout=0.2, more={"threads": 1})
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_the_global_generator_does_not_matter():
    torch.manual_seed(1)
    first = weights(train(epochs=1, dropout=0.2))
    torch.manual_seed(2)
    assert same(first, weights(train(epochs=1, dropout=0.2)))


def test_bf16_comes_close_to_fp32():
    both = {p: train(epochs=20, precision=p) for p in ("fp32", "bf16")}
    assert [t.precision for t in both.values()] == ["fp32", "bf16"]
    assert all(t.module.fc1.weight.dtype == torch.float32 for t in both.values())
    a, b = (t.accuracy(X, Y) for t in both.values())
    assert a == pytest.approx(b, abs=0.05)


def test_a_divergence_is_told_with_advice():
    message = (
        r"the training diverged: .* in epoch 1, step 4 of 4\n  lower the learning rate \(--learning-rate, now 1e\+30"
    )
    with pytest.raises(ModelError, match=message):
        train(learning_rate=1e30)


ROWS = np.random.default_rng(0).normal(size=(240, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"member": np.zeros(240, bool)}, DataError, "no record is a member"),
        ({"validation": np.zeros(240, bool)}, DataError, "no record is a validation record"),
        ({"validation": MEMBER}, DataError, "120 records are members and validation records"),
        ({"member": MEMBER[:9]}, DataError, r"member is bool \[9\], expected bool \[240\]"),
        ({"member": MEMBER.astype(int)}, DataError, r"member is int64 \[240\], expected bool \[240\]"),
        ({"validation": None, "early_stopping": 2}, ConfigError, "early_stopping needs validation records"),
        ({"x": ROWS, "model": "mlp", "augmentation": ("flip",)}, ConfigError, "the records are feature rows"),
        ({"x": ROWS}, ModelError, "takes images, the records are 6 features"),
        ({"more": {"device": "quantum"}}, ConfigError, "device = 'quantum' is unknown"),
        ({"more": {"device": "cuda:99"}}, ConfigError, "device = 'cuda:99': there is no such device here"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        train(**settings)


def test_feature_rows_are_standardised_and_learnt():
    y = (ROWS[:, 0] > 0).astype(np.int64)
    rows = ROWS * np.float32([1000, 1, 1, 1, 1e-3, 1]) + 5
    trained = train(x=rows, y=y, model="mlp", epochs=30, more={"n_classes": 2})
    assert trained.precision == "fp32"
    assert trained.accuracy(rows[~MEMBER], y[~MEMBER]) > 0.85


class Textbook(nn.Module):
    """Flattens with `view`, which channels-last memory does not allow."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(-1, 4 * 64))


def test_a_module_that_flattens_with_view_is_trained_and_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "their_net", sys.modules[__name__])
    trained = train(model="their_net:Textbook", epochs=10)
    assert not trained.channels_last
    assert trained.accuracy(X[MEMBER], Y[MEMBER]) > 0.8


def test_odd_images_and_batches_of_one(monkeypatch):
    x = pool(shape=(1, 7, 9))[0]
    member = np.arange(240) < 9
    trained = train(x=x, member=member, validation=None, batch_size=8, epochs=1)
    assert trained.query(x[:3]).shape == (1, 3, CLASSES)


def test_queries_are_float32_whatever_the_batch_and_come_in_the_order_asked():
    trained = train(precision="bf16", epochs=1)
    both = trained.query(X, augmentations=("flip", "none"), batch_size=7)
    assert both.dtype == np.float32
    assert both.shape == (2, 240, CLASSES)
    np.testing.assert_allclose(both[1], trained.query(X)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both[0], trained.query(X[..., ::-1])[0], rtol=1e-4, atol=1e-5)
    plain = trained.module(
        (torch.from_numpy(X).float() / 255 - torch.from_numpy(trained.mean).view(-1, 1, 1))
        / torch.from_numpy(trained.std).view(-1, 1, 1)
    )
    np.testing.assert_allclose(both[1], plain.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert trained.query(X[:0]).shape == (1, 0, CLASSES)
    assert math.isnan(trained.accuracy(X[:0], Y[:0]))


@pytest.mark.parametrize(
    ("x", "queries", "error", "message"),
    [
        (X[:, :1], ("none",), ModelError, r"takes uint8 records of shape \[3, 8, 8\], found uint8 \[1, 8, 8\]"),
        (X.astype(np.float32), ("none",), ModelError, r"takes uint8 records .*, found float32"),
        (X, ("rotate",), ConfigError, r"query 'rotate' is unknown\n  one of none, flip"),
    ],
)
def test_queries_that_do_not_fit_are_refused(x, queries, error, message):
    with pytest.raises(error, match=message):
        train(epochs=1).query(x, augmentations=queries)


def test_progress_is_not_told_more_than_a_few_times_a_second():
    listener = Listener()
    start = time.perf_counter()
    train(epochs=3, batch_size=1, learning_rate=1e-4, more={"progress": listener})
    seconds = time.perf_counter() - start
    assert len(listener.steps) <= seconds / 0.1 + 3
    assert all(a[:2] < b[:2] for a, b in itertools.pairwise(listener.steps))
