"""SELENA, DMP and adversarial regularisation: what is taught by whom, and that a killed run goes on in its stage."""

import dataclasses

import numpy as np
import pytest
import torch

from memberscope.defenses.adversarial import Adversarial
from memberscope.defenses.base import Attached
from memberscope.defenses.distillation import Selena
from memberscope.defenses.registry import trainings, work
from memberscope.errors import ConfigError
from memberscope.training.bank_plan import records_computed
from memberscope.training.defended import probabilities_of
from memberscope.training.recipe import Recipe
from memberscope.training.stages import Stages, remove
from memberscope.training.train_target import fit

SELENA = {"selena": 3, "selena_left_out": 1, "epochs": 2}


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        (SELENA, (3, 5)),  # in the second sub-model, and between two
        ({"dmp": 2.0, "epochs": 2}, (1, 3)),  # in the teacher, and in the student
        ({"adversarial": 3.0, "epochs": 3}, (2,)),
    ],
    ids=["selena", "dmp", "adversarial"],
)
def test_it_changes_training_and_goes_on_bit_for_bit(settings, after, pool, resumed):
    whole, again = resumed(after, **settings)
    assert whole.weights_sha256 == again.weights_sha256
    assert pool.train(epochs=settings["epochs"]).weights_sha256 != whole.weights_sha256
    assert [r["epoch"] for r in whole.history] == list(range(1, settings["epochs"] + 1)), "of the model that is kept"


def stages(pool, recipe, run):
    return Stages(recipe, pool.x, pool.y, pool.member, pool.validation, 4, 7, run, None, trainings(recipe))


def test_selena_teaches_each_member_by_the_models_that_left_it_out(pool):
    recipe = Recipe(selena=5, selena_left_out=2)
    kept = []

    class Sub:
        def __init__(self, number):
            self.number = number

        def query(self, x, raw):
            assert raw
            return np.eye(4, dtype=np.float32)[None, [self.number % 4] * len(x)] * 3

    def run(stage, records, seed, progress, name):
        assert stage == dataclasses.replace(recipe, selena=0)
        kept.append((records, seed, name))
        return Sub(len(kept) - 1)

    lesson = Selena(recipe).lesson(stages(pool, recipe, run))
    left_out = np.stack([pool.member & ~records for records, _, _ in kept])
    assert not any((records & ~pool.member).any() for records, _, _ in kept)
    assert (left_out.sum(axis=0)[pool.member] == 2).all(), "each member is left out by L sub-models"
    assert len({seed for _, seed, _ in kept}) == len({name for _, _, name in kept}) == 5
    answers = [probabilities_of(Sub(k).query(np.zeros(1), True)[0])[0] for k in range(5)]
    for n in np.flatnonzero(pool.member):
        expected = np.mean([answers[k] for k in range(5) if left_out[k, n]], axis=0)
        np.testing.assert_allclose(lesson.targets[n], expected, atol=1e-6)
    np.testing.assert_array_equal(lesson.records, pool.member)


def test_the_student_of_dmp_sees_no_member(pool):
    """Members enter through the teacher alone: its answers, taught by hand, give the same student bit for bit."""
    recipe = Recipe(dmp=1.0, epochs=2, batch_size=16, learning_rate=0.05, precision="fp32")
    options = {"n_classes": 4, "seed": 3, "device": "cpu"}
    student = fit(recipe, pool.x, pool.y, pool.member, validation=pool.validation, **options)
    assert student.mean.tolist() == pytest.approx((pool.x[pool.validation] / 255).mean(axis=(0, 2, 3)), abs=1e-5)
    assert student.history[-1]["val_loss"] is None, "validation records are what it was trained on"
    plain = dataclasses.replace(recipe, dmp=0.0)
    own = dataclasses.replace(stages(pool, recipe, None), seed=3)
    seed = own._sequence("stage 0").generate_state(1, np.uint64)[0] >> 1
    teacher = fit(plain, pool.x, pool.y, pool.member, validation=pool.validation, **{**options, "seed": int(seed)})
    taught = np.zeros((len(pool.x), 4))
    taught[pool.validation] = probabilities_of(teacher.query(pool.x[pool.validation])[0])
    by_hand = fit(plain, pool.x, pool.y, pool.validation, soft_targets=taught, **options)
    assert student.weights_sha256 == by_hand.weights_sha256


