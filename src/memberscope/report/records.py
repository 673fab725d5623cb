"""For engineers: thresholds as an adversary has them, and the risk of single records."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

from memberscope.report import wording
from memberscope.report.document import Cell, Results, Table, estimate_cell, headline, point_at, ranked

_NAMED = 12
"""Attacks that the table of agreement names."""


def calibrated_headline(results: Results) -> dict[str, Any] | None:
    """The attack that the answer is given for, with thresholds of both kinds side by side."""
    best = headline(results)
    calibrated = (best or {}).get("calibrated")
    if not best or not calibrated or not _shown(calibrated):
        return None
    priors = sorted({v["prior"] for v in calibrated["ppv"]}, reverse=True)
    rows = []
    for point in _shown(calibrated):
        oracle = point_at(best["evaluation"], point["fpr"])
        ppv = {(v["prior"], v["fpr"]): v["ppv"] for v in calibrated["ppv"]}
        rows.append(
            [
                Cell(wording.rate(point["fpr"])),
                estimate_cell(oracle["tpr"] if oracle and oracle.get("supported") else None, as_percent=True),
                estimate_cell(point["tpr"], as_percent=True),
                estimate_cell(point["true_fpr"], as_percent=True),
                *(estimate_cell(ppv.get((prior, point["fpr"])), as_percent=True) for prior in priors),
            ]
        )
    header = (
        "False-positive rate aimed at",
        "Members found, threshold read off the target's own non-members",
        "Members found, threshold from reference models",
        "Non-members accused by that threshold",
        *(f"Right, if {wording.rate(prior)} are members" for prior in priors),
    )
    caption = (
        f"{best['title']}. The threshold from reference models was read off {calibrated['players']} of them that "
        f"played the target, each beside the others; the target was compared with {calibrated['models']} reference "
        "models for it. An aim outside the interval of what came of it is no error: models of one recipe differ, and "
        "an adversary cannot know how far this one does."
    )
    return {"table": Table(header, rows, caption)}


def calibrated_attacks(results: Results) -> Table | None:
    """Every attack with a threshold from reference models: what it aims at, what it does."""
    attacks = [a for a in ranked(results) if a.get("calibrated") and _shown(a["calibrated"])]
    if not attacks:
        return None
    fprs = sorted({p["fpr"] for a in attacks for p in _shown(a["calibrated"])}, reverse=True)
    rows = []
    for attack in attacks:
        points = {p["fpr"]: p for p in _shown(attack["calibrated"])}
        cells = [Cell(attack["name"], "", "strong" if attack["name"] == results.get("headline") else "")]
        for fpr in fprs:
            point = points.get(fpr)
            cells.append(estimate_cell(point and point["true_fpr"], as_percent=True))
            cells.append(estimate_cell(point and point["tpr"], as_percent=True))
        rows.append(cells)
    header = ["Attack"]
    for fpr in fprs:
        header += [f"Aimed at {wording.rate(fpr)}: non-members accused", "members found"]
    return Table(header, rows)


def records(results: Results) -> dict[str, Any] | None:
    """What is known of single records: separation, probability, agreement."""
    exposed = results.get("exposed") or {}
    separation, posterior = exposed.get("separation"), exposed.get("posterior")
    agreed = _agreement(results)
    if not (separation or posterior or agreed):
        return None
    return {
        "separation": _separation(separation),
        "posterior": _sure(posterior),
        "reliability": _reliability(posterior),
        "agreement": agreed,
        "flagged": exposed.get("flagged"),
    }


def targets(results: Results) -> dict[str, Any] | None:
    """Several trainings of the recipe: each of them, the spread of every attack, and whether they agree."""
    told = results.get("targets")
    if not told:
        return None
    best = told["attacks"].get(results.get("headline") or "", {})
    single = []
    for i, target in enumerate(told["targets"]):
        cells = [
            Cell(f"{i + 1}{', the model of this report' if i == 0 else ''}"),
            Cell(wording.count(target["members"])),
        ]
        cells += [Cell(wording.percent(target[name])) for name in ("train_acc", "test_acc")]
        cells += [Cell(wording.significant(best["auc"]["values"][i]) if best else wording.DASH)]
        cells += [Cell(wording.percent(one["values"][i])) for one in best.get("tpr", [])]
        single.append(cells)
    rates = [f"TPR at FPR {wording.rate(one['fpr'])}" for one in best.get("tpr", [])]
    header = ("Target", "Members", "Accuracy on members", "on non-members", "AUC of the answer's attack", *rates)
    agreed = told.get("agreement")
    return {
        "number": told["number"],
        "single": Table(header, single),
        "spread": _spreads(told, results),
        "agreement": None if not agreed else _agreed(agreed),
    }


def _spreads(told: Mapping[str, Any], results: Results) -> Table:
    rows = []
    names = [a["name"] for a in ranked(results) if a["name"] in told["attacks"]]
    fprs = [one["fpr"] for one in told["attacks"][names[0]]["tpr"]] if names else []
    for name in names:
        one = told["attacks"][name]
        cells = [Cell(name, "", "strong" if name == results.get("headline") else "")]
        for figure, as_percent in [(one["auc"], False), *((t, True) for t in one["tpr"])]:
            write = wording.percent if as_percent else wording.significant
            cells += [estimate_cell(figure["mean"], as_percent=as_percent), Cell(write(figure["sd"]))]
        rows.append(cells)
    header = ["Attack", "AUC, mean", "standard deviation"]
    for fpr in fprs:
        header += [f"TPR at FPR {wording.rate(fpr)}, mean", "standard deviation"]
    caption = (
        f"{wording.level(told['confidence'])} intervals of the mean by Student's t over {told['number']} targets. They "
        "cover the luck of memberships and trainings; pool and reference models are the same for all."
    )
    return Table(header, rows, caption)


def _agreed(agreed: Mapping[str, Any]) -> dict[str, str]:
    return {
        "fpr": wording.rate(agreed["fpr"]),
        "jaccard": wording.percent(agreed["jaccard"]),
        "by_chance": wording.percent(agreed["by_chance"]),
        "found": wording.count(agreed["found"]),
        "eligible": wording.count(agreed["eligible"]),
        "always": wording.count(agreed["always"]),
    }


def _shown(calibrated: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [p for p in calibrated.get("points", []) if p.get("supported")]


def _separation(separation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not separation:
        return None
    quantiles = {q["share"]: wording.significant(q["d"]) for q in separation["quantiles"]}
    return {
        "above": wording.counted_percent(separation["above_zero"], separation["records"]),
        "level": wording.level(separation["confidence"]),
        "median": quantiles.get(0.5, wording.MISSING),
        "top": quantiles.get(0.99, wording.MISSING),
        "most": quantiles.get(1.0, wording.MISSING),
    }


def _sure(posterior: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not posterior:
        return None
    sure = [(wording.rate(s["above"]), _members(s["records"])) for s in posterior["sure"]]
    return {
        "prior": wording.rate(posterior["prior"]),
        "sure": sure,
        # Rounded down: a record at 89.96 % is not one of those at 90 %.
        "largest": wording.percent(floor(1000 * posterior["largest"]) / 1000),
    }


def _members(records: int) -> str:
    return "one record is a member" if records == 1 else f"{wording.count(records)} records are members"


def _reliability(posterior: Mapping[str, Any] | None) -> Table | None:
    if not posterior:
        return None
    here = posterior["here"]
    rows = []
    for b in here["bins"]:
        inside = b["share_low"] <= b["expected"] <= b["share_high"]
        true = {"value": b["members"] / b["records"], "low": b["share_low"], "high": b["share_high"]}
        true |= {"k": b["members"], "n": b["records"]}
        rows.append(
            [
                Cell(f"{100 * b['low']:.0f} to {100 * b['high']:.0f}{wording.NBSP}%"),
                Cell(wording.count(b["records"])),
                Cell(wording.percent(b["expected"])),
                estimate_cell(true, as_percent=True, kind="" if inside else "bad"),
            ]
        )
    caption = (
        f"At the share of members among the records judged here, {wording.percent(here['prior'])}. Probabilities that "
        "hold have their mean inside the interval of the last column, but for one row in twenty."
    )
    return Table(("Probability of membership", "Records", "Members expected", "Members in truth"), rows, caption)


def _agreement(results: Results) -> Table | None:
    """How far the attacks agree with the headline attack on whom they find."""
    agreed = (results.get("exposed") or {}).get("agreement") or []
    known = [a for a in agreed if wording.known(a.get("jaccard"))]
    if not known:
        return None
    ordered = sorted(known, key=lambda a: -a["jaccard"])[:_NAMED]
    titles = {a["name"]: a["title"] for a in results.get("attacks", [])}
    rows = [
        [Cell(titles.get(a["attack"], a["attack"]), a["attack"]), Cell(wording.percent(a["jaccard"]))] for a in ordered
    ]
    caption = (
        "Of the 1 % of records that either of two attacks ranks highest, the share that both do (Jaccard); two attacks "
        "that have nothing in common share 0.5 %."
    )
    return Table(("Against the attack of the answer", "In common"), rows, caption)
