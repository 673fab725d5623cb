"""What every way of auditing shares: the clock, the facts of the run, the last step."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import environment
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
) -> Audit:
    """Judge by the policy, and put everything together."""
    if policy is not None:
        assembled["policy"] = judge(policy, assembled["attacks"])
    confidence = evidence.signals.max_confidence
    return Audit(assembled, tuple(results), tuple(findings), index, evidence.labels, member, confidence)
