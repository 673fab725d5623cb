"""A study of federations: accuracy against leakage for each defense, from every seat; it runs what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.federated.config import FederationConfig, from_settings
from memberscope.files import write_text
from memberscope.study_cells import Job, Outcome, run_at_once, run_here
from memberscope.study_config import WHERE, Cell, StudyConfig, read_study_as
from memberscope.study_table import Point, mark_front, mean_of
from memberscope.training.scheduler import is_cluster

AUDIT_SETTINGS = ("records", "population", "every")
"""Settings of the audits of a study, beside those of the federations: see `federated.audit.Asked`."""
_NOT_WHERE = ("models_dir",)
_ATTACKER = "The attacker is the best of the seat's attacks, on each client's own records"
_WITHOUT = "; none trains reference models."
_WITH = "; the curious server has reference federations where they are set."
Line = dict[str, Any]


@dataclass(frozen=True)
class FederationCell(Cell):
    """One federation of a study, and its audit."""

    def federation(self, where: Mapping[str, Any]) -> FederationConfig:
        """The federation's settings."""
        own = {k: v for k, v in self.settings.items() if k not in AUDIT_SETTINGS}
        return from_settings({**own, **where})

    def asked(self) -> dict[str, Any]:
        """What its audit asks."""
        chosen = {k: v for k, v in self.settings.items() if k in AUDIT_SETTINGS}
        return {**chosen, "seed": self.settings.get("seed", 0)}

    def check(self) -> None:
        """Refuse settings that no federation can have."""
        self.federation({})


@dataclass(frozen=True)
class FederationStudy(StudyConfig):
    """A grid of federations: every row at every point of the axes. Settings are those of `FederationConfig`."""

    kind_of_cell: ClassVar[type[Cell]] = FederationCell


def read_study(path: Path) -> FederationStudy:
    """Read a study of federations from a TOML file: name, fpr, [base], [rows.NAME], [axes]."""
    return read_study_as(path, FederationStudy)


def run(config: FederationStudy, where: Mapping[str, Any] | None = None, *, events: Events | None = None) -> list[Line]:
    """Train and audit the federations that are missing, and write the tables and pictures after each.

    A killed study goes on with the same command: a federation after its last round, an audit from its features.

    Parameters
    ----------
    config
        The study.
    where
        Settings that say where the work is done: data_dir, out, device, threads; and workers, the federations at once:
        a number of processes of this machine, or a cluster (`memberscope.training.scheduler.is_cluster`).
    events
        Listens to progress.

    Returns
    -------
    A line for each federation and seat.
    """
    events, where = events or Events(), {k: v for k, v in (where or {}).items() if k not in _NOT_WHERE}
    out, workers = where.pop("out", None), where.pop("workers", None)
    folder = config.folder(out)
    job = Job(make_federation, config.cells(), folder / "cells", "audit/results.json", "federation", where)
    failures: dict[str, str] = {}
    for outcome in _outcomes(job, workers, events):
        if outcome.failure:
            failures[outcome.cell.key] = outcome.failure
        if not outcome.busy:
            write_tables(config, folder, failures)
    return write_tables(config, folder, failures)


def _outcomes(job: Job, workers: Any, events: Events) -> Iterator[Outcome]:
    alone = replace(job, where={**job.where, "threads": job.where.get("threads") or 1})
    if is_cluster(workers):
        from memberscope.training.ray_cluster import Cluster

        with Cluster(str(workers)) as cluster:
            yield from run_at_once(alone, cluster, events)
    elif workers in (None, 1, "1"):
        yield from run_here(job, events)
    elif str(workers).isdecimal() and int(workers) > 0:
        yield from run_at_once(alone, int(workers), events)
    else:
        raise ConfigError(f"workers = {workers!r}", "a whole number from 1, ray, or the address of a cluster")


