import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memberscope.report.histogram import score_histogram


@given(
    st.lists(st.floats(-1e150, 1e150) | st.sampled_from([np.inf, -np.inf]), min_size=1, max_size=50),
    st.integers(0, 2**16),
)
def test_every_record_is_counted_once_and_the_result_is_json(values, seed):
    scores = np.asarray(values, np.float64)
    member = np.random.default_rng(seed).random(len(scores)) < 0.5
    bins = score_histogram(scores, member)
    assert sum(bins["members"]) == member.sum()
    assert sum(bins["nonmembers"]) == (~member).sum()
    assert len(bins["edges"]) == len(bins["members"]) + 1
    json.dumps(bins, allow_nan=False)


def test_one_extreme_score_does_not_stretch_the_axis():
    scores = np.append(np.random.default_rng(0).normal(size=10_000), [1e9, np.inf])
    bins = score_histogram(scores, np.arange(len(scores)) % 2 == 0)
    assert bins["edges"][0] > -6
    assert bins["edges"][-1] < 6
    assert bins["outside"] >= 2


def test_equal_scores_fill_one_bin():
    bins = score_histogram(np.ones(10), np.arange(10) < 4)
    assert max(bins["members"]) == 4
    assert max(bins["nonmembers"]) == 6
