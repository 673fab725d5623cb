"""Assembling ``results.json``: everything that a report shows, as one JSON-able dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.registry import HEADLINES
from memberscope.attacks.runner import AttackResult
from memberscope.checks import Finding
from memberscope.ladder import headline, ladder, lowest_supported_fpr
from memberscope.statistics.record_risk import agreement

if TYPE_CHECKING:
    from memberscope.calibrated import Calibrated
    from memberscope.risk import RecordRisk

SCHEMA_VERSION = 1

NOT_TESTED = (
    "Other kinds of leakage: attribute inference, reconstruction of records, extraction of the model.",
    "Adversaries of the exposure ladder marked as not measured.",
    "Attacks that are not in the table below, published or not, and larger budgets for those that are.",
    "Other trainings of the same recipe: the figures hold for this model.",
)


def assemble(
    *,
    kind: str,
    dataset: Mapping[str, Any],
    records: Mapping[str, Any],
    target: Mapping[str, Any] | None,
    results: Sequence[AttackResult],
    member: NDArray[np.bool_],
    findings: Sequence[Finding],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    run: Mapping[str, Any],
    policy: Mapping[str, Any] | None,
    top_records: Sequence[Mapping[str, Any]] | None,
    reproduce: Sequence[str],
    confidence: float,
    seed: int,
    references: Mapping[str, Any] | None = None,
    canaries: Mapping[str, Any] | None = None,
    bounds: Mapping[str, Any] | None = None,
    federation: Mapping[str, Any] | None = None,
    malicious: Mapping[str, Any] | None = None,
    calibrated: Mapping[str, Calibrated] | None = None,
    risk: RecordRisk | None = None,
    targets: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of one audit; NaN becomes null, so that it is valid JSON."""
    fpr = lowest_supported_fpr(int((~member).sum()))
    rows = ladder(
        results,
        member,
        confidence=confidence,
        rng=seeds.generator(seed, "evaluation", "ladder"),
        no_rounds=None if federation is not None else _no_rounds(target),
        unseen=None if federation is None else federation.get("unseen"),
        malicious=malicious,
    )
    best = headline(results, fpr)
    rule = (
        "fixed before any attack ran; its intervals need no correction for choice"
        if best is not None and best.name in HEADLINES
        else f"the attack with the highest true-positive rate at a false-positive rate of {fpr:.4g}, the lowest that "
        f"{int((~member).sum()):,} non-members support"
        if fpr is not None
        else "the attack with the highest AUC: the non-members are too few for any false-positive rate"
    )
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "run": dict(run),
        "dataset": dict(dataset),
        "records": dict(records),
        "target": None if target is None else dict(target),
        "references": None if references is None else dict(references),
        "attacks": [_entry(result, member, (calibrated or {}).get(result.name)) for result in results],
        "headline": None if best is None else best.name,
        "headline_fixed": best is not None and best.name in HEADLINES,
        "headline_rule": rule,
        "ladder": rows,
        "targets": targets,
        "canaries": canaries,
        "bounds": bounds,
        "federation": None if federation is None else dict(federation),
        "exposed": {
            "worst_classes": worst_classes(best),
            "generalization_gap": None if target is None else target.get("generalization_gap"),
            "top_records": None if top_records is None else list(top_records),
            "flagged": None if risk is None else {**risk.summary["flagged"], "attack": risk.attack},
            "posterior": None if risk is None else risk.summary["posterior"],
            "separation": None if risk is None else risk.summary["separation"],
            "agreement": _agreement(results, best),
        },
        "not_tested": list(NOT_TESTED if targets is None else NOT_TESTED[:-1]),
        "checks": [finding.to_dict() for finding in findings],
        "policy": policy,
        "settings": dict(settings),
        "environment": dict(environment),
        "reproduce": list(reproduce),
    }
    plain: dict[str, Any] = without_nan(document)
    return plain


def _no_rounds(target: Mapping[str, Any] | None) -> str:
    return "only answers were given" if target is None else "the model was trained in one place"


def _entry(result: AttackResult, member: NDArray[np.bool_], calibrated: Calibrated | None) -> dict[str, Any]:
    from memberscope.report.histogram import score_histogram

    content = result.to_dict()
    content["calibrated"] = None if calibrated is None else calibrated.to_dict()
    content["histogram"] = None if result.scores is None else score_histogram(result.scores, member)
    return content


def _agreement(results: Sequence[AttackResult], best: AttackResult | None) -> list[dict[str, Any]]:
    """Overlap of the highest-scored 1 % of records between the headline attack and each other attack (Jaccard)."""
    scores = {r.name: r.scores for r in results if r.scores is not None}
    if best is None:
        return []
    return [
        {"attack": name, "jaccard": agreement(scores[best.name], other)}
        for name, other in scores.items()
        if name != best.name
    ]


def worst_classes(result: AttackResult | None, at_most: int = 5) -> list[dict[str, Any]]:
    """The classes whose members are most exposed to an attack: highest adjusted lower end of the AUC first."""
    if result is None or result.evaluation is None:
        return []
    figures = [asdict(c) for c in result.evaluation.per_class]
    known = [f for f in figures if f["auc_adjusted"]["low"] is not None and not math.isnan(f["auc_adjusted"]["low"])]
    return sorted(known, key=lambda f: -f["auc_adjusted"]["low"])[:at_most]


def without_nan(value: Any) -> Any:
    """The same structure with NaN and infinities as None and NumPy scalars as Python numbers."""
    if isinstance(value, Mapping):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    if isinstance(value, np.ndarray):
        return without_nan(value.tolist())
    if isinstance(value, np.generic):
        return without_nan(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
