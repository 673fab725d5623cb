"""The figures of an audit in a few lines of text, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """The answer first, then the attacks, then what to doubt."""
    lines = [answer(document)]
    table = attack_table(document)
    reasons = sum(a["evaluation"] is None for a in document["attacks"])  # the last rows: words, and no figures to align
    figures = table[: len(table) - reasons]
    first = max(len(row[0]) for row in table)
    lines += [*aligned(figures, first=first), *(f"{row[0]:<{first}}  {row[1]}" for row in table[len(figures) :])]
    lines += [*calibrated_lines(document), *target_lines(document), *promise_lines(document)]
    doubts = [c for c in document["checks"] if c["status"] in ("problem", "caution")]
    lines += [f"{c['code']} {c['status']}: {c['text']}" for c in doubts]
    return lines


def aligned(table: Sequence[Sequence[str]], *, first: int = 0) -> list[str]:
    """The rows of a table as lines with columns of one width; the first column is at least `first` wide."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[0] = max(widths[0], first)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def answer(document: Mapping[str, Any]) -> str:
    """One sentence in natural frequencies: what the strongest attack achieves."""
    from memberscope.report.wording import denominator, frequency

    row = strongest_row(document)
    if row is None:
        return "No attack could be run."
    auc = f"AUC {ci(row['auc'])}"
    if row["tpr"] is None:
        return f"The strongest attack ({row['auc_attack']}) ranks members above non-members: {auc} (0.5 is guessing)."
    fpr, tpr = row["tpr"]["fpr"], row["tpr"]["estimate"]
    n = denominator(fpr)
    fixed = bool(document.get("headline_fixed"))
    which = "the attack fixed in advance" if fixed else "the strongest attack"
    rank = "As a ranking: " if fixed else f"Best ranking: {row['auc_attack']}, "
    return (
        f"Of {n:,} members, {which} ({row['attack']}) identifies about {frequency(tpr['value'], n)} "
        f"({_level(row)}: {frequency(tpr['low'], n)} to {frequency(tpr['high'], n)}) while wrongly "
        f"accusing {frequency(fpr, n)} of {n:,} non-members; guessing would identify {frequency(fpr, n)}. "
        f"{rank}{auc}."
    )


def _level(row: Mapping[str, Any]) -> str:
    """The level that holds for the row as a whole: each of its attacks has an interval that is wide enough for that."""
    picked = row["corrected_for"]
    level = f"{100 - 100 * (1 - row['confidence']) * picked:.3g}% interval"
    return level if picked == 1 else f"{level}, allowing for having picked the best of {picked} attacks"


def strongest_row(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The measured row of the exposure ladder that the answer is taken from.

    That of the attack fixed in advance, which was not chosen; else, of the rows with the headline attack, the one with
    the widest correction. Not the last row: an insider need not know what an informed stranger knows.
    """
    measured = [row for row in document["ladder"] if row["status"] == "measured"]
    if document.get("headline_fixed"):
        measured = [row for row in measured if row.get("fixed")] or measured
    of_headline = [row for row in measured if row["attack"] == document["headline"]]
    return max(of_headline or measured, key=lambda row: row["corrected_for"], default=None)


def attack_table(document: Mapping[str, Any]) -> list[list[str]]:
    """A header and one row an attack, strongest AUC first; what did not run comes last, with its reason."""
    run = [a for a in document["attacks"] if a["evaluation"] is not None]
    fprs = [p["fpr"] for p in run[0]["evaluation"]["operating_points"] if p["supported"]] if run else []
    header = ["attack", "AUC", "accuracy", *(f"TPR at {fpr:.4g} FPR" for fpr in fprs), "seconds"]
    rows = [header]
    for attack in sorted(run, key=lambda a: -(a["evaluation"]["auc"]["value"] or 0)):
        evaluation = attack["evaluation"]
        points = {p["fpr"]: p["tpr"] for p in evaluation["operating_points"] if p["supported"]}
        accuracy = evaluation["accuracy"] or evaluation["accuracy_youden"]
        figures = [ci(evaluation["auc"]), ci(accuracy), *(ci(points.get(fpr), 4) for fpr in fprs)]
        rows.append([attack["name"], *figures, f"{attack['seconds']:.2f}"])
    for attack in document["attacks"]:
        if attack["evaluation"] is None:
            rows.append([attack["name"], f"{attack['status']}: {attack['reason']}", *[""] * (len(header) - 2)])
    return rows


def calibrated_lines(document: Mapping[str, Any]) -> list[str]:
    """What the headline attack does with a threshold from reference models, at the lowest rate that can be shown."""
    best = [a for a in document["attacks"] if a["name"] == document["headline"]]
    calibrated = (best[0].get("calibrated") if best else None) or {}
    points = [p for p in calibrated.get("points", []) if p["supported"]]
    if not points:
        return []
    point = min(points, key=lambda p: float(p["fpr"]))
    ppv = {v["prior"]: v["ppv"] for v in calibrated["ppv"] if v["fpr"] == point["fpr"]}
    right = ", ".join(f"{ci(v, 2)} if {prior:.0%} are members" for prior, v in sorted(ppv.items(), reverse=True))
    return [
        f"Threshold from reference models for {point['fpr']:.4g} FPR: FPR {ci(point['true_fpr'], 4)}, "
        f"TPR {ci(point['tpr'], 4)}; share of right accusations {right}."
    ]


def target_lines(document: Mapping[str, Any]) -> list[str]:
    """What the headline attack does on several targets: mean, spread, and whether the same records are found."""
    several = document.get("targets")
    spread = ((several or {}).get("attacks") or {}).get(document["headline"])
    if not several or not spread:
        return []
    tpr = "".join(
        f"; TPR at {one['fpr']:.4g} FPR {ci(one['mean'], 4)}, sd {one['sd']:.4f}"
        for one in sorted(spread["tpr"], key=lambda one: float(one["fpr"]))[:1]
    )
    lines = [
        f"Over {several['number']} targets, mean of {document['headline']}: AUC {ci(spread['auc']['mean'])}, "
        f"sd {spread['auc']['sd']:.4f}{tpr}."
    ]
    agreed = several["agreement"]
    if agreed is not None and agreed["jaccard"] is not None:
        lines.append(
            f"Of the members of two targets found in either at {agreed['fpr']:.4g} FPR, {agreed['jaccard']:.1%} are "
            f"found in both ({agreed['by_chance']:.1%} by chance)."
        )
    return lines


def promise_lines(document: Mapping[str, Any]) -> list[str]:
    """What a federation promises a client, and what canary clients say of it."""
    from memberscope.report.wording import canary_estimate, client_guarantee

    told = (document.get("federation") or {}).get("privacy") or {}
    promised, canaries = told.get("clients"), told.get("canaries")
    lines = [f"Central differential privacy: {client_guarantee(promised)}."] if promised else []
    return [*lines, *([f"Canary clients: {canary_estimate(canaries, promised)}."] if canaries else [])]


def ci(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A figure with its interval."""
    if estimate is None or estimate["value"] is None:
        return "-"
    value = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None or estimate["high"] is None:
        return value
    return f"{value} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
