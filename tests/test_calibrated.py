"""Thresholds and probabilities from reference models: they hold on the target what they promise, and see no truth."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.attacks.registry import ATTACKS, HEADLINE
from memberscope.attacks.runner import run_attacks
from memberscope.calibrated import Calibrated, calibrate_all
from memberscope.evidence import Evidence, from_logits
from memberscope.risk import COLUMNS, assess, separations
from memberscope.statistics.fixed_thresholds import at_thresholds, thresholds_for
from memberscope.statistics.operating import nonmembers_needed
from memberscope.statistics.posterior import Posterior, reliability

NAMES = ("lira-online-per-record", "lira-online-eb", "lira-offline-onesided", HEADLINE)


def world(k: int, n: int, shift: float, seed: int, *, one_sided: bool = False) -> tuple[Evidence, np.ndarray]:
    """Gaussian records of unequal difficulty and spread; the target's coins are thrown apart from the balance."""
    rng = np.random.default_rng(seed)
    mean, moved, spread = rng.normal(0, 2, n), shift * rng.gamma(1.0, 1.0, n), rng.uniform(0.5, 1.5, n)
    halves = [rng.permutation(np.arange(n) % 2 == 0) for _ in range(k // 2)]
    rows = np.array([row for half in halves for row in (half, ~half)])
    if one_sided:
        rows[:, : n // 3] = False
    member = rng.random(n) < 0.5
    phi, target = (mean + moved * inside + spread * rng.normal(size=inside.shape) for inside in (rows, member))
    logits, references = (np.stack([p, np.zeros_like(p)], axis=-1) for p in (target, phi))
    labels = np.zeros(n, np.int64)
    return from_logits(logits, labels, reference_logits=references[:, None], reference_membership=rows), member


def calibrated_world(k: int, n: int, shift: float, seed: int, names: tuple[str, ...] = NAMES) -> dict[str, Calibrated]:
    evidence, member = world(k, n, shift, seed)
    results = run_attacks([ATTACKS[name] for name in names], evidence, member, class_names="ab")
    return calibrate_all(results, evidence, member, seed=seed)


@pytest.mark.parametrize("k", [4, 8])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_threshold_of_reference_models_lets_through_what_it_says(k: int, shift: float) -> None:
    worlds = [calibrated_world(k, 3000, shift, seed) for seed in range(3)]
    for name in NAMES:
        points = [one[name].points[:2] for one in worlds]
        for i, fpr in enumerate((0.1, 0.01)):
            rates = [p[i].true_fpr for p in points if p[i].true_fpr is not None]
            false, of = sum(r.k or 0 for r in rates), sum(r.n or 0 for r in rates)
            assert abs(false / of - fpr) < 4 * np.sqrt(fpr * (1 - fpr) / of) + 0.1 * fpr, (name, fpr)


def test_comparing_the_target_with_more_models_than_the_played_ones_would_mislead() -> None:
    """What the matching is for: without it a tenth becomes another share."""
    evidence, member = world(4, 20_000, 0.0, 1)
    (result,) = run_attacks([ATTACKS["lira-online-per-record"]], evidence, member, class_names="ab")
    one = calibrate_all([result], evidence, member, seed=1)["lira-online-per-record"]
    threshold = next(p.threshold for p in one.points if p.fpr == 0.01)
    assert result.scores is not None
    unmatched = (result.scores[~member] >= threshold).mean()
    matched = next(p.true_fpr for p in one.points if p.fpr == 0.01)
    assert matched is not None
    assert matched.low < 0.01 < matched.high
    assert abs(unmatched - 0.01) > 0.003


def test_the_truth_has_no_part_in_thresholds_and_probabilities() -> None:
    evidence, member = world(6, 2000, 1.0, 3)
    results = run_attacks([ATTACKS[HEADLINE]], evidence, member, class_names="ab")
    one, other = (calibrate_all(results, evidence, m, seed=0)[HEADLINE] for m in (member, np.roll(member, 7)))
    assert [p.threshold for p in one.points] == [p.threshold for p in other.points]
    np.testing.assert_array_equal(one.posterior.likelihood_ratio, other.posterior.likelihood_ratio)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert [p.true_fpr for p in one.points] != [p.true_fpr for p in other.points]


def test_probabilities_hold_what_they_say() -> None:
    evidence, member = world(8, 12_000, 2.0, 5)
    (result,) = run_attacks([ATTACKS[HEADLINE]], evidence, member, class_names="ab")
    one = calibrate_all([result], evidence, member, seed=5)[HEADLINE]
    risk = assess(result, one, evidence, member, prior=0.1, seed=5)
    bins = [b for b in risk.summary["posterior"]["here"]["bins"] if b["records"] >= 200]
    assert len(bins) >= 6
    for b in bins:
        assert abs(b["members"] / b["records"] - b["expected"]) < 0.06
    expected = one.posterior(one.scores, 0.1)
    np.testing.assert_array_equal(risk.posterior, expected)
    assert risk.posterior.mean() < one.posterior(one.scores, 0.5).mean()
    assert (risk.posterior < 1).all()


def test_records_without_a_model_on_one_side_are_left_open_and_few_models_give_nothing() -> None:
    evidence, member = world(6, 1500, 1.0, 2, one_sided=True)
    (result,) = run_attacks([ATTACKS[HEADLINE]], evidence, member, class_names="ab")
    one = calibrate_all([result], evidence, member, seed=2)[HEADLINE]
    assert np.isnan(one.scores[:500]).all()
    risk = assess(result, one, evidence, member, prior=0.5, seed=2)
    assert np.isnan(risk.posterior[:500]).all()
    assert np.isfinite(risk.posterior[500:]).all()
    few, truth = world(2, 1500, 1.0, 2)
    (result,) = run_attacks([ATTACKS[HEADLINE]], few, truth, class_names="ab")
    assert calibrate_all([result], few, truth, seed=2) == {}
    risk = assess(result, None, few, truth, prior=0.5, seed=2)
    assert set(risk.columns()) == {"p_value", "flagged"}


def test_separation_is_that_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, member = world(16, 4000, 1.0, 4)
    whole = separations(evidence)
    monkeypatch.setattr("memberscope.risk._BLOCK_VALUES", 5000)
    for one, other in zip(whole, separations(evidence), strict=True):
        np.testing.assert_array_equal(one, other)
    d, low, high = whole
    assert ((low <= d) & (d <= high)).all()
    rng = np.random.default_rng(4)  # as `world` draws them
    _, moved, spread = rng.normal(0, 2, 4000), rng.gamma(1.0, 1.0, 4000), rng.uniform(0.5, 1.5, 4000)
    inside = (low <= moved / spread) & (moved / spread <= high)
    assert abs(inside.mean() - 0.95) < 0.02
    (result,) = run_attacks([ATTACKS[HEADLINE]], evidence, member, class_names="ab")
    told = assess(result, None, evidence, member, prior=0.5, seed=0)
    assert told.summary["separation"]["above_zero"] == (low > 0).sum()
    assert list(told.columns()) == [name for name in COLUMNS if name != "posterior"]


def test_fixed_thresholds_by_hand() -> None:
    known = np.arange(2000.0)
    inside = known >= 1000
    thresholds = thresholds_for(known, inside, (0.1, 0.01, 0.001))
    assert list(thresholds) == [0.1, 0.01]  # a thousand non-members cannot show one in a thousand
    assert 899 < thresholds[0.1] < 900.0001
    points = at_thresholds(known - 5, inside, thresholds)
    assert [(p.fpr, p.false_positives, p.true_positives) for p in points] == [(0.1, 95, 1000), (0.01, 5, 1000)]
    assert points[1].true_fpr is not None
    assert points[1].true_fpr.low < 0.005 < points[1].true_fpr.high
    few = at_thresholds(known[::20], inside[::20], thresholds)
    assert [(p.supported, p.needs) for p in few] == [(False, nonmembers_needed(f)) for f in (0.1, 0.01)]


def test_posterior_by_hand() -> None:
    scores = np.array([0.0] * 8 + [1.0] * 8)
    member = np.array([True] * 2 + [False] * 6 + [True] * 6 + [False] * 2)
    learnt = Posterior.learn(scores, member)
    np.testing.assert_allclose(learnt(np.array([-9.0, 0.0, 0.5, 1.0, 9.0]), 0.5), [0.3, 0.3, 0.3, 0.7, 0.7])
    at_tenth = learnt(np.array([1.0]), 0.1)[0]
    assert at_tenth == pytest.approx(0.7 / 0.3 / 9 / (1 + 0.7 / 0.3 / 9))
    told = reliability(np.array([0.05, 0.05, 0.95, 1.0, np.nan]), np.array([False, True, True, True, True]))
    assert [(b.low, b.records, b.members) for b in told] == [(0.0, 2, 1), (0.9, 2, 2)]
