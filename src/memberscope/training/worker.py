"""A worker process of `memberscope.training.scheduler.LocalWorkers`. Started by it, never by hand."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope import errors
from memberscope.errors import MemberscopeError

_SECONDS_BETWEEN_FRACTIONS = 0.5


def main(connection_number: int, file_number: int) -> None:
    """Do what comes over the connection, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent decides
    connection = Connection(connection_number)
    arrays = mapped(file_number, connection.recv())
    orders: SimpleQueue[bytes] = SimpleQueue()

    def say(fraction: float) -> None:
        connection.send(("fraction", fraction))

    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    while True:
        order = orders.get()
        try:
            task, item = ForkingPickler.loads(order)
        except Exception:
            connection.send(("failed", traceback.format_exc()))
        else:
            connection.send(attempt(task, arrays, item, Seldom(say)))


def attempt(
    task: Callable[..., Any], arrays: Mapping[str, NDArray[Any]], item: int, tell: Callable[[float], None]
) -> tuple[Any, ...]:
    """Do an item, and say what came of it in what any connection can carry.

    Returns
    -------
    tuple
        ("result", what the task gave), or ("refused", class, problem, hint) of an error of our own, or ("failed",
        traceback) of another.
    """
    try:
        return ("result", task(arrays, item, tell))
    except MemberscopeError as error:
        known = error if type(error).__name__ in vars(errors) else MemberscopeError(error.problem, error.hint)
        return ("refused", type(known).__name__, error.problem, error.hint)
    except Exception:
        return ("failed", traceback.format_exc())


def mapped(file: int, table: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, NDArray[Any]]:
    """Give the arrays of an open file, mapped copy-on-write; `table`: name -> dtype, shape and first byte of each."""
    memory = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    return {
        name: np.ndarray(shape, np.dtype(dtype), buffer=memory, offset=offset)
        for name, (dtype, shape, offset) in table.items()
    }


def _listen(connection: Connection, orders: SimpleQueue[bytes]) -> None:
    while True:
        try:
            orders.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone, or wants no more: claims on models end with this process


class Seldom:
    """Passes on how far an item is, not too often."""

    def __init__(self, say: Callable[[float], object]) -> None:
        self._say = say
        self._last = time.monotonic()

    def __call__(self, fraction: float) -> None:
        """Say it, if nothing was said for a moment."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_FRACTIONS:
            self._last = now
            self._say(fraction)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
