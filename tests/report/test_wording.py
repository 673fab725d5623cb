import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.report import wording
from memberscope.report.wording import NBSP


def plain(text):
    return text.replace(NBSP, " ")


def test_the_examples_in_the_docstrings_hold():
    failed, tried = doctest.testmod(wording)
    assert tried > 0
    assert failed == 0


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_three_significant_digits_are_within_half_a_unit_of_the_third(value):
    text = wording.significant(value)
    if "×" in text:
        mantissa, _, power = plain(text).partition(" × 10")
        digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        shown = float(mantissa) * 10.0 ** int(digits)
    else:
        shown = float(text.replace(",", ""))
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    assert abs(shown - value) <= unit * 0.5001


@given(st.floats(min_value=0.5, max_value=1 - 1e-6))
def test_what_is_not_certain_is_never_written_as_certain(value):
    assert float(wording.significant(value)) < 1
    assert plain(wording.percent(value)) != "100 %"


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "0.5", True])
def test_what_is_not_a_number_is_never_written_as_zero(missing):
    for write in (wording.significant, wording.percent, wording.count, wording.duration, wording.size):
        assert write(missing) == "not available"
    assert wording.frequency(missing, 100) == "not available"


def test_an_estimate_shows_interval_and_counts():
    estimate = {"value": 0.0112, "low": 0.0092, "high": 0.0134, "k": 280, "n": 25000}
    assert plain(wording.estimate_text(estimate, as_percent=True)) == "1.12 % (0.920 to 1.34 %; 280/25,000)"
    assert wording.estimate_text({"value": 0.7321, "low": 0.7268, "high": 0.7377}) == "0.732 (0.727 to 0.738)"
    assert wording.estimate_text({"value": 0.5, "low": None, "high": None}) == "0.500 (no interval)"
    assert wording.estimate_text(None) == "not available"


def test_natural_frequencies_keep_ten_false_positives_in_sight():
    assert wording.denominator(0.001) == 10_000
    assert wording.denominator(1e-4) == 100_000
    assert wording.frequency(1e-4, wording.denominator(1e-4)) == "10"
    assert wording.frequency_interval({"low": 0.0092, "high": 0.01339}, 10_000) == "92 to 134"
    assert wording.frequency_interval({"low": None, "high": None}, 10_000) == "no interval"


def test_counts_stand_beside_percentages():
    assert plain(wording.counted_percent(280, 25_000)) == "1.12 % (280/25,000)"
    assert wording.counted_percent(0, 0) == "not available (0/0)"


def test_sizes_and_p_values():
    assert plain(wording.size(512)) == "512 bytes"
    assert plain(wording.size(41_234)) == "41.2 kB"
    assert plain(wording.size(1_234_567)) == "1.23 MB"
    assert wording.p_value(0.00012) == "p < 0.001"
    assert wording.p_value(0.0312) == "p = 0.0312"
    assert wording.plural(1, "class", "classes") == "1 class"
    assert wording.plural(10, "class", "classes") == "10 classes"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert wording.listing(["a"]) == "a"


@given(st.text(max_size=80), st.integers(min_value=4, max_value=40))
def test_a_shortened_name_fits_and_keeps_both_ends(text, length):
    short = wording.shorten(text, length)
    assert len(short) <= length
    if len(text) > length:
        assert short[0] == text[0]
        assert short[-1] == text[-1]
        assert "…" in short
    else:
        assert short == text
