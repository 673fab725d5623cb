"""One seed, one stream a purpose; the streams are part of every result, so they are pinned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from memberscope.seeds import PURPOSES, generator, sequence

PINNED = {"membership": [3445585646, 4049885951, 23549334], "loss": [3334370750, 681997276, 1446430805]}


def test_the_streams_are_those_of_earlier_versions() -> None:
    assert PURPOSES[:6] == ("membership", "training", "attacks", "nulls", "evaluation", "blind")
    assert generator(0, "membership").integers(2**32, size=3).tolist() == PINNED["membership"]
    assert generator(7, "attacks", "loss").integers(2**32, size=3).tolist() == PINNED["loss"]


def test_equal_arguments_give_equal_streams_and_others_give_others() -> None:
    streams = {key: generator(*key).random(1000) for key in itertools.product((0, 1), PURPOSES, ("", "loss", "phi"))}
    for key, stream in streams.items():
        assert np.array_equal(stream, generator(*key).random(1000))
    values = np.array(list(streams.values()))
    assert len(np.unique(values)) == values.size
    correlation = np.corrcoef(values)[np.triu_indices(len(values), 1)]
    assert np.abs(correlation).max() < 0.17  # 5.4 standard errors; 1,431 pairs
    assert abs(correlation.mean()) < 0.005


def test_an_unknown_purpose_is_a_bug() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        sequence(0, "nothing")
