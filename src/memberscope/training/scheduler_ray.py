"""Where work runs: the nodes of a Ray cluster (extra ``cluster``).

The tasks are those of `memberscope.training.scheduler`, and so are the results. The arrays travel once to each node,
into its shared memory. A worker that dies is replaced and its item tried once more; a node that is lost (a spot machine
that was taken back) costs the items that ran there another run elsewhere. Ray itself retries nothing: what is retried,
and how often, is decided and told here.
"""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memberscope.environment import package_version
from memberscope.errors import ConfigError, ModelError
from memberscope.training.ray_cluster import Cluster, Share, first_line
from memberscope.training.scheduler import Arrays, Listener, Task, as_error
from memberscope.training.worker import Seldom, attempt

_WORKER_DEATHS, _NODE_DEATHS = 2, 10
_POLL_SECONDS = 1.0
_MORE_THAN_SLOTS = 2
"""Items handed out for each slot: workers need not wait, and a cluster that grows by itself sees what is asked for."""


class RayWorkers:
    """Work runs as tasks of a Ray cluster.

    Parameters
    ----------
    arrays
        Put into the cluster once; tasks see them read-only.
    cluster
        The connection; it stays open when this is closed.
    share
        What a task occupies.
    noun
        What an item is, for messages.
    """

    def __init__(self, arrays: Arrays, cluster: Cluster, share: Share, *, noun: str = "item") -> None:
        self._cluster, self._share, self._noun = cluster, share, noun
        self._ray = cluster.connect()
        self._arrays: Any = self._ray.put(dict(arrays))
        self._board = self._ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        self._work = self._ray.remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            memory=share.memory or None,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )(_work)

    @property
    def workers(self) -> int:
        """How many items are worked on at once, by the nodes that are there now."""
        return self._cluster.slots(self._share)

    def run(self, task: Task, items: Iterable[int], listener: Listener | None = None) -> Iterator[tuple[int, Any]]:
        """See `memberscope.training.scheduler.Scheduler`. Items are taken from an iterator as they are handed out.

        Raises
        ------
        ModelError
            A worker died twice at one item, or nodes were lost over and over, or a node has other versions.
        """
        waiting, deaths, losses = iter(items), Counter[int](), Counter[int]()
        again: list[int] = []
        running: dict[Any, int] = {}
        versions = _versions()
        most = _MORE_THAN_SLOTS * self.workers
        try:
            while True:
                while len(running) < most and (item := again.pop() if again else next(waiting, None)) is not None:
                    running[self._work.remote(self._arrays, task, item, self._board, versions)] = item
                if not running:
                    return
                done, _ = self._ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                self._tell(running, listener)
                for reference in done:
                    item = running.pop(reference)
                    kind, *content = self._hear(reference)
                    if kind == "result":
                        yield item, content[0]
                    elif kind in ("refused", "failed"):
                        raise as_error(kind, content, "on a node of the cluster")
                    else:
                        self._count(kind, item, content[0], deaths, losses, listener)
                        again.append(item)
                most = max(most, _MORE_THAN_SLOTS * self._slots_now())
        finally:
            # Left early: what still runs would hold its node, and write.
            for reference in running:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Give the arrays' memory back."""
        with contextlib.suppress(Exception):
            self._ray.kill(self._board)
        self._arrays = None

    def _hear(self, reference: Any) -> tuple[Any, ...]:
        """What became of a task: its own answer, or ("death", reason), or ("loss", reason) with its node."""
        failures = self._ray.exceptions
        try:
            answer: tuple[Any, ...] = self._ray.get(reference)
            return answer
        except failures.RayTaskError as error:
            return ("refused", "ModelError", *_unprepared(error))
        except (failures.WorkerCrashedError, failures.OutOfMemoryError) as error:
            return ("death", first_line(error))
        except (failures.NodeDiedError, failures.ObjectLostError, failures.LocalRayletDiedError) as error:
            return ("loss", first_line(error))

    def _count(
        self, kind: str, item: int, reason: str, deaths: Counter[int], losses: Counter[int], listener: Listener | None
    ) -> None:
        counter, most = (deaths, _WORKER_DEATHS) if kind == "death" else (losses, _NODE_DEATHS)
        counter[item] += 1
        if counter[item] == most:
            what = "a worker process died" if kind == "death" else "nodes were lost"
            raise ModelError(
                f"{what} {most} times at {self._noun} {item}: {reason}",
                "give each task more memory or use nodes that stay; what was finished is kept",
            )
        if listener is not None:
            listener.on_death(item, reason)

    def _tell(self, running: Mapping[Any, int], listener: Listener | None) -> None:
        if listener is None:
            return
        with contextlib.suppress(Exception):  # the board's node may be the one that was lost: it begins anew
            told: Mapping[int, float] = self._ray.get(self._board.read.remote(), timeout=_POLL_SECONDS)
            for item in set(told) & set(running.values()):
                listener.on_fraction(item, told[item])

    def _slots_now(self) -> int:
        try:
            return self.workers
        except ConfigError:  # all nodes are gone for the moment: what is handed out waits for new ones
            return 0


class Board:
    """Where tasks of all nodes write how far they are. Lives in the cluster."""

    def __init__(self) -> None:
        self._told: dict[int, float] = {}

    def tell(self, item: int, fraction: float) -> None:
        """Note how far an item is."""
        self._told[item] = fraction

    def read(self) -> dict[int, float]:
        """What was told since it was read last."""
        told, self._told = self._told, {}
        return told


def _work(arrays: Arrays, task: Task, item: int, board: Any, versions: Mapping[str, str]) -> tuple[Any, ...]:
    """Do an item, on a node."""
    here = _versions()
    if here != versions:
        told = ", ".join(
            f"{name} {here[name]} there, {versions[name]} here" for name in here if here[name] != versions[name]
        )
        return ("refused", "ModelError", f"the node {socket.gethostname()} has other versions: {told}", _SAME)
    with warnings.catch_warnings():
        # The node's copy of the records is shared and read-only; nothing here writes to records.
        warnings.filterwarnings("ignore", message=".*NumPy array is not writable")
        return attempt(task, arrays, item, Seldom(lambda fraction: board.tell.remote(item, fraction)))


_SAME = "install the same versions of memberscope and torch on every node: models depend on them"


def _versions() -> dict[str, str]:
    return {name: package_version(name) or "no package" for name in ("memberscope", "torch", "numpy")}


def _unprepared(error: Exception) -> tuple[str, str]:
    """Problem and hint of a task that could not even begin."""
    if "No module named" in str(error) or "ModuleNotFoundError" in str(error):
        missing = next((line.strip() for line in str(error).splitlines() if "No module named" in line), str(error))
        return f"a node of the Ray cluster cannot run the work: {missing}", _SAME
    return f"a node of the Ray cluster cannot run the work: {error}", _SAME