def make_federation(cell: FederationCell, path: Path, where: Mapping[str, Any], events: Events, /) -> None:
    """Train one federation of a study and audit it."""
    from memberscope.federated.audit import Asked, audit_federation
    from memberscope.federated.federation import SUMMARY, federate
    from memberscope.federated.references import finished

    run_folder, config = path / "run", cell.federation(where)
    if not (run_folder / SUMMARY).is_file() or len(finished(run_folder)) < config.references:
        federate(config, events=events, folder=run_folder, resume=(run_folder / "rounds").is_dir())
    audit = audit_federation(
        run_folder,
        Asked(**cell.asked()),
        references=finished(run_folder),
        device=where.get("device"),
        events=events,
    )
    audit.save(path / "audit")


def lines_of(config: FederationStudy, folder: Path, failures: Mapping[str, str] | None = None) -> list[Line]:
    """A line for each federation and seat: accuracy, and what the seat's best attack achieves, with intervals."""
    lines: list[Line] = []
    for cell in config.cells():
        path = folder / "cells" / cell.key
        start: Line = {"row": cell.row, **cell.axes}
        if not (path / "audit" / "results.json").is_file():
            reason = (failures or {}).get(cell.key, "")
            lines.append({**start, "seat": None, "status": "failed" if reason else "missing", "reason": reason})
            continue
        document = json.loads((path / "audit" / "results.json").read_bytes())
        summary = json.loads((path / "run" / "federation.json").read_bytes())
        lines += [{**start, **line, "run": f"cells/{cell.key}"} for line in _seats(document, summary)]
    return lines


def _seats(document: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Line]:
    from memberscope.statistics.intervals import clopper_pearson

    n = summary["records"]["of_nobody"]
    accuracy = summary["accuracy"]["of_nobody"]
    low, high = clopper_pearson(accuracy * n, n) if accuracy is not None else (None, None)
    privacy = {
        "epsilon_of_a_record": (summary["record_privacy"] or {}).get("epsilon"),
        "epsilon_of_a_client": (summary["privacy"] or {}).get("epsilon"),
        **_three("epsilon_by_canaries", (summary.get("canaries") or {}).get("epsilon")),
        "canary_clients": (summary.get("canaries") or {}).get("took_part"),
    }
    lines: list[Line] = []
    for row in document["ladder"]:
        line: Line = {"seat": row["adversary"], "status": row["status"], "reason": row.get("reason") or ""}
        line |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, **privacy}
        if row["status"] == "measured":
            line |= {"attack": row["attack"], "auc_attack": row["auc_attack"], **_three("auc", row["auc"])}
            line["lowest_fpr"] = None if row["tpr"] is None else row["tpr"]["fpr"]
            line |= _three("tpr_at_lowest", None if row["tpr"] is None else row["tpr"]["estimate"])
            rates = {rate["fpr"]: rate["estimate"] for rate in row.get("rates") or []}
            for fpr in (0.1, 0.01, 0.001):
                line |= _three(f"tpr_at_{fpr:g}", rates.get(fpr))
            line["more"] = row.get("more") or ""
        lines.append(line)
    return lines


def points_of(lines: Sequence[Line], axes: Sequence[str], seat: str, fpr: float) -> list[Point]:
    """The rows of a seat's picture: accuracy and the true-positive rate at `fpr`, means over seeds."""
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        if line["seat"] == seat and line.get(f"tpr_at_{fpr:g}") is not None:
            name = ", ".join([line["row"], *(f"{a} {line[a]}" for a in axes if a != "seed")])
            grouped.setdefault(name, []).append(line)
    points = []
    for name, group in grouped.items():
        found = [[_ends(line, key) for line in group] for key in ("accuracy", f"tpr_at_{fpr:g}")]
        points.append(Point(name, mean_of(found[0]), mean_of(found[1]), len(group)))
    return mark_front(points)


