"""A policy: the exposure that somebody decided to accept, and whether an audit stays within it.

No verdict is given without a policy: a threshold has an owner and a reason, and neither is ours to invent.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from memberscope.errors import ConfigError
from memberscope.statistics.evaluation import FPRS

Verdict = Literal["within", "exceeds", "cannot tell"]
EXIT_CODES: dict[Verdict, int] = {"within": 0, "exceeds": 1, "cannot tell": 2}
EXIT_FAILED = 3

_EXAMPLE = '[policy] metric = "tpr", fpr = 0.001, threshold = 0.01, owner = "...", reason = "..."'


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The largest figure that is acceptable.

    Parameters
    ----------
    metric
        ``tpr`` (at `fpr`), ``auc`` or ``advantage``.
    threshold
        The largest acceptable value, in [0, 1].
    fpr
        The false-positive rate of ``tpr``, one of those that are evaluated.
    owner, reason
        Who set the threshold, and why.
    """

    metric: Literal["tpr", "auc", "advantage"]
    threshold: float
    owner: str
    reason: str
    fpr: float = 0.001


def read_policy(path: Path) -> Policy:
    """Read a policy from TOML (a table ``policy`` or the top level).

    Raises
    ------
    ConfigError
        Missing or unreadable file, unknown keys, values of the wrong type or out of range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}", f"expected TOML such as {_EXAMPLE}") from None
    table = content.get("policy", content)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: policy is not a table", f"expected TOML such as {_EXAMPLE}")
    known = set(Policy.__dataclass_fields__)
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", f"known: {', '.join(sorted(known))}")
    try:
        policy = TypeAdapter(Policy).validate_python(table)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {told}", f"expected TOML such as {_EXAMPLE}") from None
    if not 0 <= policy.threshold <= 1:
        raise ConfigError(
            f"{path}: threshold = {policy.threshold} is outside [0, 1]", "it is a share, not a percentage"
        )
    if not any(_same(policy.fpr, fpr) for fpr in FPRS):
        raise ConfigError(
            f"{path}: no figure is computed at fpr = {policy.fpr}", f"one of {', '.join(f'{f:g}' for f in FPRS)}"
        )
    return policy


def judge(policy: Policy, attacks: Sequence[Mapping[str, Any]], *, problems: Sequence[str] = ()) -> dict[str, Any]:
    """Hold every attack's figure against the policy: by its interval, not by its point.

    The worst attack decides, so the intervals should be corrected for the choice among all of them. Nothing is called
    within the policy while an attack that was asked for failed: it could have been the worst.

    Parameters
    ----------
    attacks
        Entries with name, status and evaluation as in ``results.json``.
    problems
        Codes of the checks that found the figures misleading: then no verdict can rest on them.
    """
    found = [(a["name"], _figure(policy, a["evaluation"])) for a in attacks if a["evaluation"] is not None]
    usable = [(name, figure) for name, figure in found if figure is not None and figure["low"] is not None]
    failed = [a["name"] for a in attacks if a["status"] == "failed"]
    at = f" at a false-positive rate of {policy.fpr:.4g}" if policy.metric == "tpr" else ""
    metric = {"tpr": "true-positive rate", "auc": "ROC-AUC", "advantage": "advantage"}[policy.metric] + at
    verdict: Verdict
    if not usable:
        verdict, text = "cannot tell", f"no attack has a {metric} that this sample supports"
    else:
        name, worst = max(usable, key=lambda item: item[1]["low"])
        reach, upper = max(usable, key=lambda item: item[1]["high"])
        if worst["low"] > policy.threshold:
            verdict = "exceeds"
            text = f"{metric} of {name} is {_shown(worst)}, wholly above {policy.threshold:.4g}"
        elif upper["high"] > policy.threshold:
            verdict = "cannot tell"
            text = f"{metric} of {reach} is {_shown(upper)}, and the threshold {policy.threshold:.4g} lies inside"
        else:
            verdict = "within"
            text = f"{metric} is at most {upper['high']:.4g} ({reach}: {_shown(upper)}), within {policy.threshold:.4g}"
            lacking = [name for name, _ in found if name not in dict(usable)]
            if failed or lacking:
                verdict = "cannot tell"
                missing = f"{', '.join(failed)} failed" if failed else f"{', '.join(lacking)} has no such figure"
                text = f"of the attacks with a figure, {text}; but {missing}"
    if problems:
        verdict = "cannot tell"
        text = f"the audit itself is in doubt ({', '.join(problems)}), so its figures cannot be held against a policy"
    return {**asdict(policy), "verdict": verdict, "text": text, "exit_code": EXIT_CODES[verdict]}


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-9 * other


def _shown(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _figure(policy: Policy, evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if policy.metric != "tpr":
        figure: Mapping[str, Any] = evaluation[policy.metric]
        return figure
    for point in evaluation["operating_points"]:
        if _same(policy.fpr, point["fpr"]) and point["supported"]:
            tpr: Mapping[str, Any] | None = point["tpr"]
            return tpr
    return None
