"""Attacks with reference models on a few records, by hand: what is computed, and what stands in for missing models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memberscope.attacks.base_score import BaseOfflineT2
from memberscope.attacks.bayes_lira import LiraOfflineBayes, LiraOnlineBayes
from memberscope.attacks.calibration import AttackR, DifficultyCalibration, DifficultyMidpoint
from memberscope.attacks.class_calibrated import ClassCalibratedModifiedEntropy
from memberscope.attacks.comparison import Comparison
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.ensemble import Ensemble, TaughtFusion, _learn_weights
from memberscope.attacks.fusion import RankFusion, normal_scores, rank_shares
from memberscope.attacks.lira import (
    LiraOfflineOneSided,
    LiraOfflineTwoSided,
    LiraOnlinePerRecord,
    LiraOnlinePooled,
    fit_worlds,
    global_variance,
    pooled_variances,
)
from memberscope.attacks.population import above_population
from memberscope.attacks.rapid import Rapid
from memberscope.attacks.rmia import (
    RmiaOffline,
    RmiaOfflinePopulation,
    RmiaOnline,
    RmiaOnlineT2,
    mean_probabilities,
    offline_ratio,
    online_ratio,
    pairwise_score,
)
from memberscope.errors import MissingKnowledgeError
from memberscope.evidence import Evidence
from memberscope.reference_signals import ReferenceSignals, log_probability
from memberscope.statistics.curves import auc, rank

Floats = NDArray[np.float64]

# Three records under five models: 2 IN and 3 OUT, no IN, no OUT.
INSIDE = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], bool)
PHI = np.array([[3.0, 1.0, 4.0], [5.0, 2.0, 6.0], [1.0, 3.0, 5.0], [2.0, 2.5, 5.5], [0.0, 1.5, 4.5]])[:, None]
TARGET = np.array([[3.5, 2.2, 4.8]])


def comparison(target: Floats = TARGET, phi: Floats = PHI, inside: Any = INSIDE) -> Comparison:
    return Comparison(lambda temperature: target, ReferenceSignals.from_phi(phi, inside))


def normal_log_density(x: float, mean: float, variance: float) -> float:
    return float(-0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)))


def test_worlds_by_hand_and_what_stands_in_for_an_empty_one() -> None:
    worlds = fit_worlds(comparison())
    # Shift between the worlds: only record 0 has both, 4 - 1 = 3, with no spread to be seen.
    np.testing.assert_allclose(worlds.mean_in, [[4.0, 2.0 + 3.0, 5.0]])
    np.testing.assert_allclose(worlds.mean_out, [[1.0, 2.0, 5.0 - 3.0]])
    ss_in, ss_out = 2.0 + 2.5, 2.0 + 2.5
    np.testing.assert_allclose(worlds.var_in, [[ss_in / (1 + 4)] * 3])
    np.testing.assert_allclose(worlds.var_out, [[ss_out / (2 + 4)] * 3])
    score = LiraOnlinePooled().compare(comparison())
    expected = normal_log_density(3.5, 4.0, ss_in / 5) - normal_log_density(3.5, 1.0, ss_out / 6)
    assert score[0] == pytest.approx(expected, rel=1e-12)
    assert score[1] < 0 < score[2]  # near the world that was seen, far from the borrowed one
    z = LiraOfflineOneSided().compare(comparison())
    np.testing.assert_allclose(z, (TARGET - worlds.mean_out)[0] / np.sqrt(ss_out / 6))
    unlike = comparison(target=TARGET - 6)
    assert LiraOfflineOneSided().compare(unlike)[1] < -3
    assert LiraOfflineTwoSided().compare(unlike)[1] > LiraOfflineTwoSided().compare(comparison())[1]


def test_a_single_model_on_one_side_makes_both_worlds_take_the_pooled_variance() -> None:
    inside = np.array([[1, 1], [0, 1], [0, 0], [0, 0]], bool)
    phi = np.array([[3.0, 4.0], [1.0, 6.0], [2.0, 1.0], [6.0, 1.2]])[:, None]
    worlds = fit_worlds(comparison(TARGET[:, :2], phi, inside), variance="per-record")
    pooled = fit_worlds(comparison(TARGET[:, :2], phi, inside))
    assert worlds.var_in[0, 0] == pooled.var_in[0, 0]
    assert worlds.var_out[0, 0] == pooled.var_out[0, 0]
    assert worlds.var_in[0, 1] == pytest.approx(1.0)
    assert worlds.var_out[0, 1] == pytest.approx(0.01)


def test_equal_answers_are_no_certainty() -> None:
    phi = np.array([[2.0, 3.0], [2.0, 5.0], [2.0, 1.0], [2.0, 1.5]])[:, None]
    inside = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)
    found = LiraOnlinePerRecord().compare(comparison(np.array([[2.1, 3.5]]), phi, inside))
    assert np.isfinite(found).all()
    constant = comparison(np.array([[2.1, 3.5]]), np.full_like(phi, 2.0), inside)
    for attack in (LiraOnlinePooled(), LiraOnlinePerRecord(), LiraOnlineBayes(), EbLira(), LiraOfflineBayes()):
        assert np.isfinite(attack.compare(constant)).all()


def test_variances_where_no_record_has_two_models_of_a_world() -> None:
    inside = np.array([[1, 0, 1], [0, 1, 0]], bool)
    phi = np.array([[3.0, 1.0, 5.0], [1.0, 4.0, 0.0]])[:, None]
    one = comparison(TARGET, phi, inside)
    worlds = one.references.moments()
    for found in pooled_variances(*worlds):  # of the shifts 2, 3 and 5, halved
        np.testing.assert_allclose(found, [[0.5 * np.var([2.0, 3.0, 5.0])]])
    alone = comparison(TARGET, phi[:1], inside[:1]).references.moments()
    for found in pooled_variances(*alone):  # between the records 3 and 5
        np.testing.assert_allclose(found, [[1.0]])
    np.testing.assert_allclose(global_variance(worlds[0]), [[np.var([3.0, 4.0, 5.0])]])


def test_student_predictive_by_hand() -> None:
    from scipy.stats import t

    attack = LiraOnlineBayes(a0=2.0, k0=0.01)
    one = comparison(TARGET[:, :1], PHI[:, :, :1], INSIDE[:, :1])
    found = attack.compare(one)[0]
    expected = 0.0
    for sign, values, pooled in ((1, [3.0, 5.0], 2.0), (-1, [1.0, 2.0, 0.0], 1.0)):
        n, mean, ss = len(values), np.mean(values), np.var(values) * len(values)
        a, b, k = 2 + n / 2, pooled + ss / 2, 0.01 + n
        expected += sign * t.logpdf(3.5, 2 * a, mean, np.sqrt(b / a * (k + 1) / k))
    assert found == pytest.approx(expected, rel=1e-12)
    far = comparison(np.array([[-1e8, 1e8]]), np.repeat(PHI[:, :, :1], 2, axis=2), np.repeat(INSIDE[:, :1], 2, axis=1))
    low, high = LiraOfflineBayes().compare(far)
    assert 0 < low < 1e-6 < 10 < high < np.inf


def test_eb_lira_learns_the_shift_from_records_of_like_difficulty() -> None:
    """Hard records move by 4, easy ones by 0: with two models a record, only the others can tell."""
    rng = np.random.default_rng(0)
    n = 4000
    hard = np.arange(n) < n // 2
    mu, d = np.where(hard, -3.0, 6.0), np.where(hard, 4.0, 0.0)
    inside = np.stack([rng.random(n) < 0.5] * 2)
    inside[1] = ~inside[0]
    member = rng.random(n) < 0.5
    phi = mu + d * np.vstack([member[None], inside]) + rng.normal(size=(3, n))
    scores = EbLira().compare(comparison(phi[:1], phi[1:, None], inside))
    assert np.abs(scores[~hard]).mean() < 0.15 * np.abs(scores[hard]).mean()
    assert ((scores > 0) == member)[hard].mean() > 0.93


def test_rmia_by_hand() -> None:
    def p(x: float) -> float:
        return float(1 / (1 + np.exp(-x)))

    one = comparison(TARGET[:, :1], PHI[:, :, :1], INSIDE[:, :1])
    p_in, p_out = np.mean([p(3), p(5)]), np.mean([p(1), p(2), p(0)])
    assert online_ratio(one)[0, 0] == pytest.approx(np.log(p(3.5) / (0.5 * (p_in + p_out))), rel=1e-12)
    for a in (0.0, 0.3, 1.0):
        pbar = 0.5 * ((1 + a) * p_out + 1 - a)
        assert offline_ratio(one, a)[0, 0] == pytest.approx(np.log(p(3.5) / pbar), rel=1e-12)


def test_rmia_weighs_worlds_and_not_models_so_counts_do_not_move_it() -> None:
    """Seven OUT models and one IN model, or one and seven: the same two worlds, the same score."""
    inside = np.zeros((8, 2), bool)
    inside[0, 0], inside[1:, 1] = True, True
    phi = np.where(inside, 4.0, -1.0)[:, None]
    scores = RmiaOnline().compare(comparison(np.array([[2.0, 2.0]]), phi, inside))
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


def test_rmia_fills_an_empty_world_from_the_other() -> None:
    p_in, p_out = mean_probabilities(comparison(), 1.0)
    kept_in, kept_out = ReferenceSignals.from_phi(PHI, INSIDE).mean_probability()
    rest = (1 - kept_in[0, 0]) / (1 - kept_out[0, 0])
    assert p_in[0, 1] == pytest.approx(1 - rest * (1 - kept_out[0, 1]))
    assert p_out[0, 2] == pytest.approx(kept_in[0, 2] * kept_out[0, 0] / kept_in[0, 0])
    assert p_out[0, 1] < p_in[0, 1] < 1
    assert 0 < p_out[0, 2] < p_in[0, 2]


@given(st.integers(0, 1000), st.floats(0.5, 4))
def test_pairwise_rmia_is_a_step_function_of_the_ratio(seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=40).round(1), rng.normal(size=25).round(1)
    found = pairwise_score(x, z, gamma)
    literal = (x[:, None] > z + np.log(gamma)).mean(axis=1)
    np.testing.assert_array_equal(found, literal)
    order = np.argsort(x)
    assert (np.diff(found[order]) >= 0).all()


def test_a_is_tuned_on_reference_models_and_never_on_the_target() -> None:
    rng = np.random.default_rng(0)
    n, k = 3000, 8
    inside, member = np.argsort(rng.random((k, n)), axis=0) < k // 2, rng.random(n) < 0.5
    difficulty = rng.normal(0, 2, n)
    phi = difficulty + 1.5 * np.vstack([member[None], inside]) + rng.normal(0, 0.7, (k + 1, n))
    logits = np.stack([-phi / 2, phi / 2], axis=-1)[:, None]

    def evidence(target: Floats) -> Evidence:
        return Evidence(target, np.ones(n, np.int64), reference_logits=logits[1:], reference_membership=inside)

    for attack, setting in ((RmiaOffline, "a"), (BaseOfflineT2, "share")):
        first, second = attack(), attack()
        first.score(evidence(logits[0]))
        second.score(evidence(rng.normal(size=logits[0].shape)))
        assert getattr(first, setting) == getattr(second, setting)
        fixed = attack(**{setting: 0.7})
        fixed.score(evidence(logits[0]))
        assert getattr(fixed, setting) == 0.7


def test_rmia_against_a_population_needs_the_models_answers_on_it() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 1, 30, 3))
    evidence = Evidence(
        logits[0],
        np.zeros(30, np.int64),
        reference_logits=logits[1:],
        reference_membership=rng.random((4, 30)) < 0.5,
        population_logits=logits[0],
        population_labels=np.zeros(30, np.int64),
    )
    with pytest.raises(MissingKnowledgeError, match="reference models on the population"):
        RmiaOfflinePopulation().score(evidence)


def test_calibration_by_hand() -> None:
    one = comparison()
    log_p = log_probability(PHI[:, 0])
    target = log_probability(TARGET[0])
    found = DifficultyCalibration().compare(one)
    assert found[0] == pytest.approx(target[0] - log_p[2:, 0].mean())
    assert found[1] == pytest.approx(target[1] - log_p[:, 1].mean())
    shift = log_p[:2, 0].mean() - log_p[2:, 0].mean()
    assert found[2] == pytest.approx(target[2] - (log_p[:, 2].mean() - shift))
    middle = DifficultyMidpoint().compare(one)
    assert middle[0] == pytest.approx(target[0] - 0.5 * (log_p[:2, 0].mean() + log_p[2:, 0].mean()))
    steps = AttackR().compare(one)
    assert np.floor(4 * steps[0]) == 3
    assert np.floor(6 * steps[1]) == 3  # 1, 2 and 1.5 are less confident than 2.2
    assert 0 < steps[2] < 1


def test_fewer_models_move_no_score_by_their_number_alone() -> None:
    """Members of a balanced design that holds the target too have one IN model less: the rank must not tell it."""
    rng = np.random.default_rng(0)
    n = 20_000
    n_out = rng.integers(3, 5, n)
    inside = np.arange(8)[:, None] >= n_out
    phi = rng.normal(size=(9, 1, n))
    steps = AttackR().compare(comparison(phi[0], phi[1:], inside))
    few, many = steps[n_out == 3], steps[n_out == 4]
    assert abs(few.mean() - many.mean()) < 0.01


def test_class_calibration_compares_within_the_class() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    labels = rng.integers(0, 2, n)
    ease = np.where(labels == 1, 4.0, -1.0)
    member, inside = rng.random(n) < 0.5, rng.random((4, n)) < 0.5
    phi = ease + np.vstack([member[None], inside]) + rng.normal(size=(5, n))
    sign = np.where(labels == 1, 1, -1)
    logits = np.stack([-sign * phi / 2, sign * phi / 2], axis=-1)[:, None]
    evidence = Evidence(logits[0], labels, reference_logits=logits[1:], reference_membership=inside)
    scores = ClassCalibratedModifiedEntropy().score(evidence)
    for label in (0, 1):
        out = scores[(labels == label) & ~member]
        assert abs((out > 0.9).mean() - 0.1) < 0.03


def test_above_a_population() -> None:
    population = np.array([0.0, 1.0, 2.0])
    found = above_population(np.array([-5.0, 0.0, 0.5, 1.5, 2.0, 7.0]), population)
    np.testing.assert_array_equal(np.floor(4 * found), [0, 0, 1, 2, 2, 3])
    assert (np.diff(found) > 0).all()


def test_fusion_is_the_mean_of_two_normal_scores() -> None:
    from scipy.stats import norm, rankdata

    np.testing.assert_allclose(rank_shares(np.array([3.0, 1.0, 1.0, 9.0])), [0.625, 0.25, 0.25, 0.875])
    rng = np.random.default_rng(0)
    phi, inside = rng.normal(size=(9, 500)), np.argsort(rng.random((8, 500)), axis=0) < 4
    logits = np.stack([-phi / 2, phi / 2], axis=-1)[:, None]
    one = Comparison.of(
        Evidence(logits[0], np.ones(500, np.int64), reference_logits=logits[1:], reference_membership=inside)
    )
    parts = EbLira().compare(one), online_ratio(one, 2.0)[0]
    expected = np.mean([norm.ppf((rankdata(part) - 0.5) / 500) for part in parts], axis=0)
    scores = RankFusion().compare(one)
    np.testing.assert_allclose(scores, expected, atol=1e-8)
    assert len(np.unique(scores)) == 500


def leaking(n: int, k: int, rng: np.random.Generator) -> tuple[Evidence, NDArray[np.bool_]]:
    """Hard records move far when they are trained on, easy ones not at all."""
    inside, member = np.argsort(rng.random((k, n)), axis=0) < k // 2, rng.random(n) < 0.5
    difficulty = rng.normal(0, 2, n)
    moves = np.where(difficulty < 0, 3.0, 0.3)
    phi = difficulty + moves * np.vstack([member[None], inside]) + rng.normal(size=(k + 1, n))
    logits = np.stack([-phi / 2, phi / 2], axis=-1)[:, None]
    evidence = Evidence(logits[0], np.ones(n, np.int64), reference_logits=logits[1:], reference_membership=inside)
    return evidence, member


def test_the_taught_fusion_weighs_two_attacks_and_trees_by_models_that_did_not_teach_the_trees() -> None:
    evidence, member = leaking(2000, 8, np.random.default_rng(0))
    fusion = TaughtFusion(rng=np.random.default_rng(1))
    scores = fusion.score(evidence)
    assert fusion._weights.shape == (3,)
    assert (fusion._weights >= 0).all()
    one = Comparison.of(evidence)
    parts = np.column_stack([normal_scores(attack.compare(one)) for attack in (EbLira(), RmiaOnlineT2())])
    expected = parts @ fusion._weights[:2]
    left = scores - expected
    assert abs(np.corrcoef(left, normal_scores(left))[0, 1]) > 0.999  # the trees' part is a normal score
    told = {attack: auc(rank(attack().score(evidence), member)) for attack in (TaughtFusion, EbLira, RmiaOnline)}
    assert told[TaughtFusion] > max(told[EbLira], told[RmiaOnline])


def test_weights_of_the_taught_fusion_are_those_of_the_likelihood_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    verdicts = rng.normal(size=(50_000, 3))
    member = rng.random(50_000) < 1 / (1 + np.exp(-(verdicts @ [0.8, 0.0, 2.0])))
    np.testing.assert_allclose(_learn_weights(verdicts, member), [0.8, 0.0, 2.0], atol=0.06)
    against = rng.random(50_000) < 1 / (1 + np.exp(-(verdicts @ [0.8, -1.0, 2.0])))
    assert _learn_weights(verdicts, against)[1] == 0
    opposed = rng.random(50_000) < 1 / (1 + np.exp(verdicts.sum(axis=1)))
    np.testing.assert_array_equal(_learn_weights(verdicts, opposed), [0.5, 0.5, 1.0])  # nothing speaks for any


def test_the_ensemble_is_taught_by_reference_models_and_never_by_the_target() -> None:
    rng = np.random.default_rng(0)
    evidence, _ = leaking(1500, 8, rng)
    other = Evidence(
        rng.normal(size=evidence.logits.shape),
        evidence.labels,
        reference_logits=evidence.reference_logits,
        reference_membership=evidence.reference_membership,
    )
    first, second = (Ensemble(rng=np.random.default_rng(1)) for _ in range(2))
    first.score(evidence)
    second.score(other)
    asked = rng.normal(size=(50, 7))
    np.testing.assert_array_equal(
        first._classifier.decision_function(asked), second._classifier.decision_function(asked)
    )


def test_eb_lira_takes_the_variance_of_records_of_like_difficulty() -> None:
    """Models differ ten times as much about hard records: an answer that is plain for one is odd for the other."""
    rng = np.random.default_rng(0)
    n, k = 6000, 4
    hard = np.arange(n) % 2 == 0
    inside, member = np.argsort(rng.random((k, n)), axis=0) < k // 2, rng.random(n) < 0.5
    spread = np.where(hard, 2.0, 0.2)
    mu = np.where(hard, -4.0, 4.0)
    phi = mu + 0.4 * np.vstack([member[None], inside]) + spread * rng.normal(size=(k + 1, n))
    one = comparison(phi[:1], phi[1:, None], inside)
    told = {name: auc(rank(a.compare(one), member)) for name, a in (("eb", EbLira()), ("bayes", LiraOnlineBayes()))}
    assert told["eb"] > told["bayes"] + 0.02


@pytest.mark.parametrize("attack", [Rapid, Ensemble, TaughtFusion, RmiaOffline])
def test_with_too_few_models_to_play_there_is_a_stated_stand_in(attack: Any) -> None:
    rng = np.random.default_rng(0)
    inside = np.stack([rng.random(100) < 0.5] * 2)
    inside[1] = ~inside[0]
    phi = rng.normal(size=(3, 100))
    logits = np.stack([-phi / 2, phi / 2], axis=-1)[:, None]
    evidence = Evidence(logits[0], np.ones(100, np.int64), reference_logits=logits[1:], reference_membership=inside)
    scores = attack().score(evidence)
    if attack in (Ensemble, TaughtFusion):
        np.testing.assert_array_equal(scores, RankFusion().score(evidence))
    elif attack is Rapid:
        ranked = np.argsort(LiraOfflineOneSided().score(evidence))
        np.testing.assert_array_equal(np.argsort(scores), ranked)
    else:
        np.testing.assert_allclose(scores, offline_ratio(Comparison.of(evidence), 0.3)[0])
