"""An unpickler that admits numpy arrays and nothing else, for the official CIFAR batches."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError


class PickledArray:
    """Stands for a numpy array while its pickle is read; only `__setstate__`, called by the unpickler, fills it."""

    __slots__ = ("array",)
    array: NDArray[np.generic]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array of anything but plain numbers")
        # Without this check a "shape" of byte strings would be repeated to gigabytes by the product.
        if not isinstance(shape, tuple) or any(type(length) is not int or length < 0 for length in shape):
            raise pickle.UnpicklingError("an array whose shape is no tuple of lengths")
        if math.prod(shape) * np.dtype(dtype.code).itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} in {len(raw)} bytes")
        flat = np.frombuffer(raw, np.dtype(dtype.code))
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class _PickledDtype:
    """Stands for a numpy dtype while its pickle is read: a number, never a record or an object."""

    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not re.fullmatch(r"[biuf][1248]", text):
            raise pickle.UnpicklingError(f"an array of dtype {text!r}")
        self.code: str = text

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">") or any(field is not None for field in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        self.code = order + self.code[-2:]


class _Admitted:
    """A global that a pickle may name: callable at most in one fixed way, and without state to tamper with."""

    __slots__ = ("_call",)
    _call: Callable[..., Any] | None

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError("an array class called directly")
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a changed global")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a changed global")


_NDARRAY = _Admitted()
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
"""


class _Opcodes(dict[int, Callable[..., Any]]):
    def __missing__(self, code: int) -> Callable[..., Any]:
        raise pickle.UnpicklingError(f"the pickle instruction {chr(code)!r}, which no array needs")


class NumpyUnpickler(pickle._Unpickler):
    """An unpickler that admits numpy arrays of numbers in plain containers, and nothing else.

    It knows only the opcodes that such a pickle needs. The globals it admits lead to our own stand-ins, never to what
    the file names. It is the pure-Python unpickler: the C one reserves memory for whatever memo index a file claims
    (ten bytes are enough to ask for 34 GB).
    """

    dispatch: ClassVar = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for code in (ord(getattr(pickle, name)) for name in _OPCODES.split())}
    )

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._path = path
        # Text may be encoded to bytes again and again by a file that repeats itself; no honest one exceeds its size.
        self._encodable = len(content)

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a global that arrays need, refuse any other by its name."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Admitted(self._reconstruct)
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if (module, name) == ("numpy", "dtype"):
            return _Admitted(lambda code, _align=False, _copy=True: _PickledDtype(code))
        if (module, name) == ("_codecs", "encode"):
            return _Admitted(self._encode)
        raise DataError(
            f"{self._path} is not a plain file of arrays: its pickle asks for {module}.{name}, "
            "expected numpy arrays and nothing else; it was not executed",
            "do not use this file: get the official one, or ask where it came from",
        )

    @staticmethod
    def _reconstruct(kind: Any, shape: Any, _code: Any) -> PickledArray:
        if kind is not _NDARRAY or shape != (0,):
            raise pickle.UnpicklingError("an array that is no plain numpy array")
        return PickledArray()

    def _encode(self, text: str, encoding: str) -> bytes:
        self._encodable -= len(text)
        if encoding != "latin1" or self._encodable < 0:
            raise pickle.UnpicklingError("text that is no byte string")
        return text.encode("latin1")
