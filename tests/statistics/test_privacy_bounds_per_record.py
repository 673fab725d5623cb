"""The per-record estimate: an interval that covers, undefined where it must be, and the figures derived from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, nct, norm

from memberscope.errors import ConfigError, EvidenceError
from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.per_record import per_record_estimate


def signals(k: int, n: int, d: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    member = rng.random((k, n)) < 0.5
    centre, spread = 5 * rng.normal(size=n), np.exp(rng.normal(size=n))
    return centre + spread * (rng.normal(size=(k, n)) + d * member), member


@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("d", [0.0, 1.0, 5.0])
def test_the_interval_covers_as_stated(k, d):
    n = 4000
    found = per_record_estimate(*signals(k, n, d, seed=1))
    known = np.isfinite(found.d)
    low, high = binom.ppf([0.0005, 0.9995], known.sum(), 0.05)
    missed = np.count_nonzero((found.low[known] > d) | (found.high[known] < d))
    assert low <= missed <= high


def test_posterior_mean_and_interval_by_simulation():
    phi, member = signals(8, 3, 1.5, seed=2)
    found = per_record_estimate(phi, member, confidence=0.9)
    rng = np.random.default_rng(3)
    for j in range(3):
        inside, outside = phi[member[:, j], j], phi[~member[:, j], j]
        freedom = len(inside) + len(outside) - 2
        squares = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
        sigma = np.sqrt(squares / rng.chisquare(freedom, 400_000))
        difference = rng.normal(inside.mean() - outside.mean(), sigma * np.sqrt(1 / len(inside) + 1 / len(outside)))
        draws = difference / sigma
        assert found.d[j] == pytest.approx(draws.mean(), abs=0.01)
        assert (found.low[j], found.high[j]) == pytest.approx(np.quantile(draws, [0.05, 0.95]), abs=0.02)


def test_records_without_enough_models_are_undefined_not_zero():
    member = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)
    phi = np.array([[0.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    found = per_record_estimate(phi, member)
    assert np.isfinite(found.d).tolist() == [False, True, False, False]
    assert found.n_in.tolist() == [3, 1, 3, 1]
    assert np.isnan(found.low[[0, 2, 3]]).all()
    assert np.isnan(found.epsilon()[0][[0, 2, 3]]).all()
    assert repr(found).startswith("PerRecordEstimate(1 of 4 records; estimate, not a bound")


def test_extreme_separation_stays_finite_and_in_proportion():
    phi, member = signals(16, 50, 1e7, seed=4)
    found = per_record_estimate(phi, member)
    assert ((found.low < found.d) & (found.d < found.high)).all()
    # The relative width is that of chi / sqrt(nu) alone.
    assert np.median(found.high / found.low) == pytest.approx(np.sqrt(26.119 / 5.629), rel=0.01)


def test_signal_units_do_not_matter_and_sign_does():
    phi, member = signals(16, 200, 1.0, seed=5)
    found, scaled, flipped = (per_record_estimate(one, member) for one in (phi, 7 * phi - 3, -phi))
    np.testing.assert_allclose(scaled.d, found.d, rtol=1e-9)
    np.testing.assert_allclose(flipped.d, -found.d, rtol=1e-9)
    np.testing.assert_allclose(flipped.low, -found.high, rtol=1e-3, atol=1e-4)


def test_epsilon_and_tpr_follow_from_d():
    found = per_record_estimate(*signals(32, 100, 2.0, seed=6))
    epsilon, low, high = found.epsilon(1e-5)
    expected = np.array([gdp_epsilon(max(float(one), 0.0), 1e-5) for one in found.d])
    np.testing.assert_allclose(epsilon, expected, atol=2e-3)
    assert ((low <= epsilon) & (epsilon <= high)).all()
    tpr, tpr_low, tpr_high = found.tpr(0.01)
    np.testing.assert_allclose(tpr, norm.sf(norm.isf(0.01) - found.d))
    assert ((tpr_low < tpr) & (tpr < tpr_high)).all()


def test_the_interval_is_that_of_the_non_central_t():
    phi, member = signals(12, 20, 0.7, seed=7)
    found = per_record_estimate(phi, member)
    scale = np.sqrt(1 / found.n_in + 1 / found.n_out)
    for j in range(20):
        inside, outside = phi[member[:, j], j], phi[~member[:, j], j]
        squares = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
        t = (inside.mean() - outside.mean()) / np.sqrt(squares / 10) / scale[j]
        assert nct.cdf(t, 10, found.low[j] / scale[j]) == pytest.approx(0.975, abs=1e-4)
        assert nct.cdf(t, 10, found.high[j] / scale[j]) == pytest.approx(0.025, abs=1e-4)


def test_inputs_that_make_no_sense_are_refused():
    phi, member = signals(4, 5, 0.0, seed=8)
    with pytest.raises(EvidenceError, match=r"expected \[models, records\] twice"):
        per_record_estimate(phi[0], member[0])
    with pytest.raises(EvidenceError, match="expected"):
        per_record_estimate(phi, member[:, :3])
    phi[1, 2] = np.nan
    with pytest.raises(EvidenceError, match="NaN or infinite"):
        per_record_estimate(phi, member)
    with pytest.raises(ConfigError, match="confidence is 95"):
        per_record_estimate(np.zeros((4, 5)), member, confidence=95)
    with pytest.raises(ConfigError, match="false-positive rate of 0"):
        per_record_estimate(np.ones((4, 5)), member).tpr(0.0)
