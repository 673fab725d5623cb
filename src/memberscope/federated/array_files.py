"""Named arrays on disk: safetensors, written whole or not at all, read without running anything that a file holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import RunFolderError

Arrays = dict[str, NDArray[Any]]
"""Name -> array, in the order in which the model has them."""

_ORDER = "order"  # safetensors sorts by type and name; the order matters where only it tells which array is which
_SCALES = "scales"
_HALF = 60_000.0  # below float16's largest number


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, scales: Mapping[str, float] | None = None) -> int:
    """Write arrays to `path` by way of a temporary name; returns the bytes written.

    No fsync: a federation must not wait for the disk's cache. A file that a power cut emptied is found by its length.

    Parameters
    ----------
    arrays
        Numeric or boolean arrays of any shape.
    scales
        What each array is to be multiplied by when it is read.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written; nothing is left of the file.
    """
    from safetensors.numpy import save

    metadata = {_ORDER: json.dumps(list(arrays))}
    if scales:
        metadata[_SCALES] = json.dumps(dict(scales))
    content = save({name: _plain(value) for name, value in arrays.items()}, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return len(content)


def read_arrays(path: Path) -> Arrays:
    """The arrays in `path`, in the order in which they were given; float16 comes back as float32, scaled.

    Raises
    ------
    RunFolderError
        The file is missing, damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
        order = json.loads(metadata.get(_ORDER, "null")) or names
        scales = json.loads(metadata.get(_SCALES, "{}"))
        return {name: _scaled(arrays[name], float(scales.get(name, 1.0))) for name in order}
    except FileNotFoundError:
        raise RunFolderError(f"no file {path}", "the transcript was moved in part, or something removed it") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is damaged or cut short: {error}", "leave this round out, or record the federation again"
        ) from None


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and in this machine's byte order, as safetensors writes it; 0-d stays 0-d."""
    return np.require(value, dtype=value.dtype.newbyteorder("="), requirements="C").reshape(value.shape)


def _scaled(value: NDArray[Any], scale: float) -> NDArray[Any]:
    if value.dtype != np.float16:
        return value
    return value.astype(np.float32) * np.float32(scale)


def digest(arrays: Arrays) -> bytes:
    """Equal for arrays that are equal bit by bit, in the same order."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, value in arrays.items():
        hasher.update(f"{name} {value.dtype} {value.shape}\n".encode())
        hasher.update(value.tobytes())
    return hasher.digest()


def halved(arrays: Arrays, base: Arrays) -> tuple[Arrays, dict[str, float]] | None:
    """The change from `base` in float16, each array scaled to its largest value; None if it does not fit the base."""
    if arrays.keys() != base.keys() or any(a.shape != base[k].shape for k, a in arrays.items()):
        return None
    halves, scales = {}, {}
    for name, value in arrays.items():
        if value.dtype.kind != "f" or base[name].dtype.kind != "f":
            halves[name] = value
            continue
        with np.errstate(invalid="ignore"):  # a broken client's NaN and infinities are kept as they are
            change = value.astype(np.float64) - base[name].astype(np.float64)
        largest = float(np.abs(change[np.isfinite(change)]).max(initial=0.0))
        scales[name] = largest / _HALF if largest > 0 else 1.0
        halves[name] = (change / scales[name]).astype(np.float16)
    return halves, scales
