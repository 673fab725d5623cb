"""From results to `results.json` and a few lines of text: valid JSON, the strongest attack first, reasons in full."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.attacks.base import Attack
from memberscope.attacks.runner import AttackResult, run_attacks
from memberscope.attacks.threshold import CorrectnessGap, Loss
from memberscope.checks import Context, run_checks
from memberscope.document import SCHEMA_VERSION, assemble, without_nan, worst_classes
from memberscope.evidence import Knowledge, from_logits
from memberscope.summary import answer, attack_table, ci, strongest_row, summary_lines


class Needy(Loss):
    """Needs what nobody has."""

    name, needs = "needy", frozenset({Knowledge.GLOBAL_MODELS})


def results_of(n: int, attacks: tuple[type[Attack], ...]) -> tuple[list[AttackResult], np.ndarray]:
    rng = np.random.default_rng(0)
    labels, member = rng.integers(0, 4, n), rng.permutation(np.arange(n) < n // 2)
    logits = rng.normal(0, 1.5, (n, 4))
    logits[np.arange(n), labels] += 1 + np.where(labels == 2, 3.0, 1.0) * member
    keep = ~(labels == 3) | member  # class 3 has no non-members: its figures are undefined
    evidence = from_logits(logits[keep], labels[keep])
    return run_attacks(attacks, evidence, member[keep], class_names=["cat", "dog", "owl", "elk"]), member[keep]


def document_of(n: int = 2400, attacks: tuple[type[Attack], ...] = (CorrectnessGap, Loss, Needy)) -> dict[str, Any]:
    results, member = results_of(n, attacks)
    findings = run_checks(Context(results, member, 0.1, 1e-5, None, None, no_records="only answers"))
    return assemble(
        kind="audit",
        dataset={"name": "toy"},
        records={"members": int(member.sum()), "nonmembers": int((~member).sum())},
        target={"generalization_gap": 0.1, "model": "m"},
        results=results,
        member=member,
        findings=findings,
        settings={"seed": 0},
        environment={},
        run={"id": "not saved"},
        policy=None,
        top_records=None,
        reproduce=[],
        confidence=0.95,
        seed=0,
    )


DOCUMENT = document_of()


def test_the_document_is_valid_json_and_the_same_twice() -> None:
    text = json.dumps(DOCUMENT, allow_nan=False)
    assert json.loads(text) == DOCUMENT
    again = document_of()
    for one in (*DOCUMENT["attacks"], *again["attacks"]):
        one["seconds"] = 0.0
    assert again == DOCUMENT
    assert DOCUMENT["schema_version"] == SCHEMA_VERSION == 1


def test_the_headline_is_the_strongest_attack_at_the_lowest_rate_that_the_sample_supports() -> None:
    assert DOCUMENT["headline"] == "loss"
    assert DOCUMENT["headline_rule"] == (
        "the attack with the highest true-positive rate at a false-positive rate of 0.1, the lowest that 889 "
        "non-members support"
    )
    small = document_of(150)
    assert (
        small["headline_rule"]
        == "the attack with the highest AUC: the non-members are too few for any false-positive rate"
    )
    assert document_of(2400, (Needy,))["headline"] is None


def test_every_attack_that_was_asked_for_is_there() -> None:
    assert [(a["name"], a["status"]) for a in DOCUMENT["attacks"]] == [
        ("gap", "run"),
        ("loss", "run"),
        ("needy", "skipped"),
    ]


def test_the_worst_classes_are_those_with_the_highest_lower_end() -> None:
    worst = DOCUMENT["exposed"]["worst_classes"]
    assert [row["name"] for row in worst] == ["owl", *(row["name"] for row in worst[1:])]
    assert {row["name"] for row in worst} == {"cat", "dog", "owl"}  # elk cannot be judged
    ends = [row["auc_adjusted"]["low"] for row in worst]
    assert ends == sorted(ends, reverse=True)
    assert worst_classes(None) == []
    assert DOCUMENT["exposed"]["generalization_gap"] == 0.1


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(NESTED)
def test_nothing_but_json_is_left(value: Any) -> None:
    plain = without_nan(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert without_nan(plain) == plain


def test_numpy_becomes_plain() -> None:
    value = {"a": np.float32(0.5), 3: (np.int64(2), np.bool_(True)), "c": np.array([1.0, np.nan]), "d": float("inf")}
    assert without_nan(value) == {"a": 0.5, "3": [2, True], "c": [1.0, None], "d": None}
    assert type(without_nan(np.bool_(True))) is bool


def test_the_answer_in_one_sentence() -> None:
    text = answer(DOCUMENT)
    row = next(r for r in DOCUMENT["ladder"] if r.get("attack") == "loss" and r["corrected_for"] == 2)
    tpr, auc = row["tpr"]["estimate"], row["auc"]
    assert text == (
        f"Of 10,000 members, the strongest attack (loss) identifies about {round(1e4 * tpr['value']):,} "
        f"(95% interval, allowing for having picked the best of 2 attacks: {round(1e4 * tpr['low']):,} to "
        f"{round(1e4 * tpr['high']):,}) while wrongly accusing 1,000 "
        f"of 10,000 non-members; guessing would identify 1,000. Best ranking: loss, AUC {auc['value']:.3f} "
        f"[{auc['low']:.3f}, {auc['high']:.3f}]."
    )
    assert answer(document_of(2400, (Needy,))) == "No attack could be run."
    small = answer(document_of(150))
    assert small.startswith("The strongest attack (loss) ranks members above non-members: AUC 0.")
    assert small.endswith("(0.5 is guessing).")


def test_the_strongest_row_is_the_headlines_and_not_the_last_one() -> None:
    row = {"status": "measured", "corrected_for": 1}
    rows = [
        {**row, "adversary": "stranger", "attack": "loss"},
        {**row, "adversary": "informed stranger", "attack": "learnt", "corrected_for": 9},
        {**row, "adversary": "insider", "attack": "loss", "corrected_for": 8},
        {"status": "not measured", "adversary": "thief"},
    ]
    for headline, adversary in (("learnt", "informed stranger"), ("loss", "insider"), ("other", "informed stranger")):
        found = strongest_row({"ladder": rows, "headline": headline})
        assert found is not None
        assert found["adversary"] == adversary
    assert strongest_row({"ladder": rows[3:], "headline": None}) is None


def test_the_table_has_every_attack_strongest_first() -> None:
    table = attack_table(DOCUMENT)
    assert table[0] == ["attack", "AUC", "accuracy", "TPR at 0.1 FPR", "seconds"]
    assert [row[0] for row in table[1:]] == ["loss", "gap", "needy"]
    assert table[3][1].startswith("skipped: needs the global model of every round of a federation")
    assert table[3][2:] == ["", "", ""]
    assert attack_table(document_of(2400, (Needy,)))[0] == ["attack", "AUC", "accuracy", "seconds"]


def test_a_long_reason_does_not_widen_the_columns() -> None:
    lines = summary_lines(DOCUMENT)
    assert lines[0] == answer(DOCUMENT)
    header, loss, gap, needy = lines[1:5]
    assert header.index("accuracy") == loss.index(ci(DOCUMENT["attacks"][1]["evaluation"]["accuracy_youden"]))
    assert max(len(header), len(loss), len(gap)) < 110
    assert needy.startswith("needy   skipped: needs")
    assert lines[5].startswith("MIA006 caution: 889 non-members are too few")
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (None, "-"),
        ({"value": None, "low": None, "high": None}, "-"),
        ({"value": 0.12345, "low": None, "high": None}, "0.123"),
        ({"value": 0.12345, "low": 0.1, "high": 1}, "0.123 [0.100, 1.000]"),
    ],
)
def test_a_figure_with_its_interval(estimate: dict[str, float] | None, text: str) -> None:
    assert ci(estimate) == text
