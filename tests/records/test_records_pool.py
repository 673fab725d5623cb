"""A pool cannot exist with wrong shapes, dtypes or labels; what cannot be audited is refused by name."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from memberscope.errors import DataError
from memberscope.records.pool import Dataset, check_records


def pool(**changes):
    rng = np.random.default_rng(5)
    fields = {
        "name": "toy",
        "x": rng.integers(0, 256, (12, 3, 4, 5), dtype=np.uint8),
        "y": np.arange(12) % 3,
        "classes": ("cat", "dog", "eel"),
        "is_train": np.arange(12) < 8,
        "source": "made here",
        "verified": True,
    }
    return Dataset(**(fields | changes))


ROWS = np.arange(24, dtype=np.float32).reshape(12, 2)


def test_a_pool_tells_its_size_and_shape():
    assert (pool().n, pool().n_classes, pool().input_shape) == (12, 3, (3, 4, 5))
    assert pool(x=ROWS).input_shape == (2,)


def test_a_pool_reads_well():
    assert repr(pool()) == (
        "Dataset('toy': 12 images 3x4x5, 3 classes, 8 official training + 4 test, verified)"
    )  # fmt: skip
    assert repr(pool(x=ROWS, is_train=np.ones(12, bool), verified=False)) == (
        "Dataset('toy': 12 feature rows 2, 3 classes, no official split, vouched for by the user)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((12, 4, 5), np.uint8)}, r"toy: x is uint8 \[12, 4, 5\], expected uint8 \[N, C, H, W\]"),
        ({"x": np.zeros((12, 3, 4, 5), np.float32)}, r"toy: x is float32 \[12, 3, 4, 5\]"),
        ({"x": np.zeros((12, 2))}, r"toy: x is float64 \[12, 2\]"),
        ({"x": np.zeros((0, 3, 4, 5), np.uint8)}, "there are no records in it"),
        ({"x": np.zeros((12, 0), np.float32)}, "there are no records in it"),
        ({"y": np.zeros(11, np.int64)}, r"toy: y is int64 \[11\], expected int64 \[12\]"),
        ({"y": np.zeros(12, np.int32)}, r"toy: y is int32 \[12\], expected int64 \[12\]"),
        ({"is_train": np.ones(12, np.uint8)}, r"toy: is_train is uint8 \[12\], expected bool \[12\]"),
        ({"classes": ("cat",)}, "toy: 1 class, a classifier needs at least 2"),
        ({"classes": ("cat", "dog")}, r"toy: label 2 at record 2 is outside 0 \.\. 1 \(4 of 12 records\)"),
        ({"y": np.arange(12) % 3 - 1}, r"toy: label -1 at record 0 is outside 0 \.\. 2"),
    ],
)
def test_what_is_no_pool_cannot_be_made(changes, message):
    with pytest.raises(DataError, match=message):
        pool(**changes)


def test_the_fingerprint_is_the_sha256_of_all_that_matters():
    data = pool()
    expected = hashlib.sha256()
    for name, array in (("x", data.x), ("y", data.y), ("is_train", data.is_train)):
        expected.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    assert data.fingerprint == expected.hexdigest()


def test_the_fingerprint_sees_every_record_and_no_layout():
    first = pool().fingerprint
    assert pool(name="other", source="elsewhere", verified=False).fingerprint == first
    assert pool(x=np.asfortranarray(pool().x)).fingerprint == first
    changed = pool().x.copy()
    changed[11, 2, 3, 4] ^= 1
    others = [
        pool(x=changed),
        pool(y=pool().y[::-1].copy()),
        pool(is_train=np.arange(12) < 9),
        pool(x=pool().x.reshape(12, 3, 5, 4)),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 5


def test_nan_and_infinite_features_are_named():
    for value in (np.nan, -np.inf):
        x = ROWS.copy()
        x[[3, 3, 7], [0, 1, 1]] = value
        with pytest.raises(DataError, match=rf"toy: 2 of 12 records .*\(first: {value} in record 3, feature 0\)"):
            check_records(pool(x=x))


def test_classes_with_too_few_records_are_named():
    y = np.array([0] * 9 + [1] * 2 + [2])
    check_records(pool(y=y))
    with pytest.raises(DataError, match=r"in the pool, at least 3 needed; class 1 \(dog\): 2, 2 \(eel\): 1"):
        check_records(pool(y=y), 3)
    with pytest.raises(DataError, match=r"in the training part, at least 1 needed; class 1 \(dog\): 0, 2 \(eel\): 0"):
        check_records(pool(y=y), 1, by_part=True)
    with pytest.raises(DataError, match=r"in the test part, at least 1 needed; class 1 \(dog\): 0, 2 \(eel\): 0"):
        check_records(pool(y=y[::-1].copy()), 1, by_part=True)
    check_records(pool(), 1, by_part=True)


def test_many_poor_classes_are_counted():
    data = pool(classes=tuple(f"c{i}" for i in range(10)))
    with pytest.raises(DataError, match=r"class 3 \(c3\): 0, .* 7 \(c7\): 0 and 2 more"):
        check_records(data)


def test_an_empty_part_is_refused():
    with pytest.raises(DataError, match="the official training part is empty, all 12 records are test records"):
        check_records(pool(is_train=np.zeros(12, bool)))
    whole = pool(is_train=np.ones(12, bool))
    check_records(whole)
    with pytest.raises(DataError, match="test part is empty") as caught:
        check_records(whole, by_part=True)
    assert "--protocol random-half" in caught.value.hint
