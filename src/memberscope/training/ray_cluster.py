"""A Ray cluster (extra ``cluster``): how to reach it or begin one here, what its nodes have, what a task occupies."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from memberscope.errors import ConfigError, MemberscopeError
from memberscope.training.layout import available_memory, usable_cores
from memberscope.training.scheduler import LOCAL_CLUSTER, as_error
from memberscope.training.worker import attempt

_MEMORY_SHARE = 0.7
"""Of what is free: about what Ray leaves to tasks beside its store of objects."""
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Share:
    """What one task occupies on a node.

    Parameters
    ----------
    cpus
        Cores, which are its threads.
    gpus
        GPUs, or a fraction of one.
    memory
        Bytes.
    """

    cpus: int
    gpus: float = 0.0
    memory: int = 0

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many such tasks run at once where there are these resources."""
        counts = [resources.get("CPU", 0.0) / self.cpus]
        if self.gpus:
            counts.append(resources.get("GPU", 0.0) / self.gpus + 1e-6)  # thirds of a GPU are three
        if self.memory:
            counts.append(resources.get("memory", 0.0) / self.memory)
        return int(min(counts))


class Cluster:
    """A connection to a Ray cluster, made when it is needed. A cluster that was begun here ends with it.

    Parameters
    ----------
    workers
        ``ray``: this machine (or RAY_ADDRESS, where that is set); ``ray://HOST:PORT``: by Ray's client, from outside;
        ``HOST:PORT``: from a machine that is a node of it.

    Raises
    ------
    ConfigError
        Ray is not installed.
    """

    def __init__(self, workers: str) -> None:
        self.address = os.environ.get("RAY_ADDRESS") if workers == LOCAL_CLUSTER else workers
        self._ray = _import_ray()
        self._begun = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def connect(self) -> ModuleType:
        """Give Ray, connected. A connection that the program made before is used, and left open.

        Raises
        ------
        MemberscopeError
            No cluster answers at the address.
        """
        if not self._ray.is_initialized():
            _connect(self._ray, self.address)
            self._begun = True
        return self._ray

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each node that is alive."""
        if self.address is None and not self._ray.is_initialized():
            return [{"CPU": usable_cores(), "memory": _MEMORY_SHARE * (available_memory() or float("inf"))}]
        return [node["Resources"] for node in self.connect().nodes() if node["Alive"]]

    def slots(self, share: Share) -> int:
        """How many tasks run at once.

        Raises
        ------
        ConfigError
            No node has room for one.
        """
        slots = sum(share.fits(resources) for resources in self.nodes())
        if slots == 0:
            gpus = f", {share.gpus:g} GPU" if share.gpus else ""
            raise ConfigError(
                f"no node of the Ray cluster has {share.cpus} cores{gpus} and {share.memory / 1e9:.1f} GB for a task",
                "ask for fewer threads, or add larger nodes",
            )
        return slots

    def ask(self, function: Callable[..., Any], *given: Any, gpus: float = 0.0) -> Any:
        """The answer of a function called on a node, of those that have GPUs if any are asked for."""
        ray = self.connect()
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_asked)
        kind, *content = ray.get(remote.remote(function, *given))
        if kind != "result":
            raise as_error(kind, content)
        return content[0]

    def close(self) -> None:
        """End the connection, and the cluster if it was begun here."""
        if self._begun:
            self._begun = False
            self._ray.shutdown()


def _asked(function: Callable[..., Any], *given: Any) -> tuple[Any, ...]:
    return attempt(lambda arrays, item, tell: function(*given), {}, 0, lambda fraction: None)


def _import_ray() -> ModuleType:
    # Before the import: Ray reads it then. An audit reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "workers on a cluster need Ray, which is not installed", "pip install 'memberscope[cluster]'"
        ) from error
    module: ModuleType = ray
    return module


def _connect(ray: ModuleType, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        given = {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    else:
        _check_reachable(address)
        given = {"address": address}
    # Ray prints the raylet's messages to standard output, where they would tear up --json; deaths are told by us.
    with contextlib.suppress(ImportError, AttributeError):
        import ray._private.worker as internals

        internals._worker_logs_enabled = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**given, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, ImportError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise MemberscopeError(
            f"no Ray cluster can be used {where}: {first_line(error)}",
            "see that it runs (ray status) with the same versions of Ray and Python as here",
        ) from error


def _check_reachable(address: str) -> None:
    """Ray tries for a minute before it says that nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"workers = {address!r} is no address of a Ray cluster", "ray, ray://HOST:10001, or HOST:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise MemberscopeError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "see that it runs (ray status on its head node), and that the port is open",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says: Ray's errors say pages."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
