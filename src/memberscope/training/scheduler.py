"""Where work runs: in this process, or in local worker processes.

Work is a task, called once for each item in any order; what all items share (the records) is handed over once, as
arrays, and not with each item. Another place to run is one class with the three methods of `Scheduler`; a cluster is in
`memberscope.training.scheduler_ray`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memberscope import errors
from memberscope.errors import MemberscopeError, ModelError

Arrays = Mapping[str, NDArray[Any]]
Tell = Callable[[float], None]
LOCAL_CLUSTER = "ray"
"""The setting of workers that begins a Ray cluster of this machine alone, or joins the one that RAY_ADDRESS names."""
_ATTEMPTS = 2
_LINES_SHOWN = 3


def is_cluster(workers: object) -> bool:
    """Whether a setting of workers means a Ray cluster: ``ray``, ``ray://HOST:PORT``, or ``HOST:PORT``."""
    return isinstance(workers, str) and (workers == LOCAL_CLUSTER or ":" in workers)


def shares_storage(lock: Path, token: str) -> bool:
    """Whether a worker sees the claim in which the process that handed out the work wrote this token."""
    try:
        return lock.read_text(encoding="ascii") == token
    except (OSError, UnicodeDecodeError):
        return False


class Task(Protocol):
    """What is done with an item. Picklable (a function of a module, or an instance of a class of a module)."""

    def __call__(self, arrays: Arrays, item: int, tell: Tell, /) -> Any:
        """Give the picklable result of an item; `tell` takes the fraction of it that is done, as often as it likes."""


class Listener(Protocol):
    """Hears of the work while it runs."""

    def on_fraction(self, item: int, fraction: float) -> None:
        """Told when this fraction of an item is done."""

    def on_death(self, item: int, reason: str) -> None:
        """Told when the worker with this item died; another one tries it once more."""


class Scheduler(Protocol):
    """A place where work runs. The arrays were given when it was made."""

    @property
    def workers(self) -> int:
        """How many items are worked on at once."""

    def run(self, task: Task, items: Sequence[int], listener: Listener | None = None) -> Iterator[tuple[int, Any]]:
        """Yield each item with its result as it is done. What a task raises is raised here, and the rest is stopped."""

    def close(self) -> None:
        """Stop, whatever is running."""


class InProcess:
    """Work runs here, one item after the other.

    Parameters
    ----------
    arrays
        Handed to the task as they are.
    """

    workers = 1

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def run(self, task: Task, items: Sequence[int], listener: Listener | None = None) -> Iterator[tuple[int, Any]]:
        """See `Scheduler`."""
        for item in items:
            tell = _ignore if listener is None else partial(listener.on_fraction, item)
            yield item, task(self._arrays, item, tell)

    def close(self) -> None:
        """Nothing is left running."""


