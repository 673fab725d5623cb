"""Checks of model answers: whatever cannot be attacked honestly is refused, with the record and what to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError

LARGEST = 1e100
"""Logits beyond this are as broken as infinite ones: their differences may overflow."""


def as_labels(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Labels as int64; floating-point whole numbers are taken, as CSV files hold them."""
    array = np.asarray(labels)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        odd = ~(np.abs(array) < 2**53) | (array != np.floor(array))  # NaN and infinity among them
        if odd.any():
            place = tuple(np.argwhere(odd)[0])
            raise EvidenceError(
                f"labels hold {array[place]:.6g} (record {place[0] if place else 0}), expected whole numbers",
                "labels are classes 0..C-1",
            )
    elif array.dtype.kind not in "iu":
        raise EvidenceError(f"labels have dtype {array.dtype}, expected integers", "labels are classes 0..C-1")
    return array.astype(np.int64)


def check_answers(logits: NDArray[np.floating], labels: NDArray[np.int64], name: str) -> None:
    """Raise an `EvidenceError` unless these are finite answers [A, N, C] and a class 0..C-1 for each record."""
    if logits.dtype.kind != "f":
        raise EvidenceError(f"{name} have dtype {logits.dtype}, expected floating point", "pass raw model outputs")
    queries, n, classes = logits.shape
    if classes < 2:
        raise EvidenceError(
            f"{name} have {classes} column{'s' * (classes != 1)}, expected at least two classes",
            "a model with one output p becomes two columns: 1 - p and p",
        )
    if labels.shape != (n,):
        raise EvidenceError(f"labels have shape {labels.shape}, expected ({n},) as {name} do", "one label a record")
    if n == 0 or queries == 0:
        raise EvidenceError(f"{name} hold no {'record' if queries else 'query'}", "an audit needs the model's answers")
    bad = ~_usable(logits).all(axis=(0, 2))
    if bad.any():
        raise EvidenceError(
            f"{name} of {bad.sum():,} of {n:,} records are NaN or infinite (first: record {int(bad.argmax())})",
            "leave broken records out, or mend the model that answered",
        )
    if labels.min() < 0 or labels.max() >= classes:
        row = int(((labels < 0) | (labels >= classes)).argmax())
        raise EvidenceError(
            f"label {labels[row]} of record {row} is outside 0..{classes - 1} ({classes} columns)",
            "labels are class indices that start at 0",
        )


def check_reference_logits(logits: NDArray[np.floating], expected: tuple[int, ...], name: str, axes: str) -> None:
    """Raise an `EvidenceError` unless the answers of K reference models have this shape and are finite."""
    if logits.shape != expected or expected[0] == 0:
        raise EvidenceError(
            f"{name} have shape {logits.shape}, expected {axes} = {expected}",
            "every reference model answers the same queries on the same records as the target",
        )
    if logits.dtype.kind != "f":
        raise EvidenceError(f"{name} have dtype {logits.dtype}, expected floating point", "pass raw model outputs")
    for model, answers in enumerate(logits):  # one at a time: they may be memory-mapped
        if not _usable(answers).all():
            raise EvidenceError(f"{name} of model {model} are NaN or infinite", "train or query that model again")


def check_features(features: NDArray[np.floating], n: int, name: str) -> None:
    """Raise an `EvidenceError` unless these are n finite vectors."""
    if features.ndim != 2 or len(features) != n or features.shape[1] == 0:
        raise EvidenceError(f"{name} have shape {features.shape}, expected ({n}, F)", "flatten each record to a vector")
    if features.dtype.kind != "f":
        raise EvidenceError(f"{name} have dtype {features.dtype}, expected floating point", "scale pixels to [0, 1]")
    bad = ~_usable(features).all(axis=1)
    if bad.any():
        raise EvidenceError(
            f"{name} of {bad.sum():,} records are NaN or infinite (first: record {int(bad.argmax())})",
            "leave broken records out",
        )


def _usable(logits: NDArray[np.floating]) -> NDArray[np.bool_]:
    limit = min(LARGEST, float(np.finfo(logits.dtype).max))
    return np.asarray(np.abs(logits) <= limit)
