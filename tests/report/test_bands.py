import numpy as np
import pytest

from memberscope.report.bands import roc_band
from memberscope.statistics.evaluation import evaluate


def evaluation(n=4000, shift=1.0):
    rng = np.random.default_rng(0)
    member = np.arange(2 * n) < n
    return evaluate(rng.normal(size=2 * n) + shift * member, member, rng=rng, name="toy").to_dict()


def test_the_band_agrees_with_the_intervals_in_the_tables():
    e = evaluation()
    x, low, high = roc_band(e)
    for point in e["operating_points"]:
        if point["supported"]:
            i = x.index(point["fpr"])
            assert low[i] == pytest.approx(point["tpr"]["low"], abs=0.02)
            assert high[i] == pytest.approx(point["tpr"]["high"], abs=0.02)


def test_the_band_begins_where_ten_false_positives_are_expected_and_holds_the_curve():
    e = evaluation()
    x, low, high = roc_band(e)
    assert min(x) == pytest.approx(10 / 4000)
    assert x == sorted(x)
    tpr = [max(t for f, t in zip(e["roc"]["fpr"], e["roc"]["tpr"], strict=True) if f <= a * (1 + 1e-12)) for a in x]
    assert all(a <= t <= b for a, t, b in zip(low, tpr, high, strict=True))


def test_no_band_where_the_sample_supports_nothing():
    assert roc_band(evaluation(n=9)) is None
