"""What every attack must obey, ours and those that installed packages add."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memberscope.attacks.base import HOW_TO_GET, Attack, InformedAttack, missing_knowledge, score_records
from memberscope.attacks.registry import all_attacks
from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import ADVERSARIES, Evidence, Knowledge
from memberscope.statistics.curves import auc, rank

ELSEWHERE = {"WEIGHTS", "QUERIES", "WORKSHOP", "GLOBAL_MODELS", "SUMS", "UPDATES"}
"""Knowledge that takes a model to query: attacks that need it are tried with their own tests."""

ATTACKS = list(all_attacks().values())
ON_ANSWERS = [a for a in ATTACKS if not {k.name for k in a.needs} & ELSEWHERE]
WITH_REFERENCES = [a for a in ON_ANSWERS if Knowledge.REFERENCES in a.needs]
FEW_VALUES = {"gap", "four-features-lr", "four-features-trees"}
"""Attacks that tie by their nature: two values, or the original's features, which are probabilities that round to 1."""

every_attack = pytest.mark.parametrize("attack", ON_ANSWERS, ids=lambda a: a.name)
every_attack_with_references = pytest.mark.parametrize("attack", WITH_REFERENCES, ids=lambda a: a.name)


def scores_of(attack: type[Attack], evidence: Evidence, member: Any, seed: int = 0) -> Any:
    return score_records(attack, evidence, member, rng=np.random.default_rng(seed))


def told(scores: Any, member: Any) -> float:
    return auc(rank(scores, member))


def shifted(evidence: Evidence, change: Callable[[Any], Any]) -> Evidence:
    names = ("logits", "reference_logits", "population_logits", "population_reference_logits")
    return replace(evidence, **{name: change(getattr(evidence, name).astype(np.float64)) for name in names})


def test_all_attacks_are_described_and_named_apart() -> None:
    titles = [attack.title for attack in ATTACKS]
    assert len(set(titles)) == len(titles)
    for name, attack in all_attacks().items():
        assert attack.name == name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(\([A-Za-z0-9=.]+\))?", name), name
        assert attack.needs, name
        assert attack.adversary().name in {adversary.name for adversary in ADVERSARIES} | {"everything"}
        for part in ("paper", "formula", "cost"):
            assert len(getattr(attack.card, part)) > 10, (name, part)
    assert len(ON_ANSWERS) >= 34


@every_attack
def test_the_same_seed_gives_the_same_scores(attack: type[Attack], leaky: Any) -> None:
    first, second = (scores_of(attack, leaky.evidence, leaky.member, seed=3) for _ in range(2))
    assert first.dtype == np.float64
    np.testing.assert_array_equal(first, second)


@every_attack
def test_the_order_of_records_does_not_matter(attack: type[Attack], leaky: Any) -> None:
    order = np.random.default_rng(1).permutation(leaky.evidence.n_records)
    if issubclass(attack, InformedAttack):
        known, scored = order[:300], order[300:]
        informed = attack(rng=np.random.default_rng(0))
        informed.fit(leaky.evidence.take(known), leaky.member[known])
        expected, found = (informed.score(leaky.evidence.take(rows)) for rows in (scored, scored[::-1]))
        np.testing.assert_allclose(found[::-1], expected, rtol=1e-12)
        return
    expected = attack(rng=np.random.default_rng(0)).score(leaky.evidence)
    found = attack(rng=np.random.default_rng(0)).score(leaky.evidence.take(order))
    np.testing.assert_allclose(found, expected[order], rtol=1e-6, atol=1e-9)


@every_attack
def test_a_higher_score_means_a_member(attack: type[Attack], leaky: Any) -> None:
    assert told(scores_of(attack, leaky.evidence, leaky.member), leaky.member) > 0.55


@every_attack
@pytest.mark.parametrize("design", ["balanced", "bernoulli"])
def test_without_a_leak_nothing_is_found(attack: type[Attack], design: str, toy: Any) -> None:
    figures = []
    for seed in range(2):
        one = toy(leak=0.0, design=design, seed=seed)
        figures.append(told(scores_of(attack, one.evidence, one.member), one.member))
    error = np.sqrt(1 / (6 * 300) / 2)  # of the mean of two AUCs, 300 members and as many non-members each
    assert abs(np.mean(figures) - 0.5) < 3.5 * error


@every_attack
def test_the_truth_is_not_looked_at(attack: type[Attack], leaky: Any) -> None:
    if issubclass(attack, InformedAttack):
        # It sees the membership of other folds: what it says of a fold does not change with that fold's own.
        known, scored = np.arange(300), np.arange(300, 600)
        informed = attack(rng=np.random.default_rng(0))
        informed.fit(leaky.evidence.take(known), leaky.member[known])
        assert np.isfinite(informed.score(leaky.evidence.take(scored))).all()
        return
    other = np.random.default_rng(9).permutation(leaky.member)
    np.testing.assert_array_equal(
        scores_of(attack, leaky.evidence, leaky.member), scores_of(attack, leaky.evidence, other)
    )


