"""The original project's attack, cross-fitted: it finds what there is, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.attacks.base import InformedAttack, score_records
from memberscope.attacks.four_features import (
    FEATURES,
    BoostedTreesFourFeatures,
    LogisticRegressionFourFeatures,
    balanced_weights,
    four_features,
)
from memberscope.attacks.runner import evaluate_scores
from memberscope.evidence import Evidence, from_logits
from memberscope.signals import Signals
from memberscope.statistics.results import Evaluation

BOTH = [LogisticRegressionFourFeatures, BoostedTreesFourFeatures]


def target(n: int, member: np.ndarray, strength: float, seed: int = 0) -> Evidence:
    """A model that is surer about members by `strength` logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    logits = rng.normal(0, 1.5, (n, 5))
    logits[np.arange(n), labels] += 2 + strength * member
    return from_logits(logits, labels)


def judged(attack: type[InformedAttack], evidence: Evidence, member: np.ndarray, seed: int = 0) -> Evaluation:
    scores = score_records(attack, evidence, member, rng=np.random.default_rng(seed))
    return evaluate_scores(attack, scores, member, confidence=0.95, rng=np.random.default_rng(seed))


def mixed(n: int, share: float = 0.5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(n) < share * n)


def test_the_features_are_those_of_the_original() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    features = four_features(Signals(logits, np.array([0, 1])))
    assert FEATURES == ("max_confidence", "entropy", "true_probability", "top_two_gap")
    entropies = [-(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)), 1.5 * np.log(2)]
    expected = [[0.7, entropies[0], 0.7, 0.5], [0.5, entropies[1], 0.25, 0.25]]
    np.testing.assert_allclose(features, expected, rtol=1e-12)


@pytest.mark.parametrize("attack", BOTH)
def test_an_overfitted_model_is_found_out(attack: type[InformedAttack]) -> None:
    member = mixed(1500)
    evaluation = judged(attack, target(1500, member, strength=2.5), member)
    assert evaluation.auc.value > 0.7
    assert evaluation.auc.low > 0.6
    assert evaluation.accuracy is not None
    assert evaluation.accuracy.low > 0.6


@pytest.mark.parametrize("attack", BOTH)
def test_where_there_is_nothing_to_find_nothing_is_found(attack: type[InformedAttack]) -> None:
    member = mixed(1000)
    evaluation = judged(attack, target(1000, member, strength=0), member)
    assert evaluation.auc.low < 0.5 < evaluation.auc.high
    assert evaluation.accuracy is not None
    assert evaluation.accuracy.low < 0.5 < evaluation.accuracy.high
    assert evaluation.advantage.low < 0 < evaluation.advantage.high


def test_judged_on_what_it_was_fitted_to_it_would_find_something() -> None:
    """Which is why it is not: the original's way of judging reports leakage where there is none."""
    member = mixed(400)
    evidence = target(400, member, strength=0)
    fitted = BoostedTreesFourFeatures(rng=np.random.default_rng(0))
    fitted.fit(evidence, member)
    own = evaluate_scores(BoostedTreesFourFeatures, fitted.score(evidence), member, confidence=0.95, rng=fitted.rng)
    assert own.auc.value > 0.75
    assert judged(BoostedTreesFourFeatures, evidence, member).auc.value < 0.6


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("share", [0.9, 0.1])
def test_unequal_groups_are_weighed_equally(attack: type[InformedAttack], share: float) -> None:
    """Calling everybody a member would be right nine times out of ten, and would say nothing."""
    member = mixed(1400, share)
    evidence = target(1400, member, strength=0)
    scores = score_records(attack, evidence, member, rng=np.random.default_rng(0))
    assert np.mean(scores >= 0.5) == pytest.approx(0.5, abs=0.2)
    evaluation = evaluate_scores(attack, scores, member, confidence=0.95, rng=np.random.default_rng(0))
    assert evaluation.balanced_accuracy.low < 0.5 < evaluation.balanced_accuracy.high
    found = judged(attack, target(1400, member, strength=2.5), member)
    assert found.balanced_accuracy.low > 0.55
    assert found.accuracy_confusion is not None
    (tn, fp), (fn, tp) = found.accuracy_confusion
    assert tp / (tp + fn) > 0.55  # the threshold 0.5 serves both groups
    assert tn / (tn + fp) > 0.55


@pytest.mark.parametrize("attack", BOTH)
def test_scores_are_probabilities_and_the_same_for_the_same_seed(attack: type[InformedAttack]) -> None:
    member = mixed(300)
    evidence = target(300, member, strength=1)
    one, same = (score_records(attack, evidence, member, rng=np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert one.min() >= 0
    assert one.max() <= 1
    assert attack.probability
    assert attack.adversary().name == "informed stranger"


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("scale", [0.0, 1000.0])
def test_answers_without_any_or_with_too_much_certainty(attack: type[InformedAttack], scale: float) -> None:
    """All features constant, or saturated at 0 and 1: no warning, no NaN."""
    member = mixed(200)
    evidence = target(200, member, strength=1)
    extreme = from_logits(scale * evidence.logits, evidence.labels)
    scores = score_records(attack, extreme, member, rng=np.random.default_rng(0))
    assert np.isfinite(scores).all()
    if scale == 0:
        np.testing.assert_allclose(scores, 0.5, atol=1e-6)


def test_weights_make_both_groups_count_the_same() -> None:
    member = np.arange(100) < 90
    weights = balanced_weights(member)
    assert weights.mean() == pytest.approx(1)
    assert weights[member].sum() == pytest.approx(weights[~member].sum())


def test_records_in_the_same_leaves_do_not_tie() -> None:
    member = mixed(1500)
    evidence = target(1500, member, strength=1)
    scores = score_records(BoostedTreesFourFeatures, evidence, member, rng=np.random.default_rng(0))
    assert len(np.unique(scores)) == 1500