def write_tables(config: FederationStudy, folder: Path, failures: Mapping[str, str] | None = None) -> list[Line]:
    """Write ``study.csv``, ``study.md`` and a picture for each seat, each whole or not at all."""
    from memberscope.report.run_folder import csv_text
    from memberscope.report.tradeoff import tradeoff

    lines = lines_of(config, folder, failures)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    write_text(folder / "study.csv", csv_text([{key: line.get(key) for key in columns} for line in lines]))
    write_text(folder / "study.md", markdown(config, lines))
    for seat in _measured_seats(lines):
        name = "".join(c if c.isalnum() else "_" for c in seat)
        points = points_of(lines, tuple(config.axes), seat, _rate(lines, seat, config.fpr))
        title = f"What protection costs, and what it buys: {seat}"
        picture = folder / f"tradeoff_{name}.png"
        fpr = _rate(lines, seat, config.fpr)
        known = _WITH if any(cell.settings.get("references") for cell in config.cells()) else _WITHOUT
        tradeoff(picture, points, fpr, title=title, of_whom="members", about=_ATTACKER + known)
    return lines


def markdown(config: FederationStudy, lines: Sequence[Line]) -> str:
    """The table for people: a line for each federation and seat, with intervals."""
    axes = tuple(config.axes)
    header = ["defense", *axes, "accuracy", "seat", "attack", "AUC", "TPR at the lowest FPR", "epsilon"]
    rows, left_out = [], []
    for line in lines:
        start = [line["row"], *(str(line[a]) for a in axes)]
        if line["status"] != "measured":
            why = line["reason"] or line["status"]
            left_out.append(f"{', '.join([*start, *([line['seat']] if line['seat'] else [])])}: {why}.")
            continue
        epsilon = [
            f"{line[key]:.3g} ({unit})"
            for key, unit in (("epsilon_of_a_record", "record"), ("epsilon_of_a_client", "client"))
            if line[key] is not None
        ]
        if line["epsilon_by_canaries"] is not None:
            ends = [f"{line[f'epsilon_by_canaries{end}']:.3g}" for end in ("", "_low", "_high")]
            epsilon.append(f"about {ends[0]} [{ends[1]}, {ends[2]}] (client, by canaries)")
        rate = "n too small"
        if line["lowest_fpr"] is not None:
            rate = f"{_shown(line, 'tpr_at_lowest')} at {100 * line['lowest_fpr']:g} %"
        rows.append(
            [
                *start,
                _shown(line, "accuracy"),
                line["seat"] + (f" (below the {line['more']})" if line["more"] else ""),
                line["attack"],
                _shown(line, "auc"),
                rate,
                ", ".join(epsilon),
            ]
        )
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    notes = [
        "Accuracy is the global model's on records of nobody. Members of each client are held against records of its "
        "own that it did not train on. Intervals are 95 %; those of a seat allow for the choice of its best attack.",
        *(
            ["", "A seat below one that sees less achieves at least what that one does: its attacks are open to it."]
            if any(line.get("more") for line in lines)
            else []
        ),
        *(
            ["", "Epsilon by canaries is an estimate and no bound; canary clients are no clients of the figures."]
            if any(line.get("epsilon_by_canaries") is not None for line in lines)
            else []
        ),
        *(["", "Not measured:", "", *(f"- {text}" for text in left_out)] if left_out else []),
    ]
    return "\n".join([f"# {config.name}", "", *table, "", *notes]) + "\n"


def where_of(**given: Any) -> dict[str, Any]:
    """The settings of where the work is done that were given."""
    return {k: v for k, v in given.items() if k in WHERE and k not in _NOT_WHERE and v is not None}


def _measured_seats(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["seat"] for line in lines if line["status"] == "measured"))


def _rate(lines: Sequence[Line], seat: str, wanted: float) -> float:
    """The wanted false-positive rate if all federations of the seat support it, else the next that they do."""
    there = [line for line in lines if line["seat"] == seat and line["status"] == "measured"]
    for fpr in (0.001, 0.01, 0.1):
        if fpr >= wanted and all(line.get(f"tpr_at_{fpr:g}") is not None for line in there):
            return fpr
    return 0.1


def _three(name: str, estimate: Mapping[str, Any] | None) -> Line:
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {f"{name}{end}": None if not estimate else estimate[key] for end, key in ends}


def _ends(line: Line, name: str) -> tuple[float, float, float]:
    return line[name], line[f"{name}_low"], line[f"{name}_high"]


def _shown(line: Line, name: str) -> str:
    if line.get(name) is None:
        return "n too small"
    value, low, high = _ends(line, name)
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"