def test_dmp_scales_its_loss_by_the_squared_temperature():
    from memberscope.training.objective import Objective

    logits, taught = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), 1)
    found = Objective(Recipe(), 4, taught, 3.0).losses(logits, taught, 1)
    expected = -9 * (taught * torch.log_softmax(logits / 3, 1)).sum(1).mean()
    torch.testing.assert_close(found, expected)


def test_the_inference_model_learns_who_is_a_member_and_the_loss_counts_its_gain():
    """Members have peaked logits, others flat ones: h must find that, and the loss must charge for it."""
    torch.manual_seed(0)
    recipe = Recipe(adversarial=6.0)
    defense = Adversarial(recipe)

    def reference(n, rng):
        return torch.from_numpy(rng.normal(0, 0.1, (n, 4))).float(), torch.eye(4)[rng.integers(4, size=n)]

    defense.attach(Attached(4, torch.device("cpu"), 1, reference))
    defense.epoch(np.random.default_rng(0))
    targets = torch.eye(4)[torch.randint(4, (64,))]
    losses = [defense.losses(5 * targets, targets, 1).item() for _ in range(200)]
    plain = torch.nn.functional.cross_entropy(5 * targets, targets).item()
    assert losses[0] == pytest.approx(plain, abs=1.0), "h knows nothing yet: about 1/2"
    assert losses[-1] > plain + 6 * 0.42, "h is sure of the members"
    before = {k: v.clone() for k, v in defense.state().items()}
    logits = (5 * targets).requires_grad_()
    defense.losses(logits, targets, 1).backward()
    assert logits.grad.abs().sum() > 0
    other = Adversarial(recipe)
    other.attach(Attached(4, torch.device("cpu"), 2, reference))
    other.load(before)
    assert all(torch.equal(v, before[k]) for k, v in other.state().items())


def test_progress_counts_all_trainings_as_one(pool, listener):
    pool.train(more={"progress": listener}, **SELENA)
    assert listener.heard == [(epoch, 8) for epoch in range(1, 9)]
    assert trainings(Recipe(**SELENA)) == 4
    assert trainings(Recipe(dmp=1.0)) == 2
    assert work(Recipe(selena=25, selena_left_out=10)) == 16
    ratio = records_computed(Recipe(selena=25), 1000, 0) / records_computed(Recipe(), 1000, 0)
    assert ratio == 16


def test_checkpoints_of_stages_are_removed_with_the_model(pool, tmp_path, monkeypatch):
    from memberscope.training import train_target

    monkeypatch.setattr(train_target, "CHECKPOINT_SECONDS", 0)
    path = tmp_path / "checkpoint"
    pool.train(more={"checkpoint": path}, **SELENA)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", *(f"checkpoint.stage-{k}" for k in range(3))}
    remove(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selena": 5, "selena_left_out": 5}, "selena_left_out = 5 of selena = 5 sub-models"),
        ({"selena": 25, "dmp": 1.0}, "selena and dmp do not go together: each is a training procedure"),
        ({"selena": 25, "relaxloss": 1.0}, "selena gives records soft targets, and relaxloss needs one class"),
        ({"selena": 25, "hamp": 0.9}, "selena teaches by its own loss, and hamp replaces it"),
        ({"dmp": 1.0, "early_stopping": 3}, "the validation records are what the model is trained on"),
        ({"dmp": 1.0, "dp_noise": 1.0}, "the teacher is not trained with noise"),
        ({"selena": 25, "dp_noise": 1.0}, "the sub-models that teach are not trained with noise"),
        ({"adversarial": 1.0, "dp_noise": 1.0}, "the inference model is trained on members without noise"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize("settings", [{"dmp": 2.0}, {"adversarial": 1.0}])
def test_validation_records_are_asked_for(settings, pool):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} needs validation records"):
        fit(Recipe(**settings), pool.x, pool.y, pool.member, n_classes=4, seed=0, device="cpu")
