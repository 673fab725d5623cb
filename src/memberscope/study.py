"""A study: many audits over a grid, each a run folder; it runs what is missing, and may be killed at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memberscope import study_table
from memberscope.config import default_models_dir
from memberscope.events import Events
from memberscope.study_cells import Job, Outcome, run_at_once, run_here
from memberscope.study_config import Cell, StudyConfig
from memberscope.study_files import write_tables
from memberscope.training.scheduler import is_cluster

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """What is there of a study.

    Parameters
    ----------
    config
        The study.
    folder
        Where its audits and tables lie.
    documents
        Finished audits: key of the cell -> content of its ``results.json``.
    failures
        Key -> why an audit could not be made.
    busy
        Keys of audits that other processes are at.
    """

    config: StudyConfig
    folder: Path
    documents: Mapping[str, Document]
    failures: Mapping[str, str] = field(default_factory=dict)
    busy: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every audit is there."""
        return all(cell.key in self.documents for cell in self.config.cells())

    def lines(self) -> list[dict[str, Any]]:
        """The table: a line for each audit of the study, in its order, those that are missing too."""
        lines = []
        for cell in self.config.cells():
            if cell.key in self.documents:
                run = f"cells/{cell.key}"
                lines.append(study_table.line_of(cell.row, cell.axes, self.documents[cell.key], run))
            else:
                reason = self.failures.get(cell.key, "")
                status = "failed" if reason else "missing"
                lines.append({"row": cell.row, **cell.axes, "status": status, "reason": reason})
        return lines

    def attack_lines(self) -> list[dict[str, Any]]:
        """A line for each attack of each finished audit, on its population and on each kind of canary."""
        there = [cell for cell in self.config.cells() if cell.key in self.documents]
        return [
            line for cell in there for line in study_table.attack_lines(cell.row, cell.axes, self.documents[cell.key])
        ]

    def points(self, *, canaries: bool = False) -> tuple[list[study_table.Point], float | None]:
        """The rows of the picture, and the false-positive rate of their leakage."""
        runs = {f"cells/{key}": document for key, document in self.documents.items()}
        return study_table.points_of(self.lines(), runs, tuple(self.config.axes), self.config.fpr, canaries=canaries)


def state(config: StudyConfig, folder: Path) -> Study:
    """What is there of a study, from its run folders alone."""
    from memberscope.report.run_folder import read

    there = {}
    for cell in config.cells():
        run = folder / "cells" / cell.key
        if (run / "results.json").is_file():
            there[cell.key] = read(run)
    return Study(config, folder, there)


def run(config: StudyConfig, where: Mapping[str, Any] | None = None, /, *, events: Events | None = None) -> Study:
    """Run the audits of a study that are missing, and write its tables after each.

    An audit that fails is told and left out, and the others go on. Several processes may run one study at once: an
    audit that another one is at is left to it. On a cluster audits are made at once, each with its trainings, unless
    it is quicker to make one after the other and spread the reference models of each.

    Parameters
    ----------
    config
        The study.
    where
        Settings that say where the work is done (`memberscope.study_config.WHERE`).
    events
        Listens to progress.

    Raises
    ------
    MemberscopeError
        The folder cannot be written.
    """
    events, where = events or Events(), dict(where or {})
    out = where.pop("out", None)
    folder = config.folder(out)
    where["models_dir"] = Path(where.get("models_dir") or default_models_dir()).resolve()
    job = Job(make_audit, config.cells(), folder / "cells", "results.json", "audit", where)
    failures: dict[str, str] = {}
    busy: list[str] = []
    for outcome in _outcomes(job, events):
        if outcome.busy:
            busy.append(outcome.cell.key)
            continue
        if outcome.failure:
            failures[outcome.cell.key] = outcome.failure
        write_tables(Study(config, folder, state(config, folder).documents, failures, tuple(busy)))
    found = state(config, folder)
    study = Study(config, folder, found.documents, failures, tuple(k for k in busy if k not in found.documents))
    write_tables(study)
    return study


def make_audit(cell: Cell, path: Path, where: Mapping[str, Any], events: Events, /) -> None:
    """Make one audit of a study."""
    from memberscope.audit import audit

    audit(cell.config(where), events=events).save(path)


def _outcomes(job: Job, events: Events) -> Iterator[Outcome]:
    workers = job.where.get("workers")
    if not is_cluster(workers):
        yield from run_here(job, events)
        return
    from memberscope.training.ray_cluster import Cluster

    with Cluster(str(workers)) as cluster:
        slots = sum(int(resources.get("CPU", 0)) for resources in cluster.nodes())
        if audits_first(job, slots):
            alone = {**job.where, "workers": "1", "threads": job.where.get("threads") or 1}
            yield from run_at_once(replace(job, where=alone), cluster, events)
            return
    yield from run_here(job, events)


def audits_first(job: Job, slots: int) -> bool:
    """Whether a cluster is used better by audits at once than by the reference models of one after the other.

    In trainings that follow one another, on so many slots: each audit has its targets, and its reference models.
    """
    missing = [cell.config({}) for cell in job.cells if not job.made(cell)]
    at_once = -(-len(missing) // max(1, slots)) * max((c.targets + c.n_shadows for c in missing), default=0)
    in_turn = sum(c.targets + -(-c.n_shadows // max(1, slots)) for c in missing)
    return at_once <= in_turn
