"""The cells of a study (audits, federations) made here one after the other, or several at once in other processes.

At once they are tasks of `memberscope.training.scheduler`: in local processes, or on the nodes of a Ray cluster. Their
datasets travel with them, once to each node. The process that was asked for the study claims each cell as it is handed
out. A worker that sees the study's folder writes there and goes on with what is half done; one that does not works in a
folder of its own and sends back what tables and reports need: no transcripts, features or checkpoints.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from memberscope import data_loader
from memberscope.data_loader import Dataset
from memberscope.errors import MemberscopeError
from memberscope.events import Events
from memberscope.files import write_bytes
from memberscope.locks import claim
from memberscope.study_config import Cell
from memberscope.training.scheduler import Arrays, LocalWorkers, Tell, shares_storage

if TYPE_CHECKING:
    from memberscope.training.ray_cluster import Cluster
    from memberscope.training.scheduler_ray import RayWorkers

_STAY = {"transcript", "features", "rounds", "references", "checkpoint"}
"""What a worker without the study's folder does not send back: it may take gigabytes."""
_ARRAYS = ("x", "y", "is_train")


class Make(Protocol):
    """Makes one cell. Picklable: a function of a module."""

    def __call__(self, cell: Any, path: Path, where: Mapping[str, Any], events: Events, /) -> None:
        """Leave in `path` what there is to know of the cell; what is there already is gone on with."""


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Parameters
    ----------
    make
        Makes one cell.
    cells
        All of the study.
    folder
        In which each has the folder of its key.
    done
        The file in it that is there when the cell is made.
    noun
        What a cell is: audit, federation.
    where
        Settings that say where the work is done.
    """

    make: Make
    cells: Sequence[Cell]
    folder: Path
    done: str
    noun: str
    where: Mapping[str, Any]

    def made(self, cell: Cell) -> bool:
        """Whether a cell is there."""
        return (self.folder / cell.key / self.done).is_file()

    def lock(self, cell: Cell) -> Path:
        """The file by which a process claims a cell."""
        return self.folder / f".{cell.key}.lock"

    def named(self, number: int) -> str:
        """A cell, for people; they count from 1."""
        return f"{self.noun.capitalize()} {number + 1} of {len(self.cells)}"

    def left(self) -> str:
        """What an interrupted user is told."""
        there = sum(map(self.made, self.cells))
        told = f"{there} of {len(self.cells)} {self.noun}s of the study are done and kept"
        return f"{told}; the same command goes on from there"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell that was not there.

    Parameters
    ----------
    cell
        Which.
    busy
        Another process is at it.
    failure
        Why it could not be made; empty: it was, or another process is at it.
    """

    cell: Cell
    busy: bool = False
    failure: str = ""


def run_here(job: Job, events: Events) -> Iterator[Outcome]:
    """Make the missing cells one after the other. One that fails is told, and the others go on."""
    begun, made = time.perf_counter(), 0
    for number, cell in enumerate(job.cells):
        if job.made(cell):
            continue
        with claim(job.lock(cell)) as ours:
            if ours and job.made(cell):
                continue
            if ours:
                events.stage(f"{job.named(number)}: {cell}{_pace(begun, made)}")
                outcome = Outcome(cell, failure=_attempt(job, cell, job.folder / cell.key, job.where, events))
                made += 1
            else:
                outcome = Outcome(cell, busy=True)
        _tell(job, number, outcome, events)
        yield outcome


def run_at_once(job: Job, workers: int | Cluster, events: Events) -> Iterator[Outcome]:
    """Make the missing cells in other processes, and yield each when it is made.

    Parameters
    ----------
    job
        What.
    workers
        How many local processes; or a cluster.
    events
        Hears of it.
    """
    arrays, datasets = _travelling(job)
    task = MakeCell(job, secrets.token_hex(16), datasets)
    claims: dict[int, contextlib.ExitStack] = {}
    busy: list[int] = []

    def unclaimed() -> Iterator[int]:
        for number, cell in enumerate(job.cells):
            lock, stack = job.lock(cell), contextlib.ExitStack()
            if job.made(cell):
                continue
            if not stack.enter_context(claim(lock)):
                busy.append(number)
            elif job.made(cell):
                stack.close()
            else:
                lock.write_text(task.token, encoding="ascii")
                claims[number] = stack
                yield number

    job.folder.mkdir(parents=True, exist_ok=True)
    place: LocalWorkers | RayWorkers | None = None
    work: Any
    try:
        if isinstance(workers, int):
            numbers = list(unclaimed())
            place = LocalWorkers(arrays, max(1, min(workers, len(numbers))), job.folder, noun=job.noun)
            work = place.run(task, numbers, _Listener(job, events))
        else:
            from memberscope.training.scheduler_ray import RayWorkers

            share = share_of(workers, job.where, sum(array.nbytes for array in arrays.values()))
            place = RayWorkers(arrays, workers, share, noun=job.noun)
            work = place.run(task, unclaimed(), _Listener(job, events))
        events.stage(f"Making {job.noun}s, up to {place.workers} at once")
        with contextlib.closing(work):  # it stops what still runs before the claims are given up
            for number, (failure, files) in work:
                for name, content in files.items():
                    write_bytes(job.folder / job.cells[number].key / name, content)
                claims.pop(number).close()
                outcome = Outcome(job.cells[number], failure=failure)
                _tell(job, number, outcome, events, at_once=True)
                yield outcome
    except KeyboardInterrupt:
        raise KeyboardInterrupt(job.left()) from None
    finally:
        if place is not None:
            place.close()
        for claimed in claims.values():
            claimed.close()
    for number in busy:
        outcome = Outcome(job.cells[number], busy=True)
        _tell(job, number, outcome, events)
        yield outcome


