"""Decoded pools kept on disk, so that the second load takes a moment.

One file a dataset, ``<data folder>/.memberscope-cache/<name>.safetensors``: y, x and is_train as they are in memory,
and in the header the stamps of the files they were decoded from. It is read by mapping (copy-on-write: several
processes share the pages, and changes stay in memory), and believed only if arrays and header have the SHA-256 sums
that are noted in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError, MemberscopeError
from memberscope.files import replacing
from memberscope.records.pool import Dataset
from memberscope.records.readers import reading

_LOG = logging.getLogger("memberscope")
_FORMAT = "memberscope pool 1"
_DTYPES = {"U8": "<u1", "F32": "<f4", "I64": "<i8", "BOOL": "|b1"}
_ORDER = ("y", "x", "is_train")  # y first: its eight bytes stay aligned
_MAX_HEADER = 1 << 20


def cache_path(data_dir: Path, name: str) -> Path:
    """Where the decoded pool of a dataset is kept."""
    return data_dir / ".memberscope-cache" / f"{name}.safetensors"


def read(path: Path, stamp: Sequence[Any]) -> Dataset | None:
    """Read a decoded pool; None if there is none, it was decoded from other files, or it is broken.

    Parameters
    ----------
    path
        See `cache_path`.
    stamp
        `Located.stamp` of the files as they are now.
    """
    if not path.is_file():
        return None
    try:
        with reading(path, "a decoded pool"):
            dataset, fingerprint, cached_stamp = _map(path)
    except DataError as error:
        _LOG.info("decoding anew: %s", error.problem)
        return None
    if cached_stamp != list(stamp) or dataset.fingerprint != fingerprint:
        return None
    return dataset


def write(path: Path, dataset: Dataset, stamp: Sequence[Any]) -> None:
    """Keep a decoded pool; where that cannot be written, say so once and go on without."""
    arrays = [(name, np.asarray(getattr(dataset, name), order="C")) for name in _ORDER]
    about = {
        "format": _FORMAT,
        "stamp": json.dumps(stamp),
        "name": dataset.name,
        "classes": json.dumps(dataset.classes),
        "source": dataset.source,
        "verified": json.dumps(dataset.verified),
        "fingerprint": dataset.fingerprint,
    }
    header: dict[str, Any] = {"__metadata__": about | {"digest": _digest(about)}}
    offset = 0
    for name, array in arrays:
        dtype = next(code for code, text in _DTYPES.items() if np.dtype(text) == array.dtype)
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for _, array in arrays:
                file.write(array.reshape(-1).view(np.uint8).data)
    except MemberscopeError as error:
        _say_once(f"no decoded cache, every load decodes the files again: {error.problem}")


def _map(path: Path) -> tuple[Dataset, str, list[Any]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(file.read(length))
    about = header["__metadata__"]
    if about.pop("digest") != _digest(about) or about["format"] != _FORMAT:
        raise ValueError("another header")
    arrays: dict[str, NDArray[Any]] = {}
    position = 8 + length
    for name in _ORDER:
        dtype, shape = np.dtype(_DTYPES[header[name]["dtype"]]), tuple(header[name]["shape"])
        # Mapped beyond the end of a file, a page kills the process when it is touched.
        if position + math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"{name} ends beyond the file")
        arrays[name] = np.asarray(np.memmap(path, dtype, mode="c", offset=position, shape=shape))
        position += arrays[name].nbytes
    if position != size:
        raise ValueError(f"{size - position:,} bytes too many")
    dataset = Dataset(
        about["name"],
        classes=tuple(json.loads(about["classes"])),
        source=about["source"],
        verified=json.loads(about["verified"]) is True,
        **arrays,
    )
    return dataset, about["fingerprint"], json.loads(about["stamp"])


def _digest(about: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@functools.cache
def _say_once(message: str) -> None:
    _LOG.warning(message)
