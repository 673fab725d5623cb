"""Reference models that play the target: nothing in their comparison may tell their membership by design."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from memberscope.attacks import comparison as module
from memberscope.attacks.bayes_lira import LiraOnlineBayes
from memberscope.attacks.comparison import (
    FEWEST,
    Comparison,
    ReferenceAttack,
    best_setting,
    log_t,
    play,
    played_targets,
)
from memberscope.attacks.lira import LiraOnlinePerRecord, LiraOnlinePooled
from memberscope.reference_signals import ReferenceSignals
from memberscope.statistics.curves import auc, rank


def noise(k: int, n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, 1, n)), np.argsort(rng.random((k, n)), axis=0) < k // 2


@pytest.mark.parametrize("design", ["balanced", "pairs", "bernoulli"])
def test_members_and_nonmembers_of_a_played_target_have_equal_counts(design: str) -> None:
    k, n = 8, 2000
    phi, inside = noise(k, n)
    rng = np.random.default_rng(1)
    if design == "pairs":
        inside = np.repeat(rng.random((k // 2, n)) < 0.5, 2, axis=0)
        inside[1::2] = ~inside[::2]
    if design == "bernoulli":
        inside = rng.random((k, n)) < 0.5
    for model in (0, 3, 7):
        played = play(ReferenceSignals.from_phi(phi, inside), model)
        assert played is not None
        references = played.comparison.references
        assert references.n_models == k - 2
        rows = np.flatnonzero((inside != inside[model]).any(axis=0))
        np.testing.assert_array_equal(played.member, inside[model, rows])
        np.testing.assert_array_equal(references.n_in, inside[:, rows].sum(axis=0) - 1)
        np.testing.assert_allclose(played.comparison.phi(), phi[model][:, rows], atol=1e-14)
        assert not (references.order == model).any()
        if design == "balanced":
            assert (references.n_in == 3).all()
        if design == "pairs" and model == 0:
            assert not (references.order == 1).any()  # the partner is the one left out


@pytest.mark.parametrize("attack", [LiraOnlinePerRecord, LiraOnlinePooled, LiraOnlineBayes], ids=lambda a: a.name)
def test_noise_tells_nothing_of_a_played_target_and_much_if_counts_are_left_unequal(
    attack: type[ReferenceAttack],
) -> None:
    k, n = 8, 8000
    phi, inside = noise(k, n)
    references = ReferenceSignals.from_phi(phi, inside)
    fair, unfair = [], []
    for model in range(k):
        played = play(references, model)
        assert played is not None
        fair.append(auc(rank(attack().compare(played.comparison), played.member)))
        rest = np.arange(k) != model
        others = ReferenceSignals.from_phi(phi[rest], inside[rest])
        naive = Comparison(lambda temperature, model=model: phi[model], others)  # type: ignore[misc]
        unfair.append(auc(rank(attack().compare(naive), inside[model])))
    assert abs(np.mean(fair) - 0.5) < 3 * 0.0065 / np.sqrt(k)
    assert np.mean(unfair) < 0.49


def test_too_few_models_or_records_play_nothing() -> None:
    phi, inside = noise(2, 500)
    assert play(ReferenceSignals.from_phi(phi, inside), 0) is None
    phi, inside = noise(4, 2 * FEWEST - 4)
    assert played_targets(ReferenceSignals.from_phi(phi, inside), np.random.default_rng(0)) == []
    phi, inside = noise(4, 500)
    assert play(ReferenceSignals.from_phi(phi, np.ones_like(inside)), 0) is None


def test_players_and_records_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAYED_RECORDS", 2500)
    phi, inside = noise(12, 4000)
    played = played_targets(ReferenceSignals.from_phi(phi, inside), np.random.default_rng(0))
    assert len(played) == 8
    assert {len(one.member) for one in played} == {2500}
    again = played_targets(ReferenceSignals.from_phi(phi, inside), np.random.default_rng(0))
    np.testing.assert_array_equal(played[3].comparison.phi(), again[3].comparison.phi())


def test_the_setting_that_tells_members_best_is_chosen() -> None:
    rng = np.random.default_rng(0)
    inside = np.argsort(rng.random((8, 3000)), axis=0) < 4
    difficulty = rng.normal(0, 3, 3000)
    phi = difficulty + 1.0 * inside[:, None] + rng.normal(size=(8, 1, 3000))
    played = played_targets(ReferenceSignals.from_phi(phi, inside), rng)

    def score(comparison: Comparison, share: float) -> NDArray[np.float64]:
        return comparison.phi()[0] - share * comparison.references.moments()[1].mean[0]

    assert best_setting(played, (0.0, 0.5, 0.9, 2.0), score) == 0.9
    assert best_setting(played, (0.0, -1.0), score) == 0.0


def test_student_density_is_that_of_scipy() -> None:
    from scipy.stats import t

    x, freedom, location, scale = 1.3, 5.0, -0.4, 2.0
    found = log_t(np.array([x]), np.array([freedom]), np.array([location]), np.array([scale**2]))
    assert found[0] == pytest.approx(t.logpdf(x, freedom, location, scale), rel=1e-12)
