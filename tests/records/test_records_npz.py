"""The user's .npz files: what is accepted keeps every value; a refusal names array, expectation and finding."""

from __future__ import annotations

import os
import re
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memberscope.errors import DataError
from memberscope.records.npz import read_npz
from memberscope.records.pool import Dataset, check_records

REUSE = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(8)
X = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def write(tmp_path):
    def write_npz(**arrays):
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return write_npz


def test_a_pool_without_a_split(write):
    x, y, is_train, classes = read_npz(write(x=X, y=Y))
    np.testing.assert_array_equal(x, X.transpose(0, 3, 1, 2))
    assert x.dtype == np.uint8
    assert x.flags.c_contiguous
    assert (y.tolist(), y.dtype) == (Y.tolist(), np.int64)
    assert is_train.all()
    assert classes == ("0", "1", "2")


def test_a_pool_with_a_split_has_the_training_part_first(write):
    x, y, is_train, _ = read_npz(write(x_train=X[:4], y_train=Y[:4], x_test=X[4:], y_test=Y[4:]))
    np.testing.assert_array_equal(x, X.transpose(0, 3, 1, 2))
    assert y.tolist() == Y.tolist()
    assert is_train.tolist() == [True] * 4 + [False] * 2


def test_a_training_part_alone_is_a_pool_without_a_split(write):
    assert read_npz(write(x_train=X, y_train=Y, other=np.zeros(3)))[2].all()


def test_channels_are_found_by_their_number(write):
    for x, shape in (
        (X, (3, 5, 4)),
        (X.transpose(0, 3, 1, 2), (3, 5, 4)),
        (X[..., :1], (1, 5, 4)),
        (X[..., 0], (1, 5, 4)),
        (X[:, :1], None),
    ):
        if shape is None:
            with pytest.raises(
                DataError, match=r"x in .* has shape \[6, 1, 4, 3\]: both axes 1 and 3 could be channels"
            ):
                read_npz(write(x=x, y=Y))
            continue
        found = read_npz(write(x=x, y=Y))[0]
        assert found.shape[1:] == shape
        np.testing.assert_array_equal(found[2, 0], X[2, :, :, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_are_eight_bit_levels_become_them_exactly(write, dtype):
    levels = np.arange(256).repeat(3).reshape(6, 8, 16, 1)
    found = read_npz(write(x=(levels / 255).astype(dtype), y=Y))[0]
    np.testing.assert_array_equal(found[:, 0], levels[..., 0])


def test_integers_of_other_types_become_uint8(write):
    np.testing.assert_array_equal(read_npz(write(x=X.astype(np.int64), y=Y))[0], X.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_feature_rows_become_float32(write, dtype):
    rows = RNG.integers(0, 2, (6, 10)).astype(dtype)
    found = read_npz(write(x=rows, y=Y))[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows)


def test_names_of_classes_are_taken(write):
    assert read_npz(write(x=X, y=Y, classes=np.array(["a", "bb", "c"])))[3] == ("a", "bb", "c")
    for classes in (np.array(["a", "b"]), np.arange(3)):
        with pytest.raises(DataError, match="expected one text for each of the 3 classes"):
            read_npz(write(x=X, y=Y, classes=classes))


def test_labels_may_be_a_column_of_any_integers(write):
    for dtype in (np.uint8, np.int16, np.uint64):
        assert read_npz(write(x=X, y=Y[:, None].astype(dtype)))[1].tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.astype(float)}, r"x in .*own\.npz is float64 with values from \d+\.0 to 25\d\.0, expected images"),
        ({"x": X.astype(int) - 9}, r"x in .*own\.npz is int64 with values from -9 to"),
        ({"x": X / 999}, r"x in .*own\.npz holds floats between the 256 levels k/255"),
        ({"x": X > 9}, r"x in .*own\.npz is bool with values"),
        ({"x": np.full(X.shape, np.nan)}, "float64 with values from nan to nan"),
        ({"x": np.zeros((6, 5, 4, 2), np.uint8)}, r"neither axis 1 nor axis 3 has 1 or 3 channels"),
        ({"x": np.zeros((6, 3, 4, 1), np.uint8)}, "both axes 1 and 3 could be channels"),
        ({"x": np.zeros(6, np.uint8)}, r"x in .* is uint8 \[6\], expected images"),
        ({"x": np.zeros((6, 2), complex)}, r"x in .* is complex128 \[6, 2\]"),
        ({"x": np.array(["a"] * 6)}, r"x in .* is <U1 \[6\]"),
        ({"x": np.zeros((6, 2), "datetime64[s]")}, r"x in .* is datetime64"),
        ({"x": np.zeros((0, 5, 4, 3), np.uint8), "y": Y[:0]}, "there are no records in it"),
        (
            {"x": np.full((6, 2), np.nan)},
            r"6 of 6 records hold NaN or infinite values \(first: nan in record 0, feature 0",
        ),
        ({"x": np.full((6, 2), 1e300)}, "NaN or infinite values"),
        ({"y": Y[:5]}, r"y in .* has shape \[5\], expected \[6\]"),
        ({"y": Y.astype(float)}, r"y in .* is float64, expected integers"),
        ({"y": Y.astype(str)}, r"y in .* is <U21, expected integers"),
        ({"y": Y + 1}, r"expected labels 0 \.\. C-1, each class at least once; found 1, 2, 3"),
        ({"y": Y * 2}, "found 0, 2, 4"),
        ({"y": Y - 1}, "found -1, 0, 1"),
        ({"y": Y.astype(np.uint64) + np.uint64(2**63)}, "found 9223372036854775808"),
        ({"y": np.arange(6) * 7}, "found 0, 7, 14, 21, 28, 35$"),
    ],
)
def test_what_is_no_pool_is_refused(write, changes, message):
    with pytest.raises(DataError) as caught:
        read_npz(write(**({"x": X, "y": Y} | changes)))
    assert re.search(message, caught.value.problem)
    assert "own.npz" in caught.value.problem


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X, "b": Y}, "expected the keys x and y, or x_train, .*; found a, b"),
        ({}, "found none"),
        ({"x": X}, "found x$"),
        ({"x_test": X, "y_test": Y}, "found x_test, y_test"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "found x_test, x_train, y_train"),
        ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "holds both x, y and x_train, y_train"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, 1:], "y_test": Y},
            r"x_train have shape \(5, 4, 3\), those of x_test \(4, 4, 3\)",
        ),
        ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "x_test in .* there are no records in it"),
    ],
)
def test_keys_must_make_a_pool(write, arrays, message):
    with pytest.raises(DataError, match=f"(?m){message}"):
        read_npz(write(**arrays))


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_pickled_objects_are_refused_and_not_executed(tmp_path, write):
    proof = tmp_path / "executed"
    path = write(x=np.array([Payload(f"touch {proof}")], object), y=Y)
    with pytest.raises(DataError, match="Object arrays cannot be loaded") as caught:
        read_npz(path)
    assert "pickles, which can run code" in caught.value.hint
    assert not proof.exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*absent\.npz"):
        read_npz(tmp_path / "absent.npz")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(DataError, match="found ValueError: a single array"):
        read_npz(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("x,y")
    with pytest.raises(DataError, match=r"cannot read .*text\.npz: expected an \.npz file of plain arrays"):
        read_npz(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("x", "text")
        file.writestr("y", "text")
    with pytest.raises(DataError, match="expected arrays, x is none"):
        read_npz(tmp_path / "zip.npz")


def test_a_header_cannot_claim_much_memory(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 32, 32, 3)}".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as file:
        for name in ("x.npy", "y.npy"):
            file.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"abc")
    with pytest.raises(DataError, match=r"cannot read .*bomb\.npz"):
        read_npz(tmp_path / "bomb.npz")


