"""For engineers: every attack that was asked for, its figures, and the checks that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memberscope.report import wording
from memberscope.report.document import (
    Cell,
    Results,
    Table,
    estimate_cell,
    headline,
    point_at,
    point_cell,
    ranked,
    shown_rates,
    strictest,
)
from memberscope.report.figures import by_exposure

_SECTIONS = ("problem", "caution", "passed", "not applicable", "muted")


def threat_model(results: Results) -> Table:
    """Every attack that was asked for: who could run it, what became of it, and whether its null sat at chance."""
    rows = []
    order = {"run": 0, "failed": 1, "skipped": 2}
    position = {a["name"]: i for i, a in enumerate(ranked(results))}
    attacks = results.get("attacks", [])
    for attack in sorted(attacks, key=lambda a: (order.get(a["status"], 3), position.get(a["name"], 0))):
        kind = {"failed": "bad", "skipped": "muted"}.get(attack["status"], "")
        rows.append(
            [
                Cell(attack["title"], attack["name"], "strong" if attack["name"] == results.get("headline") else ""),
                Cell(attack.get("adversary") or wording.MISSING),
                Cell(wording.listing(attack.get("needs") or ["nothing"])),
                Cell(attack["status"], attack.get("reason") or "", kind),
                _null_cell(attack.get("null")),
                Cell(wording.duration(attack.get("seconds")) if attack["status"] != "skipped" else wording.DASH),
            ]
        )
    header = ("Attack", "Weakest adversary who can run it", "It needs", "Status", "Membership permuted: AUC", "Time")
    return Table(header, rows, numeric=False)


def figures_of_attacks(results: Results) -> Table | None:
    """The figures of every attack that ran, with intervals and counts."""
    attacks = ranked(results)
    if not attacks:
        return None
    fprs = shown_rates(attacks[0]["evaluation"])
    rows = []
    for attack in attacks:
        e = attack["evaluation"]
        name = Cell(attack["name"], "", "strong" if attack["name"] == results.get("headline") else "")
        points = [point_cell(point_at(e, fpr)) for fpr in fprs]
        zero = point_cell(e.get("tpr_at_zero_fp"))
        plain = [e.get("balanced_accuracy"), e.get("advantage"), e.get("accuracy"), e.get("accuracy_youden")]
        rows.append(
            [name, estimate_cell(e["auc"]), *points, zero]
            + [estimate_cell(figure) if figure else Cell(wording.DASH, "", "muted") for figure in plain]
            + [estimate_cell(e.get("average_precision"))]
        )
    header = [
        "Attack",
        "AUC",
        *(f"TPR at FPR {wording.rate(f)}" for f in fprs),
        "TPR at zero false positives",
        "Balanced accuracy",
        "Advantage",
        "Accuracy at 0.5",
        "Accuracy at Youden's J",
        "Average precision",
    ]
    return Table(header, rows, _methods([a["evaluation"] for a in attacks]))


def thresholds(results: Results) -> Table | None:
    """The operating points of the headline attack: thresholds, counts, and how large the error really may be."""
    best = headline(results)
    if best is None:
        return None
    e = best["evaluation"]
    rows = []
    for fpr in shown_rates(e):
        point = point_at(e, fpr)
        assert point is not None
        if not point.get("supported"):
            blank = [Cell("")] * 3
            rows.append([Cell(wording.rate(fpr)), point_cell(point), *blank])
            continue
        rows.append(_operating_row(wording.rate(fpr), point, e["n_nonmembers"]))
    zero = e.get("tpr_at_zero_fp")
    if zero and zero.get("supported"):
        rows.append(_operating_row("none in this sample", zero, e["n_nonmembers"]))
    header = (
        "False-positive rate asked for",
        "Members found (TPR)",
        "Non-members accused",
        "True false-positive rate of this threshold",
        "Threshold",
    )
    return Table(header, rows)


def share_of_members(results: Results) -> str:
    """How many of the records judged here are members."""
    best = headline(results)
    if best is None:
        return wording.MISSING
    e = best["evaluation"]
    return wording.counted_percent(e["n_members"], e["n_members"] + e["n_nonmembers"])


def documents(results: Results) -> list[str]:
    """Where the codes of the checks are explained, each place once."""
    return sorted({str(c["docs"]).partition("#")[0] for c in results.get("checks", []) if c.get("docs")})


def precision_table(results: Results) -> Table | None:
    """Of those called members, how many are: by the share of members among those judged."""
    best = headline(results)
    values = best["evaluation"].get("ppv") if best else None
    if not values:
        return None
    priors = sorted({v["prior"] for v in values}, reverse=True)
    fprs = sorted({v["fpr"] for v in values}, reverse=True)
    found = {(v["prior"], v["fpr"]): v["ppv"] for v in values}
    rows = [
        [Cell(f"{wording.rate(p)} are members")] + [estimate_cell(found.get((p, f)), as_percent=True) for f in fprs]
        for p in priors
    ]
    header = [
        "If of those judged",
        *(f"right, at FPR {wording.rate(f)}" if f else "right, at zero false positives" for f in fprs),
    ]
    return Table(header, rows)


def rejection_table(results: Results) -> Table | None:
    """Who is surely not a member: true-negative rate at low false-negative rates."""
    best = headline(results)
    points = best["evaluation"].get("tnr_at_fnr") if best else None
    if not points:
        return None
    rows = []
    for point in sorted(points, key=lambda p: -p["fnr"]):
        if point.get("supported"):
            cell = estimate_cell(point.get("tnr"), as_percent=True)
            missed = Cell(wording.count(point.get("false_negatives")))
        else:
            cell = Cell("n too small", f"needs ≥{wording.NBSP}{wording.count(point.get('needs'))}\nmembers", "muted")
            missed = Cell("")
        rows.append([Cell(wording.rate(point["fnr"])), cell, missed])
    return Table(("Members wrongly cleared, at most", "Non-members cleared (TNR)", "Members wrongly cleared"), rows)


def confusion(results: Results) -> dict[str, Any] | None:
    """The confusion matrix of the headline attack with row percentages."""
    best = headline(results)
    matrix = best["evaluation"].get("confusion_matrix") if best else None
    if not best or not matrix:
        return None
    (tn, fp), (fn, tp) = matrix
    members, nonmembers = tp + fn, tn + fp
    rows = [
        [Cell("member"), _share_cell(tp, members), _share_cell(fn, members), Cell(wording.count(members))],
        [Cell("non-member"), _share_cell(fp, nonmembers), _share_cell(tn, nonmembers), Cell(wording.count(nonmembers))],
    ]
    return {
        "attack": best["title"],
        "threshold": wording.significant(best["evaluation"].get("optimal_threshold"), 4),
        "table": Table(("In truth", "called member", "called non-member", "records"), rows),
    }


def class_table(results: Results) -> Table | None:
    """Every class under the headline attack, most exposed first."""
    best = headline(results)
    classes = best["evaluation"].get("per_class") if best else None
    if not classes:
        return None
    rows = []
    for entry in by_exposure(classes):
        name = str(entry.get("name") or entry["label"])
        rows.append(
            [
                Cell(wording.shorten(name, 60), f"class {entry['label']}" if name != str(entry["label"]) else ""),
                Cell(wording.count(entry["n_members"])),
                Cell(wording.count(entry["n_nonmembers"])),
                estimate_cell(entry.get("auc")),
                Cell(wording.interval(entry.get("auc_adjusted"))),
                point_cell(entry.get("tpr_at_10pct")),
                point_cell(entry.get("tpr_at_1pct")),
                Cell(
                    wording.p_value(entry.get("p_adjusted")) if wording.known(entry.get("p_adjusted")) else wording.DASH
                ),
            ]
        )
    header = (
        "Class",
        "Members",
        "Non-members",
        "AUC",
        "AUC, interval adjusted for all classes",
        f"TPR at FPR {wording.rate(0.1)}",
        f"TPR at FPR {wording.rate(0.01)}",
        "Against guessing, adjusted",
    )
    caption = (
        "Intervals of each class for itself, and one of the AUC that holds for all classes together (Bonferroni). The "
        "last column tests whether the AUC is 1/2, adjusted for the number of classes (Holm)."
    )
    return Table(header, rows, caption)


def checks_by_section(results: Results) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Checks grouped as problem, caution, passed, not applicable, muted; empty groups left out."""
    checks = results.get("checks", [])
    groups = [(s, [c for c in checks if c["status"] == s]) for s in _SECTIONS]
    return [(section, found) for section, found in groups if found]


