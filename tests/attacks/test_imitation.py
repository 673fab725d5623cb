"""Attacks that train models on the target's answers: with a workshop that only keeps books, and with a real one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, score_records
from memberscope.attacks.imitation import DistillationTrajectory, Imia
from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge
from memberscope.statistics.curves import auc, rank
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit
from memberscope.training.workshop import RecipeWorkshop
from memberscope.workshop import Imitation

N, Z, C, K = 240, 200, 4, 4
RECIPE = Recipe(model="mlp", epochs=12, batch_size=20, precision="fp32")


class Bookkeeper:
    """Answers with phi = 1 for records that a model was trained on and -1 for others, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[Imitation] = []

    def train(self, imitation: Imitation) -> NDArray[np.float64]:
        self.asked.append(imitation)
        inside = imitation.rows if imitation.on == "records" else np.zeros(N, bool)
        phi = np.where(inside, 1.0, -1.0)
        answers = np.stack([-phi / 2, phi / 2], axis=-1)
        return np.broadcast_to(answers, (imitation.snapshots, 1, N, 2))

    def take(self, rows: Any) -> Bookkeeper:
        return self


def two_classes(phi: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([-phi / 2, phi / 2], axis=-1)


def evidence_with(workshop: Any) -> Evidence:
    rng = np.random.default_rng(0)
    inside = np.argsort(rng.random((K, N)), axis=0) < K // 2
    return Evidence(
        two_classes(rng.normal(size=(1, N))),
        np.ones(N, np.int64),
        reference_logits=two_classes(np.where(inside, 3.0, 0.0))[:, None],
        reference_membership=inside,
        population_logits=two_classes(rng.normal(size=(1, Z))),
        population_labels=np.ones(Z, np.int64),
        population_reference_logits=two_classes(rng.normal(size=(K, 1, Z))),
        workshop=workshop,
    )


def test_imia_by_hand() -> None:
    """OUT models that imitate say -1, ordinary IN models say 3."""
    books = Bookkeeper()
    evidence = evidence_with(books)
    phi = evidence.signals.phi
    found = Imia(rng=np.random.default_rng(0)).score(evidence)
    np.testing.assert_allclose(found, (phi + 1) ** 2 - (phi - 3) ** 2, atol=1e-5)
    assert len(books.asked) == 10
    assert len({one.seed for one in books.asked}) == 10
    rows = np.stack([one.rows for one in books.asked])
    np.testing.assert_array_equal(rows.sum(axis=0), 5)  # in pairs of complements
    for one in books.asked:
        np.testing.assert_array_equal(one.teacher, evidence.logits[0])
        assert (one.on, one.weight, one.begins, one.distance) == ("records", 0.5, 0.8, "logits")


def test_where_in_models_are_the_less_sure_imia_is_silent() -> None:
    evidence = evidence_with(Bookkeeper())
    assert evidence.reference_logits is not None
    turned = replace(evidence, reference_logits=two_classes(np.full((K, N), -5.0))[:, None])
    assert np.abs(Imia().score(turned)).max() < 1e-5


def test_a_record_with_no_in_model_borrows_the_usual_shift() -> None:
    evidence = evidence_with(Bookkeeper())
    assert evidence.reference_membership is not None
    inside = evidence.reference_membership & (np.arange(N) > 9)
    scores = Imia().score(replace(evidence, reference_membership=inside))
    np.testing.assert_allclose(scores[:10], Imia().score(evidence)[:10], atol=1e-5)


def test_the_trajectory_distils_target_and_one_reference_on_the_population() -> None:
    books = Bookkeeper()
    evidence = evidence_with(books)
    DistillationTrajectory().score(evidence)
    assert [one.on for one in books.asked] == ["population", "population"]
    assert all(one.rows.all() and one.weight == 1 and one.snapshots == 20 for one in books.asked)
    assert evidence.population_reference_logits is not None
    np.testing.assert_array_equal(books.asked[0].teacher, evidence.population_reference_logits[0][0])
    np.testing.assert_array_equal(books.asked[1].teacher, evidence.population_logits[0])  # type: ignore[index]


@pytest.mark.parametrize("attack", [Imia, DistillationTrajectory])
def test_what_they_lack_is_named(attack: type[Attack]) -> None:
    evidence = evidence_with(Bookkeeper())
    member = np.arange(N) < N // 2
    with pytest.raises(MissingKnowledgeError, match="the means to train models on the answers"):
        score_records(attack, replace(evidence, workshop=None), member, rng=np.random.default_rng(0))
    assert Knowledge.WORKSHOP in evidence.knowledge
    assert attack.adversary().name == "insider"
    assert attack.costly
    with pytest.raises(EvidenceError):
        attack().score(replace(evidence, reference_membership=np.ones((K, N), bool)))
    if attack is DistillationTrajectory:
        with pytest.raises(MissingKnowledgeError, match="reference models on the population"):
            attack().score(replace(evidence, population_reference_logits=None))


@cache
def audited() -> tuple[Evidence, NDArray[np.bool_], RecipeWorkshop]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, C, N + Z)
    x = (rng.normal(size=(N + Z, 30)) + 0.7 * np.eye(C, 30)[y]).astype(np.float32)
    inside = np.zeros((K + 1, N + Z), bool)
    inside[:, :N] = rng.random((K + 1, N)) < 0.5
    models = [
        fit(RECIPE, x, y, member, n_classes=C, seed=seed, device="cpu", threads=1) for seed, member in enumerate(inside)
    ]
    logits = np.stack([model.query(x) for model in models])
    pool = np.arange(N + Z)
    workshop = RecipeWorkshop(RECIPE, x, y, pool[:N], population=pool[N:], n_classes=C, device="cpu", threads=1)
    evidence = Evidence(
        logits[0][:, :N],
        y[:N],
        reference_logits=logits[1:, :, :N],
        reference_membership=inside[1:, :N],
        population_logits=logits[0][:, N:],
        population_labels=y[N:],
        population_reference_logits=logits[1:, :, N:],
        workshop=workshop,
    )
    return evidence, inside[0, :N], workshop


