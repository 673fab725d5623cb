"""Every coded doubt: a context that raises it, one that does not, and one that it does not apply to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope.attacks.base import Attack, Card, InformedAttack
from memberscope.attacks.registry import ATTACKS
from memberscope.attacks.runner import AttackResult, Null, run_attacks
from memberscope.attacks.threshold import CorrectnessGap, Loss
from memberscope.checks import CHECKS, FLOOR, Context, Finding, check_codes, run_checks
from memberscope.errors import ConfigError
from memberscope.evidence import Evidence, Knowledge, from_logits
from memberscope.statistics.blind import BlindResult, DuplicateResult
from memberscope.statistics.bound import Comparison
from memberscope.statistics.intervals import Estimate
from memberscope.statistics.privacy_bounds import bound, compare_with_accountant

N, C = 2400, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C, N)
MEMBER = RNG.permutation(np.arange(N) < N // 2)
LOGITS = RNG.normal(0, 2, (N, C))
LOGITS[np.arange(N), LABELS] += 1 + MEMBER
EVIDENCE = from_logits(LOGITS, LABELS)


def attack(name: str, score: Any, base: type[Attack] = Attack) -> type[Attack]:
    body = {
        "name": name,
        "title": name,
        "card": Card("", "", ""),
        "needs": frozenset({Knowledge.PROBABILITIES}),
        "score": lambda self, e: score(e),
        "fit": lambda self, e, m: None,
    }
    return type(name, (base,), body)


def results(*attacks: type[Attack], evidence: Evidence = EVIDENCE, member: np.ndarray = MEMBER) -> list[AttackResult]:
    return run_attacks(attacks, evidence, member, class_names="abc")


def claim(epsilon: float) -> Comparison:
    """What an audit that proves an epsilon of about 1.8 says of an accountant's claim."""
    coins = np.random.default_rng(0).random(400) < 0.5
    scores = coins + np.random.default_rng(1).normal(size=400)
    return compare_with_accountant(bound(scores, coins, design="coin-flips"), epsilon, 1e-5)


SOUND = Context(
    results=results(Loss, attack("other", lambda e: e.signals.phi)),
    member=MEMBER,
    class_mix_difference=0.01,
    label_p_value=0.5,
    blind=BlindResult(0.505, 0.4, 0.52, 199, 2400, 30),
    duplicates=DuplicateResult(0, 0, None),
    verified=True,
    source="official files",
    reference_counts=np.full(N, 8),
    reference_accuracy=(0.71, 0.72),
    requested_fprs=(0.01,),
    claim=claim(3.0),
    canary_clients=(40, 500),
    recording=("passed", "They fit.", {}),
)
FAILED = AttackResult(Loss, "failed", "a bug")


def found(code: str, **changes: Any) -> Finding:
    return {finding.code: finding for finding in run_checks(replace(SOUND, **changes))}[code]


def null_at(value: float, low: float, high: float) -> Null:
    return Null(Estimate(value, low, high, ""), 0.995)


LEARNT = attack("learnt", lambda e: e.signals.phi, InformedAttack)
REVERSED = attack("reversed", lambda e: e.signals.loss)
NOISE = attack("noise", lambda e: np.random.default_rng(0).random(e.n_records))
FEW = attack("few", lambda e: np.round(e.signals.true_probability, 1))

