"""Each attack on the rounds of a federation: finds what is there, nothing where nothing is, and not the class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from memberscope.attacks.base import InformedAttack, missing_knowledge, score_records
from memberscope.attacks.federated import FederatedAttack, PairAttack, by_client_and_class, raw
from memberscope.attacks.federated_fedmia import FedMiaCosine, FedMiaLoss
from memberscope.attacks.federated_filter import ServerFilter, UpdateFilter, filter_weights, signal_and_noise
from memberscope.attacks.federated_learned import Nasr
from memberscope.attacks.federated_registry import FEDERATED
from memberscope.attacks.federated_updates import Cosine, GradientDifference
from memberscope.attacks.registry import all_attacks
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence
from memberscope.knowledge import Knowledge
from memberscope.rounds import Rounds
from memberscope.statistics.curves import auc, rank

every_attack = pytest.mark.parametrize("attack", FEDERATED, ids=lambda a: a.name)


def scores_of(attack: type[FederatedAttack], evidence: Evidence, member: Any) -> Any:
    return score_records(attack, evidence, member, rng=np.random.default_rng(0))


def told(scores: Any, member: Any) -> float:
    return auc(rank(scores, member))


@every_attack
def test_members_of_an_overfit_federation_are_found(attack: type[FederatedAttack], overfit: Any) -> None:
    evidence, member = overfit
    least = 0.75 if Knowledge.UPDATES in attack.needs else 0.62 if attack.name != "fl-global-gradient-norm" else 0.56
    assert told(scores_of(attack, evidence, member), member) > least
    if not issubclass(attack, Nasr):
        assert told(scores_of(raw(attack), evidence, member), member) > least - 0.03


@every_attack
def test_nothing_is_found_where_clients_trained_on_other_records(
    attack: type[FederatedAttack], without_leak: Any
) -> None:
    nulls = without_leak[:1] if issubclass(attack, Nasr) else without_leak  # trees take their time
    figures = [told(scores_of(attack, evidence, member), member) for evidence, member in nulls]
    n = len(without_leak[0][1])
    error = np.sqrt(1 / (3 * n) / len(figures)) * (np.sqrt(2) if issubclass(attack, InformedAttack) else 1)
    assert abs(np.mean(figures) - 0.5) < 3.5 * error


def test_the_order_of_pairs_does_not_matter(overfit: Any) -> None:
    evidence, member = overfit
    order = np.random.default_rng(1).permutation(len(member))
    for attack in FEDERATED:
        if issubclass(attack, InformedAttack):
            continue
        expected = scores_of(attack, evidence, member)
        np.testing.assert_allclose(scores_of(attack, evidence.take(order), member[order]), expected[order], rtol=1e-6)


@every_attack
def test_a_seat_that_sees_less_is_told_what_is_missing(attack: type[FederatedAttack], overfit: Any) -> None:
    evidence, _ = overfit
    features = evidence.rounds.features
    for seen in ({"sums": False, "replies": False}, {"sums": True, "replies": False}):
        lesser = replace(evidence, rounds=replace(evidence.rounds, features=features.only(**seen)))
        lacking = {Knowledge.UPDATES} | (set() if seen["sums"] else {Knowledge.SUMS})
        assert set(missing_knowledge(attack, lesser)) == lacking & attack.needs
    assert missing_knowledge(attack, replace(evidence, rounds=None))


@pytest.mark.parametrize("attack", [a for a in FEDERATED if issubclass(a, PairAttack)], ids=lambda a: a.name)
def test_a_score_does_not_depend_on_who_else_is_in_the_pool(attack: type[FederatedAttack], overfit: Any) -> None:
    """The pool is fixed: a record's figures of all rounds are about that record."""
    evidence, member = overfit
    few = np.random.default_rng(2).permutation(len(member))[:200]
    alone, among = (
        scores_of(raw(attack), evidence.take(few), member[few]),
        scores_of(raw(attack), evidence, member)[few],
    )
    if attack.name.startswith(("fl-z-", "fl-lira-")):  # the scale is pooled over the pool
        assert np.corrcoef(alone, among)[0, 1] > 0.99
    else:
        np.testing.assert_allclose(alone, among, rtol=1e-9)