@pytest.mark.parametrize(("attack", "least"), [(Imia, 0.75), (DistillationTrajectory, 0.7)])
def test_members_of_an_overfitted_model_are_told(attack: type[Attack], least: float) -> None:
    evidence, member, _ = audited()
    scores = score_records(attack, evidence, member, rng=np.random.default_rng(0))
    assert auc(rank(scores, member)) > least


def test_the_workshop_imitates_and_gives_the_same_for_the_same_seed() -> None:
    evidence, _, workshop = audited()
    teacher, everyone = evidence.logits[0], np.ones(N, bool)

    def far(**settings: Any) -> float:
        found = workshop.train(Imitation("records", everyone, teacher, 3, **settings))[-1][0]
        centred = [z - z.mean(axis=1, keepdims=True) for z in (found, teacher)]
        return float(np.mean((centred[0] - centred[1]) ** 2))

    alone = far(weight=0.0)
    assert far(distance="logits") < 0.5 * alone
    assert far(weight=0.5, begins=0.8, distance="logits") < alone
    one = Imitation("records", np.arange(N) < 100, teacher, 5, snapshots=3)
    first, again = workshop.train(one), workshop.train(one)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 1, N, C)
    other = workshop.train(replace(one, seed=6))
    assert not np.array_equal(first, other)
    moved = replace(one, teacher=teacher + np.arange(N)[:, None], distance="logits")
    np.testing.assert_allclose(workshop.train(moved), workshop.train(replace(one, distance="logits")), atol=0.05)
    unread = np.where(one.rows[:, None], teacher, 1e6)
    np.testing.assert_array_equal(workshop.train(replace(one, teacher=unread)), first)


def test_the_workshop_of_some_records_answers_about_these_and_refuses_what_it_cannot_do() -> None:
    evidence, _, _workshop = audited()
    rows = np.array([5, 2, 9, 100])
    part = evidence.take(rows)
    assert part.workshop is not None
    teacher = part.logits[0]
    assert part.workshop.train(Imitation("records", np.ones(4, bool), teacher, 0)).shape == (1, 1, 4, C)
    with pytest.raises(EvidenceError, match="do not fit"):
        part.workshop.train(Imitation("records", np.ones(5, bool), teacher, 0))
    with pytest.raises(EvidenceError, match="no record"):
        part.workshop.train(Imitation("records", np.zeros(4, bool), teacher, 0))
    x, y = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
    alone = RecipeWorkshop(RECIPE, x, y, np.arange(4), n_classes=C, device="cpu")
    with pytest.raises(EvidenceError, match="no population"):
        alone.train(Imitation("population", np.ones(4, bool), teacher, 0))
