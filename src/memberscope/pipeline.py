"""What every way of auditing shares: the clock, the facts of the run, the last step."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import environment, seeds
from memberscope.attacks.runner import evaluate_scores
from memberscope.policy import judge
from memberscope.result import Audit

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.checks import Finding
    from memberscope.evidence import Evidence
    from memberscope.policy import Policy


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


def finish(
    assembled: dict[str, Any],
    results: list[AttackResult],
    findings: list[Finding],
    index: NDArray[np.int64],
    evidence: Evidence,
    member: NDArray[np.bool_],
    policy: Policy | None,
    level: float,
) -> Audit:
    """Judge by the policy, with intervals at `level`, and put everything together."""
    if policy is not None:
        assembled["policy"] = _judge(policy, results, findings, member, assembled["run"]["seed"], level)
    confidence = evidence.signals.max_confidence
    return Audit(assembled, tuple(results), tuple(findings), index, evidence.labels, member, confidence)


def _judge(
    policy: Policy,
    results: list[AttackResult],
    findings: list[Finding],
    member: NDArray[np.bool_],
    seed: int,
    level: float,
) -> dict[str, Any]:
    """The verdict, from intervals that hold for all attacks together (Bonferroni): the worst of them decides."""
    run = [r for r in results if r.scores is not None]
    together = 1 - (1 - level) / max(1, len(run))
    entries = []
    for result in results:
        evaluation = None
        if result.scores is not None:
            rng = seeds.generator(seed, "evaluation", f"policy {result.name}")
            evaluation = evaluate_scores(result.attack, result.scores, member, confidence=together, rng=rng).to_dict()
        entries.append({"name": result.name, "status": result.status, "evaluation": evaluation})
    return judge(policy, entries, problems=[f.code for f in findings if f.status == "problem"])
