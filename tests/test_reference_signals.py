"""Signals of reference models: reduced once, in bounded memory, the same from whatever the logits lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memberscope import reference_signals
from memberscope.errors import EvidenceError
from memberscope.reference_signals import ReferenceSignals, log_probability
from memberscope.signals import Signals

K, A, N, C = 7, 2, 301, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (K, A, N, C)).astype(np.float32)
LABELS = RNG.integers(0, C, N)
INSIDE = RNG.random((K, N)) < 0.5
INSIDE[:, 0], INSIDE[:, 1] = True, False
PHI = Signals(LOGITS, LABELS).phi


def signals() -> ReferenceSignals:
    return ReferenceSignals.from_logits(LOGITS, LABELS, INSIDE)


def by_model(one: ReferenceSignals, temperature: float = 1.0) -> NDArray[np.float64]:
    """Phi put back model by model, [K, A, N]."""
    values = one.phi(temperature).values
    back = np.empty((one.n_models, *values.shape[:2]))
    for record in range(values.shape[1]):
        back[one.order[record], :, record] = values[:, record].T
    return back


def test_phi_is_grouped_by_world() -> None:
    one = signals()
    np.testing.assert_allclose(by_model(one), PHI, rtol=0, atol=1e-14)
    np.testing.assert_allclose(by_model(one, 2.0), Signals(LOGITS / 2, LABELS).phi, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(one.n_in, INSIDE.sum(axis=0))
    np.testing.assert_array_equal(one.n_out, (~INSIDE).sum(axis=0))
    grouped = np.take_along_axis(INSIDE.T, one.order, axis=1)
    np.testing.assert_array_equal(grouped, np.arange(K) < one.n_in[:, None])
    assert one.phi() is one.phi()


def test_means_of_probabilities_are_those_of_the_softmax() -> None:
    one = signals()
    probability = np.exp(Signals(LOGITS / 2, LABELS).true_log_probability)
    loss = Signals(LOGITS, LABELS).true_log_probability
    for mask, found, found_log in zip(
        (INSIDE, ~INSIDE), one.mean_probability(2.0), one.mean_log_probability(), strict=True
    ):
        count = mask.sum(axis=0)
        some = count > 0
        for got, of in ((found, probability), (found_log, loss)):
            expected = np.where(mask[:, None], of, 0).sum(axis=0)[:, some] / count[some]
            np.testing.assert_allclose(got[:, some], expected, rtol=1e-12)
            assert np.isnan(got[:, ~some]).all()


@pytest.mark.parametrize("phi", [-1e5, -710.0, -40.0, 0.0, 40.0, 710.0, 1e5])
def test_log_probability_is_exact_at_both_ends(phi: float) -> None:
    expected = phi if phi < -40 else -np.exp(-phi) if phi > 40 else -np.log1p(np.exp(-phi))
    assert log_probability(np.array([phi]))[0] == pytest.approx(expected, rel=1e-12, abs=0)


def test_probabilities_beyond_the_range_of_floats_stay_finite() -> None:
    phi = np.array([[-1e6, 1e6]] * 2)[:, None]
    one = ReferenceSignals.from_phi(phi, np.array([[True, True], [False, False]]))
    inside, outside = one.mean_probability()
    np.testing.assert_array_equal(inside, outside)
    assert 0 < inside[0, 0] < 1e-300
    assert inside[0, 1] == 1


def test_a_memory_mapped_float16_file_a_model_and_spilled_phi_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = LOGITS.astype(np.float16)
    expected = ReferenceSignals.from_logits(half, LABELS, INSIDE)
    for k in range(K):
        np.save(tmp_path / f"{k}.npy", half[k])

    class Files:
        shape = half.shape

        def __getitem__(self, model: int) -> NDArray[np.float16]:
            return np.load(tmp_path / f"{model}.npy", mmap_mode="r")

    monkeypatch.setattr(reference_signals, "_BLOCK_BYTES", 8 * K * A * 20)  # blocks of 20 records
    monkeypatch.setattr(reference_signals, "_TRANSPOSED_VALUES", K * 3)
    found = ReferenceSignals.from_logits(Files(), LABELS, INSIDE, memory_bytes=1000)  # type: ignore[arg-type]
    assert isinstance(found.phi().residuals, np.memmap)
    assert not isinstance(expected.phi().residuals, np.memmap)
    np.testing.assert_array_equal(found.phi().residuals, expected.phi().residuals)
    for a, b in zip(found.moments(), expected.moments(), strict=True):
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.ss, b.ss)
    rows = np.array([5, 3])
    np.testing.assert_array_equal(found.take(rows).phi().residuals, expected.phi().residuals[:, rows])


def test_phi_stored_without_logits_serves_at_temperature_1() -> None:
    one = ReferenceSignals.from_phi(PHI, INSIDE)
    np.testing.assert_array_equal(one.phi().residuals, signals().phi().residuals)
    with pytest.raises(EvidenceError, match="temperature 1 only, not 2"):
        one.phi(2.0)
    broken = PHI.copy()
    broken[3, 1, 200] = np.nan
    with pytest.raises(EvidenceError, match="reference model 3 answers query 1 on record 200"):
        ReferenceSignals.from_phi(broken, INSIDE).phi()


def test_what_attacks_share_cannot_be_changed() -> None:
    one = signals()
    shared = [one.phi().residuals, one.moments()[0].mean, one.medians()[1], one.mean_probability()[0]]
    for array in shared:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_leaving_models_out() -> None:
    one = signals()
    places = np.stack([RNG.permutation(K)[:2] for _ in range(N)])
    left = one.without(places)
    assert left.n_models == K - 2
    for record in (0, 1, 17, 300):
        gone = one.order[record, places[record]]
        kept = [model for model in one.order[record] if model not in gone]
        np.testing.assert_array_equal(left.order[record], kept)
        assert left.n_in[record] == sum(INSIDE[model, record] for model in kept)
        np.testing.assert_allclose(left.phi().values[:, record].T, PHI[kept][:, :, record], atol=1e-14)
    first = one.at(places[:, 0])
    np.testing.assert_allclose(first[1, 17], PHI[one.order[17, places[17, 0]], 1, 17], atol=1e-14)