@every_attack
def test_a_constant_added_to_logits_changes_nothing(attack: type[Attack], leaky: Any) -> None:
    added = np.random.default_rng(2).normal(0, 5, (leaky.evidence.n_records, 1))
    z_added = np.random.default_rng(3).normal(0, 5, (400, 1))

    def move(logits: Any) -> Any:
        return logits + (added if logits.shape[-2] == len(added) else z_added)

    expected = scores_of(attack, shifted(leaky.evidence, lambda logits: logits), leaky.member)
    found = scores_of(attack, shifted(leaky.evidence, move), leaky.member)
    # Trees may split between two values that differ in the last digit only; all others agree to many digits.
    spread = np.ptp(expected)
    agree = np.abs(found - expected) < 1e-6 * spread
    assert agree.mean() > (0.98 if "trees" in attack.card.formula + attack.name else 0.9999)


@every_attack
def test_logits_times_ten_do_not_tie(attack: type[Attack], leaky: Any) -> None:
    if attack.name in FEW_VALUES:
        pytest.skip("ties by its nature")
    scores = scores_of(attack, shifted(leaky.evidence, lambda logits: 10 * logits), leaky.member)
    assert np.isfinite(scores).all()
    top = np.sort(scores)[-60:]
    assert len(np.unique(top)) >= 57


@every_attack
def test_several_queries_are_taken(attack: type[Attack], toy: Any) -> None:
    one = toy(leak=2.0, queries=2)
    assert told(scores_of(attack, one.evidence, one.member), one.member) > 0.55


@every_attack
def test_missing_knowledge_is_named_with_how_to_get_it(attack: type[Attack], leaky: Any) -> None:
    for lacking in (Knowledge.REFERENCES, Knowledge.POPULATION, Knowledge.RECORDS):
        evidence = lessened(leaky.evidence, lacking)
        assert lacking not in evidence.knowledge
        if lacking not in attack.needs:
            if lacking is not Knowledge.REFERENCES:
                assert not missing_knowledge(attack, evidence)
            continue
        with pytest.raises(MissingKnowledgeError) as caught:
            scores_of(attack, evidence, leaky.member)
        assert attack.name in caught.value.problem
        assert lacking.value in caught.value.problem
        assert HOW_TO_GET[lacking] in caught.value.hint


@every_attack_with_references
@pytest.mark.parametrize("models", [1, 2, 3])
def test_records_without_in_or_out_models_are_scored(attack: type[Attack], models: int, toy: Any) -> None:
    one = toy(leak=3.0, design="bernoulli", k=models)
    n_in = one.evidence.reference_membership.sum(axis=0)
    assert (n_in == 0).any()
    assert (n_in == models).any()
    scores = scores_of(attack, one.evidence, one.member)
    assert np.isfinite(scores).all()
    assert told(scores, one.member) > 0.55


@every_attack_with_references
def test_models_that_saw_no_record_serve_offline_attacks_only(attack: type[Attack], leaky: Any) -> None:
    elsewhere = np.zeros_like(leaky.evidence.reference_membership)
    evidence = replace(leaky.evidence, reference_membership=elsewhere)
    if Knowledge.REFERENCES_IN in attack.needs:
        with pytest.raises(MissingKnowledgeError, match="trained on some of the records under audit"):
            scores_of(attack, evidence, leaky.member)
        return
    assert np.isfinite(scores_of(attack, evidence, leaky.member)).all()


@every_attack_with_references
def test_models_that_saw_every_record_are_refused(attack: type[Attack], leaky: Any) -> None:
    evidence = replace(leaky.evidence, reference_membership=np.ones_like(leaky.evidence.reference_membership))
    with pytest.raises(EvidenceError, match="every reference model was trained on every record"):
        scores_of(attack, evidence, leaky.member)


@pytest.mark.parametrize(
    "name", ["logits", "reference_logits", "population_logits", "population_reference_logits", "record_features"]
)
def test_nan_never_reaches_an_attack(name: str, leaky: Any) -> None:
    broken = np.array(getattr(leaky.evidence, name))
    broken.flat[5] = np.nan
    with pytest.raises(EvidenceError, match="NaN"):
        replace(leaky.evidence, **{name: broken})


def lessened(evidence: Evidence, knowledge: Knowledge) -> Evidence:
    names: dict[Knowledge, tuple[str, ...]] = {
        Knowledge.REFERENCES: ("reference_logits", "reference_membership", "population_reference_logits"),
        Knowledge.POPULATION: (
            "population_logits",
            "population_labels",
            "population_reference_logits",
            "population_features",
        ),
        Knowledge.RECORDS: ("record_features", "population_features"),
    }
    return replace(evidence, **dict.fromkeys(names[knowledge]))