@pytest.mark.parametrize(("attack", "series"), [(FedMiaLoss, "minus-loss"), (FedMiaCosine, "cosine")])
def test_fedmia_is_the_formula_of_the_paper(attack: type[FederatedAttack], series: str, overfit: Any) -> None:
    evidence, member = overfit
    rounds: Rounds = evidence.rounds
    found = scores_of(raw(attack), evidence, member)
    values = np.stack([v for _, _, v in rounds.each_round(series)])  # [T, K, N]
    for row in (0, 130, 599):
        client, record = rounds.client[row], rounds.record[row]
        others = np.delete(values[:, :, record], client, axis=1)
        z = (values[:, client, record] - others.mean(axis=1)) / others.std(axis=1)
        assert found[row] == pytest.approx(ndtr(z).mean())


class Label(PairAttack):
    """Knows nothing but the class: higher for the client's own favourite class."""

    name, title, needs, card = "label", "Label", Cosine.needs, Cosine.card

    def compare(self, rounds: Rounds) -> Any:
        noise = np.random.default_rng(0).normal(0, 0.1, rounds.features.n_records)
        return (rounds.labels == rounds.client % 4) + noise[rounds.record]


def test_the_class_of_a_record_is_no_membership(tiny_federation: Any, tiny_evidence: Any, tmp_path: Any) -> None:
    """On a partition that is not IID, with non-members that are not matched by class, the label alone looks strong."""
    tiny = tiny_federation(skew=True, rounds=3, epochs=1)
    evidence, _ = tiny_evidence(tiny, tmp_path)
    held, nobody = np.flatnonzero(tiny.member), np.flatnonzero(tiny.owner < 0)
    negatives, population = nobody[::2], nobody[1::2]
    client = np.r_[tiny.owner[held], np.arange(len(negatives)) % 5].astype(np.int64)
    records = np.r_[held, negatives]
    rounds = replace(evidence.rounds, client=client, record=records, population=population)
    unmatched = Evidence(np.zeros((1, len(records), 4)), tiny.y[records], rounds=rounds)
    member = np.arange(len(records)) < len(held)
    assert told(scores_of(raw(Label), unmatched, member), member) > 0.7
    error = np.sqrt(len(records) / (12 * len(held) * len(negatives)))
    assert abs(told(scores_of(Label, unmatched, member), member) - 0.5) < 3.5 * error


def test_scores_are_normalised_by_client_and_class() -> None:
    rng = np.random.default_rng(0)
    client, label = rng.integers(0, 3, 4000), rng.integers(0, 4, 4000)

    class Pairs:
        def __init__(self, client: Any, labels: Any) -> None:
            self.client, self.labels, self.n_pairs = client, labels, len(client)

    level, scale = rng.normal(0, 5, (3, 4)), rng.uniform(0.5, 3, (3, 4))
    values = level[client, label] + scale[client, label] * rng.normal(0, 1, 4000)
    asked, known = slice(0, 2000), slice(2000, 4000)
    normal = by_client_and_class(
        values[asked], Pairs(client[asked], label[asked]), values[known], Pairs(client[known], label[known])
    )
    for k in range(3):
        for c in range(4):
            cell = normal[(client[asked] == k) & (label[asked] == c)]
            assert abs(cell.mean()) < 0.35
            assert 0.7 < cell.std() < 1.3
    # Without known non-members the candidates give the level of their class.
    nobody = Pairs(client[:0], label[:0])
    own = by_client_and_class(values[asked], Pairs(client[asked], label[asked]), values[:0], nobody)
    assert np.corrcoef(own, normal)[0, 1] > 0.98


