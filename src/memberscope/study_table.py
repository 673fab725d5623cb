"""From the run folders of a study to its table: a line for each audit and for each attack, and which rows none beats.

Accuracy and leakage are compared only where the attacker was adaptive: reference models trained by the row's own
recipe, defense and all. A defense that is attacked by somebody who ignores it looks better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memberscope.statistics.intervals import clopper_pearson
from memberscope.statistics.over_targets import spread

Document = Mapping[str, Any]
Line = dict[str, Any]
RATES = (0.1, 0.01, 0.001)
"""False-positive rates of the table; where a sample does not support one, its columns are empty."""


def line_of(row: str, axes: Mapping[str, Any], document: Document, folder: str) -> Line:
    """One audit as a line of the table; what it does not have is None."""
    target, records = document["target"] or {}, document["records"]
    accuracy = target.get("test_acc")
    n, confidence = records["nonmembers"], document["settings"].get("confidence", 0.95)
    low, high = clopper_pearson(accuracy * n, n, confidence) if accuracy is not None else (None, None)
    attack, ladder_row = _attacker(document)
    line: Line = {
        "row": row,
        **axes,
        "status": "done",
        "dataset": document["dataset"]["name"],
        "members": records["members"],
        "nonmembers": n,
        "train_acc": target.get("train_acc"),
        "test_acc": accuracy,
        "test_acc_low": low,
        "test_acc_high": high,
        "reference_models": (document.get("references") or {}).get("models", 0),
        "adversary": None if ladder_row is None else ladder_row["adversary"],
        "attack": None if attack is None else attack["name"],
        "attack_fixed": bool(ladder_row and ladder_row.get("fixed")),
        "corrected_for": None if ladder_row is None else ladder_row["corrected_for"],
    }
    line |= _three("auc", None if attack is None else attack["evaluation"]["auc"])
    for fpr in RATES:
        line |= _three(f"tpr_at_{fpr:g}", None if attack is None else tpr_of(attack["evaluation"], fpr))
    lowest = None if ladder_row is None else ladder_row["tpr"]
    line["lowest_fpr"] = None if lowest is None else lowest["fpr"]
    line |= _three("tpr_at_lowest", None if lowest is None else lowest["estimate"])
    line |= _canaries(document.get("canaries"))
    line |= _bounds(document)
    line |= {
        "problems": " ".join(c["code"] for c in document["checks"] if c["status"] == "problem"),
        "seconds": document["run"]["seconds"]["total"],
        "confidence": confidence,
        "run": folder,
    }
    return line


def attack_lines(row: str, axes: Mapping[str, Any], document: Document) -> list[Line]:
    """One line for each attack of an audit, on the population and on each kind of canary."""
    lines = []
    for where, attacks in _groups(document):
        for attack in attacks:
            evaluation = attack["evaluation"]
            line: Line = {"row": row, **axes, "records": where, "attack": attack["name"], "status": attack["status"]}
            line |= {"reason": attack["reason"], "adversary": attack["adversary"], "seconds": attack["seconds"]}
            line |= _three("auc", evaluation and evaluation["auc"])
            points = evaluation["operating_points"] if evaluation else ()
            for point in points:
                line |= _three(f"tpr_at_{point['fpr']:g}", point["tpr"] if point["supported"] else None)
            line |= _three("tpr_at_zero_false_positives", evaluation and evaluation["tpr_at_zero_fp"]["tpr"])
            lines.append(line)
    return lines


def tpr_of(evaluation: Mapping[str, Any], fpr: float) -> Mapping[str, Any] | None:
    """The true-positive rate at a false-positive rate, with its interval; None where the sample does not support it."""
    for point in evaluation["operating_points"]:
        if point["supported"] and abs(point["fpr"] - fpr) < 1e-12:
            found: Mapping[str, Any] | None = point["tpr"]
            return found
    return None


@dataclass(frozen=True)
class Point:
    """A row of the study in the picture: the mean over its seeds, with intervals.

    Parameters
    ----------
    name
        Of the row, with its place on the axes other than the seed.
    accuracy, leakage
        (value, low, high) each: test accuracy, and true-positive rate at the picture's false-positive rate.
    runs
        Audits that it is the mean of.
    front
        Whether no other row has both a better accuracy and a lower leakage.
    detail
        What else to know: the kind of canary.
    """

    name: str
    accuracy: tuple[float, float, float]
    leakage: tuple[float, float, float]
    runs: int
    front: bool = False
    detail: str = ""


def common_rate(lines: Sequence[Line], wanted: float, *, prefix: str = "") -> float | None:
    """The picture's false-positive rate: the wanted one if all audits support it, else the lowest that all support."""
    lowest = [line[f"{prefix}lowest_fpr"] for line in lines if line.get(f"{prefix}lowest_fpr") is not None]
    return max([wanted, *lowest]) if lowest else None


