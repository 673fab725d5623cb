"""What the HTML templates lay out: tables and figures, ready to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memberscope.errors import RunFolderError
from memberscope.report import wording
from memberscope.report.svg import Interval

SCHEMA_VERSION = 1
NAMED_LINES = 12
"""More lines than this nobody can tell apart: the strongest are named, the others drawn in grey."""

Results = Mapping[str, Any]
"""The content of results.json."""


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read first, small print below it, and a class that colours it."""

    text: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Figure:
    """A figure: SVG that we made (and nobody else's text in it unescaped), how to read it, and its numbers."""

    key: str
    title: str
    reading: str
    svg: str
    numbers: Table
    legend: Sequence[tuple[str, str, str]] = field(default=())
    """Swatch, name and figure of each line."""


def checked(results: Results) -> Results:
    """Refuse what this version cannot read.

    Raises
    ------
    RunFolderError
        Not a results.json of the schema version that this program knows.
    """
    version = results.get("schema_version")
    if version != SCHEMA_VERSION or results.get("kind") not in ("audit", "federation", "score"):
        raise RunFolderError(
            f"results.json has schema version {version!r} and kind {results.get('kind')!r}, expected "
            f"{SCHEMA_VERSION} and 'audit', 'federation' or 'score'",
            "render it with the version of memberscope that wrote it, or run the audit again",
        )
    return results


def ranked(results: Results) -> list[Mapping[str, Any]]:
    """Attacks that ran: the headline first, then by AUC, the order of all figures and tables."""
    run = [a for a in results.get("attacks", []) if a.get("evaluation")]
    return sorted(run, key=lambda a: (a["name"] != results.get("headline"), -_auc(a), a["name"]))


def headline(results: Results) -> Mapping[str, Any] | None:
    """The attack that the answer is given for, or None where none ran."""
    run = ranked(results)
    return run[0] if run else None


def row_of_answer(results: Results) -> Mapping[str, Any]:
    """The ladder's row that the answer is taken from: its intervals allow for having picked the best, where one was."""
    measured = [r for r in results.get("ladder", []) if r["status"] == "measured"]
    rows = [r for r in measured if r.get("attack") == results.get("headline")]
    fixed = [r for r in rows if r.get("fixed")]
    return fixed[0] if fixed else max(rows, key=lambda r: r.get("corrected_for") or 1, default={})


def strictest(evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The operating point at the lowest false-positive rate that the sample supports, or None."""
    points = [p for p in evaluation.get("operating_points", []) if p.get("supported") and p.get("tpr")]
    return min(points, key=lambda p: float(p["fpr"]), default=None)


def point_at(evaluation: Mapping[str, Any], fpr: float) -> Mapping[str, Any] | None:
    """The operating point at this false-positive rate, supported or not."""
    return next((p for p in evaluation.get("operating_points", []) if abs(p["fpr"] - fpr) < 1e-12), None)


def shown_rates(evaluation: Mapping[str, Any]) -> list[float]:
    """All supported false-positive rates and the first that the sample does not support, from high to low."""
    rates = []
    for point in sorted(evaluation.get("operating_points", []), key=lambda p: -p["fpr"]):
        rates.append(float(point["fpr"]))
        if not point.get("supported"):
            break
    return rates


def thing(results: Results) -> str:
    """What a record is called: an image where it has height and width, else a record."""
    shape = (results.get("dataset") or {}).get("input_shape") or []
    return "image" if len(shape) == 3 else "record"


def estimate_cell(estimate: Mapping[str, Any] | None, *, as_percent: bool = False, kind: str = "") -> Cell:
    """A figure with interval and counts below it."""
    if estimate is None or not wording.known(estimate.get("value")):
        return Cell(wording.MISSING, (estimate or {}).get("note") or "", "muted")
    value = wording.percent(estimate["value"]) if as_percent else wording.significant(estimate["value"])
    details = [wording.interval(estimate, as_percent=as_percent)]
    if counts := wording.of(estimate.get("k"), estimate.get("n")):
        details.append(counts)
    return Cell(value, "\n".join(details), kind)


def interval_table(what: str, rows: Sequence[Interval]) -> Table:
    """The numbers of a figure of intervals (`svg.forest`); `what` says what its rows are."""
    cells = [
        [Cell(r.label), *(Cell(wording.significant(v)) for v in (r.value, r.low, r.high))]
        if r.value is not None
        else [Cell(r.label), Cell(r.note, "", "muted"), Cell(""), Cell("")]
        for r in rows
    ]
    return Table((what, "AUC", "Low", "High"), cells)


def point_cell(point: Mapping[str, Any] | None, *, kind: str = "") -> Cell:
    """TPR at an operating point, or what sample it would need."""
    if point is None:
        return Cell(wording.MISSING, "", "muted")
    if not point.get("supported"):
        return Cell("n too small", f"needs ≥{wording.NBSP}{wording.count(point.get('needs'))}\nnon-members", "muted")
    return estimate_cell(point.get("tpr"), as_percent=True, kind=kind)


def _auc(attack: Mapping[str, Any]) -> float:
    value = attack["evaluation"]["auc"].get("value")
    return float(value) if wording.known(value) else -1.0
