"""The worst case and the proof: canaries beside ordinary records, lower bounds on epsilon beside an accountant's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from memberscope.report import wording
from memberscope.report.document import Cell, Figure, Results, Table, estimate_cell, point_at, point_cell
from memberscope.report.svg_parts import RIGHT, TOP, WIDTH, Scale, plain_label, short, svg_document, text_at

_LEFT, _STEP = 168, 30
_GROUPS = {"population": "ordinary records", "canaries": "canaries"}


def canary_table(results: Results) -> Table | None:
    """Each kind of canary under the attack that they are judged by, with the ordinary records above them."""
    canaries = results.get("canaries")
    if not canaries:
        return None
    rates = _rates(canaries)
    judge = canaries["attack"]
    rows = []
    ordinary = next((a["evaluation"] for a in results["attacks"] if a["name"] == judge), None)
    if ordinary:
        counts = Cell(wording.count(ordinary["n_members"]), f"and {wording.count(ordinary['n_nonmembers'])} out")
        rows.append([Cell("ordinary records", "the average case", "strong"), counts, *_figures(ordinary, rates)])
    for kind in canaries["kinds"]:
        name, counts = (
            Cell(kind["kind"], "\n".join(wrap(kind["text"], 36))),
            Cell(str(kind["members"]), f"and {kind['nonmembers']} out"),
        )
        found = next((a["evaluation"] for a in kind["attacks"] if a["name"] == judge), None)
        nothing = [Cell(wording.MISSING, kind["reason"], "muted")] + [Cell("")] * (len(rates) + 1)
        rows.append([name, counts, *(_figures(found, rates) if found else nothing)])
    header = ["Records", "In", "AUC", *(f"TPR at FPR {wording.rate(f)}" for f in rates), "TPR at zero false positives"]
    return Table(header, rows)


def canary_attacks(results: Results) -> Table | None:
    """AUC of every attack on each kind of canary."""
    canaries = results.get("canaries")
    if not canaries:
        return None
    kinds = [kind for kind in canaries["kinds"] if kind["attacks"]]
    if not kinds:
        return None
    rows = []
    for position, attack in enumerate(kinds[0]["attacks"]):
        cells = [Cell(attack["name"], "", "strong" if attack["name"] == canaries["attack"] else "")]
        for kind in kinds:
            evaluation = kind["attacks"][position]["evaluation"]
            reason = kind["attacks"][position]["reason"]
            cells.append(estimate_cell(evaluation["auc"]) if evaluation else Cell(wording.MISSING, reason, "muted"))
        rows.append(cells)
    return Table(("Attack", *(f"AUC, {kind['kind']}" for kind in kinds)), rows)


def bounds_table(results: Results) -> Table | None:
    """The lower bounds: on which records, from how many right guesses, and what they rest on."""
    bounds = results.get("bounds")
    if not bounds:
        return None
    rows = []
    for group, name in _GROUPS.items():
        one = bounds.get(group)
        if one:
            rows.append(_bound_row(name, one, bounds["attacks"].get(group, ""), "nothing about the mechanism"))
    gaussian = bounds.get("gaussian")
    if gaussian:
        group = "canaries" if bounds.get("canaries") else "population"
        told = "that the mechanism is a Gaussian one"
        rows.append(_bound_row(_GROUPS[group], gaussian, bounds["attacks"].get(group, ""), told))
    header = ("Records", "ε at least", "Right guesses", "All right would show", "Attack", "It assumes")
    return Table(header, rows)


def bounds_figure(results: Results) -> Figure | None:
    """Lower bounds and the accountant's upper bound on one axis: the true epsilon lies between them."""
    bounds = results.get("bounds")
    if not bounds:
        return None
    lower = [(name, bounds[group]) for group, name in _GROUPS.items() if bounds.get(group)]
    comparison = bounds.get("comparison")
    upper = comparison["upper"] if comparison else None
    broken = bool(comparison) and comparison["verdict"] == "contradiction"
    rows: list[tuple[str, float, float | None]] = [(name, one["epsilon"], one["ceiling"]) for name, one in lower]
    numbers = [
        [Cell(f"lower bound, {name}"), Cell(_two(epsilon, down=True)), Cell(_two(ceiling, down=True))]
        for name, epsilon, ceiling in rows
    ]
    if upper is not None:
        numbers.append([Cell("upper bound, accountant"), Cell(_two(upper, down=False)), Cell(wording.DASH)])
    reading = (
        "A lower bound points to the right: the true ε is at least there. The faint mark is what the same audit would "
        "have shown had every guess been right."
    )
    if upper is not None:
        reading += " The accountant's bound points to the left: the true ε is at most there, if its claim holds."
        reading += " Here the two do not meet: the claim is broken." if broken else ""
    return Figure(
        "bounds",
        "Lower bound, true ε, upper bound" if upper is not None else "What is proven of ε",
        f"{reading} δ = {bounds['delta']:g}.",
        _arrows(rows, upper, broken=broken, delta=bounds["delta"]),
        Table(("Bound", "ε", "All right would show"), numbers),
    )


def verdict(results: Results) -> Mapping[str, Any] | None:
    """The comparison with the accountant, or None where nobody claims anything."""
    found: Mapping[str, Any] | None = (results.get("bounds") or {}).get("comparison")
    return found


def proof_lines(results: Mapping[str, Any]) -> list[str]:
    """The canaries and the bounds in a few lines, for terminals; a broken claim is told among the checks (MIA016)."""
    lines = []
    compared = verdict(results)
    canaries = results.get("canaries")
    if canaries:
        for kind in canaries["kinds"]:
            lines.append(_canary_line(kind, canaries["attack"]))
    bounds = results.get("bounds") or {}
    for group, name in _GROUPS.items():
        if bounds.get(group):
            lines.append(f"Proven on {name} ({bounds['attacks'][group]}): {bounds[group]['text']}")
    if compared and compared["verdict"] != "contradiction":
        lines.append(compared["text"])
    return lines