Files = dict[str, bytes]


@dataclass(frozen=True)
class MakeCell:
    """The task of a study's workers: make the cell of a number, which the study's process has claimed.

    Parameters
    ----------
    job
        With the study's folder as the study's process sees it.
    token
        Written into the claim of each cell: a worker that can read it there shares the study's storage.
    datasets
        The datasets by name, without their arrays.
    """

    job: Job
    token: str
    datasets: Mapping[str, Mapping[str, Any]]

    def __call__(self, arrays: Arrays, number: int, tell: Tell, /) -> tuple[str, Files]:
        """Why the cell could not be made (empty: it was), and the files that the study's process does not see."""
        del tell
        cell, job = self.job.cells[number], self.job
        given = {}
        for name, about in self.datasets.items():
            own: dict[str, Any] = {part: arrays[f"{part} of {name}"] for part in _ARRAYS}
            given[name] = Dataset(**about, **own)
        with data_loader.provided(given):
            if shares_storage(job.lock(cell), self.token):
                return _attempt(job, cell, job.folder / cell.key, job.where, Events()), {}
            with tempfile.TemporaryDirectory(prefix="memberscope-") as folder:
                path, models = Path(folder) / cell.key, Path(folder) / "models"
                where = {**job.where, "models_dir": models} if "models_dir" in job.where else job.where
                failure = _attempt(job, cell, path, where, Events())
                return failure, {} if failure else _files(path, job.done)


@dataclass(frozen=True)
class _Listener:
    """Hears of workers."""

    job: Job
    events: Events

    def on_fraction(self, item: int, fraction: float) -> None:
        """Cells do not tell how far they are."""

    def on_death(self, item: int, reason: str) -> None:
        """Tell it."""
        self.events.note(f"{self.job.named(item)}: its worker died ({reason}); it is tried once more")


def share_of(cluster: Cluster, where: Mapping[str, Any], record_bytes: int) -> Any:
    """What a cell occupies on a node: its threads, a GPU if the cluster has any and the user did not say cpu."""
    from memberscope.training.layout import WORKER_BYTES
    from memberscope.training.ray_cluster import Share

    has_gpus = any(resources.get("GPU", 0) >= 1 for resources in cluster.nodes())
    gpus = float(has_gpus and str(where.get("device", "auto")) != "cpu")
    return Share(int(where.get("threads") or 1), gpus, WORKER_BYTES + 2 * record_bytes)


def _travelling(job: Job) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Arrays of the datasets of the cells that are missing, and the rest of them."""
    arrays: dict[str, Any] = {}
    datasets: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys(str(cell.settings["dataset"]) for cell in job.cells if not job.made(cell)):
        found = data_loader.load(name, job.where.get("data_dir"), unverified=job.where.get("unverified_data"))
        arrays |= {f"{part} of {name}": getattr(found, part) for part in _ARRAYS}
        about = ("name", "classes", "source", "verified")
        datasets[name] = {part: getattr(found, part) for part in about}
    return arrays, datasets


def _attempt(job: Job, cell: Cell, path: Path, where: Mapping[str, Any], events: Events) -> str:
    try:
        job.make(cell, path, where, events)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(job.left()) from None
    except Exception as error:  # of a long study the other cells are not lost with one, whatever ended it
        return str(error) if isinstance(error, MemberscopeError) else f"{type(error).__name__}: {error}"
    return ""


def _tell(job: Job, number: int, outcome: Outcome, events: Events, *, at_once: bool = False) -> None:
    what = f"{job.named(number)} ({outcome.cell})"
    if outcome.busy:
        events.note(f"{what}: another process is at it.")
    elif outcome.failure:
        events.note(f"{what} failed: {outcome.failure}")
    elif at_once:
        left = sum(not job.made(cell) for cell in job.cells)
        events.note(f"{what} is done; {left} left")


def _files(path: Path, done: str) -> Files:
    """What is sent back; what says that the cell is made comes last."""
    found = {
        str(file.relative_to(path)): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not _STAY & set(file.relative_to(path).parts)
    }
    return {name: found[name].read_bytes() for name in [*(name for name in found if name != done), done]}


def _pace(begun: float, made: int) -> str:
    from memberscope.report.wording import duration

    return f" (until now {duration((time.perf_counter() - begun) / made)} each)" if made else ""
