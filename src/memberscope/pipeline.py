"""What every way of auditing shares: the clock, the facts of the run, the last step."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import environment, seeds
from memberscope.attacks.registry import HEADLINES
from memberscope.attacks.runner import evaluate_scores
from memberscope.calibrated import Calibrated, calibrate_all
from memberscope.ladder import headline, lowest_supported_fpr
from memberscope.policy import judge
from memberscope.result import Audit
from memberscope.risk import RecordRisk, assess

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.canary_audit import CanaryAudit
    from memberscope.checks import Finding
    from memberscope.evidence import Evidence
    from memberscope.policy import Policy
    from memberscope.several_targets import SeveralTargets


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.started = datetime.datetime.now(datetime.UTC)
        self._begun = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The part `name` has ended."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    def total(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._begun, 3)


def run_facts(clock: Clock, command: str, seed: int) -> dict[str, Any]:
    """The run as `results.json` tells it; the id is set when it is saved."""
    return {
        "id": "not saved",
        "created": clock.started.isoformat(timespec="seconds"),
        "tool_version": environment.package_version("memberscope"),
        "seconds": {**clock.seconds, "total": clock.total()},
        "command": command,
        "seed": seed,
    }


def judge_records(
    results: list[AttackResult],
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    prior: float,
    seed: int,
    confidence: float,
) -> tuple[dict[str, Calibrated], RecordRisk | None]:
    """Thresholds from reference models for every attack that uses them, and the risk of single records.

    The risk is that under the attack that the answer is given for; None where no attack ran.
    """
    calibrated = calibrate_all(results, evidence, member, seed=seed, confidence=confidence)
    best = headline(results, lowest_supported_fpr(int((~member).sum())))
    if best is None:
        return calibrated, None
    found = calibrated.get(best.name)
    return calibrated, assess(best, found, evidence, member, prior=prior, seed=seed, confidence=confidence)


def scarcer_side(evidence: Evidence) -> NDArray[np.int64] | None:
    """Reference models with or without each record, whichever are fewer, int64 [N]; None without reference models."""
    if evidence.reference_membership is None:
        return None
    inside = evidence.reference_membership.sum(axis=0)
    return np.asarray(np.minimum(inside, len(evidence.reference_membership) - inside))


def reference_accuracies(evidence: Evidence) -> tuple[float, float] | None:
    """Share of right answers of a reference model on what it was trained on, and on the rest: means over the models.

    On the records of the evidence, as the target's. A mean that no model has is NaN; None without reference models.
    """
    if evidence.reference_logits is None or evidence.reference_membership is None:
        return None
    sides: tuple[list[float], list[float]] = ([], [])
    for k, inside in enumerate(evidence.reference_membership):
        right = evidence.reference_logits[k][0].argmax(axis=1) == evidence.labels
        for found, those in zip(sides, (inside, ~inside), strict=True):
            if those.any():
                found.append(float(right[those].mean()))
    learnt, others = (float(np.mean(found)) if found else float("nan") for found in sides)
    return learnt, others


def beside_references(evidence: Evidence, member: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Accuracy of the target and of the reference models, each on what it did not learn; None where one has none."""
    accuracies = reference_accuracies(evidence)
    if accuracies is None or np.isnan(accuracies[1]):
        return None
    return float(evidence.signals.correct[~member].mean()), accuracies[1]


def finish(
    assembled: dict[str, Any],
    results: list[AttackResult],
    findings: list[Finding],
    index: NDArray[np.int64],
    evidence: Evidence,
    member: NDArray[np.bool_],
    policy: Policy | None,
    level: float,
    *,
    canaries: CanaryAudit | None = None,
    risk: RecordRisk | None = None,
    targets: SeveralTargets | None = None,
) -> Audit:
    """Judge by the policy, with intervals at `level`, and put everything together."""
    if policy is not None:
        assembled["policy"] = _judge(policy, results, findings, member, assembled["run"]["seed"], level)
    confidence = evidence.signals.max_confidence
    return Audit(
        document=assembled,
        results=tuple(results),
        findings=tuple(findings),
        index=index,
        label=evidence.labels,
        member=member,
        max_confidence=confidence,
        canaries=canaries,
        risk=risk,
        targets=targets,
    )


def _judge(
    policy: Policy,
    results: list[AttackResult],
    findings: list[Finding],
    member: NDArray[np.bool_],
    seed: int,
    level: float,
) -> dict[str, Any]:
    """The verdict, from intervals that hold for all attacks together (Bonferroni): the worst of them decides.

    The attack fixed in advance, which the answer is given for, has half of the error probability to itself, and the
    others share the rest: the more of them there are, the less that one loses.
    """
    run = [r for r in results if r.scores is not None]
    ours = headline(run, None)
    fixed = ours is not None and ours.name in HEADLINES
    entries = []
    for result in results:
        evaluation = None
        if result.scores is not None:
            rng = seeds.generator(seed, "evaluation", f"policy {result.name}")
            error = (1 - level) / len(run)
            if fixed and len(run) > 1:
                error = (1 - level) / 2 if result is ours else (1 - level) / 2 / (len(run) - 1)
            evaluation = evaluate_scores(result.attack, result.scores, member, confidence=1 - error, rng=rng).to_dict()
        entries.append({"name": result.name, "status": result.status, "evaluation": evaluation})
    return judge(policy, entries, problems=[f.code for f in findings if f.status == "problem"])
