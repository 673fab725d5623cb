"""Readers of the official file formats. Whatever the bytes, they give valid arrays or a `DataError`, and run nothing.

Formats: CIFAR's pickled batches (through an unpickler that admits numpy arrays and plain containers), IDX files of
the MNIST family, MATLAB files of SVHN.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import reprlib
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError, MemberscopeError
from memberscope.records.mat import read_mat
from memberscope.records.pickle import NumpyUnpickler, PickledArray

Records = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [n, C, H, W] (may be a view) and labels int64 [n] of one file or part."""

_FETCH_AGAIN = "the file may be truncated or damaged: delete it, so that it is downloaded again"
_MAX_DEFLATE_RATIO = 1032
"""Deflate cannot shrink anything further (a 258-byte match in two bits)."""
_MAX_MEMBER = 1 << 30
"""Bytes; the largest official batch has 155 million."""


@contextlib.contextmanager
def reading(what: Path | str, expected: str, hint: str = _FETCH_AGAIN) -> Iterator[None]:
    """Turn whatever a parser raises on broken input into a `DataError` that names the file.

    Parsers of hostile bytes may fail in any way (ValueError, KeyError, struct.error, MemoryError, a third-party
    class), so every Exception is caught here; the cause stays attached.
    """
    try:
        yield
    except MemberscopeError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"cannot read {what}: expected {expected}, found {found}", hint) from error


def read_cifar_batch(content: bytes, path: Path, label_key: bytes, n_classes: int) -> Records:
    """Read one pickled batch of CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    content
        The bytes of the file.
    path
        Its name, for messages.
    label_key
        ``b"labels"`` or ``b"fine_labels"``.
    n_classes
        Labels must be below.

    Raises
    ------
    DataError
        The pickle is damaged, asks for anything but arrays, or its arrays have another shape, dtype or range.
    """
    expected = f"a pickled batch with b'data' uint8 [n, 3072] and {label_key!r}, n integers"
    with reading(path, expected):
        batch = NumpyUnpickler(content, path).load()
        if not isinstance(batch, dict) or not {b"data", label_key} <= batch.keys():
            keys = list(batch) if isinstance(batch, dict) else type(batch)
            raise DataError(f"{path}: expected {expected}, found {reprlib.repr(keys)}", "is this the right file?")
        data, labels = batch[b"data"], batch[label_key]
        if not isinstance(data, PickledArray) or not isinstance(labels, list) or set(map(type, labels)) != {int}:
            raise DataError(f"{path}: expected {expected}, found {type(data).__name__} and {type(labels).__name__}")
        x, y = np.asarray(data.array), np.array(labels, dtype=np.int64)
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or len(x) != len(y):
        raise DataError(f"{path}: expected {expected}, found {x.dtype} {list(x.shape)} and {len(y)} labels")
    _check_range(y, n_classes, path)
    return x.view(np.uint8).reshape(-1, 3, 32, 32), y


def read_tar_members(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of regular files of a .tar.gz, in the archive's order; nothing is extracted to disk.

    Raises
    ------
    DataError
        The archive is damaged, lacks one of the names, or holds it with an absurd size.
    """
    missing = set(names)
    with reading(path, "a .tar.gz archive"), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.name not in missing or not member.isfile():
                continue
            if member.issparse() or member.size > _MAX_MEMBER:
                raise ValueError(f"{member.name} of {member.size:,} bytes")
            file = archive.extractfile(member)
            if file is not None:
                missing.remove(member.name)
                yield member.name, file.read()
    if missing:
        raise DataError(f"{path}: expected the members {', '.join(names)}; {min(missing)} is not there", _FETCH_AGAIN)


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in the IDX format.

    Parameters
    ----------
    path
        Read through gzip if its name ends in ``.gz``.
    ndim
        Number of axes expected: 3 for images [n, H, W], 1 for labels [n].

    Raises
    ------
    DataError
        Another magic number or number of axes; more or fewer bytes than the header promises.
    """
    with reading(path, f"an IDX file of unsigned bytes with {ndim} axes"):
        room = path.stat().st_size * (_MAX_DEFLATE_RATIO if path.suffix == ".gz" else 1)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            zeros, kind, axes, *shape = struct.unpack(f">HBB{ndim}I", header)
            if (zeros, kind, axes) != (0, 8, ndim):
                raise ValueError(f"the magic number 0x{header[:4].hex()}")
            promised = math.prod(shape)
            if promised > room:
                raise ValueError(f"a header that promises {promised:,} bytes, more than the file can hold")
            content = file.read(promised + 1)
        if len(content) != promised:
            found = "more" if len(content) > promised else f"only {len(content):,}"
            raise ValueError(f"a header that promises {promised:,} bytes, and {found}")
        return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path, n_classes: int) -> Records:
    """Read the images and labels of one part of MNIST or Fashion-MNIST (28x28 grey).

    Raises
    ------
    DataError
        A file is damaged, the images are not 28x28, the two differ in length, or a label is out of range.
    """
    x, y = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
    if x.shape[1:] != (28, 28):
        raise DataError(f"{images}: expected images of 28x28, found {x.shape[1]}x{x.shape[2]}")
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x):,} images, but {labels} holds {len(y):,} labels")
    _check_range(y, n_classes, labels)
    return x[:, None], y


def read_svhn(path: Path) -> Records:
    """Read a MATLAB file of SVHN cropped digits: X uint8 [32, 32, 3, n], y [n, 1] with the digit 0 written as 10.

    Raises
    ------
    DataError
        The file is damaged, or its arrays have another shape, dtype or range.
    """
    expected = "a MATLAB file with X uint8 [32, 32, 3, n] and y, n digits 1..10"
    with reading(path, expected):
        arrays = read_mat(path)
    if not {"X", "y"} <= arrays.keys():
        raise DataError(f"{path}: expected {expected}, found {', '.join(arrays) or 'no arrays of numbers'}")
    x, y = arrays["X"], arrays["y"]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: expected {expected}, found X {x.dtype} {list(x.shape)}")
    if y.dtype.kind not in "iuf" or y.size != x.shape[3] or y.ndim > 2:
        raise DataError(f"{path}: expected {expected}, found y {y.dtype} {list(y.shape)} for {x.shape[3]:,} images")
    digits = y.reshape(-1)
    if not np.isin(digits, np.arange(11)).all():
        wrong = digits[~np.isin(digits, np.arange(11))][0]
        raise DataError(f"{path}: expected {expected}, found the label {wrong}")
    return x.view(np.uint8).transpose(3, 2, 0, 1), digits.astype(np.int64) % 10


def _check_range(y: NDArray[np.int64], n_classes: int, path: Path) -> None:
    if not len(y):
        raise DataError(f"{path} holds no records", _FETCH_AGAIN)
    if y.min() < 0 or y.max() >= n_classes:
        wrong = y.max() if y.max() >= n_classes else y.min()
        raise DataError(f"{path}: expected labels 0 .. {n_classes - 1}, found {wrong}", "is this the right file?")
