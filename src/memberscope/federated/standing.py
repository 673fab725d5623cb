"""Where a federation stands after a round, on disk: a killed one goes on from there, bit for bit."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from memberscope.errors import MemberscopeError, RunFolderError
from memberscope.federated import strategies
from memberscope.federated.array_files import Arrays, read_arrays, write_arrays
from memberscope.federated.packing import ResidentArray
from memberscope.files import replacing

STATE, HISTORY = "rounds/state.safetensors", "rounds/history.jsonl"
FIRST = "rounds/first.safetensors"
"""The global model before the first round, where canary clients are to be found in the way from it."""
_FORMAT = "memberscope federation 1"


@dataclass(frozen=True)
class Standing:
    """After a round.

    Parameters
    ----------
    round
        Rounds done.
    arrays
        The global model.
    history
        A record a round.
    """

    round: int
    arrays: ArrayRecord
    history: list[dict[str, Any]]


def exists(folder: Path) -> bool:
    """Whether a round of a federation is on disk."""
    return (folder / STATE).is_file() or (folder / HISTORY).is_file()


def forget(folder: Path) -> None:
    """Remove what a federation goes on from: it begins anew."""
    for name in (STATE, HISTORY, FIRST):
        (folder / name).unlink(missing_ok=True)


def write(folder: Path, round_: int, arrays: ArrayRecord, strategy: Strategy, record: dict[str, Any]) -> None:
    """Write what a round left: first its line of history, then the state that vouches for it.

    Raises
    ------
    MemberscopeError
        The disk is full or the folder cannot be written; the state of the round before is still whole.
    """
    from safetensors.numpy import save_file

    path = folder / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the state that vouches for the line must not reach the disk before it
    except OSError as error:
        raise MemberscopeError(
            f"cannot write {path}: {error.strerror}", f"free some space; then go on with --resume {folder}"
        ) from error
    memory, about = strategies.capture(strategy)
    tensors = {f"model/{name}": array.numpy() for name, array in arrays.items()}
    tensors |= {f"strategy/{name}": value for name, value in memory.items()}
    metadata = {
        "format": _FORMAT,
        "round": str(round_),
        "names": json.dumps(list(arrays)),
        "strategy": json.dumps(about),
    }
    with replacing(folder / STATE) as temporary:
        save_file({name: np.require(v, requirements="C") for name, v in tensors.items()}, temporary, metadata=metadata)


def write_first(folder: Path, arrays: ArrayRecord) -> None:
    """Keep the global model that the first round begins with."""
    write_arrays(folder / FIRST, {name: array.numpy() for name, array in arrays.items()})


def read_first(folder: Path) -> Arrays:
    """The global model that the first round began with, where it was kept."""
    return read_arrays(folder / FIRST)


def read(folder: Path, strategy: Strategy | None = None, *, resident: bool = True) -> Standing | None:
    """Read where a federation stands; None where no round was finished.

    Lines of history that a killed run wrote after its last whole state are dropped.

    Parameters
    ----------
    folder
        The run folder.
    strategy
        Is given its memory back.
    resident
        All parties are in this process; else the model is made ready to travel.

    Raises
    ------
    RunFolderError
        The state is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / STATE
    if not path.is_file():
        (folder / HISTORY).unlink(missing_ok=True)
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT!r}, found {metadata.get('format')!r}")
        round_ = int(metadata["round"])
        arrays = ArrayRecord()
        for name in json.loads(metadata["names"]):
            values = tensors[f"model/{name}"]
            arrays[name] = ResidentArray(values) if resident else Array(values)
        about = json.loads(metadata["strategy"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} is damaged: {error}", "start the federation anew") from error
    if strategy is not None:
        memory = {k.removeprefix("strategy/"): v for k, v in tensors.items() if k.startswith("strategy/")}
        strategies.restore(strategy, memory, about)
    return Standing(round_, arrays, _history(folder / HISTORY, round_))


def _history(path: Path, rounds: int) -> list[dict[str, Any]]:
    """The records of the rounds that are done; what follows them is cut off."""
    from memberscope.files import write_text

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines[:rounds]]
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is missing or damaged: {error}", "start the federation anew") from error
    if [r.get("round") for r in records] != list(range(1, rounds + 1)):
        raise RunFolderError(f"{path} does not hold the rounds 1 to {rounds}", "start the federation anew")
    if len(lines) > rounds:
        write_text(path, "".join(f"{json.dumps(r, allow_nan=False)}\n" for r in records))
    return records
