"""Label-only attacks on models whose decision boundary is known, and the oracle that they ask."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.attacks.base import score_records
from memberscope.attacks.label_only import AugmentationRobustness, BoundaryDistance, NoiseRobustness
from memberscope.attacks.label_only_taught import TaughtAugmentationRobustness, TunedNoiseRobustness
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, from_logits
from memberscope.probes import Noise, Probe, Shift
from memberscope.statistics.curves import auc, rank
from memberscope.training.probing import ModelOracle
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit


class Line:
    """Records are numbers, and the class is whether they are positive; noise moves them by its strength downwards."""

    images = False

    def __init__(self, records: np.ndarray) -> None:
        self.records = records

    def labels(self, probe: Probe) -> np.ndarray:
        assert isinstance(probe, Noise)
        return (self.records - np.asarray(probe.strength) > 0).astype(np.int64)

    def take(self, rows: np.ndarray) -> Line:
        return Line(self.records[rows])


def evidence_of(records: np.ndarray, labels: np.ndarray) -> object:
    logits = np.stack([np.zeros(len(records)), records], axis=1)
    return from_logits(logits, labels, oracle=Line(records))


def test_boundary_distance_is_the_distance() -> None:
    records = np.array([0.3, 1.5, 0.01, -0.5, 5.0])
    scores = BoundaryDistance(rng=np.random.default_rng(0)).score(evidence_of(records, np.ones(5, np.int64)))
    np.testing.assert_allclose(scores[:3], records[:3], atol=1e-3)
    assert scores[3] == 0.0, "a misclassified record lies on the wrong side"
    assert scores[4] == BoundaryDistance.largest


def test_noise_robustness_counts_the_copies_that_keep_the_class() -> None:
    records = np.array([0.01, 0.03, 0.07, 0.5, -1.0])
    scores = NoiseRobustness(rng=np.random.default_rng(0)).score(evidence_of(records, np.ones(5, np.int64)))
    np.testing.assert_allclose(scores, [8 / 32, 16 / 32, 24 / 32, 1.0, 0.0])


def test_feature_rows_cannot_be_moved() -> None:
    with pytest.raises(EvidenceError, match="cannot be moved or mirrored"):
        AugmentationRobustness().score(evidence_of(np.ones(3), np.ones(3, np.int64)))


@pytest.fixture(scope="module")
def trained() -> tuple[object, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 3
    recipe = Recipe(epochs=40, batch_size=20, precision="fp32")
    return fit(recipe, x, y, np.arange(60) < 30, n_classes=3, seed=0, device="cpu"), x, y


def test_unaltered_copies_are_answered_as_the_records_are(trained: tuple[object, np.ndarray, np.ndarray]) -> None:
    model, x, _ = trained
    oracle = ModelOracle(model, x, np.arange(60))
    expected = model.query(x)[0].argmax(axis=1)
    assert np.array_equal(oracle.labels(Noise(0.0, 1)), expected)
    assert np.array_equal(oracle.labels(Shift(0, 0)), expected)
    mirrored = np.ascontiguousarray(x[..., ::-1])
    assert np.array_equal(oracle.labels(Shift(0, 0, mirrored=True)), model.query(mirrored)[0].argmax(axis=1))
    moved = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)), mode="edge")[:, :, :-1, 1:]
    assert np.array_equal(oracle.labels(Shift(1, -1)), model.query(np.ascontiguousarray(moved))[0].argmax(axis=1))


def test_noise_belongs_to_the_record_and_not_to_its_company(trained: tuple[object, np.ndarray, np.ndarray]) -> None:
    model, x, _ = trained
    oracle, probe = ModelOracle(model, x, np.arange(60)), Noise(0.3, 7)
    rows = np.array([41, 3, 17])
    assert np.array_equal(oracle.take(rows).labels(probe), oracle.labels(probe)[rows])
    strengths = np.linspace(0, 0.5, 60)
    one_by_one = [oracle.take(np.array([i])).labels(Noise(np.array([s]), 7))[0] for i, s in enumerate(strengths)]
    assert oracle.labels(Noise(strengths, 7)).tolist() == one_by_one


def test_members_of_an_overfitted_model_stand_more_noise(trained: tuple[object, np.ndarray, np.ndarray]) -> None:
    model, x, y = trained
    evidence = from_logits(model.query(x), y, oracle=ModelOracle(model, x, np.arange(60)))
    for attack in (NoiseRobustness, BoundaryDistance, AugmentationRobustness):
        scores = attack(rng=np.random.default_rng(0)).score(evidence)
        assert scores[:30].mean() > scores[30:].mean() + 0.05, attack.name


def taught_evidence(records: np.ndarray, of_reference: np.ndarray, inside: np.ndarray) -> Evidence:
    logits = np.stack([np.zeros(len(records)), records], axis=1)
    return from_logits(
        logits,
        np.ones(len(records), np.int64),
        oracle=Line(records),
        reference_logits=logits[None, None],
        reference_membership=inside[None],
        reference_oracle=lambda k: Line(of_reference),
        reference_white_box=lambda k, name, rows: np.zeros(len(rows)),
    )


def test_the_strength_of_noise_is_tuned_on_a_reference_model() -> None:
    """Members of the reference model stand noise of 0.15, others of 0.07: only a strength of 0.1 tells."""
    rng = np.random.default_rng(0)
    inside, member = rng.random(200) < 0.5, rng.random(200) < 0.5
    evidence = taught_evidence(np.where(member, 0.15, 0.07), np.where(inside, 0.15, 0.07), inside)
    scores = TunedNoiseRobustness(rng=rng).score(evidence)
    np.testing.assert_array_equal(scores, np.where(member, 1.0, 8 / 32))
    elsewhere = taught_evidence(np.where(member, 0.15, 0.07), np.where(inside, 0.35, 0.15), inside)
    scores = TunedNoiseRobustness(rng=rng).score(elsewhere)
    np.testing.assert_array_equal(scores, 8 / 32)  # tuned to 0.2, which loses all records of the target
    few = taught_evidence(np.ones(200), np.ones(200), np.arange(200) < 10)
    with pytest.raises(EvidenceError, match="no reference model has members and non-members enough"):
        TunedNoiseRobustness().score(few)
    with pytest.raises(EvidenceError, match="cannot be moved or mirrored"):
        TaughtAugmentationRobustness().score(evidence)
    assert TunedNoiseRobustness.adversary().name == "insider"


def test_what_a_reference_model_teaches_about_shifts_tells_members_of_the_target() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (160, 1, 8, 8), dtype=np.uint8), np.arange(160) % 3
    recipe = Recipe(epochs=15, batch_size=20, precision="fp32")
    halves = rng.random((2, 160)) < 0.5
    target, reference = (
        fit(recipe, x, y, half, n_classes=3, seed=i, device="cpu", threads=1) for i, half in enumerate(halves)
    )
    evidence = from_logits(
        target.query(x),
        y,
        oracle=ModelOracle(target, x, np.arange(160)),
        reference_logits=reference.query(x)[None],
        reference_membership=halves[1:],
        reference_oracle=lambda k: ModelOracle(reference, x, np.arange(160)),
        reference_white_box=lambda k, name, rows: np.zeros(len(rows)),
    )
    for attack in (TaughtAugmentationRobustness, TunedNoiseRobustness):
        scores = score_records(attack, evidence, halves[0], rng=np.random.default_rng(0))
        assert auc(rank(scores, halves[0])) > 0.7, attack.name
    part = evidence.take(np.array([3, 1]))
    assert part.reference_oracle is not None
    expected = ModelOracle(reference, x, np.array([3, 1])).labels(Shift(1, 0))
    np.testing.assert_array_equal(part.reference_oracle(0).labels(Shift(1, 0)), expected)
