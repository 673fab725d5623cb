"""Many attacks on one evidence: what runs, what is skipped, what fails, and what the null catches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from memberscope.attacks.base import Attack, Card, InformedAttack
from memberscope.attacks.runner import AttackResult, evaluate_scores, interval_level, run_attacks, select
from memberscope.attacks.threshold import CorrectnessGap, Entropy, Loss
from memberscope.checks import Context, Finding, run_checks
from memberscope.errors import ConfigError, EvidenceError
from memberscope.evidence import Evidence, Knowledge, from_logits

N, C = 600, 4
CARD = Card("a paper", "a formula", "a cost", "a trap")
PROBABILITIES = frozenset({Knowledge.PROBABILITIES})


def leaking(n: int = N, strength: float = 1.5, seed: int = 0) -> tuple[Evidence, np.ndarray]:
    """Answers that are surer about members."""
    rng = np.random.default_rng(seed)
    labels, member = rng.integers(0, C, n), np.arange(n) < n // 2
    logits = rng.normal(0, 2, (n, C))
    logits[np.arange(n), labels] += 1 + strength * member
    return from_logits(logits, labels), member


EVIDENCE, MEMBER = leaking()


def run(attacks: list[type[Attack]], evidence: Evidence = EVIDENCE, member: np.ndarray = MEMBER) -> list[AttackResult]:
    return run_attacks(attacks, evidence, member, class_names=[f"class {c}" for c in range(C)])


def only(attack: type[Attack]) -> AttackResult:
    return run([attack])[0]


def findings(results: list[AttackResult], member: np.ndarray = MEMBER) -> dict[str, Finding]:
    context = Context(results, member, 0.0, 1.0, None, None)
    return {finding.code: finding for finding in run_checks(context)}


def made(answer: Callable[[Evidence], np.ndarray], name: str = "made", **more: object) -> type[Attack]:
    body = {"name": name, "title": "Made", "card": CARD, "needs": PROBABILITIES, "score": lambda self, e: answer(e)}
    return type("Made", (Attack,), {**body, **more})


def test_an_attack_is_scored_evaluated_and_held_against_its_null() -> None:
    result = only(Loss)
    assert (result.status, result.reason, result.name) == ("run", "", "loss")
    assert result.scores is not None
    np.testing.assert_array_equal(result.scores, EVIDENCE.signals.true_log_probability)
    assert result.evaluation is not None
    assert result.evaluation.auc.value > 0.6
    assert result.evaluation.auc.low > 0.5
    assert [c.name for c in result.evaluation.per_class] == ["class 0", "class 1", "class 2", "class 3"]
    assert result.null is not None
    assert result.null.passed
    assert result.null.confidence == 0.99
    assert result.null.auc.low < 0.5 < result.null.auc.high


def test_the_result_as_json() -> None:
    told = only(Loss).to_dict()
    assert told["name"] == "loss"
    assert told["needs"] == ["probabilities", "true labels"]
    assert told["adversary"] == "stranger"
    assert set(told["card"]) == {"paper", "formula", "cost", "traps"}
    assert told["null"]["passed"] is True
    assert told["evaluation"]["confidence"] == 0.95
    skipped = only(made(lambda e: e.signals.phi, needs=frozenset({Knowledge.WEIGHTS}))).to_dict()
    assert (skipped["evaluation"], skipped["null"], skipped["status"]) == (None, None, "skipped")


def test_scores_stand_in_the_order_of_the_records() -> None:
    seen = []

    def answer(evidence: Evidence) -> np.ndarray:
        seen.append(evidence.labels)
        return evidence.logits[0][:, 0]

    result = only(made(answer))
    np.testing.assert_array_equal(result.scores, EVIDENCE.logits[0][:, 0])
    assert not np.array_equal(seen[0], EVIDENCE.labels)  # the attack saw them in another one


def test_the_position_of_a_record_tells_an_attack_nothing() -> None:
    """In a pool the members come first, and a score that depends on the position would be perfect."""
    result = only(made(lambda e: -np.arange(float(e.n_records))))
    assert result.evaluation is not None
    assert result.evaluation.auc.low < 0.5 < result.evaluation.auc.high


def test_an_attack_that_cannot_run_is_skipped_with_its_reason() -> None:
    needy = made(lambda e: e.signals.phi, "needy", needs=PROBABILITIES | {Knowledge.REFERENCES})
    skipped, ran = run([needy, Loss])
    assert skipped.status == "skipped"
    assert skipped.reason == (
        "needs reference models trained on known random halves of the pool. "
        "Train reference models with --shadows K, or give reference_logits and reference_membership."
    )
    assert skipped.scores is None
    assert ran.status == "run"


def explode(evidence: Evidence) -> np.ndarray:
    raise ZeroDivisionError("of a third party")


def spoil(evidence: Evidence) -> np.ndarray:
    evidence.logits[:] = 0
    return np.zeros(evidence.n_records)


def refuse(evidence: Evidence) -> np.ndarray:
    raise EvidenceError("wants more", "give more")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (explode, "ZeroDivisionError: of a third party (explode, line "),
        (spoil, "ValueError: assignment destination is read-only (spoil, line "),
        (refuse, "wants more. give more"),
        (lambda e: np.zeros(3), "attack 'made' returned scores of shape (3,), expected (600,). this is a bug"),
        (lambda e: np.full(e.n_records, np.nan), "attack 'made' returned NaN for 600 of 600 records"),
        (lambda e: np.array(["a"] * e.n_records), "ValueError: could not convert string to float: "),
    ],
)
def test_an_attack_that_fails_is_reported_and_the_others_go_on(
    answer: Callable[[Evidence], np.ndarray], reason: str
) -> None:
    before, failed, after = run([Loss, made(answer), Loss])
    assert failed.status == "failed"
    assert failed.reason.startswith(reason)
    assert failed.evaluation is failed.null is failed.scores is None
    assert before.status == after.status == "run"
    assert before.evaluation is not None
    assert after.evaluation is not None
    assert before.evaluation.auc == after.evaluation.auc


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_user_can_stop_an_attack(stop: type[BaseException]) -> None:
    def answer(evidence: Evidence) -> np.ndarray:
        raise stop

    with pytest.raises(stop):
        run([made(answer)])


def test_too_few_records_for_the_folds_of_an_attack_that_learns() -> None:
    evidence, _ = leaking(20)
    member = np.arange(20) < 3
    learnt, fixed = run([Reversed, Loss], evidence, member)
    assert learnt.status == "failed"
    assert learnt.reason == (
        "5 folds need at least 5 members and as many non-members; the smaller group has 3. "
        "give more records, or use fewer folds (at least 2)"
    )
    assert fixed.status == "run"


class Learner(InformedAttack):
    """Learns which way the loss points."""

    name, title, card, needs = "learner", "Learner", CARD, PROBABILITIES
    sign = 1.0

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        loss = evidence.signals.loss
        self.slope = self.sign * (loss[member].mean() - loss[~member].mean())

    def score(self, evidence: Evidence) -> np.ndarray:
        return self.slope * evidence.signals.loss


class Reversed(Learner):
    """The sign inverted, as published tools have shipped it."""

    name, sign = "reversed", -1.0


def test_an_inverted_sign_is_caught() -> None:
    wrong = made(lambda e: e.signals.loss, "wrong")
    results = run([wrong, Reversed, Loss, Learner])
    found = findings(results)
    assert found["MIA011"].status == "problem"
    assert found["MIA011"].numbers == {"attacks": ["wrong", "reversed"]}
    assert found["MIA008"].status == "passed"


class Remembers(Learner):
    """Keeps what it was told outside of all that is put back between folds, and uses it when it scores."""

    name = "remembers"
    first: ClassVar[bool] = False

    def fit(self, evidence: Evidence, member: np.ndarray) -> None:
        for record, truth in zip(evidence.logits[0], member, strict=True):
            if not (self.first and record.tobytes() in TOLD):
                TOLD[record.tobytes()] = bool(truth)

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.array([float(TOLD.get(record.tobytes(), 0.5)) for record in evidence.logits[0]])


class RemembersTheFirst(Remembers):
    """Keeps what it was told first, so that a null that came last would not betray it."""

    name, first = "remembers-the-first", True


TOLD: dict[bytes, bool] = {}


@pytest.mark.parametrize("attack", [Remembers, RemembersTheFirst])
def test_the_null_catches_a_leak_between_folds(attack: type[Attack]) -> None:
    TOLD.clear()
    evidence, member = leaking(strength=0)
    results = run([attack, Loss], evidence, member)
    assert results[0].null is not None
    assert not results[0].null.passed
    assert results[0].null.auc.value > 0.8
    found = findings(results, member)
    assert found["MIA008"].status == "problem"
    assert found["MIA008"].numbers == {"failed": [attack.name]}
    assert "do not use it" in found["MIA008"].text
    assert found["MIA009"].status == "problem"


def test_the_null_of_a_sound_attack_passes_and_finds_nothing() -> None:
    aucs = []
    for seed in range(40):
        evidence, member = leaking(200, seed=seed)
        results = run_attacks([Learner], evidence, member, class_names="abcd", seed=seed)
        assert results[0].null is not None
        assert results[0].null.passed
        aucs.append(results[0].null.auc.value)
    assert np.mean(aucs) == pytest.approx(0.5, abs=3.5 * 0.06 / np.sqrt(40))


def test_results_do_not_depend_on_which_others_run() -> None:
    alone, among = only(Learner), run([Entropy, Learner, CorrectnessGap])[1]
    np.testing.assert_array_equal(alone.scores, among.scores)
    assert alone.evaluation is not None
    assert among.evaluation is not None
    assert alone.evaluation.auc == among.evaluation.auc
    again = run_attacks([Learner], EVIDENCE, MEMBER, class_names="abcd", seed=1)[0]
    assert not np.array_equal(again.scores, alone.scores)


def test_intervals_of_attacks_that_learn_are_wider() -> None:
    assert interval_level(Loss, 0.95) == 0.95
    assert interval_level(Learner, 0.95) == pytest.approx(0.9944, abs=1e-4)
    scores, rng = EVIDENCE.signals.true_log_probability, np.random.default_rng(0)
    fixed, learnt = (evaluate_scores(a, scores, MEMBER, confidence=0.95, rng=rng) for a in (Loss, Learner))
    assert fixed.confidence == learnt.confidence == 0.95
    widths = [np.log(e.auc.high / (1 - e.auc.high)) - np.log(e.auc.low / (1 - e.auc.low)) for e in (fixed, learnt)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(2), rel=0.01)


def test_who_watches_is_told_of_each_attack() -> None:
    heard: list[tuple[str, int, int]] = []
    run_attacks([Loss, Entropy], EVIDENCE, MEMBER, class_names="abcd", on_start=lambda *told: heard.append(told))
    assert heard == [("loss", 0, 2), ("entropy", 1, 2)]


def test_names_become_attacks() -> None:
    assert [a.name for a in select(["loss", "gap", "loss"], EVIDENCE)] == ["loss", "gap"]
    chosen = [a.name for a in select(["auto"], EVIDENCE)]
    assert {"four-features-lr", "gap", "loss", "phi", "hinge", "confidence", "entropy", "modified-entropy"} <= {*chosen}
    assert next(a.name for a in select(["entropy", "auto"], EVIDENCE)) == "entropy"
    with pytest.raises(ConfigError, match=r"unknown attack 'los'\n  did you mean loss"):
        select(["los"], EVIDENCE)
    with pytest.raises(ConfigError, match=r"unknown attack 'xyzzy'\n  `memberscope list attacks` shows them all"):
        select(["xyzzy"], EVIDENCE)
    with pytest.raises(ConfigError, match="no attack was named"):
        select([], EVIDENCE)


def test_equal_rankings_have_equal_figures() -> None:
    one, other = run([Loss, made(lambda e: 3 * e.signals.true_log_probability + 1, "scaled")])
    assert one.evaluation is not None
    assert other.evaluation is not None
    for figure in ("auc", "accuracy_youden", "balanced_accuracy", "average_precision", "confusion_matrix"):
        assert getattr(one.evaluation, figure) == getattr(other.evaluation, figure), figure


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"folds": 1}, "folds = 1 is out of range"),
        ({"confidence": 95}, "confidence = 95 is out of range"),
        ({"class_names": "abc"}, "3 class names for 4 classes"),
    ],
)
def test_settings_under_which_nothing_can_run_are_not_the_attacks_fault(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run_attacks([Loss], EVIDENCE, MEMBER, **{"class_names": "abcd", **settings})