def _operating_row(asked: str, point: Mapping[str, Any], n_nonmembers: int) -> list[Cell]:
    true_fpr = point.get("true_fpr")
    return [
        Cell(asked),
        point_cell(point),
        Cell(wording.of(point.get("false_positives"), n_nonmembers)),
        Cell(wording.interval(true_fpr, as_percent=True)),
        Cell(wording.significant(point.get("threshold"), 4)),
    ]


def _null_cell(null: Mapping[str, Any] | None) -> Cell:
    if not null:
        return Cell(wording.DASH, "", "muted")
    auc = null.get("auc") or {}
    detail = f"{wording.interval(auc)}; {'at chance' if null.get('passed') else 'NOT at chance'}"
    return Cell(wording.significant(auc.get("value")), detail, "" if null.get("passed") else "bad")


def _methods(evaluations: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, None] = {}
    for e in evaluations:
        for name in ("auc", "balanced_accuracy", "advantage", "accuracy", "average_precision"):
            if (e.get(name) or {}).get("method"):
                found[f"{name.replace('_', ' ').replace('auc', 'AUC')}: {e[name]['method']}"] = None
        point = strictest(e)
        if point and point["tpr"].get("method"):
            found[f"TPR: {point['tpr']['method']}"] = None
    level = wording.level(evaluations[0].get("confidence"))
    return f"{level} intervals below each figure, counts beside them. " + (
        f"Methods of the intervals: {'; '.join(found)}." if found else ""
    )


def _share_cell(k: int, n: int) -> Cell:
    return Cell(wording.count(k), f"{wording.percent(k / n)} of the row" if n else "")