class LocalWorkers:
    """Work runs in processes of this machine: fresh interpreters that map the arrays of one temporary file.

    A worker that dies is replaced, and its item tried once more. Workers end with this process, however it ends.
    Unlike `multiprocessing`, they do not import the main module: scripts need no ``if __name__ == "__main__"``.

    Parameters
    ----------
    arrays
        Written once to an unlinked file, which all workers map read-only: they share its pages.
    workers
        How many; they are started when there is work.
    folder
        Where the temporary file lies (it needs room there).
    noun
        What an item is, for messages.
    """

    def __init__(self, arrays: Arrays, workers: int, folder: Path, *, noun: str = "item") -> None:
        self.workers, self._noun = workers, noun
        self._file: IO[bytes] | None
        self._file, self._table = _shared(arrays, folder)
        self._staff: list[_Worker] = []

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, task: Task, items: Sequence[int], listener: Listener | None = None) -> Iterator[tuple[int, Any]]:
        """See `Scheduler`.

        Raises
        ------
        ModelError
            A worker died, and died again when the item was tried once more.
        """
        waiting, deaths = deque(items), Counter[int]()
        try:
            self._assign(task, waiting)
            while busy := {worker.connection: worker for worker in self._staff if worker.item is not None}:
                for ready in wait(list(busy)):
                    worker = busy[ready]  # type: ignore[index]  # only connections were waited for
                    item = worker.item
                    assert item is not None
                    kind, *content = worker.hear()
                    if kind == "fraction":
                        if listener is not None:
                            listener.on_fraction(item, *content)
                        continue
                    if kind == "death":
                        deaths[item] += 1
                        self._replace(worker, item, deaths[item], listener)
                        waiting.appendleft(item)
                    worker.item = None
                    self._assign(task, waiting)
                    if kind in ("refused", "failed"):
                        raise as_error(kind, content)
                    if kind == "result":
                        yield item, content[0]
        finally:
            # Left early: what still runs would answer the next call.
            for worker in [w for w in self._staff if w.item is not None]:
                self._bury(worker)

    def keep(self, workers: int) -> None:
        """Stop all but this many workers."""
        self.workers = workers
        for worker in self._staff[workers:]:
            self._bury(worker)

    def close(self) -> None:
        """Stop all workers at once and give the memory back."""
        for worker in list(self._staff):
            self._bury(worker)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _assign(self, task: Task, waiting: deque[int]) -> None:
        idle = [worker for worker in self._staff if worker.item is None]
        while waiting and (idle or len(self._staff) < self.workers):
            if idle:
                worker = idle.pop(0)
            else:
                assert self._file is not None, "closed"
                worker = _Worker(self._file.fileno(), self._table)
                self._staff.append(worker)
            worker.start(task, waiting.popleft())

    def _replace(self, worker: _Worker, item: int, deaths: int, listener: Listener | None) -> None:
        reason = self._bury(worker)
        if deaths == _ATTEMPTS:
            raise ModelError(
                f"a worker process died {deaths} times at {self._noun} {item}: {reason}",
                "ask for fewer workers if memory is short; what was finished is kept",
            )
        if listener is not None:
            listener.on_death(item, reason)

    def _bury(self, worker: _Worker) -> str:
        self._staff.remove(worker)
        return worker.stop()


class _Worker:
    """One process. It ends by itself when the connection does."""

    def __init__(self, file: int, table: Mapping[str, Any]) -> None:
        ours, theirs = socketpair()
        # What it says before it dies is told; what it warns of would tear up the progress display.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [sys.executable, "-P", "-m", "memberscope.training.worker", str(theirs.fileno()), str(file)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(), file),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.item: int | None = None
        self._send(table)

    def start(self, task: Task, item: int) -> None:
        self.item = item
        self._send((task, item))

    def hear(self) -> tuple[Any, ...]:
        """What it says; ("death",) if it died."""
        try:
            said: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):
            return ("death",)
        return said

    def stop(self) -> str:
        """End it if it still runs; say how it ended and what it said last."""
        self.connection.close()
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()[-_LINES_SHOWN:]
        self._said.close()
        return "; ".join([_ending(code), *(line.strip() for line in lines)])

    def _send(self, content: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `hear` will say so
            self.connection.send(content)


def _shared(arrays: Arrays, folder: Path) -> tuple[IO[bytes], dict[str, Any]]:
    """One unlinked file of all arrays, and name -> dtype, shape and first byte of each."""
    table: dict[str, Any] = {}
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the workers' mapping outlives any block)
        for name, array in arrays.items():
            plain = np.ascontiguousarray(array)
            file.write(b"\0" * (-file.tell() % 64))
            table[name] = (plain.dtype.str, plain.shape, file.tell())
            file.write(plain.reshape(-1).view(np.uint8).data)
        file.write(b"\0")  # an empty file cannot be mapped
        file.flush()
    except OSError as error:
        raise MemberscopeError(
            f"cannot write the records for the workers to {folder}: {error.strerror or error}",
            "free some space, or use one worker, which needs none",
        ) from error
    return file, table


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name} (out of memory?)" if -code == signal.SIGKILL else name


def as_error(kind: str, content: Sequence[str], where: str = "in a worker process") -> Exception:
    """The error that `memberscope.training.worker.attempt` told of: our own as it was, others with their traceback."""
    if kind == "refused":
        name, problem, hint = content
        found: MemberscopeError = getattr(errors, name)(problem, hint)
        return found
    return RuntimeError(f"{where}:\n{content[0]}")


def _ignore(fraction: float) -> None:
    del fraction
