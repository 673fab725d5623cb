"""Attacks by one signal: what each ranks by, which way it points, and what it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from memberscope.attacks.base import Attack, score_records
from memberscope.attacks.registry import ATTACKS
from memberscope.checks import FLOOR
from memberscope.evidence import Evidence, from_logits
from memberscope.statistics.curves import auc, rank

RNG = np.random.default_rng(0)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max())
    return np.asarray(p / p.sum())


def modified_entropy(p: np.ndarray, y: int) -> float:
    rest = [c for c in range(len(p)) if c != y]
    return float(-(1 - p[y]) * np.log(p[y]) - sum(p[c] * np.log(1 - p[c]) for c in rest))


TEXTBOOK: dict[str, Any] = {
    "gap": lambda z, y: float(np.argmax(z) == y),
    "loss": lambda z, y: np.log(softmax(z)[y]),
    "phi": lambda z, y: np.log(softmax(z)[y] / (1 - softmax(z)[y])),
    "hinge": lambda z, y: z[y] - max(z[c] for c in range(len(z)) if c != y),
    "confidence": lambda z, y: np.log(softmax(z).max() / (1 - softmax(z).max())),
    "entropy": lambda z, y: sum(softmax(z) * np.log(softmax(z))),
    "modified-entropy": lambda z, y: -modified_entropy(softmax(z), y),
}


def scores(name: str, evidence: Evidence, member: np.ndarray | None = None) -> np.ndarray:
    attack: type[Attack] = ATTACKS[name]
    member = np.arange(evidence.n_records) % 2 == 0 if member is None else member
    return score_records(attack, evidence, member, rng=np.random.default_rng(0))


def test_the_floor_is_what_is_tested_here() -> None:
    assert set(FLOOR) == set(TEXTBOOK)


@pytest.mark.parametrize("name", FLOOR)
def test_the_score_is_the_formula_on_the_card(name: str) -> None:
    logits, labels = RNG.normal(0, 2, (100, 5)), RNG.integers(0, 5, 100)
    expected = [TEXTBOOK[name](z, y) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(scores(name, from_logits(logits, labels)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FLOOR)
def test_only_the_first_query_is_looked_at(name: str) -> None:
    logits, labels = RNG.normal(0, 2, (3, 50, 4)), RNG.integers(0, 4, 50)
    alone, together = from_logits(logits[0], labels), from_logits(logits, labels)
    np.testing.assert_array_equal(scores(name, alone), scores(name, together))


@pytest.mark.parametrize("name", FLOOR)
def test_a_surely_right_answer_ranks_above_an_unsure_one(name: str) -> None:
    sure, unsure, wrong = [9.0, 0.0, 0.0], [0.2, 0.1, 0.0], [0.0, 2.0, 0.0]
    found = scores(name, from_logits(np.array([sure, unsure, wrong]), np.zeros(3, int)))
    assert found[0] >= found[1] if name == "gap" else found[0] > found[1]
    if name in ("confidence", "entropy"):  # they do not know the true class: a wrong answer may be a sure one
        assert found[2] > found[1]
    else:
        assert found[2] < found[1]


@pytest.mark.parametrize("name", FLOOR)
def test_members_that_the_model_knows_better_rank_above_others(name: str) -> None:
    n = 4000
    labels, member = RNG.integers(0, 5, n), RNG.permutation(np.arange(n) < n // 2)
    logits = RNG.normal(0, 1.5, (n, 5))
    logits[np.arange(n), labels] += 2 + 2 * member
    assert auc(rank(scores(name, from_logits(logits, labels), member), member)) > 0.55


def test_gaussian_margins_give_the_closed_form_auc() -> None:
    """Two classes: hinge and phi are the margin; N(1, 1) against N(0, 1) has AUC Phi(1 / sqrt 2)."""
    n = 60_000
    member = np.arange(n) < n // 2
    margin = RNG.normal(0, 1, n) + member
    logits = np.stack([margin, np.zeros(n)], axis=1)
    evidence = from_logits(logits, np.zeros(n, int))
    exact = stats.norm.cdf(1 / np.sqrt(2))
    standard_error = np.sqrt(2 * exact * (1 - exact) / n)
    for name in ("phi", "hinge", "loss", "modified-entropy"):
        assert auc(rank(scores(name, evidence, member), member)) == pytest.approx(exact, abs=4 * standard_error)


def test_the_gap_attack_achieves_half_the_generalisation_gap() -> None:
    labels, member = np.zeros(200, int), np.arange(200) < 100
    right = np.concatenate([np.arange(100) < 90, np.arange(100) < 60])
    logits = np.stack([right.astype(float), ~right], axis=1)
    assert auc(rank(scores("gap", from_logits(logits, labels), member), member)) == 0.5 + (0.9 - 0.6) / 2


def test_certain_answers_are_told_apart() -> None:
    logits = np.stack([np.linspace(40, 90, 200), np.zeros(200), np.full(200, -1.0)], axis=1)
    evidence = from_logits(logits.astype(np.float32), np.zeros(200, int))
    for name in set(FLOOR) - {"gap"}:
        found = scores(name, evidence)
        assert (np.diff(found) > 0).all(), name


def test_what_each_attack_needs() -> None:
    strangers = {name: ATTACKS[name].adversary().name for name in FLOOR}
    assert strangers.pop("gap") == "stranger, labels only"
    assert set(strangers.values()) == {"stranger"}
    assert (
        {k.name for k in ATTACKS["confidence"].needs} == {k.name for k in ATTACKS["entropy"].needs} == {"PROBABILITIES"}
    )
    assert {k.name for k in ATTACKS["loss"].needs} == {"PROBABILITIES", "TRUE_LABELS"}
    assert not any(ATTACKS[name].probability for name in FLOOR)
