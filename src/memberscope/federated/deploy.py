"""Running a federation on a SuperLink with SuperNodes: the same apps, written as a Flower app and handed in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memberscope.config import to_toml
from memberscope.errors import ConfigError, MemberscopeError
from memberscope.events import Events
from memberscope.federated.config import FederationConfig
from memberscope.files import write_text

if TYPE_CHECKING:
    from memberscope.federated.federation import Federation

APP, LOG = "flower-app", "flower.log"
_HOME = "flower-home"
_PACKAGE = "memberscope_federation"
_POLL_SECONDS = 1.0
_SAID_LINES = 12
_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "memberscope-federation"
version = "1.0.0"
description = "A federation of memberscope, as `memberscope federate --superlink` hands it in."
license = "MIT"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "memberscope"

[tool.flwr.app.components]
serverapp = "memberscope_federation.server_app:app"
clientapp = "memberscope_federation.client_app:app"

[tool.flwr.app.config]
run-folder = {folder}
resume = {resume}
"""
_PART = '''\
"""The {part}App of a federation of memberscope."""

from pathlib import Path

from memberscope.federated.deployed import {part_lower}_app

app = {part_lower}_app(Path(__file__).with_name("federation.toml"))
'''


@dataclass(frozen=True)
class SuperLink:
    """Where a federation is handed in.

    Parameters
    ----------
    address
        host:port of its API.
    root_certificates
        PEM file of the authority that signed its certificate; None: plain HTTP, for a loopback alone.
    """

    address: str
    root_certificates: Path | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ConfigError(f"superlink = {self.address!r} is no address", "host:port, for example 127.0.0.1:8000")
        if self.root_certificates is not None and not self.root_certificates.is_file():
            raise ConfigError(f"there is no file of root certificates {self.root_certificates}")


def deploy(
    config: FederationConfig,
    superlink: SuperLink,
    *,
    folder: Path,
    events: Events | None = None,
    resume: bool = False,
) -> Federation:
    """Hand a federation in at a SuperLink, follow it, and read what it left.

    Parameters
    ----------
    config
        Everything that determines it. Nodes look for the dataset's files in their own folder.
    superlink
        Where.
    folder
        The run folder. The ServerApp writes to this path too, so it is on a disk that both machines share, or the
        SuperLink runs on this one.
    events
        Listens.
    resume
        Go on from the last finished round.

    Raises
    ------
    MemberscopeError
        Flower's command is missing or failed; its last words are told.
    """
    from memberscope.federated.federation import CONFIG, read_finished, refuse_begun

    if config.malicious:
        raise ConfigError("malicious parties act in this process alone", "leave out --superlink, or --malicious")
    events = events or Events()
    folder = folder.resolve()
    if not resume:
        refuse_begun(folder)
        write_text(folder / CONFIG, to_toml(config.to_dict()))  # a run that fails at once can be resumed too
    app = write_app(config, folder, resume=resume)
    home = _write_home(superlink, folder)
    events.stage(f"Handing the federation in at {superlink.address}")
    with (folder / LOG).open("ab") as log:
        started = log.tell()
        process = _flwr(["run", str(app), "memberscope", "--stream"], home, log)
        try:
            _follow(process, folder, config.rounds, events)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0 or not _finished(folder, config.rounds):
        text = (folder / LOG).read_bytes()[started:].decode(errors="replace").strip()
        last = "\n    ".join(text.splitlines()[-_SAID_LINES:])
        raise MemberscopeError(
            f"the federation at {superlink.address} did not finish; Flower's last words:\n    {last}",
            f"all of them are in {folder / LOG}; go on with --resume {folder}",
        )
    return read_finished(config, folder, events)


def write_app(config: FederationConfig, folder: Path, *, resume: bool) -> Path:
    """Write the Flower app of a federation into its run folder; returns its directory."""
    app = folder / APP
    written = replace(config, data_dir=None, unverified_data=None, out=None)
    pyproject = _PYPROJECT.format(folder=json.dumps(str(folder)), resume="true" if resume else "false")
    write_text(app / "pyproject.toml", pyproject)
    write_text(app / "README.md", "A federation of memberscope. Every node needs memberscope and the records.\n")
    package = app / _PACKAGE
    write_text(package / "__init__.py", '"""A federation of memberscope."""\n')
    for part in ("Client", "Server"):
        text = _PART.format(part=part, part_lower=part.lower())
        write_text(package / f"{part.lower()}_app.py", text)
    write_text(package / "federation.toml", to_toml(written.to_dict()))
    return app


def _write_home(superlink: SuperLink, folder: Path) -> Path:
    """A Flower home of the run's own, so that nobody's settings are changed; it names the SuperLink."""
    lines = ["[superlink]", 'default = "memberscope"', "", "[superlink.memberscope]"]
    lines.append(f"address = {json.dumps(superlink.address)}")
    if superlink.root_certificates is None:
        lines.append("insecure = true")
    else:
        lines.append(f"root-certificates = {json.dumps(str(superlink.root_certificates.resolve()))}")
    write_text(folder / _HOME / "config.toml", "\n".join(lines) + "\n")
    return folder / _HOME


def _flwr(words: list[str], home: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    beside = Path(sys.executable).with_name("flwr")
    command = str(beside) if beside.is_file() else shutil.which("flwr")
    if command is None:
        raise MemberscopeError("Flower's command `flwr` is not there", "install memberscope[federated]")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
    environment = {**os.environ, **quiet}
    return subprocess.Popen([command, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


def _follow(process: subprocess.Popen[bytes], folder: Path, rounds: int, events: Events) -> None:
    """Tell of rounds as they end, until the command does."""
    told = _done(folder)
    while True:
        over = process.poll() is not None
        history = _history(folder)
        for record in history[told:]:
            left = (rounds - record["round"]) * float(record["seconds"])
            events.federation_round(record, rounds, left)
        told = max(told, len(history))
        if over:
            return
        time.sleep(_POLL_SECONDS)


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rounds" / "history.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # being written this moment
            break
    return records


def _done(folder: Path) -> int:
    return len(_history(folder))


def _finished(folder: Path, rounds: int) -> bool:
    return (folder / "rounds" / "state.safetensors").is_file() and _done(folder) >= rounds