RAISED: list[tuple[str, str, dict[str, Any], str]] = [
    ("MIA001", "problem", {"blind": BlindResult(0.6, 0.005, 0.52, 199, 2400, 30)}, "AUC 0.600, permutation p = 0.005"),
    ("MIA001", "caution", {"blind": BlindResult(0.515, 0.005, 0.51, 199, 20000, 30)}, "may differ in themselves"),
    ("MIA001", "caution", {"blind": BlindResult(0.53, 0.04, 0.52, 199, 2400, 30)}, "permutation p = 0.04"),
    (
        "MIA002",
        "problem",
        {"duplicates": DuplicateResult(20, 13, (5, 1700))},
        "20 members and 13 non-members have exactly equal content (first pair: records 5 and 1700)",
    ),
    ("MIA002", "caution", {"duplicates": DuplicateResult(20, 12, (5, 1700))}, "12 non-members"),
    ("MIA003", "caution", {"reference_accuracy": (0.71, 0.60)}, "target 71.0%, reference models 60.0%"),
    ("MIA004", "problem", {"reference_counts": np.array([0, 8])}, "no reference model on one side"),
    ("MIA004", "caution", {"reference_counts": np.array([0, 0])}, "only attacks of one side ran"),
    (
        "MIA005",
        "caution",
        {"target_accuracies": (0.6, 0.7)},
        "Test accuracy of 2 trainings of the recipe: 60.0% to 70.0%.",
    ),
    (
        "MIA010",
        "caution",
        {"target_aucs": tuple(Estimate(v, v - 0.01, v + 0.01, "") for v in (0.6, 0.65, 0.7))},
        "quote the mean over targets",
    ),
    ("MIA004", "caution", {"reference_counts": np.array([3, 8])}, "at least 3 reference models"),
    (
        "MIA006",
        "caution",
        {"requested_fprs": (0.1, 0.01, 0.001, 0.0001)},
        "1,200 non-members are too few for some false-positive rates (0.001 needs 10,000, 0.0001 needs 100,000)",
    ),
    (
        "MIA007",
        "caution",
        {"results": results(Loss, NOISE)},
        "noise did worse than the single threshold 'loss' (AUC 0.",
    ),
    (
        "MIA008",
        "problem",
        {"results": [replace(SOUND.results[0], null=null_at(0.6, 0.55, 0.65)), SOUND.results[1]]},
        "loss: AUC 0.600 [0.550, 0.650]",
    ),
    ("MIA008", "problem", {"results": [replace(SOUND.results[0], null=null_at(0.4, 0.35, 0.45))]}, "loss: AUC 0.400"),
    (
        "MIA009",
        "problem",
        {"results": [replace(results(LEARNT)[0], null=null_at(0.9, 0.8, 0.95))]},
        "learnt tells members from non-members even after their membership was permuted",
    ),
    ("MIA011", "problem", {"results": results(Loss, REVERSED)}, "reversed: members rank below non-members"),
    (
        "MIA012",
        "caution",
        {"class_mix_difference": 0.3, "label_p_value": 1e-9},
        "(total variation 0.300, chi-square p = 1e-09): knowing the class alone gives an adversary an advantage of up "
        "to 0.300",
    ),
    (
        "MIA013",
        "caution",
        {"verified": False, "source": "my files"},
        "The data files are the user's own word: my files",
    ),
    ("MIA014", "caution", {"results": results(Loss, FEW)}, "Most of the highest scores of few are tied"),
    ("MIA015", "caution", {"randomised": False}, "Membership was stated, not drawn at random by this audit"),
    ("MIA016", "problem", {"claim": claim(0.1)}, "BROKEN DP CLAIM"),
    ("MIA017", "caution", {"canary_clients": (40, 5)}, "their random directions outweigh what is learnt"),
    ("MIA018", "problem", {"recording": ("problem", "numbered otherwise", {})}, "numbered otherwise"),
]


@pytest.mark.parametrize(("code", "status", "changes", "told"), RAISED)
def test_a_doubt_that_is_justified_is_raised(code: str, status: str, changes: dict[str, Any], told: str) -> None:
    finding = found(code, **changes)
    assert finding.status == status
    assert told in finding.text


@pytest.mark.parametrize("code", sorted(set(CHECKS) - {"MIA005", "MIA010"}))
def test_a_sound_audit_passes(code: str) -> None:
    finding = found(code)
    assert finding.status == "passed", finding.text


PASSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "MIA012",
        {"class_mix_difference": 0.2, "label_p_value": 0.002},
        "differ no more than chance allows (total variation 0.200",
    ),
    ("MIA012", {"class_mix_difference": 0.02, "label_p_value": 1e-9}, "differ, but by little (total variation 0.020"),
    ("MIA014", {"results": results(CorrectnessGap)}, "The highest scores are distinct."),
    (
        "MIA004",
        {"reference_counts": np.array([4, 8])},
        "at least 4 reference models trained with it and as many without",
    ),
    ("MIA005", {"target_accuracies": (0.6, 0.62)}, "Test accuracy of 2 trainings of the recipe: 60.0% to 62.0%."),
    (
        "MIA010",
        {"target_aucs": tuple(Estimate(v, v - 0.02, v + 0.02, "") for v in (0.6, 0.61))},
        "Trainings differ no more than the interval of one of them says (AUC of the same attack on 2 targets",
    ),
    ("MIA006", {}, "1,200 non-members support every false-positive rate that is reported."),
    ("MIA007", {"results": results(Loss, LEARNT)}, "No attack did significantly worse in AUC"),
]


def test_intervals_of_another_level_are_read_at_that_level() -> None:
    aucs = [(v, 0.015) for v in (0.60, 0.63, 0.66)]  # value and standard error
    p_values = []
    for confidence, z in ((0.95, 1.959964), (0.5, 0.674490)):
        told = tuple(Estimate(v, v - z * error, v + z * error, "") for v, error in aucs)
        p_values.append(found("MIA010", target_aucs=told, confidence=confidence).numbers["p_value"])
    assert p_values[0] == pytest.approx(p_values[1], rel=1e-5)
    assert p_values[0] == pytest.approx(np.exp(-4))  # chi-square of 8 with 2 degrees of freedom


