"""The files of a study beside its run folders: tables for programs and people, and the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memberscope.files import replacing, write_text
from memberscope.study_table import RATES

if TYPE_CHECKING:
    from pathlib import Path

    from memberscope.study import Study

TITLES = {
    False: "What protection costs, and what it buys: members found",
    True: "What protection costs, and what it buys: canaries found",
}


def write_tables(study: Study) -> list[Path]:
    """Write ``study.csv``, ``attacks.csv``, ``study.md``, ``study.json`` and the pictures, each whole or not at all.

    With pyarrow both tables are written as parquet too. Returns the paths.
    """
    from memberscope.report.run_folder import csv_text
    from memberscope.report.tradeoff import tradeoff

    folder = study.folder
    written = []
    for name, lines in (("study", study.lines()), ("attacks", study.attack_lines())):
        write_text(folder / f"{name}.csv", csv_text(lines))
        written.append(folder / f"{name}.csv")
        if _parquet(folder / f"{name}.parquet", lines):
            written.append(folder / f"{name}.parquet")
    write_text(folder / "study.md", markdown(study))
    write_text(folder / "study.json", json.dumps(_described(study), indent=1, ensure_ascii=False) + "\n")
    written += [folder / "study.md", folder / "study.json"]
    for canaries, name in ((False, "tradeoff.png"), (True, "tradeoff_canaries.png")):
        points, fpr = study.points(canaries=canaries)
        if canaries and not points:
            continue
        of_whom = "canaries" if canaries else "members"
        levels, about = _levels(study.lines()), _about(study.lines())
        tradeoff(folder / name, points, fpr, title=TITLES[canaries], of_whom=of_whom, level=levels, about=about)
        written.append(folder / name)
    return written


def markdown(study: Study) -> str:
    """The table for people: a line for each audit, figures with their intervals, the Pareto front marked."""
    from memberscope.report.wording import duration

    front = {point.name for point in study.points()[0] if point.front}
    axes = tuple(study.config.axes)
    lines = study.lines()
    rates = [f for f in RATES if any(line.get(f"tpr_at_{f:g}") is not None for line in lines)][-2:]
    header = ["row", *axes, "test accuracy", "AUC", *(f"TPR at {100 * f:g} % FPR" for f in rates), "canaries"]
    header += ["ε at least", "ε at most", "time"]
    rows = []
    for line in lines:
        name = ", ".join([line["row"], *(f"{a} {line[a]}" for a in axes if a != "seed")])
        mark = " ◆" if name in front else ""
        start = [f"{line['row']}{mark}", *(str(line[a]) for a in axes)]
        if line["status"] != "done":
            rows.append([*start, line["status"], *[""] * (len(header) - len(start) - 1)])
            continue
        rows.append(
            [
                *start,
                _figure(line, "test_acc", percent=True),
                _figure(line, "auc"),
                *(_figure(line, f"tpr_at_{f:g}", percent=True) for f in rates),
                _canary(line),
                _epsilon(line),
                "–" if line["epsilon_accountant"] is None else f"{line['epsilon_accountant']:.2f}",
                duration(line["seconds"]),
            ]
        )
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([*table, "", *_notes(study)]) + "\n"


def _notes(study: Study) -> list[str]:
    lines = [line for line in study.lines() if line["status"] == "done"]
    notes = [
        f"◆: no other row has both a better accuracy and a lower leakage. Intervals are {_levels(lines)}, over records."
    ]
    judged: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line["attack"]:
            judged.setdefault((line["adversary"], line["attack"]), []).append(line["row"])
    attacks = [attack for adversary, attack in judged if adversary == "insider"]
    if attacks:
        notes.append(f"Attack: {', '.join(attacks)}, by an insider whose reference models have the row's own defense.")
    notes += [
        f"No attack of an insider has figures of {', '.join(dict.fromkeys(rows))}: {attack} of a weaker adversary "
        f"({adversary}) stands in."
        for (adversary, attack), rows in judged.items()
        if adversary != "insider"
    ]
    alone = [line["row"] for line in lines if not line["reference_models"]]
    if alone:
        notes.append(
            f"Without reference models, so not by an adaptive attacker, and not in the picture: {', '.join(alone)}."
        )
    doubtful = [f"{line['row']} ({line['problems']})" for line in lines if line["problems"]]
    if doubtful:
        notes.append(f"A check found a problem: {', '.join(doubtful)}.")
    notes += [
        f"Failed: {cell}: {study.failures[cell.key]}" for cell in study.config.cells() if cell.key in study.failures
    ]
    return notes


def _levels(lines: Sequence[Mapping[str, Any]]) -> str:
    """The level of the intervals; where rows differ in it, all of them."""
    from memberscope.report.wording import level, listing

    return listing([level(found) for found in sorted({line["confidence"] for line in lines if "confidence" in line})])


def _about(lines: Sequence[Mapping[str, Any]]) -> str:
    """Who attacked the rows of the picture."""
    from memberscope.report.tradeoff import ADAPTIVE

    used = [line for line in lines if line.get("reference_models") and line["attack"]]
    if all(line["adversary"] == "insider" for line in used):
        return ADAPTIVE
    return f"{ADAPTIVE} Where they are of no use, a weaker adversary attacked."


def _figure(line: Mapping[str, Any], name: str, *, percent: bool = False) -> str:
    value, low, high = (line[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "n too small"
    if percent:
        return f"{100 * value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _canary(line: Mapping[str, Any]) -> str:
    if line["canary_kind"] is None:
        return "–"
    told = f"{line['canary_kind']}: AUC {_figure(line, 'canary_auc')}"
    if line["canary_lowest_fpr"] is not None:
        told += (
            f", TPR at {100 * line['canary_lowest_fpr']:g} % FPR {_figure(line, 'canary_tpr_at_lowest', percent=True)}"
        )
    return told


def _epsilon(line: Mapping[str, Any]) -> str:
    """The larger of the two bounds would be a choice; the canaries' was meant to be, where there are any."""
    found = line["epsilon_at_least_canaries"]
    found = line["epsilon_at_least"] if found is None else found
    return "–" if found is None else f"{int(100 * found) / 100:.2f}"


def _described(study: Study) -> dict[str, Any]:
    config = study.config
    return {
        "name": config.name,
        "fpr": config.fpr,
        "base": dict(config.base),
        "rows": {row: dict(changes) for row, changes in config.rows.items()},
        "axes": {axis: list(values) for axis, values in config.axes.items()},
        "audits": [
            {"row": c.row, "axes": dict(c.axes), "run": f"cells/{c.key}", "done": c.key in study.documents}
            for c in config.cells()
        ],
    }


def _parquet(path: Path, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Write a table as parquet where pyarrow is installed (``pip install 'memberscope[tables]'``)."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return False
    columns = list(dict.fromkeys(key for line in lines for key in line))
    table = pyarrow.table({name: _column([line.get(name) for line in lines]) for name in columns})
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)
    return True


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type: numbers where all are, else text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return list(values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return list(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
