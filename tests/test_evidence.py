"""Evidence: what is taken, what is refused and with which words, and what an attack cannot change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.errors import EvidenceError
from memberscope.evidence import (
    ADVERSARIES,
    Evidence,
    Knowledge,
    adversary_for,
    from_logits,
    from_probabilities,
)

N, C, K, Z = 6, 3, 4, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (N, C)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
REFERENCES = RNG.normal(0, 2, (K, 1, N, C)).astype(np.float32)
INSIDE = RNG.random((K, N)) < 0.5
POPULATION = RNG.normal(0, 2, (1, Z, C)).astype(np.float32)
POPULATION_LABELS = np.array([0, 1, 2, 0, 1])


def broken(at: tuple[int, ...], value: float, array: np.ndarray = LOGITS) -> np.ndarray:
    changed = array.copy()
    changed[at] = value
    return changed


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("one axis", {"logits": LOGITS[0]}, "logits have shape (3,), expected [N, C]"),
    ("four axes", {"logits": REFERENCES}, "logits have shape (4, 1, 6, 3), expected [N, C]"),
    ("integers", {"logits": np.ones((N, C), int)}, "logits have dtype int64, expected floating point"),
    ("text", {"logits": np.full((N, C), "1")}, "logits have dtype <U1, expected floating point"),
    ("one column", {"logits": LOGITS[:, :1]}, "logits have 1 column, expected at least two classes"),
    ("no column", {"logits": LOGITS[:, :0]}, "logits have 0 columns, expected at least two classes"),
    ("no record", {"logits": LOGITS[:0], "labels": LABELS[:0]}, "logits hold no record"),
    ("no query", {"logits": LOGITS[None][:0]}, "logits hold no query"),
    ("NaN", {"logits": broken((2, 1), np.nan)}, "logits of 1 of 6 records are NaN or infinite (first: record 2)"),
    ("infinite", {"logits": broken((4, 0), -np.inf)}, "logits of 1 of 6 records are NaN or infinite (first: record 4)"),
    (
        "beyond all bounds",
        {"logits": broken((slice(3, 5), 0), 1e300, LOGITS.astype(np.float64))},
        "logits of 2 of 6 records are NaN or infinite (first: record 3)",
    ),
    ("a label too few", {"labels": LABELS[:-1]}, "labels have shape (5,), expected (6,) as logits do"),
    ("one-hot labels", {"labels": np.eye(C)[LABELS]}, "labels have shape (6, 3), expected (6,) as logits do"),
    ("label 3", {"labels": broken((5,), 3, LABELS)}, "label 3 of record 5 is outside 0..2 (3 columns)"),
    ("label -1", {"labels": broken((0,), -1, LABELS)}, "label -1 of record 0 is outside 0..2 (3 columns)"),
    ("half a label", {"labels": LABELS + 0.5}, "labels hold 0.5 (record 0), expected whole numbers"),
    ("NaN label", {"labels": broken((3,), np.nan, LABELS * 1.0)}, "labels hold nan (record 3), expected whole numbers"),
    ("infinite label", {"labels": broken((1,), np.inf, LABELS * 1.0)}, "labels hold inf (record 1), expected whole"),
    ("text labels", {"labels": np.array(list("abcabc"))}, "labels have dtype <U1, expected integers"),
    ("query names", {"queries": ("none", "flip")}, "2 query names for 1 queries"),
    (
        "references alone",
        {"reference_logits": REFERENCES},
        "reference logits and reference membership go together, and only one was given",
    ),
    (
        "membership alone",
        {"reference_membership": INSIDE},
        "reference logits and reference membership go together, and only one was given",
    ),
    (
        "references of other records",
        {"reference_logits": REFERENCES[:, :, 1:], "reference_membership": INSIDE},
        "reference logits have shape (4, 1, 5, 3), expected [K, A, N, C] = (4, 1, 6, 3)",
    ),
    (
        "no reference model",
        {"reference_logits": REFERENCES[:0], "reference_membership": INSIDE[:0]},
        "reference logits have shape (0, 1, 6, 3), expected [K, A, N, C] = (0, 1, 6, 3)",
    ),
    (
        "membership of too few models",
        {"reference_logits": REFERENCES, "reference_membership": INSIDE[1:]},
        "reference membership has shape (3, 6), expected [K, N] = (4, 6)",
    ),
    (
        "membership as numbers",
        {"reference_logits": REFERENCES, "reference_membership": INSIDE.astype(int)},
        "reference membership has dtype int64, expected bool",
    ),
    (
        "a broken reference model",
        {"reference_logits": broken((2, 0, 1, 1), np.nan, REFERENCES), "reference_membership": INSIDE},
        "reference logits of model 2 are NaN or infinite",
    ),
    (
        "references of integers",
        {"reference_logits": REFERENCES.astype(int), "reference_membership": INSIDE},
        "reference logits have dtype int64, expected floating point",
    ),
    (
        "population without labels",
        {"population_logits": POPULATION},
        "population logits and population labels go together, and only one was given",
    ),
    (
        "population of other classes",
        {"population_logits": POPULATION[:, :, :2], "population_labels": POPULATION_LABELS},
        "population logits have shape (1, 5, 2), expected [A, Z, C] with A = 1 and C = 3",
    ),
    (
        "population of two axes",
        {"population_logits": POPULATION[0], "population_labels": POPULATION_LABELS},
        "population logits have shape (5, 3), expected [A, Z, C] with A = 1 and C = 3",
    ),
    (
        "broken population",
        {"population_logits": broken((0, 4, 2), np.inf, POPULATION), "population_labels": POPULATION_LABELS},
        "population logits of 1 of 5 records are NaN or infinite (first: record 4)",
    ),
    (
        "label in the population",
        {"population_logits": POPULATION, "population_labels": POPULATION_LABELS + 1},
        "label 3 of record 2 is outside 0..2 (3 columns)",
    ),
    (
        "references of no population",
        {"population_reference_logits": REFERENCES},
        "reference logits of a population were given without the population",
    ),
    (
        "population references without references",
        {
            "population_logits": POPULATION,
            "population_labels": POPULATION_LABELS,
            "population_reference_logits": np.zeros((K, 1, Z, C)),
        },
        "the population has reference logits and the records have none",
    ),
    (
        "population references of another size",
        {
            "reference_logits": REFERENCES,
            "reference_membership": INSIDE,
            "population_logits": POPULATION,
            "population_labels": POPULATION_LABELS,
            "population_reference_logits": np.zeros((K - 1, 1, Z, C)),
        },
        "population reference logits have shape (3, 1, 5, 3), expected [K, A, Z, C] = (4, 1, 5, 3)",
    ),
]


@pytest.mark.parametrize(("changes", "told"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_used_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(EvidenceError) as refusal:
        from_logits(**{"logits": LOGITS, "labels": LABELS, **changes})
    assert refusal.value.problem.startswith(told)
    assert refusal.value.hint


def test_the_class_itself_wants_three_axes() -> None:
    with pytest.raises(EvidenceError, match=r"logits have shape \(6, 3\), expected \[A, N, C\]"):
        Evidence(LOGITS, LABELS)


@pytest.mark.parametrize(
    ("p", "told"),
    [
        (np.ones((N, C), int), "probabilities have dtype int64, expected floating point"),
        (np.ones(C), "probabilities have shape (3,), expected [N, C]"),
        (LOGITS, f"these are not probabilities: the values of record 0 lie in [{LOGITS[0].min():.4g}, "),
        (
            np.full((N, C), 0.4),
            "these are not probabilities: the values of record 0 lie in [0.4, 0.4] and their sum is 1.2",
        ),
        (np.tile([1.5, -0.5, 0.0], (N, 1)), "these are not probabilities: the values of record 0 lie in [-0.5, 1.5]"),
        (broken((3, 0), np.nan, np.full((N, C), 1 / 3)), "probabilities of record 3 are NaN or infinite"),
        (broken((2, 0), np.inf, np.full((N, C), 1 / 3)), "probabilities of record 2 are NaN or infinite"),
        (np.ones((0, C)), "labels have shape (6,), expected (0,) as logits do"),
    ],
)
def test_what_is_no_probability_is_refused(p: np.ndarray, told: str) -> None:
    with pytest.raises(EvidenceError) as refusal:
        from_probabilities(p, LABELS)
    assert refusal.value.problem.startswith(told)
    assert refusal.value.hint


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_probabilities_give_the_signals_of_their_logits(dtype: type) -> None:
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(0, 3, (200, 10)), rng.integers(0, 10, 200)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    seen, told = from_probabilities(p.astype(dtype), labels), from_logits(logits, labels)
    assert told.has_logits
    assert not seen.has_logits
    near = 0.05 if dtype is np.float16 else 2e-5  # a small probability has few digits in float16
    ordinary = told.signals.true_probability > 1e-3
    for name in ("phi", "loss", "entropy", "max_confidence"):
        np.testing.assert_allclose(
            getattr(seen.signals, name)[ordinary], getattr(told.signals, name)[ordinary], rtol=near, atol=near
        )


def test_probabilities_rounded_to_three_digits_are_taken() -> None:
    p = np.round(np.random.default_rng(6).dirichlet(np.ones(10), 500), 3)
    assert np.abs(p.sum(axis=1) - 1).max() > 1e-3
    evidence = from_probabilities(p, np.zeros(500, int))
    np.testing.assert_allclose(evidence.signals.true_probability, p[:, 0] / p.sum(axis=1), rtol=1e-12, atol=1e-300)


def test_probabilities_of_exactly_zero_and_one() -> None:
    p = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [1e-45, 1, 0]], np.float32)
    signals = from_probabilities(p, np.zeros(4, int)).signals
    for name in ("phi", "loss", "entropy", "modified_entropy", "hinge", "log_max_odds"):
        assert np.isfinite(getattr(signals, name)).all(), name
    assert signals.phi[0] > signals.phi[1] > signals.phi[2]
    # 1e-45 rounds to the smallest float32, which is what 0 is taken for too.
    assert signals.phi[2] == pytest.approx(signals.phi[3], rel=1e-15)


@given(st.lists(st.integers(0, 1), min_size=N, max_size=N))
def test_labels_that_are_whole_numbers_are_taken_in_any_type(labels: list[int]) -> None:
    for dtype in (np.uint8, np.int32, np.float16, np.float64):
        evidence = from_logits(LOGITS, np.array(labels, dtype))
        assert evidence.labels.dtype == np.int64
        assert evidence.labels.tolist() == labels


def full() -> Evidence:
    return from_logits(
        LOGITS,
        LABELS,
        reference_logits=REFERENCES,
        reference_membership=INSIDE,
        population_logits=POPULATION,
        population_labels=POPULATION_LABELS,
        white_box=lambda name: np.arange(N) * (2.0 if name == "twice" else 1.0),
    )


@pytest.mark.parametrize("rows", [np.array([4, 0, 4]), np.arange(N) % 2 == 0])
def test_a_part_is_the_evidence_about_these_records_in_this_order(rows: np.ndarray) -> None:
    part, whole = full().take(rows), full()
    np.testing.assert_array_equal(part.logits, LOGITS[None][:, rows])
    np.testing.assert_array_equal(part.labels, LABELS[rows])
    assert part.reference_logits is not None
    assert part.reference_membership is not None
    assert part.white_box is not None
    np.testing.assert_array_equal(part.reference_logits, REFERENCES[:, :, rows])
    np.testing.assert_array_equal(part.reference_membership, INSIDE[:, rows])
    np.testing.assert_array_equal(part.white_box("twice"), 2.0 * np.arange(N)[rows])
    np.testing.assert_array_equal(part.signals.phi, whole.signals.phi[rows])
    assert part.population_logits is not None
    assert part.population_logits.shape == POPULATION.shape


def test_no_attack_can_change_the_evidence() -> None:
    evidence, before = full(), LOGITS.copy()
    for name in ("logits", "labels", "reference_logits", "reference_membership", "population_logits"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(evidence, name)[...] = 0
    with pytest.raises(AttributeError):
        evidence.labels = LABELS  # type: ignore[misc]
    LOGITS[0, 0] += 0  # what the caller holds stays writeable
    np.testing.assert_array_equal(LOGITS, before)


def test_several_queries_are_named() -> None:
    logits = np.stack([LOGITS, LOGITS + 1, LOGITS[:, ::-1]])
    assert from_logits(logits, LABELS).queries == ("query0", "query1", "query2")
    evidence = from_logits(logits, LABELS, queries=("none", "flip", "shift"))
    assert evidence.query_signals.phi.shape == (3, N)
    np.testing.assert_array_equal(evidence.query_signals.phi[0], evidence.signals.phi)
    assert repr(evidence) == "Evidence(6 records, 3 classes, 3 queries, 0 reference models, population 0)"
    assert repr(full()) == "Evidence(6 records, 3 classes, 1 query, 4 reference models, population 5)"


def test_knowledge_follows_from_what_is_there() -> None:
    least = {Knowledge.LABELS, Knowledge.PROBABILITIES, Knowledge.TRUE_LABELS}
    assert from_logits(LOGITS, LABELS).knowledge == least
    held = least | {Knowledge.REFERENCES, Knowledge.REFERENCES_IN, Knowledge.POPULATION, Knowledge.WEIGHTS}
    assert full().knowledge == held
    assert replace(full(), record_features=np.ones((N, 2))).knowledge == held | {Knowledge.RECORDS}
    elsewhere = replace(full(), reference_membership=np.zeros((4, N), bool))  # trained on other records only
    assert elsewhere.knowledge == held - {Knowledge.REFERENCES_IN}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"record_features": np.ones(N)}, "expected (6, F)"),
        ({"record_features": np.ones((N + 1, 2))}, "expected (6, F)"),
        ({"record_features": np.ones((N, 2), int)}, "dtype int64"),
        ({"record_features": np.full((N, 2), np.nan)}, "of 6 records are NaN or infinite (first: record 0)"),
        ({"population_features": np.ones((5, 2))}, "without features of the records"),
        (
            {"record_features": np.ones((N, 3)), "population_features": np.ones((5, 2))},
            "2 columns and record features 3",
        ),
        ({"record_features": np.ones((N, 2)), "population_features": np.ones((4, 2))}, "expected (5, F)"),
    ],
)
def test_features_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        replace(full(), **changed)
    assert message in str(caught.value)


def test_signals_of_references_follow_the_records() -> None:
    evidence = full()
    assert evidence.references is evidence.references  # reduced once
    rows = np.array([4, 1])
    taken = replace(evidence, record_features=np.arange(2.0 * N).reshape(N, 2)).take(rows)
    np.testing.assert_array_equal(taken.record_features, [[8, 9], [2, 3]])
    np.testing.assert_array_equal(taken.references.moments()[1].mean, evidence.references.moments()[1].mean[:, rows])
    with pytest.raises(EvidenceError, match="no reference models"):
        _ = from_logits(LOGITS, LABELS).references
    with pytest.raises(EvidenceError, match="answers of reference models on a population"):
        _ = from_logits(LOGITS, LABELS).population_references


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        ({Knowledge.LABELS}, "stranger, labels only"),
        ({Knowledge.LABELS, Knowledge.TRUE_LABELS}, "stranger, labels only"),
        ({Knowledge.PROBABILITIES}, "stranger"),
        ({Knowledge.POPULATION, Knowledge.PROBABILITIES}, "stranger"),
        ({Knowledge.SOME_MEMBERSHIP}, "informed stranger"),
        ({Knowledge.REFERENCES}, "insider"),
        ({Knowledge.WEIGHTS}, "thief"),
        ({Knowledge.GLOBAL_MODELS}, "curious client"),
        ({Knowledge.GLOBAL_MODELS, Knowledge.SOME_MEMBERSHIP}, "curious client"),
        ({Knowledge.SUMS}, "curious server behind secure aggregation"),
        ({Knowledge.UPDATES, Knowledge.REFERENCES}, "curious server"),
    ],
)
def test_an_attack_belongs_to_the_weakest_adversary_who_could_run_it(needs: set[Knowledge], name: str) -> None:
    assert adversary_for(frozenset(needs)).name == name


def test_adversaries_stand_weakest_first() -> None:
    for position, adversary in enumerate(ADVERSARIES):
        for weaker in ADVERSARIES[:position]:
            assert not adversary.knowledge <= weaker.knowledge
