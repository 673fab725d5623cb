"""Intervals over clients and records, and which client."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memberscope.errors import EvidenceError
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.clustered import clustered_estimates
from memberscope.statistics.curves import rank
from memberscope.statistics.source import source_inference


def pairs_of(rng, clients=10, size=120, spread=0.0, effect=0.8):
    client = np.repeat(np.arange(clients), size)
    member = rng.random(clients * size) < 0.5
    shift = effect + spread * rng.normal(size=clients)
    return rng.normal(size=len(client)) + shift[client] * member, member, client, np.arange(len(client))


def test_the_figures_are_those_of_the_sample() -> None:
    rng = np.random.default_rng(0)
    score, member, client, record = pairs_of(rng)
    score = np.round(score, 1)  # ties
    found, (ten, one) = clustered_estimates(
        score, member, client, record, fprs=(0.1, 0.01), rng=np.random.default_rng(1), draws=200
    )
    assert found.value == pytest.approx(auc_estimate(rank(score, member)).value)
    threshold = np.sort(score[~member])[::-1][int(0.1 * (~member).sum())]
    assert ten.value == pytest.approx((score[member] > threshold).mean(), abs=0.03)
    for estimate in (found, ten, one):
        assert estimate.low < estimate.value < estimate.high
        assert "10 clients and 1,200 records" in estimate.method


def test_clients_that_differ_widen_the_interval() -> None:
    widths = []
    for spread in (0.0, 1.0):
        score, member, client, record = pairs_of(np.random.default_rng(2), spread=spread)
        found, _ = clustered_estimates(score, member, client, record, fprs=(), rng=np.random.default_rng(1), draws=400)
        widths.append(found.high - found.low)
    assert widths[1] > 1.8 * widths[0]


def test_the_interval_covers() -> None:
    """Over clients that differ: the AUC of all clients there are lies inside in about 95 % of the draws."""
    rng = np.random.default_rng(3)
    truth = np.mean([auc_estimate(rank(*pairs_of(rng, 400, 30, 0.5)[:2])).value for _ in range(4)])
    inside = 0
    for _ in range(60):
        score, member, client, record = pairs_of(rng, 12, 60, 0.5)
        found, _ = clustered_estimates(score, member, client, record, fprs=(), rng=rng, draws=150)
        inside += found.low <= truth <= found.high
    assert inside >= 50  # 57 expected


@pytest.mark.parametrize(("clients", "skew"), [(5, 0.0), (5, 0.8), (10, 0.8)])
def test_few_and_unequal_clients_are_allowed_for(clients: int, skew: float) -> None:
    """The quantiles alone cover in some 83 to 89 of 100 samples; chance makes 95 of them 90 at the least."""
    rng = np.random.default_rng(6)
    truth, inside = 0.5 * (1 + math.erf(0.8 / math.sqrt(4 + 2 * 0.5**2))), 0
    for _ in range(100):
        sizes = np.maximum(20, (80 * np.exp(skew * rng.normal(size=clients))).astype(int))
        client = np.repeat(np.arange(clients), sizes)
        member = np.arange(len(client)) % 2 == 0
        shift = 0.8 + 0.5 * rng.normal(size=clients)
        score = rng.normal(size=len(client)) + shift[client] * member
        found, _ = clustered_estimates(score, member, client, np.arange(len(client)), fprs=(), rng=rng, draws=150)
        inside += found.low <= truth <= found.high
    assert inside >= 90


def test_an_interval_holds_its_figure() -> None:
    """The highest of ten non-members often weighs less than a tenth, and then the sample's rate of 0 is missed."""
    score, member = np.arange(11.0), np.arange(11) == 9
    record = np.arange(11)
    area, (rate,) = clustered_estimates(
        score, member, 0 * record, record, fprs=(0.099,), rng=np.random.default_rng(0), confidence=0.1
    )
    assert rate.low <= rate.value == 0 < rate.high
    assert area.low <= area.value <= area.high
    member = np.random.default_rng(5).random(300) < 0.5
    apart, _ = clustered_estimates(
        1.0 * member, member, np.zeros(300, int), np.arange(300), fprs=(), rng=np.random.default_rng(0)
    )
    assert apart.low <= apart.value == 1 <= apart.high


