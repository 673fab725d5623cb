"""Flagging records with false-discovery control, and the overlap of what two attacks find."""

from __future__ import annotations

import numpy as np
import pytest

from memberscope.statistics.record_risk import agreement, benjamini_hochberg, flag


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.01, 0.02, 0.03, 0.5, 0.04])
    assert benjamini_hochberg(p, 0.05).tolist() == [True, True, True, False, True]
    assert benjamini_hochberg(p, 0.01).tolist() == [False] * 5


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_the_share_of_wrong_names_stays_below_the_level(shift: float) -> None:
    level, shares, found = 0.1, [], 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        member = rng.random(1000) < 0.5
        flagged = flag(rng.normal(size=1000) + shift * member, member, level=level, rng=rng)
        named = flagged.true + flagged.false
        shares.append(flagged.false / named if named else 0.0)
        found += flagged.true
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= level * 0.5 + 3 * error + 1e-9, (
        "half of the records are null, so half the level is expected"
    )
    if shift == 4.0:
        assert found > 0.8 * 500 * 200


def test_ties_name_nobody() -> None:
    member = np.arange(100) < 50
    assert not flag(np.ones(100), member, level=0.1, rng=np.random.default_rng(0)).flagged.any()


def test_agreement() -> None:
    scores = np.arange(1000.0)
    assert agreement(scores, scores) == 1.0
    assert agreement(scores, -scores) == 0.0
    assert np.isnan(agreement(np.ones(1000), np.ones(1000)))
