"""A SuperLink and SuperNodes on loopback, each a process of its own, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def deployment(folder: Path, nodes: int) -> Iterator[dict[str, str]]:
    """A SuperLink and SuperNodes; gives the environment for `flwr run`, and the SuperLink's address as SUPERLINK."""
    port, processes = free_port(), []
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        "SUPERLINK": f"127.0.0.1:{port}",
    }
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "lo"\n\n[superlink.lo]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )

    def begin(name: str, *arguments: str) -> None:
        command = [str(scripts / arguments[0]), "--insecure", *arguments[1:]]
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
            )

    try:
        begin(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        for i in range(nodes):
            begin(
                f"node{i}", "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                "--node-config", f"partition-id={i} num-partitions={nodes}",
            )  # fmt: skip
        yield environment
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # its SuperExec children outlive it for some seconds
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
