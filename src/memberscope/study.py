"""A study: many audits over a grid, each a run folder; it runs what is missing, and may be killed at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memberscope import study_table
from memberscope.config import default_output_dir
from memberscope.errors import MemberscopeError
from memberscope.events import Events
from memberscope.study_config import StudyConfig
from memberscope.study_files import write_tables

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


def folder_of(config: StudyConfig, out: Path | None = None) -> Path:
    """Where a study lies: in the folder for outputs, under its name."""
    return (out or default_output_dir()) / config.name


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
    """Run the audits of a study that are missing, one after the other, and write its tables after each.

    An audit that fails is told and left out, and the others go on. Several processes may run one study at once: an
    audit that another one is at is left to it.

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
    from memberscope.audit import audit

    events, where = events or Events(), dict(where or {})
    out = where.pop("out", None)
    folder = folder_of(config, None if out is None else Path(out))
    cells = config.cells()
    failures: dict[str, str] = {}
    busy: list[str] = []
    begun, done_here = time.perf_counter(), 0
    for number, cell in enumerate(cells, start=1):
        path = folder / "cells" / cell.key
        if (path / "results.json").is_file():
            continue
        with _claim(folder / "cells" / f".{cell.key}.lock") as ours:
            if not ours:
                busy.append(cell.key)
                events.note(f"Audit {number} of {len(cells)} ({cell}): another process is at it.")
                continue
            if (path / "results.json").is_file():
                continue
            events.stage(f"Audit {number} of {len(cells)}: {cell}{_pace(begun, done_here)}")
            try:
                audit(cell.config(where), events=events).save(path)
            except Exception as error:  # of a long study the other audits are not lost with one, whatever ended it
                told = str(error) if isinstance(error, MemberscopeError) else f"{type(error).__name__}: {error}"
                failures[cell.key] = told
                events.note(f"Audit {number} of {len(cells)} ({cell}) failed: {told}")
                continue
            except KeyboardInterrupt:
                there = len(state(config, folder).documents)
                told = f"{there} of {len(cells)} audits of the study are done and kept"
                raise KeyboardInterrupt(f"{told}; the same command goes on from there") from None
            done_here += 1
        found = state(config, folder)
        write_tables(Study(config, folder, found.documents, failures, tuple(busy)))
    found = state(config, folder)
    study = Study(config, folder, found.documents, failures, tuple(k for k in busy if k not in found.documents))
    write_tables(study)
    return study


def _pace(begun: float, done: int) -> str:
    from memberscope.report.wording import duration

    if not done:
        return ""
    each = (time.perf_counter() - begun) / done
    return f" (until now {duration(each)} each)"


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process has the audit; released when the process ends, however it does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        told = f"cannot write {path.parent}: {error.strerror or error}"
        raise MemberscopeError(told, "choose another folder with --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
