"""Signals against the textbook formulas in decimal arithmetic, at the edges where float64 gives out."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memberscope.signals import Signals, logit_scaled_confidence

SCORES = ("true_log_probability", "phi", "hinge", "log_max_odds", "entropy", "modified_entropy")
ALL = (*SCORES, "loss", "max_confidence", "true_probability", "top_two_gap")


def textbook(logits: list[float], label: int, digits: int = 1000) -> dict[str, float]:
    """Every signal as its definition says, with so many digits that no stable form is needed."""
    with localcontext() as context:
        context.prec = digits
        powers = [Decimal(z).exp() for z in logits]
        p = [power / sum(powers) for power in powers]
        y = p[label]
        others = [q for c, q in enumerate(p) if c != label]
        top, second = sorted(p, reverse=True)[:2]
        values = {
            "true_log_probability": y.ln(),
            "loss": -y.ln(),
            "phi": (y / sum(others)).ln(),
            "hinge": Decimal(logits[label]) - max(Decimal(z) for c, z in enumerate(logits) if c != label),
            "log_max_odds": (top / (1 - top)).ln(),
            "max_confidence": top,
            "true_probability": y,
            "top_two_gap": top - second,
            "entropy": -sum(q * q.ln() for q in p),
            "modified_entropy": -(1 - y) * y.ln() - sum(q * (1 - q).ln() for q in others),
        }
        return {name: float(value) for name, value in values.items()}


EDGES = {
    "ordinary": ([1.5, -0.25, 0.75], 0),
    "two classes, right": ([3.0, -2.0], 0),
    "two classes, wrong": ([3.0, -2.0], 1),
    "two classes, tied": ([0.5, 0.5], 1),
    "all tied": ([2.0, 2.0, 2.0, 2.0], 2),
    "two tied above the true class": ([40.0, 40.0, -40.0], 2),
    "nearly tied above the true class": ([30.0, np.nextafter(30.0, 31), -900.0], 2),
    "p_y rounds to 1 in float32": ([20.0, 0.0, 1.0], 0),
    "p_y rounds to 1 in float64": ([45.0, 0.0, -3.0], 0),
    "p_y is 1 - 1e-130": ([300.0, 0.0, -1.0], 0),
    "surely wrong": ([300.0, 0.0, -1.0], 1),
    "a wrong class rounds to 1": ([0.0, 60.0, 1.0], 0),
    "a thousand, right": ([1000.0, -1000.0, 0.0], 0),
    "a thousand, wrong": ([1000.0, -1000.0, 0.0], 1),
    "a thousand against nearly as much": ([1000.0, 999.5, -1000.0], 0),
    "minus a thousand everywhere": ([-1000.0, -1000.5, -1001.0], 1),
    "ten classes": ([0.1, -3.0, 2.5, 7.25, -1.0, 0.0, 0.0, 4.0, -8.0, 1.0], 3),
}


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_signal_agrees_with_its_definition(case: str, dtype: type) -> None:
    logits, label = EDGES[case]
    given_logits = np.array([logits], dtype)
    expected = textbook([float(z) for z in given_logits[0]], label)
    signals = Signals(given_logits, np.array([label]))
    for name in ALL:
        value = getattr(signals, name)
        assert value.dtype == np.float64
        assert value.shape == (1,)
        # What is below the smallest positive float64 is 0; a difference of logits is as exact as they are.
        smallest = 1e-12 if name in ("hinge", "phi", "log_max_odds") else 1e-300
        assert value[0] == pytest.approx(expected[name], rel=2e-13, abs=smallest), name


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-80, 80, width=32)),
    st.data(),
)
def test_random_logits_agree_with_the_definition(logits: np.ndarray, data: st.DataObject) -> None:
    labels = np.array(
        data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits)))
    )
    signals = Signals(logits, labels)
    for row, label in enumerate(labels):
        expected = textbook([float(z) for z in logits[row]], int(label), digits=160)
        for name in ALL:
            assert getattr(signals, name)[row] == pytest.approx(expected[name], rel=1e-12, abs=1e-13), name


def test_entropy_and_complements_keep_their_relative_precision_near_certainty() -> None:
    logits = np.array([[60.0, 0.0, 3.0, -7.0]])
    signals, expected = Signals(logits, np.array([0])), textbook([60.0, 0.0, 3.0, -7.0], 0)
    for name in ("loss", "entropy", "modified_entropy"):
        assert 0 < expected[name] < 1e-20
        assert getattr(signals, name)[0] == pytest.approx(expected[name], rel=1e-13), name


@settings(deadline=None)
@given(st.integers(-(2**20), 2**20))
def test_a_constant_added_to_the_logits_changes_nothing(constant: int) -> None:
    rng = np.random.default_rng(1)
    logits = rng.integers(-(2**12), 2**12, (50, 7)) / 2.0**8  # on a grid, so that adding rounds nothing
    labels = rng.integers(0, 7, 50)
    one, other = Signals(logits, labels), Signals(logits + constant, labels)
    for name in (*ALL, "predicted", "correct"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_confident_answers_do_not_tie() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, 5000)
    logits = rng.normal(0, 3, (5000, 10))
    logits[np.arange(5000), labels] += 12
    logits = (10 * logits).astype(np.float32)  # phi around 100: p_y rounds to 1 for nearly all, in float64 too
    signals = Signals(logits, labels)
    assert np.mean(signals.true_probability == 1) > 0.8
    for name in SCORES:
        assert len(np.unique(getattr(signals, name))) == 5000, name
    order = np.argsort(signals.phi)
    assert np.all(np.diff(signals.true_log_probability[order]) > 0)  # the loss ranks as phi does, to the last record
    right = signals.correct
    np.testing.assert_allclose(signals.log_max_odds[right], signals.phi[right], rtol=1e-13)


def test_signals_of_several_queries_are_those_of_each() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(0, 4, (3, 20, 5)).astype(np.float32), rng.integers(0, 5, 20)
    together = Signals(logits, labels)
    for query in range(3):
        alone = Signals(logits[query], labels)
        for name in (*ALL, "predicted", "correct"):
            np.testing.assert_array_equal(getattr(together, name)[query], getattr(alone, name), err_msg=name)


def test_phi_at_a_temperature() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 9, (2, 700, 3)).astype(np.float32), rng.integers(0, 3, 700)
    at_two = logit_scaled_confidence(logits, labels, temperature=2.0)
    np.testing.assert_allclose(at_two, Signals(logits.astype(np.float64) / 2, labels).phi, rtol=1e-12, atol=1e-12)
    probability = np.take_along_axis(np.exp(Signals(logits, labels).log_probabilities), labels[None, :, None], -1)[
        ..., 0
    ]
    phi = Signals(logits, labels).phi
    np.testing.assert_allclose(1 / (1 + np.exp(-phi)), probability, rtol=1e-12)


def test_a_prediction_of_tied_logits_is_the_first_class() -> None:
    signals = Signals(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]]), np.array([1, 1]))
    assert signals.predicted.tolist() == [0, 1]
    assert signals.correct.tolist() == [False, True]


def test_no_attack_can_change_what_the_next_one_reads() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 3.0]])
    signals = Signals(logits, np.array([0, 0]))
    for name in (*SCORES, "log_probabilities", "max_confidence", "true_probability", "top_two_gap", "predicted"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(signals, name)[...] = 0
    assert logits.tolist() == [[1.0, 0.0], [0.0, 3.0]]  # computing a signal leaves the logits as they were
