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
        The false-positive rate of ``tpr``.
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
    known = set(Policy.__dataclass_fields__)
    unknown = sorted(set(table) - known) if isinstance(table, dict) else ["policy"]
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", f"known: {', '.join(sorted(known))}")
    try:
        policy = TypeAdapter(Policy).validate_python(table)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {told}", f"expected TOML such as {_EXAMPLE}") from None
    if not 0 <= policy.threshold <= 1 or not 0 < policy.fpr < 1:
        raise ConfigError(f"{path}: threshold and fpr must lie in [0, 1]", f"expected TOML such as {_EXAMPLE}")
    return policy


def judge(policy: Policy, attacks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Hold every attack's figure against the policy: by its interval, not by its point.

    The worst attack decides. Each interval is the one printed for that attack; where the verdict turns on the best of
    many, the interval of the exposure ladder (corrected for the choice) is the one to quote.

    Parameters
    ----------
    attacks
        Entries of ``results.json`` (`AttackResult.to_dict`).
    """
    found = [(a["name"], _figure(policy, a["evaluation"])) for a in attacks if a["evaluation"] is not None]
    usable = [(name, figure) for name, figure in found if figure is not None and figure["low"] is not None]
    at = f" at {policy.fpr:.4g} false positives" if policy.metric == "tpr" else ""
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
        elif upper["high"] <= policy.threshold and len(usable) == len(found):
            verdict = "within"
            text = f"{metric} is at most {upper['high']:.4g} ({reach}: {_shown(upper)}), within {policy.threshold:.4g}"
        else:
            verdict = "cannot tell"
            text = f"{metric} of {reach} is {_shown(upper)}, and the threshold {policy.threshold:.4g} lies inside"
    return {**asdict(policy), "verdict": verdict, "text": text, "exit_code": EXIT_CODES[verdict]}


def _shown(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _figure(policy: Policy, evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if policy.metric != "tpr":
        figure: Mapping[str, Any] = evaluation[policy.metric]
        return figure
    for point in evaluation["operating_points"]:
        if abs(point["fpr"] - policy.fpr) < 1e-12 and point["supported"]:
            tpr: Mapping[str, Any] | None = point["tpr"]
            return tpr
    return None
