"""The user's own records in an .npz file: images or feature rows, with or without a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError
from memberscope.records.pool import check_finite
from memberscope.records.readers import reading

Pool = tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], tuple[str, ...]]
"""x, y, is_train and classes, as `Dataset` wants them."""

KEYS = "x and y, or x_train, y_train, x_test and y_test (and, if you like, classes: the names)"
IMAGES = (
    "images [N, H, W, C], [N, C, H, W] with 1 or 3 channels, or [N, H, W], as integers 0..255 or as floats k/255 "
    "in 0..1; or feature rows [N, d] of finite numbers"
)
_SPLIT = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Pool:
    """Read a pool from an .npz file. Pickled objects in it are refused, never loaded.

    Parameters
    ----------
    path
        Holds `KEYS`; other keys are ignored. x is one of `IMAGES`; images become uint8 [N, C, H, W], without loss,
        and feature rows float32 [N, d]. The channel axis is the one of length 1 or 3; if both could be it, the file
        is refused. y holds integers 0 .. C-1, each class at least once, as [N] or [N, 1]. A file without a test part
        makes a pool without an official split (is_train all True).

    Raises
    ------
    DataError
        Anything else; names the file, the array, what was expected and what was found.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", "give the path of an .npz file: npz:PATH")
    arrays = _load(path)
    keys = arrays.keys() & _SPLIT
    if keys and {"x", "y"} & arrays.keys():
        raise DataError(f"{path} holds both x, y and {', '.join(sorted(keys))}", f"keep one of the two: {KEYS}")
    if {"x", "y"} <= arrays.keys():
        parts = [("x", "y")]
    elif keys == set(_SPLIT):
        parts = [("x_train", "y_train"), ("x_test", "y_test")]
    elif keys == {"x_train", "y_train"}:
        parts = [("x_train", "y_train")]
    else:
        raise DataError(f"{path}: expected the keys {KEYS}; found {', '.join(sorted(arrays)) or 'none'}")
    shapes = [arrays[x].shape[1:] for x, _ in parts]
    if shapes[0] != shapes[-1]:
        raise DataError(f"{path}: the records of x_train have shape {shapes[0]}, those of x_test {shapes[-1]}")
    xs = [_records(arrays[x], f"{x} in {path}") for x, _ in parts]
    ys = [_labels(arrays[y], len(arrays[x]), f"{y} in {path}") for x, y in parts]
    y = np.concatenate(ys)
    classes = _classes(y, arrays.get("classes"), path)
    is_train = np.arange(len(y)) < len(ys[0])
    x: Any = xs[0] if len(xs) == 1 else np.concatenate(xs)
    return x, y.astype(np.int64), is_train, classes


def _load(path: Path) -> dict[str, NDArray[np.generic]]:
    hint = "write it with numpy.savez, without object arrays: those are pickles, which can run code"
    with reading(path, "an .npz file of plain arrays", hint), path.open("rb") as raw:
        file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array (.npy)")
        with file:
            arrays = {key: file[key] for key in (*_SPLIT, "x", "y", "classes") if key in file}
            if not arrays:
                raise DataError(f"{path}: expected the keys {KEYS}; found {', '.join(file) or 'none'}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: expected arrays, {key} is none", hint)
    return arrays


def _records(x: NDArray[np.generic], where: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4):
        raise DataError(f"{where} is {x.dtype} {list(x.shape)}, expected {IMAGES}")
    if 0 in x.shape:
        raise DataError(f"{where} has shape {list(x.shape)}: there are no records in it")
    if x.ndim == 2:
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused as such
            rows = x.astype(np.float32)
        check_finite(rows, where)
        return rows
    pixels = _pixels(x, where)
    if x.ndim == 3:
        return pixels[:, None]
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if first == last:
        found = "both axes 1 and 3 could be channels" if first else "neither axis 1 nor axis 3 has 1 or 3 channels"
        raise DataError(
            f"{where} has shape {list(x.shape)}: {found}",
            "give images [N, C, H, W] or [N, H, W, C] with 1 or 3 channels, or flatten them to feature rows [N, d]",
        )
    return pixels if first else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _pixels(x: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    if x.dtype == np.uint8:
        return x.view(np.uint8)
    low, high = x.min(), x.max()
    if x.dtype.kind in "iu" and low >= 0 and high <= 255:
        return x.astype(np.uint8)
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled = x.astype(np.float32) * 255
        rounded = np.rint(scaled)
        # A float16 holds k/255 to within 0.07/255; wider types are far closer.
        if np.abs(scaled - rounded).max() <= (0.07 if x.dtype == np.float16 else 0.001):
            return rounded.astype(np.uint8)
        raise DataError(
            f"{where} holds floats between the 256 levels k/255, expected {IMAGES}",
            "save the original 8-bit images as uint8, or flatten these to feature rows [N, d], which keep every value",
        )
    raise DataError(
        f"{where} is {x.dtype} with values from {low} to {high}, expected {IMAGES}",
        "save the original 8-bit images as uint8",
    )


def _labels(y: NDArray[np.generic], n: int, where: str) -> NDArray[np.integer]:
    if y.dtype.kind not in "iu":
        raise DataError(f"{where} is {y.dtype}, expected integers 0 .. C-1", "save it with y.astype('int64')")
    if y.shape not in ((n,), (n, 1)):
        raise DataError(f"{where} has shape {list(y.shape)}, expected [{n}]: one label for every record of x")
    return y.reshape(n).view(y.dtype)


def _classes(y: NDArray[np.integer], names: NDArray[np.generic] | None, path: Path) -> tuple[str, ...]:
    present = np.unique(y)
    if not np.array_equal(present, np.arange(len(present))):
        shown = ", ".join(map(str, present[:12])) + (" …" if len(present) > 12 else "")
        raise DataError(
            f"{path}: expected labels 0 .. C-1, each class at least once; found {shown}",
            "number the classes anew: classes, y = numpy.unique(y, return_inverse=True)",
        )
    if names is None:
        return tuple(map(str, present))
    if names.dtype.kind != "U" or names.shape != present.shape:
        raise DataError(
            f"{path}: classes is {names.dtype} {list(names.shape)}, expected one text for each of the "
            f"{len(present)} classes of the labels"
        )
    return tuple(map(str, names))
