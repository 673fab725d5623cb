"""A reader of numeric arrays in MATLAB 5 files, every length checked before it is used.

scipy.io.loadmat is not used: a few changed bytes in a file make its compiled reader crash the process (found by the
property tests here, scipy 1.17). Format: "MAT-File Format", The MathWorks, chapter 1, level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
_MAX_DEFLATE_RATIO = 1032


def read_mat(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read the real numeric arrays of a MATLAB 5 file (what MATLAB saves as ``-v6`` or ``-v7``); others are left out.

    Raises
    ------
    ValueError, struct.error, zlib.error
        The file is damaged or of another version.
    """
    arrays = {}
    with path.open("rb") as file:
        if file.read(128)[124:] != b"\x00\x01IM":
            raise ValueError("no header of a little-endian MATLAB 5 file")
        while tag := file.read(8):
            kind, length = struct.unpack("<II", tag)
            content = file.read(length)
            if len(content) != length:
                raise ValueError(f"an element of {length:,} bytes, and only {len(content):,}")
            if kind == _COMPRESSED:
                kind, content = _inflate(content)
            if kind == _MATRIX:
                named = _matrix(memoryview(content))
                if named is not None:
                    arrays[named[0]] = named[1]
    return arrays


def _inflate(packed: bytes) -> tuple[int, bytes]:
    stream = zlib.decompressobj()
    tag = stream.decompress(packed, 8)
    kind, length = struct.unpack("<II", tag)
    if length > len(packed) * _MAX_DEFLATE_RATIO:
        raise ValueError(f"an element of {length:,} bytes in {len(packed):,} compressed ones")
    content = stream.decompress(stream.unconsumed_tail, length + 1)
    if len(content) != length or not stream.eof:
        raise ValueError(f"a compressed element that is not {length:,} bytes long")
    return kind, content


def _matrix(content: memoryview) -> tuple[str, NDArray[np.generic]] | None:
    (_, flags), position = _element(content, 0)
    (word,) = struct.unpack_from("<I", flags)
    dtype = _CLASSES.get(word & 0xFF)
    if dtype is None or word & _COMPLEX:
        return None
    (_, lengths), position = _element(content, position)
    shape = struct.unpack(f"<{len(lengths) // 4}i", lengths)
    (_, name), position = _element(content, position)
    (stored, values), _ = _element(content, position)
    if stored not in _STORED:
        raise ValueError(f"values of type {stored}")
    flat = np.frombuffer(values, np.dtype("<" + _STORED[stored]))
    if min(shape, default=-1) < 0 or math.prod(shape) != flat.size:
        raise ValueError(f"an array of shape {list(shape)} with {flat.size:,} values")
    # MATLAB stores values in the smallest type that holds them, whatever the class of the array.
    return bytes(name).decode("ascii"), flat.reshape(shape, order="F").astype(dtype, copy=False)


def _element(content: memoryview, start: int) -> tuple[tuple[int, memoryview], int]:
    """Give type and bytes of the element at `start`, and where the next one starts (a multiple of 8)."""
    (first,) = struct.unpack_from("<I", content, start)
    if first >> 16:  # a small element: length and type in one word, up to four bytes in the next
        kind, length, begin = first & 0xFFFF, first >> 16, start + 4
        end = start + 8
    else:
        kind, (length,), begin = first, struct.unpack_from("<I", content, start + 4), start + 8
        end = begin + length + -length % 8
    if begin + length > min(end, len(content)):
        raise ValueError(f"an element of {length:,} bytes beyond the end of its array")
    return (kind, content[begin : begin + length]), end