def as_dataset(path):
    """Give a checked pool or None; anything but a DataError that names the file fails the test."""
    try:
        x, y, is_train, classes = read_npz(path)
    except DataError as error:
        problem = error.problem
    else:
        dataset = Dataset("own", x, y, classes, is_train, "own", verified=False)
        check_records(dataset)
        return dataset
    assert str(path) in problem
    return None


@REUSE
@given(share=st.floats(0, 1, exclude_max=True), compressed=st.booleans())
def test_a_truncated_file_is_a_data_error(tmp_path, share, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "own.npz", x=X, y=Y)
    content = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cannot read .*own\.npz"):
        read_npz(tmp_path / "own.npz")


@REUSE
@given(share=st.floats(0, 1, exclude_max=True), changed=st.binary(min_size=1, max_size=4), compressed=st.booleans())
def test_a_file_with_changed_bytes_is_valid_or_refused(tmp_path, share, changed, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "own.npz", x=X[:3], y=Y[:3])
    content = bytearray((tmp_path / "own.npz").read_bytes())
    position = int(share * len(content))
    content[position : position + len(changed)] = changed
    (tmp_path / "own.npz").write_bytes(content)
    as_dataset(tmp_path / "own.npz")


ANY_ARRAY = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(),
        hnp.unicode_string_dtypes(max_len=3),
        hnp.datetime64_dtypes(),
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
)
LABELS = hnp.arrays(st.sampled_from([np.uint8, np.int64, ">i4"]), st.integers(0, 4), elements=st.integers(0, 2))


@REUSE
@given(
    contents=st.dictionaries(
        st.sampled_from(["x", "y", "x_train", "y_train", "x_test", "y_test", "classes"]), ANY_ARRAY | LABELS, max_size=7
    )
)
def test_any_arrays_make_a_valid_pool_or_a_data_error(tmp_path, contents):
    np.savez(tmp_path / "own.npz", **contents)
    as_dataset(tmp_path / "own.npz")


@REUSE
@given(data=st.data(), n=st.integers(2, 6), split=st.booleans())
def test_good_arrays_make_a_pool_with_their_values(tmp_path, data, n, split):
    shape = data.draw(st.sampled_from([(n, 7), (n, 4, 5), (n, 4, 5, 3), (n, 1, 4, 5), (n, 4, 2, 1)]))
    x = data.draw(hnp.arrays(np.uint8, shape))
    y = np.arange(n) % 2
    parts = {"x_train": x[:1], "y_train": y[:1], "x_test": x[1:], "y_test": y[1:]} if split else {"x": x, "y": y}
    np.savez(tmp_path / "own.npz", **parts)
    dataset = as_dataset(tmp_path / "own.npz")
    assert dataset is not None
    assert dataset.is_train.sum() == (1 if split else n)
    expected = x if x.ndim < 4 or shape[1] == 1 else x.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(dataset.x.reshape(n, -1), expected.reshape(n, -1))