def test_the_filter_weighs_by_shift_and_noise() -> None:
    rng = np.random.default_rng(0)
    noise = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    draw = np.linalg.cholesky(noise)
    known = draw @ rng.normal(size=(3, 20_000))
    shift = np.array([0.0, 0.5, 0.5])
    mixed = draw @ rng.normal(size=(3, 20_000)) + shift[:, None] * (rng.random(20_000) < 0.5)
    weights = filter_weights(*signal_and_noise(mixed, known, noise=2 / 20_000))
    shrunk = 0.9 * noise + 0.1 * np.eye(3)
    expected = np.linalg.solve(shrunk, shift)
    np.testing.assert_allclose(weights / np.linalg.norm(weights), expected / np.linalg.norm(expected), atol=0.06)


def test_clients_that_miss_rounds_are_scored_on_those_they_took_part_in(
    tiny_federation: Any, tiny_evidence: Any, tmp_path: Any
) -> None:
    tiny = tiny_federation(absent=0.3, seed=3)
    present = [len(tiny.replies[r]) for r in tiny.rounds]
    assert min(present) < 5
    evidence, member = tiny_evidence(tiny, tmp_path)
    for attack in FEDERATED:
        if issubclass(attack, Nasr) or missing_knowledge(attack, evidence):  # slow; no reference federations here
            continue
        scores = scores_of(attack, evidence, member)
        assert np.isfinite(scores).all()
        assert told(scores, member) > 0.52


def test_what_an_attack_cannot_do_without_is_named(overfit: Any) -> None:
    evidence, member = overfit
    unknown = replace(evidence, rounds=replace(evidence.rounds, learning_rate=None))
    with pytest.raises(EvidenceError, match="learning rate"):
        scores_of(GradientDifference, unknown, member)
    features = evidence.rounds.features
    two = features.reply_client < 2
    few = replace(
        features,
        **{
            n: getattr(features, n)[two]
            for n in ("reply_sent", "reply_client", "reply_phi", "reply_along", "reply_length")
        },
    )
    rows = np.flatnonzero(evidence.rounds.client < 2)
    pair = replace(evidence.take(rows), rounds=replace(evidence.rounds.take(rows), features=few))
    with pytest.raises(EvidenceError, match="two others"):
        scores_of(FedMiaCosine, pair, member[rows])
    assert np.isfinite(scores_of(UpdateFilter, pair, member[rows])).all()
    with pytest.raises(EvidenceError, match="client 7"):
        Rounds(features, np.array([7]), np.array([0])).own("phi")


def test_the_filter_of_a_client_is_made_for_the_rounds_that_it_took_part_in(
    tiny_federation: Any, tiny_evidence: Any, tmp_path: Any
) -> None:
    """Weights made for all rounds fell behind the plain cosine where half of the clients take part."""
    tiny = tiny_federation(absent=0.5, n_clients=12, rounds=8, per_client=80, population=500, seed=1)
    evidence, member = tiny_evidence(tiny, tmp_path)
    found = {a.name: auc(rank(scores_of(a, evidence, member), member)) for a in (Cosine, UpdateFilter, ServerFilter)}
    assert found["fl-matched-filter"] > found["fl-cosine"] + 0.005
    assert found["fl-update-matched-filter"] > found["fl-cosine"] + 0.005


def test_raw_attacks_run_on_request_only() -> None:
    named = all_attacks()
    for attack in FEDERATED:
        assert named[attack.name] is attack
        assert named[f"{attack.name}(raw)"].costly
        assert not named[f"{attack.name}(raw)"].normalised


def test_of_clients_that_do_not_learn_nothing_is_left_to_weigh() -> None:
    weights = filter_weights(*signal_and_noise(np.zeros((4, 50)), np.zeros((4, 30)), noise=0.05))
    assert np.isfinite(weights).all()
