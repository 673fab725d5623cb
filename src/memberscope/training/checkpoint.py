"""The state of a training between two epochs, in one safetensors file: a killed run goes on as if never stopped.

All randomness of an epoch follows from the seed and the number of the epoch, so no generator's state is kept.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memberscope.defenses.base import Lesson
from memberscope.errors import ModelError
from memberscope.files import replacing
from memberscope.training.recipe import Recipe

_FORMAT = "memberscope checkpoint 1"


@dataclass(frozen=True)
class Key:
    """What two runs must share for one to go on where the other stopped.

    Parameters
    ----------
    settings
        Name -> what must be equal.
    surroundings
        Name -> what must be equal for the same bits.
    """

    settings: dict[str, str]
    surroundings: dict[str, str]


def digest_of(x: NDArray[Any], y: NDArray[np.int64]) -> str:
    """SHA-256 of the records of a pool: the part of a key that takes time, and that many trainings share."""
    records = hashlib.sha256(f"{x.dtype} {x.shape}".encode())
    for array in (x, y):
        records.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return records.hexdigest()


def key(
    recipe: Recipe,
    seed: int,
    records: str,
    member: NDArray[np.bool_],
    validation: NDArray[np.bool_] | None,
    device: torch.device,
    lesson: Lesson | None = None,
    *,
    compiled: bool = False,
) -> Key:
    """Give the key of a training.

    `recipe` has its precision resolved, `records` is `digest_of` the pool, `lesson` stands for the classes.
    """
    settings = {
        "recipe": recipe.digest,
        "seed": str(seed),
        "records": records,
        "membership": _digest(member),
        "validation records": _digest(validation) if validation is not None else "none",
    }
    if lesson is not None:
        taught = np.ascontiguousarray(lesson.targets[member]).view(np.uint8).data
        settings["soft targets"] = hashlib.sha256(f"{lesson.temperature}".encode() + bytes(taught)).hexdigest()
    threads = str(torch.get_num_threads()) if device.type == "cpu" else "any"
    surroundings = {"torch": str(torch.__version__), "device": device.type, "threads": threads}
    surroundings |= {"steps": "compiled"} if compiled else {}
    return Key(settings, surroundings)


def _digest(mask: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()


@dataclass
class State:
    """Where a training stands after an epoch.

    Parameters
    ----------
    epoch
        Epochs done.
    model
        State dict of the module.
    optimizer
        The optimiser's tensors by parameter number and name.
    history
        A record an epoch.
    extra
        What a defense learnt beside the model.
    best
        Early stopping: the best state dict so far, its validation loss and its epoch.
    """

    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    history: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    best: tuple[dict[str, Tensor], float, int] | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state as it was, whatever the training does since.

    Parameters
    ----------
    path
        Where it goes.
    tensors, metadata
        Content of the file.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def write(self) -> None:
        """Write it, whole or not at all."""
        from safetensors.torch import save_file

        with replacing(self.path) as temporary:
            save_file(self.tensors, temporary, metadata=self.metadata)


def snapshot(path: Path, state: State, key_: Key) -> Snapshot:
    """Copy a state to the memory of the processor."""
    tensors = {f"model/{name}": value for name, value in state.model.items()}
    for number, values in state.optimizer.items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    tensors |= {f"extra/{name}": value for name, value in state.extra.items()}
    about: dict[str, Any] = {"epoch": state.epoch, "history": state.history, "best": None}
    if state.best is not None:
        weights, loss, epoch = state.best
        tensors |= {f"best/{name}": value for name, value in weights.items()}
        about["best"] = [loss, epoch]
    metadata = {"format": _FORMAT, "state": json.dumps(about, allow_nan=False), "key": json.dumps(vars(key_))}
    # One copy of each: tied weights would be refused, channels-last ones would keep their strides nowhere.
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return Snapshot(path, copies, metadata)


class Writer:
    """Writes snapshots while the training goes on; never more than those of one epoch at a time.

    Attributes
    ----------
    epoch
        Of the last ones that lie on the disk, or from which the training went on; 0: none.
    """

    def __init__(self, epoch: int = 0) -> None:
        self.epoch, self._begun = epoch, time.monotonic()
        self._writing: Future[None] | None = None

    def due(self, seconds: float) -> bool:
        """Whether the last ones were begun so long ago."""
        return time.monotonic() - self._begun >= seconds

    def begin(self, epoch: int, snapshots: Sequence[Snapshot]) -> None:
        """Write the snapshots of an epoch in the background.

        Raises
        ------
        MemberscopeError
            Those before could not be written.
        """
        self.finish()
        self._begun = time.monotonic()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(self._write, epoch, snapshots)
        thread.shutdown(wait=False)  # it ends when they are written

    def finish(self) -> None:
        """Wait until all are on the disk.

        Raises
        ------
        MemberscopeError
            They could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, epoch: int, snapshots: Sequence[Snapshot]) -> None:
        for one in snapshots:
            one.write()
        self.epoch = epoch


def epoch_of(path: Path) -> int:
    """The epoch of a checkpoint, whosever it is; 0 where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["state"])["epoch"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


def read(path: Path, key_: Key) -> State | None:
    """Read the state that a run with this key left; None where there is no file.

    Raises
    ------
    ModelError
        The file is damaged, or belongs to a training with other settings; what differs is named.

    Warns
    -----
    UserWarning
        Another version of torch, device or number of threads: the training goes on, but not bit for bit as before.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    remedy = "start without --resume, or remove the file"
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the checkpoint {path} is damaged: {error}", remedy) from error
    if metadata.get("format") != _FORMAT:
        found = metadata.get("format", "none")
        raise ModelError(f"{path} is no checkpoint: expected format {_FORMAT!r}, found {found!r}", remedy)
    earlier = Key(**json.loads(metadata["key"]))
    _compare(path, earlier, key_)
    about = json.loads(metadata["state"])
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer/", tensors).items():
        number, _, entry = name.partition("/")
        optimizer.setdefault(int(number), {})[entry] = value
    best = (_under("best/", tensors), *about["best"]) if about["best"] is not None else None
    return State(
        about["epoch"], _under("model/", tensors), optimizer, about["history"], _under("extra/", tensors), best
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _compare(path: Path, earlier: Key, now: Key) -> None:
    other = [name for name, value in now.settings.items() if earlier.settings.get(name) != value]
    if other:
        raise ModelError(
            f"the checkpoint {path} was left by a training with another {', another '.join(other)}",
            "start without --resume, or ask for the settings of that training",
        )
    changed = [
        f"{name} {earlier.surroundings.get(name, 'plain')} -> {now.surroundings.get(name, 'plain')}"
        for name in {**earlier.surroundings, **now.surroundings}
        if earlier.surroundings.get(name) != now.surroundings.get(name)
    ]
    if changed:
        warnings.warn(
            f"going on from {path} with {', '.join(changed)}: the result will not be bit-identical to an "
            "uninterrupted run",
            stacklevel=2,
        )
