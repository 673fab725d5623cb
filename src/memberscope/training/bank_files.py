"""The files of a model bank: one manifest, one checked file a model, claims that end with the process that holds them.

A model's file is a safetensors file (any reader of that format opens it) whose header also holds the SHA-256 of all
that is in it: a file cut short, or with a single bit turned, is noticed before it is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope import files, locks
from memberscope.errors import ModelError
from memberscope.files import replacing, write_json

MANIFEST = "bank.json"
FORMAT = "memberscope model bank 1"
CHECKPOINT = ".checkpoint"
"""Suffix of what a training goes on from, beside its model's file."""
_MODEL_FORMAT = "memberscope bank model 1"
_MAX_HEADER = 1 << 24
_CHUNK = 1 << 22
_DTYPES = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "I16": "<i2", "U8": "|u1", "I8": "|i1"}
_DTYPES |= {"BOOL": "|b1"}
_CODES = {np.dtype(text): code for code, text in _DTYPES.items()}


def model_path(folder: Path, k: int) -> Path:
    """Where model k of a bank lies."""
    return folder / f"model-{k:05}.safetensors"


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model's file: what its header says. Nothing else is read before it is asked for.

    Parameters
    ----------
    path
        The file.
    about
        What was noted with the arrays.
    places
        Name -> dtype, shape and first byte of each array.
    sha256
        Of the header's content and all arrays, as noted when it was written.
    """

    path: Path
    about: dict[str, Any]
    places: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read the header.

        Raises
        ------
        ModelError
            There is no such file, it is cut short, or it was written by something else.
        """
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _MAX_HEADER:
                    raise ValueError(f"a header of {length:,} bytes")
                header = json.loads(file.read(length))
            noted = header.pop("__metadata__")
            if noted["format"] != _MODEL_FORMAT:
                raise ValueError(f"format {noted['format']!r}")
            places, end = {}, 8 + length
            for name, place in header.items():
                dtype, shape = np.dtype(_DTYPES[place["dtype"]]), tuple(place["shape"])
                if place["data_offsets"][0] != end - 8 - length:
                    raise ValueError(f"{name} lies elsewhere")
                places[name] = (dtype, shape, end)
                end += math.prod(shape) * dtype.itemsize
            if not places:
                raise ValueError("no arrays")
            if path.stat().st_size != end:
                raise ValueError(f"{path.stat().st_size:,} bytes, {end:,} expected")
            return cls(path, json.loads(noted["about"]), places, noted["sha256"])
        except FileNotFoundError:
            raise ModelError(f"there is no model file {path}", "grow the bank") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
            raise _damaged(path, error) from error

    def verify(self) -> None:
        """Read all of the file and compare it with its checksum.

        Raises
        ------
        ModelError
            They differ.
        """
        digest = _header_digest(self.about, {name: place[:2] for name, place in self.places.items()})
        start = min(offset for _, _, offset in self.places.values())
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise _damaged(self.path, error) from error
        if digest.hexdigest() != self.sha256:
            raise _damaged(self.path, "its checksum differs")

    def map(self, name: str) -> NDArray[Any]:
        """Give an array by mapping the file into memory, read-only: pages are read when they are touched."""
        dtype, shape, offset = self.places[name]
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype, mode="r", offset=offset, shape=shape)


def write_model(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write a model's file, whole or not at all.

    Raises
    ------
    ModelError
        An array of a dtype that the format does not know.
    MemberscopeError
        The disk is full, or the folder cannot be written.
    """
    # Wide dtypes first: every array then begins at a multiple of its item size.
    ordered = {name: np.asarray(a, order="C") for name, a in sorted(arrays.items(), key=lambda i: -i[1].dtype.itemsize)}
    header: dict[str, Any] = {}
    end = 0
    for name, array in ordered.items():
        if array.dtype not in _CODES:
            raise ModelError(f"{name} has dtype {array.dtype}, which {path.name} cannot hold", "keep no weights")
        place = [end, end + array.nbytes]
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        end += array.nbytes
    digest = _header_digest(about, {name: (array.dtype, array.shape) for name, array in ordered.items()})
    for array in ordered.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    noted = {"format": _MODEL_FORMAT, "about": json.dumps(about, allow_nan=False), "sha256": digest.hexdigest()}
    encoded = json.dumps({"__metadata__": noted, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in ordered.values():
            file.write(array.reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yield whether this process alone may write `path` inside the block; False: another process is at it."""
    with locks.claim(path.with_suffix(".lock")) as ours:
        if ours:
            remove_unfinished(path)
        yield ours


def remove_unfinished(path: Path) -> None:
    """Remove what writers of `path` and of its checkpoint left beside it that died. For whoever holds the claim."""
    for written in (path, path.with_suffix(CHECKPOINT)):
        files.remove_unfinished(written)


def exclusively(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Only one process at a time is inside such a block of a bank's folder; the others wait."""
    return locks.claim(folder / ".bank.lock", wait=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a bank; None where there is none.

    Raises
    ------
    ModelError
        The folder holds something else, or its manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(folder.glob("model-*.safetensors")):
            raise ModelError(
                f"{folder} holds models without the manifest {MANIFEST}", "choose another folder, or remove this one"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the manifest {path} cannot be read: {error}", "choose another folder, or remove this one"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{path} is no model bank: format {found!r}, expected {FORMAT!r}", "choose another folder")
    return content


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    write_json(folder / MANIFEST, {"format": FORMAT, **content})


def _header_digest(
    about: Mapping[str, Any], arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> hashlib._Hash:
    table = [[name, dtype.str, list(shape)] for name, (dtype, shape) in arrays.items()]
    return hashlib.sha256(json.dumps([dict(about), table], sort_keys=True).encode())


def _damaged(path: Path, reason: object) -> ModelError:
    return ModelError(f"the model file {path} is damaged: {reason}", "grow the bank: it trains that model again")