def test_shapes_are_checked() -> None:
    member, clients, records = np.array([True, False] * 2), np.zeros(3, int), np.zeros(4, int)
    with pytest.raises(EvidenceError):
        clustered_estimates(np.zeros(4), member, clients, records, fprs=(), rng=np.random.default_rng())


def counts_of(owner, labels):
    counts = np.zeros((owner.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (owner, labels), 1)
    return counts


def test_the_mean_over_clients_counts_small_ones_as_much() -> None:
    """One client with most of the records is named rightly always, the nine others never."""
    owner = np.r_[np.zeros(910, int), np.repeat(np.arange(1, 10), 10)]
    scores = np.zeros((10, 1000))
    scores[0] = 1.0
    found = source_inference(scores, owner, 0 * owner, counts_of(owner, 0 * owner), rng=np.random.default_rng(0))
    assert found.accuracy.value == found.by_class == 0.91
    assert found.mean_recall.value == found.chance == 0.1
    assert found.mean_recall.low <= 0.1 <= found.mean_recall.high


def test_guessing_by_class_is_not_flattered_by_the_records_it_is_judged_on() -> None:
    """Fifty clients alike: the fullest of them by chance is named, and of other records it has a fiftieth."""
    rng = np.random.default_rng(4)
    owner, labels = rng.integers(0, 50, 1000), rng.integers(0, 10, 1000)
    counts = rng.multinomial(200, np.full(10, 0.1), size=50)
    found = source_inference(rng.normal(size=(50, 1000)), owner, labels, counts, rng=rng)
    assert found.by_class == pytest.approx(0.02, abs=0.012)


def test_the_client_with_the_highest_score_is_named() -> None:
    rng = np.random.default_rng(0)
    k, n = 5, 800
    owner, labels = rng.integers(0, k, n), rng.integers(0, 3, n)
    scores = rng.normal(size=(k, n))
    scores[owner, np.arange(n)] += 2
    found = source_inference(scores, owner, labels, counts_of(owner, labels), rng=rng)
    named = scores.argmax(axis=0) == owner
    assert found.accuracy.value == found.over_clients.value == named.mean()
    assert found.accuracy.low < named.mean() < found.accuracy.high
    assert found.chance == 0.2
    assert found.by_class == pytest.approx(0.25, abs=0.05)
    assert sum(size for size, _ in found.recall) == n
    assert found.recall[2][1].value == named[owner == 2].mean()


def test_scores_that_say_nothing_name_by_chance() -> None:
    rng = np.random.default_rng(1)
    owner, labels = rng.integers(0, 4, 2000), np.zeros(2000, int)
    for scores in (np.zeros((4, 2000)), rng.normal(size=(4, 2000))):
        found = source_inference(scores, owner, labels, counts_of(owner, labels), rng=rng)
        assert found.accuracy.low <= 0.25 + 0.02
        assert found.accuracy.high >= 0.25 - 0.02


def test_guessing_by_class_is_told_beside_it() -> None:
    rng = np.random.default_rng(2)
    owner = rng.integers(0, 4, 1000)
    found = source_inference(rng.normal(size=(4, 1000)), owner, owner.copy(), counts_of(owner, owner), rng=rng)
    assert found.by_class == 1.0


def test_what_cannot_be_named_is_refused() -> None:
    zeros, rng = np.zeros(3, int), np.random.default_rng()
    with pytest.raises(EvidenceError):
        source_inference(np.zeros((2, 3)), np.array([0, 1, 2]), zeros, np.ones((2, 1), int), rng=rng)
    with pytest.raises(EvidenceError, match="NaN"):
        source_inference(np.full((2, 3), np.nan), np.array([0, 1, 1]), zeros, np.ones((2, 1), int), rng=rng)
    with pytest.raises(EvidenceError, match=r"counts of shape \[2, 0\]"):
        source_inference(np.zeros((2, 3)), np.array([0, 1, 1]), zeros, np.ones((2, 0), int), rng=rng)