def _canary_line(kind: Mapping[str, Any], attack: str | None) -> str:
    from memberscope.summary import ci

    begin = f"Canaries, {kind['kind']} ({kind['members']} in, {kind['nonmembers']} out)"
    if kind["auc"] is None:
        return f"{begin}: {kind['reason'] or 'no figures'}"
    tpr = kind["tpr"]
    at = "" if tpr is None else f"TPR {ci(tpr['estimate'], 4)} at {tpr['fpr']:.4g} FPR, "
    return f"{begin}: {at}AUC {ci(kind['auc'])} ({attack})"


def _rates(canaries: Mapping[str, Any]) -> list[float]:
    """The false-positive rates that at least one kind supports, from high to low."""
    judged = [a for kind in canaries["kinds"] for a in kind["attacks"] if a["name"] == canaries["attack"]]
    points = [p for a in judged if a["evaluation"] for p in a["evaluation"]["operating_points"]]
    return sorted({float(p["fpr"]) for p in points if p["supported"]}, reverse=True)


def _figures(evaluation: Mapping[str, Any], rates: Sequence[float]) -> list[Cell]:
    points = [point_cell(point_at(evaluation, fpr)) for fpr in rates]
    return [estimate_cell(evaluation["auc"]), *points, point_cell(evaluation["tpr_at_zero_fp"])]


def _bound_row(name: str, one: Mapping[str, Any], attack: str, assumes: str) -> list[Cell]:
    detail = f"{100 * one['confidence']:g}{wording.NBSP}% confidence, δ = {one['delta']:g}"
    shared = f"one of {one['searched']} attacks, each with its share" if one["searched"] > 1 else "fixed beforehand"
    return [
        Cell(name, f"{wording.count(one['m'])} by coins"),
        Cell(_two(one["epsilon"], down=True), detail, "strong" if not one.get("mu") else ""),
        Cell(wording.of(one["correct"], one["guesses"])),
        Cell(_two(one["ceiling"], down=True)),
        Cell(attack, shared),
        Cell(assumes),
    ]


def _two(value: float | None, *, down: bool) -> str:
    if value is None:
        return "∞"
    scaled = math.floor(100 * value) if down else math.ceil(100 * value)
    return f"{scaled / 100:.2f}"


def _arrows(rows: Sequence[tuple[str, float, float | None]], upper: float | None, *, broken: bool, delta: float) -> str:
    ends = [end for _, epsilon, ceiling in rows for end in (epsilon, ceiling or 0.0)] + [upper or 0.0]
    x = Scale(0, 1.15 * max(*ends, 1.0), _LEFT, WIDTH - RIGHT)
    count = len(rows) + (upper is not None)
    bottom = TOP + 8 + _STEP * count
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{short(x(tick))}" y1="{TOP}" x2="{short(x(tick))}" y2="{bottom}"/>')
        parts.append(text_at(x(tick), bottom + 16, plain_label(tick), "middle"))
    best = max((epsilon for _, epsilon, _ in rows), default=0.0)
    if upper is not None and not broken and upper > best:
        width = x(upper) - x(best)
        parts.append(
            f'<rect class="zone" x="{short(x(best))}" y="{TOP}" width="{short(width)}" height="{bottom - TOP}"/>'
        )
    for i, (name, epsilon, ceiling) in enumerate(rows):
        middle = TOP + 8 + _STEP * (i + 0.5)
        parts.append(_arrow(x, epsilon, middle, right=True, colour="c1" if broken else "c0"))
        if ceiling is not None:
            at = short(x(ceiling))
            parts.append(
                f'<line class="chance" x1="{at}" y1="{short(middle - 8)}" x2="{at}" y2="{short(middle + 8)}"/>'
            )
        parts.append(_name(f"at least, {name}", middle))
    if upper is not None:
        middle = TOP + 8 + _STEP * (len(rows) + 0.5)
        parts.append(_arrow(x, upper, middle, right=False, colour="c2"))
        parts.append(_name("at most, accountant", middle))
    parts.append(text_at((_LEFT + WIDTH - RIGHT) / 2, bottom + 38, f"ε at δ = {delta:g}", "middle", "label"))
    told = "; ".join(f"at least {epsilon:.2f} ({name})" for name, epsilon, _ in rows)
    told += "" if upper is None else f"; at most {upper:.2f} (accountant)"
    return svg_document("bounds", "Bounds on epsilon", f"Epsilon is {told}.", "".join(parts), height=bottom + 46)


def _arrow(x: Scale, value: float, middle: float, *, right: bool, colour: str) -> str:
    start, way = x(value), 1 if right else -1
    end = max(x.start + 2, min(x.end, start + way * 34))
    y = short(middle)
    head = f"M{short(end - way * 6)} {short(middle - 4)}L{short(end)} {y}L{short(end - way * 6)} {short(middle + 4)}"
    return (
        f'<line class="whisker {colour}" x1="{short(start)}" y1="{y}" x2="{short(end)}" y2="{y}"/>'
        f'<path class="line {colour}" d="{head}"/><circle class="dot {colour}" cx="{short(start)}" cy="{y}" r="4.5"/>'
    )


def _name(text: str, middle: float) -> str:
    return f'<text class="tick" x="{_LEFT - 6}" y="{short(middle + 4)}" text-anchor="end">{escape(text)}</text>'
