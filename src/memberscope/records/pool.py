"""The pool: all records of a dataset in one index space, and what must hold of them before anything is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """All records of a dataset, the official training part first. A record is known everywhere by its index here.

    The arrays are not to be changed in place: `fingerprint` is computed once.

    Parameters
    ----------
    name
        Short name, safe in folder names: ``cifar10``, ``digits``, ``npz-<stem>``, ``imagefolder-<folder>``.
    x
        uint8 [N, C, H, W] images, or float32 [N, d] feature rows.
    y
        int64 [N], each in 0 .. len(classes) - 1.
    classes
        The name of every class.
    is_train
        bool [N]: the record belongs to the official training part. All True where the pool has no official split.
    source
        One sentence: which files, and who vouches for them.
    verified
        True: every file had its official checksum, or the records come with an installed package. False: the user
        vouches for them.

    Raises
    ------
    DataError
        An array has another dtype or shape, or a label is outside the classes; names the array and both.
    """

    name: str
    x: NDArray[np.uint8] | NDArray[np.float32]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    is_train: NDArray[np.bool_]
    source: str
    verified: bool

    def __post_init__(self) -> None:
        if (self.x.dtype.name, self.x.ndim) not in (("uint8", 4), ("float32", 2)):
            raise DataError(
                f"{self.name}: x is {self.x.dtype} {list(self.x.shape)}, "
                "expected uint8 [N, C, H, W] images or float32 [N, d] feature rows"
            )
        if 0 in self.x.shape:
            raise DataError(f"{self.name}: x has shape {list(self.x.shape)}: there are no records in it")
        for name, array, dtype in (("y", self.y, np.int64), ("is_train", self.is_train, np.bool_)):
            if array.dtype != dtype or array.shape != (self.n,):
                raise DataError(
                    f"{self.name}: {name} is {array.dtype} {list(array.shape)}, "
                    f"expected {np.dtype(dtype)} [{self.n}], one entry a record of x"
                )
        if self.n_classes < 2:
            raise DataError(f"{self.name}: {self.n_classes} class, a classifier needs at least 2")
        check_labels(self.y, self.n_classes, self.name)

    @property
    def n(self) -> int:
        """Number of records N."""
        return len(self.x)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record: (C, H, W) of an image, (d,) of a feature row."""
        return self.x.shape[1:]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of x, y and is_train with their dtypes and shapes: the same pool, the same fingerprint."""
        digest = hashlib.sha256()
        for name, array in (("x", self.x), ("y", self.y), ("is_train", self.is_train)):
            plain: NDArray[np.generic] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name} {plain.dtype.str} {plain.shape}\n".encode())
            digest.update(plain.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        kind = "images" if len(self.input_shape) == 3 else "feature rows"
        shape = "x".join(map(str, self.input_shape))
        train = int(self.is_train.sum())
        parts = f"{train:,} official training + {self.n - train:,} test" if train < self.n else "no official split"
        vouched = "verified" if self.verified else "vouched for by the user"
        return f"Dataset({self.name!r}: {self.n:,} {kind} {shape}, {self.n_classes} classes, {parts}, {vouched})"


def check_labels(y: NDArray[np.integer], n_classes: int, where: str) -> None:
    """Refuse labels outside 0 .. n_classes - 1.

    Raises
    ------
    DataError
        Names `where` (a dataset or file), the first such record and its label.
    """
    outside = np.flatnonzero((y < 0) | (y >= n_classes))
    if outside.size:
        raise DataError(
            f"{where}: label {y[outside[0]]} at record {outside[0]} is outside 0 .. {n_classes - 1} "
            f"({outside.size:,} of {len(y):,} records)",
            "number the classes from 0, without gaps",
        )


def check_finite(x: NDArray[np.generic], where: str) -> None:
    """Refuse feature rows [N, d] with NaN or infinite values.

    Raises
    ------
    DataError
        Names `where`, how many records are affected, and the first value.
    """
    bad = np.argwhere(~np.isfinite(x.astype(np.float32, copy=False)))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{where}: {len(np.unique(bad[:, 0])):,} of {len(x):,} records hold NaN or infinite values "
            f"(first: {x[row, column]} in record {row}, feature {column})",
            "remove these records or fill in the values",
        )


def check_records(dataset: Dataset, min_per_class: int = 1, *, by_part: bool = False) -> None:
    """Refuse a pool that no honest audit can be made from.

    Parameters
    ----------
    dataset
        Its shapes, dtypes and labels hold already: a `Dataset` cannot be made without them.
    min_per_class
        Records that every class must have: in the pool, or in each official part.
    by_part
        Ask for both official parts, and count the classes in each.

    Raises
    ------
    DataError
        NaN or infinite features; an empty part; a class with too few records. Each is named.
    """
    if len(dataset.input_shape) == 1:
        check_finite(dataset.x, dataset.name)
    if not dataset.is_train.any():
        raise DataError(
            f"{dataset.name}: the official training part is empty, all {dataset.n:,} records are test records",
            "there is nothing to train on: give training records, or no split at all",
        )
    if not by_part:
        return _check_classes(dataset, np.ones(dataset.n, np.bool_), "the pool", min_per_class)
    if dataset.is_train.all():
        raise DataError(
            f"{dataset.name}: the official test part is empty, all {dataset.n:,} records are training records",
            "use --protocol random-half, which needs no official split",
        )
    _check_classes(dataset, dataset.is_train, "the training part", min_per_class)
    return _check_classes(dataset, ~dataset.is_train, "the test part", min_per_class)


def _check_classes(dataset: Dataset, part: NDArray[np.bool_], part_name: str, least: int) -> None:
    counts = np.bincount(dataset.y[part], minlength=dataset.n_classes)
    few = np.flatnonzero(counts < least)
    if few.size:
        named = ", ".join(f"{k} ({dataset.classes[k]}): {counts[k]}" for k in few[:5])
        more = f" and {few.size - 5} more" if few.size > 5 else ""
        raise DataError(
            f"{dataset.name}: too few records of a class in {part_name}, at least {least} needed; class {named}{more}",
            "add records of these classes, or leave the classes out and number the others from 0 without gaps",
        )
