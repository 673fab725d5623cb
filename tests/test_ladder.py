"""The exposure ladder: which attack stands for which adversary, and why a row has no figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memberscope.attacks.base import Attack, Card, InformedAttack
from memberscope.attacks.registry import HEADLINE
from memberscope.attacks.runner import AttackResult, run_attacks
from memberscope.attacks.threshold import CorrectnessGap, Entropy, Loss
from memberscope.evidence import ADVERSARIES, Knowledge, from_logits
from memberscope.ladder import MALICIOUS, headline, ladder, lowest_supported_fpr, strongest
from memberscope.statistics.evaluation import FPRS

N, C = 2200, 3
RNG = np.random.default_rng(0)
LABELS, MEMBER = RNG.integers(0, C, N), RNG.permutation(np.arange(N) < N // 2)
LOGITS = RNG.normal(0, 2, (N, C))
LOGITS[np.arange(N), LABELS] += 1 + 2 * MEMBER
EVIDENCE = from_logits(LOGITS, LABELS)


class Learner(InformedAttack):
    """The loss, under the name of an attack that learns."""

    name, title, card, needs = "learner", "Learner", Card("", "", ""), frozenset({Knowledge.PROBABILITIES})

    def fit(self, evidence: Any, member: np.ndarray) -> None:
        pass

    def score(self, evidence: Any) -> np.ndarray:
        return np.asarray(evidence.signals.true_log_probability)


class Thief(Attack):
    """Needs the weights."""

    name, title, card, needs = "thief-attack", "Thief", Card("", "", ""), frozenset({Knowledge.WEIGHTS})

    def score(self, evidence: Any) -> np.ndarray:
        raise ValueError("no weights after all")


def results_of(*attacks: type[Attack], white_box: Any = None) -> list[AttackResult]:
    evidence = from_logits(LOGITS, LABELS, white_box=white_box)
    return run_attacks(attacks, evidence, MEMBER, class_names="abc")


def rows_of(results: list[AttackResult], member: np.ndarray = MEMBER) -> dict[str, dict[str, Any]]:
    rows = ladder(results, member, confidence=0.95, rng=np.random.default_rng(0), no_rounds="no federation")
    assert [row["adversary"] for row in rows] == [*(a.name for a in ADVERSARIES), MALICIOUS[0]]
    return {row["adversary"]: row for row in rows}


def test_each_adversary_has_its_best_attack() -> None:
    rows = rows_of(results_of(CorrectnessGap, Loss, Entropy, Learner))
    labels, stranger, informed = rows["stranger, labels only"], rows["stranger"], rows["informed stranger"]
    assert (labels["status"], labels["attack"], labels["corrected_for"]) == ("measured", "gap", 1)
    assert (stranger["attack"], stranger["auc_attack"], stranger["corrected_for"]) == ("loss", "loss", 3)
    assert informed["status"] == "measured"
    assert informed["corrected_for"] == 4
    assert labels["tpr"]["fpr"] == stranger["tpr"]["fpr"] == 0.01
    for row in (labels, stranger, informed):
        assert row["auc"]["low"] < row["auc"]["value"] < row["auc"]["high"]


def test_intervals_are_wider_the_more_attacks_there_were_to_choose_from() -> None:
    alone, of_three = (
        rows_of(results_of(Loss))["stranger"],
        rows_of(results_of(CorrectnessGap, Loss, Entropy))["stranger"],
    )
    assert alone["confidence"] == 0.95
    assert of_three["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert alone["auc"]["value"] == of_three["auc"]["value"]
    for figure in (lambda row: row["auc"], lambda row: row["tpr"]["estimate"]):
        assert figure(of_three)["low"] < figure(alone)["low"] < figure(alone)["high"] < figure(of_three)["high"]


def test_an_attack_that_learns_has_the_wide_interval_here_too() -> None:
    informed, plain = rows_of(results_of(Learner))["informed stranger"], rows_of(results_of(Loss))["stranger"]
    assert informed["auc"]["value"] == plain["auc"]["value"]
    assert informed["auc"]["low"] < plain["auc"]["low"]
    assert informed["confidence"] == plain["confidence"] == 0.95


def test_a_row_without_figures_says_why_and_whose_achievement_is_the_least_it_can_do() -> None:
    rows = rows_of(results_of(CorrectnessGap, Loss, Learner, Thief))
    insider, thief = rows["insider"], rows["thief"]
    # The insider does not know the membership that the informed stranger knows, so only the stranger is weaker.
    assert insider["reason"] == "at least what the stranger achieves; no attack of this adversary was asked for"
    assert thief["reason"] == (
        "at least what the stranger achieves; thief-attack skipped: needs the weights of the model. Audit the model "
        "itself (`memberscope audit`): answers alone do not hold the weights."
    )
    failed = rows_of(results_of(Loss, Thief, white_box=lambda name: np.zeros(N)))["thief"]
    assert failed["reason"].startswith(
        "at least what the stranger achieves; thief-attack failed: ValueError: no weights after all (score, line "
    )
    assert rows_of(results_of(Learner))["stranger"]["reason"] == "no attack of this adversary was asked for"
    assert rows["curious server"] == {
        "adversary": "curious server",
        "sees": "every client's update of every round",
        "status": "not measured",
        "reason": "no federation",
    }


def test_the_failure_of_a_weaker_adversarys_attack_is_not_the_reason_of_a_stronger_one() -> None:
    class Broken(CorrectnessGap):
        name = "broken"

        def score(self, evidence: Any) -> np.ndarray:
            raise ValueError("broken")

    rows = rows_of(results_of(Broken, Broken, Loss))
    assert rows["stranger, labels only"]["reason"].startswith("broken failed: ValueError: broken")
    assert rows["stranger, labels only"]["reason"].endswith(" (1 more likewise)")
    assert "broken" not in rows["insider"]["reason"]


def test_with_too_few_nonmembers_the_auc_decides() -> None:
    keep = np.concatenate([np.flatnonzero(MEMBER)[:200], np.flatnonzero(~MEMBER)[:60]])
    evidence = from_logits(LOGITS[keep], LABELS[keep])
    results = run_attacks([CorrectnessGap, Loss], evidence, MEMBER[keep], class_names="abc")
    row = rows_of(results, MEMBER[keep])["stranger"]
    assert row["tpr"] is None
    assert row["attack"] == row["auc_attack"] == "loss"


@pytest.mark.parametrize(
    ("n", "fpr"), [(99, None), (100, 0.1), (999, 0.1), (1000, 0.01), (10_000, 0.001), (10**6, 1e-5), (10**9, 1e-5)]
)
def test_the_lowest_rate_is_one_that_is_evaluated(n: int, fpr: float | None) -> None:
    assert lowest_supported_fpr(n) == fpr
    assert fpr is None or fpr in FPRS


def test_the_strongest_attack() -> None:
    results = results_of(CorrectnessGap, Loss, Thief)
    found = strongest(results, 0.01)
    assert found is not None
    assert found.name == "loss"
    assert strongest([r for r in results if r.name == "thief-attack"], 0.01) is None


class Headline(CorrectnessGap):
    """Stands for the attack fixed in advance; better ones of the same adversary are about."""

    name, needs = HEADLINE, frozenset({Knowledge.PROBABILITIES})


def test_the_attack_fixed_in_advance_stands_alone_and_uncorrected() -> None:
    results = results_of(Headline, Loss, Entropy, Learner)
    rows = rows_of(results)
    stranger, informed = rows["stranger"], rows["informed stranger"]
    assert (stranger["attack"], stranger["corrected_for"], stranger["confidence"]) == (HEADLINE, 1, 0.95)
    assert stranger["fixed"]
    assert stranger["auc"]["value"] < next(r for r in results if r.name == "loss").evaluation.auc.value
    assert (informed["attack"], informed["corrected_for"]) == ("learner", 2)  # its own, and the one fixed in advance
    assert not informed["fixed"]
    assert headline(results, 0.01).name == HEADLINE
    assert headline(results[1:], 0.01).name == "loss"


def test_an_adversary_that_comes_out_below_one_who_sees_less_says_so() -> None:
    class Weak(InformedAttack):
        name, title, card = HEADLINE, "Weak", Card("", "", "")
        needs = frozenset({Knowledge.PROBABILITIES})

        def fit(self, evidence: Any, member: np.ndarray) -> None:
            pass

        def score(self, evidence: Any) -> np.ndarray:
            said = np.asarray(evidence.signals.true_log_probability)
            return said + 3 * np.random.default_rng(0).normal(size=len(said))

    rows = rows_of(results_of(CorrectnessGap, Loss, Weak))
    assert rows["informed stranger"]["attack"] == HEADLINE
    assert rows["informed stranger"]["more"] == "stranger"
    assert rows["informed stranger"]["auc"]["value"] < rows["stranger"]["auc"]["value"]
    assert rows["stranger"]["more"] is None
    assert [rate["fpr"] for rate in rows["stranger"]["rates"]] == [0.1, 0.01]
    assert rows["stranger"]["rates"][1]["estimate"] == rows["stranger"]["tpr"]["estimate"]


def test_an_attack_fixed_in_advance_that_failed_is_not_answered_by() -> None:
    class Broken(Headline):
        def score(self, evidence: Any) -> np.ndarray:
            raise ValueError("broken")

    results = results_of(Broken, Loss, Entropy)
    assert headline(results, 0.01).name == "loss"
    assert (rows_of(results)["stranger"]["attack"], rows_of(results)["stranger"]["corrected_for"]) == ("loss", 2)