def test_every_finding_is_a_sentence() -> None:
    for finding in run_checks(SOUND):
        assert not finding.text[0].islower(), finding


@pytest.mark.parametrize(("code", "changes", "told"), PASSED)
def test_what_passes_says_what_it_looked_at(code: str, changes: dict[str, Any], told: str) -> None:
    finding = found(code, **changes)
    assert finding.status == "passed"
    assert told in finding.text


NOT_APPLICABLE: list[tuple[str, dict[str, Any], str]] = [
    ("MIA001", {"blind": None, "no_records": "only answers were given"}, "only answers were given"),
    ("MIA002", {"duplicates": None, "no_records": "only answers were given"}, "only answers were given"),
    ("MIA003", {"reference_accuracy": None}, "No reference model was asked about records that it had not learnt."),
    ("MIA004", {"reference_counts": None}, "No reference models were used."),
    ("MIA005", {}, "One model was audited"),
    ("MIA007", {"results": results(Loss)}, "Needs a threshold attack and another attack."),
    ("MIA007", {"results": results(LEARNT)}, "Needs a threshold attack and another attack."),
    ("MIA008", {"results": [FAILED]}, "No attack was run."),
    ("MIA009", {"results": [FAILED]}, "No attack was run."),
    ("MIA010", {}, "One model was audited"),
    ("MIA011", {"results": []}, "No attack was run."),
    ("MIA013", {"verified": None}, "Answers were given; no dataset was read."),
    ("MIA014", {"results": [FAILED]}, "No attack was run."),
    ("MIA017", {"canary_clients": None}, "No canary clients took part."),
    ("MIA018", {"recording": None}, "No federation was recorded."),
]


@pytest.mark.parametrize(("code", "changes", "told"), NOT_APPLICABLE)
def test_what_does_not_apply_says_why(code: str, changes: dict[str, Any], told: str) -> None:
    finding = found(code, **changes)
    assert finding.status == "not applicable"
    assert told in finding.text


def test_an_audit_without_leakage_is_not_called_inverted() -> None:
    """Seven thresholds and an attack that learns, on noise: plain 95 % intervals raised the doubt in 17 of 150."""
    raised = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        labels, member = rng.integers(0, C, 200), rng.permutation(np.arange(200) < 100)
        evidence = from_logits(rng.normal(0, 2, (200, C)), labels)
        attacks = [ATTACKS[name] for name in (*FLOOR, "four-features-lr")]
        context = Context(results(*attacks, evidence=evidence, member=member), member, 0.0, 1.0, None, None)
        statuses = {finding.code: finding.status for finding in run_checks(context)}
        raised += statuses["MIA011"] == "problem" or statuses["MIA008"] == "problem"
    assert raised <= 1  # expected 0.3


def test_muted_doubts_stay_listed_and_other_findings_stay_as_they_are() -> None:
    context = replace(SOUND, verified=False, source="mine")
    findings = {f.code: f for f in run_checks(context, ["MIA013", "MIA001", "MIA005"])}
    assert findings["MIA013"].status == "muted"
    assert findings["MIA013"].text == "Muted by the user. The data files are the user's own word: mine"
    assert findings["MIA001"].status == "passed"
    assert findings["MIA005"].status == "not applicable"
    assert list(findings) == list(CHECKS)


def test_an_unknown_code_is_refused() -> None:
    for run in (lambda: check_codes(["MIA001", "MIA999"]), lambda: run_checks(SOUND, ["MIA999"])):
        with pytest.raises(ConfigError, match=r"unknown check 'MIA999'\n  known: MIA001, MIA002,"):
            run()


def test_codes_are_documented_and_findings_are_plain_values() -> None:
    assert list(CHECKS) == [f"MIA{number:03d}" for number in range(1, len(CHECKS) + 1)]
    documented = (Path(__file__).parents[1] / "docs" / "checks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (MIA\d+)$", documented, re.MULTILINE) == list(CHECKS)
    for code, (title, _) in CHECKS.items():
        assert re.search(rf"## {code}\n\*\*{re.escape(title)}\.\*\*", documented), code
    for finding in run_checks(SOUND):
        told = finding.to_dict()
        assert told["docs"] == f"docs/checks.md#{finding.code.lower()}"
        assert set(told) == {"code", "title", "status", "text", "docs", "numbers"}


def test_the_floor_is_made_of_attacks_that_exist() -> None:
    assert set(FLOOR) <= set(ATTACKS)
    assert not any(issubclass(ATTACKS[name], InformedAttack) for name in FLOOR)