def points_of(
    lines: Sequence[Line], documents: Mapping[str, Document], axes: Sequence[str], wanted: float, *, canaries: bool
) -> tuple[list[Point], float | None]:
    """The points of the picture and the false-positive rate of their leakage.

    Parameters
    ----------
    lines
        Of `line_of`; those without reference models or without figures are left out.
    documents
        Run (as `line["run"]`) -> its document.
    axes
        Names; rows are averaged over ``seed`` and kept apart on the others.
    wanted
        False-positive rate that is asked for.
    canaries
        The leakage of the most exposed kind of canary in place of the population's.
    """
    prefix = "canary_" if canaries else ""
    usable = [line for line in lines if line["status"] == "done" and line["reference_models"] and line["attack"]]
    fpr = common_rate(usable, wanted, prefix=prefix)
    if fpr is None:
        return [], None
    grouped: dict[str, list[tuple[Line, Mapping[str, Any]]]] = {}
    for line in usable:
        name = ", ".join([line["row"], *(f"{a} {line[a]}" for a in axes if a != "seed")])
        leak = _leakage(line, documents[line["run"]], fpr, canaries=canaries)
        if leak is not None:
            grouped.setdefault(name, []).append((line, leak))
    points = []
    for name, group in grouped.items():
        accuracies = [(one["test_acc"], one["test_acc_low"], one["test_acc_high"]) for one, _ in group]
        leaks = [(leak["value"], leak["low"], leak["high"]) for _, leak in group]
        kinds = " or ".join(dict.fromkeys(one["canary_kind"] for one, _ in group)) if canaries else ""
        accuracy, leakage = (mean_of(of, group[0][0]["confidence"]) for of in (accuracies, leaks))
        points.append(Point(name, accuracy, leakage, len(group), detail=kinds))
    return mark_front(points), fpr


def mark_front(points: Sequence[Point]) -> list[Point]:
    """Mark the Pareto front: rows that no other beats in accuracy without leaking as much, or the other way round."""

    def beaten(one: Point) -> bool:
        a, leak = one.accuracy[0], one.leakage[0]
        return any(
            p.accuracy[0] >= a and p.leakage[0] <= leak and (p.accuracy[0] > a or p.leakage[0] < leak) for p in points
        )

    return [Point(p.name, p.accuracy, p.leakage, p.runs, front=not beaten(p), detail=p.detail) for p in points]


def _leakage(line: Line, document: Document, fpr: float, *, canaries: bool) -> Mapping[str, Any] | None:
    if canaries:
        if line["canary_kind"] is None:
            return None
        kinds = {kind["kind"]: kind for kind in document["canaries"]["kinds"]}
        attacks = kinds[line["canary_kind"]]["attacks"]
        found = [a["evaluation"] for a in attacks if a["name"] == line["canary_attack"] and a["evaluation"]]
        return tpr_of(found[0], fpr) if found else None
    if line["lowest_fpr"] == fpr:
        return {key: line[f"tpr_at_lowest{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    found = [a["evaluation"] for a in document["attacks"] if a["name"] == line["attack"]]
    return tpr_of(found[0], fpr)


def mean_of(estimates: Sequence[tuple[float, float, float]], confidence: float = 0.95) -> tuple[float, float, float]:
    """The one estimate with its interval; of several seeds their mean, with the t interval over trainings.

    Where all seeds have one figure there is no such interval, and its ends are NaN.
    """
    if len(estimates) == 1:
        return estimates[0]
    mean = spread([value for value, _, _ in estimates], confidence).mean
    return mean.value, mean.low, mean.high


def _attacker(document: Document) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The attack that the row is judged by, and its row of the ladder.

    An insider's: the one that was fixed beforehand where it ran. Against a defense that leaves an insider nothing to
    use (labels only) the strongest of the weaker adversaries.
    """
    measured = [row for row in document["ladder"] if row["status"] == "measured" and row["adversary"] != "thief"]
    insider = [row for row in measured if row["adversary"] == "insider"]
    chosen = (insider or measured)[-1:]
    if not chosen:
        return None, None
    return next(a for a in document["attacks"] if a["name"] == chosen[0]["attack"]), chosen[0]


def _groups(document: Document) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    canaries = document.get("canaries") or {"kinds": []}
    return [("population", document["attacks"]), *((k["kind"], k["attacks"]) for k in canaries["kinds"])]


def _canaries(canaries: Mapping[str, Any] | None) -> Line:
    """The most exposed kind of canary, under the attack that canaries are judged by."""
    keys = ("canary_kind", "canaries", "canary_attack", "canary_lowest_fpr")
    if not canaries or canaries["attack"] is None:
        names = ("canary_auc", "canary_tpr_at_lowest", "canary_tpr_at_zero_false_positives")
        return dict.fromkeys(keys) | {column: None for name in names for column in _three(name, None)}

    def exposure(kind: Mapping[str, Any]) -> tuple[float, float]:
        tpr = (kind["tpr"] or {}).get("estimate") or {}
        return tpr.get("value") or 0.0, (kind["auc"] or {}).get("value") or 0.0

    worst = max(canaries["kinds"], key=exposure)
    tpr = worst["tpr"]
    line: Line = dict(
        zip(keys, (worst["kind"], canaries["records"], canaries["attack"], tpr and tpr["fpr"]), strict=True)
    )
    judged = next((a["evaluation"] for a in worst["attacks"] if a["name"] == canaries["attack"]), None)
    line |= _three("canary_auc", worst["auc"]) | _three("canary_tpr_at_lowest", tpr and tpr["estimate"])
    return line | _three("canary_tpr_at_zero_false_positives", judged and judged["tpr_at_zero_fp"]["tpr"])


def _bounds(document: Document) -> Line:
    bounds = document.get("bounds") or {}
    claim = (document["target"] or {}).get("privacy") or {}
    lower = {group: (bounds.get(group) or {}).get("epsilon") for group in ("population", "canaries")}
    return {
        "epsilon_at_least": lower["population"],
        "epsilon_at_least_canaries": lower["canaries"],
        "epsilon_accountant": claim.get("epsilon"),
        "delta": claim.get("delta") or bounds.get("delta"),
    }


def _three(name: str, estimate: Mapping[str, Any] | None) -> Line:
    """A figure and its interval as three columns."""
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {f"{name}{end}": None if not estimate else estimate[key] for end, key in ends}
