"""Readers of official formats: right on good files; on other bytes a DataError, nothing executed, no memory spent."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from memberscope.errors import DataError
from memberscope.records.mat import read_mat
from memberscope.records.pickle import NumpyUnpickler, PickledArray
from memberscope.records.readers import read_cifar_batch, read_idx, read_idx_pair, read_svhn, read_tar_members

WHERE = Path("data_batch_1")
REUSE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and numpy's names as Python 2 did, as in the official batches."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, obj):
        self.write(b"U" + bytes([len(obj)]) + obj if len(obj) < 256 else b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        if obj.__module__.startswith("numpy._core"):
            self.write(b"c" + obj.__module__.replace("_core", "core").encode() + b"\n" + obj.__name__.encode() + b"\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch[bytes] = save_bytes


def python2_pickle(obj):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(obj)
    return file.getvalue()


def batch_content(n=4, **changes):
    rng = np.random.default_rng(7)
    return {
        b"batch_label": b"testing batch 1 of 1",
        b"labels": rng.integers(0, 10, n).tolist(),
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        b"filenames": [b"a.png"] * n,
    } | {key.encode(): value for key, value in changes.items()}


GOOD = python2_pickle(batch_content(2))


def read_batch(content):
    return read_cifar_batch(content, WHERE, b"labels", 10)


@pytest.mark.parametrize("write", [python2_pickle, *(lambda obj, p=p: pickle.dumps(obj, p) for p in (2, 3, 4))])
def test_batches_of_python_2_and_3_are_read(write):
    content = batch_content(300)
    x, y = read_batch(write(content))
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x.reshape(300, -1), content[b"data"])
    assert y.dtype == np.int64
    assert y.tolist() == content[b"labels"]


def test_fortran_order_and_big_endian_arrays_keep_their_values():
    for array in (
        np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        np.arange(5, dtype=">i4"),
        np.array([True, False]),
        np.linspace(0, 1, 7, dtype=np.float32),
    ):
        found = NumpyUnpickler(pickle.dumps(array, 2), WHERE).load()
        assert isinstance(found, PickledArray)
        np.testing.assert_array_equal(found.array, array)


def attack(function, *args):
    class Hostile:
        def __reduce__(self):
            return function, args

    return Hostile()


@pytest.mark.parametrize("write", [python2_pickle, *(lambda obj, p=p: pickle.dumps(obj, p) for p in range(6))])
@pytest.mark.parametrize("place", ["instead", "inside", "beside"])
def test_a_hostile_pickle_is_refused_by_name_and_never_executed(tmp_path, write, place):
    proof = tmp_path / "executed"
    payload = attack(os.system, f"touch {proof}")
    content = {"instead": payload, "inside": batch_content(labels=[payload]), "beside": batch_content(extra=payload)}
    with pytest.raises(DataError) as caught:
        read_batch(write(content[place]))
    assert not proof.exists()
    assert str(WHERE) in str(caught.value)
    if write(content[place])[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):  # others fall over an instruction before
        assert "posix.system" in str(caught.value)
        assert "not executed" in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [builtins.eval, builtins.getattr, np.load, np.fromfile, np.memmap, np.frombuffer, io.open, os.popen, bytearray],
)
def test_no_global_but_those_of_arrays_is_admitted(function):
    name = f"{function.__module__}.{function.__qualname__}".replace("_io.open", "io.open")
    with pytest.raises(DataError, match=r"asks for .*expected numpy arrays and nothing else") as caught:
        read_batch(pickle.dumps(attack(function, "x"), 2))
    assert name.rpartition(".")[2] in str(caught.value)


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = RECONSTRUCT + b"(cnumpy\nndarray\nK\x00\x85U\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"(S'touch x'\nios\nsystem\n.", "the pickle instruction"),  # INST
        (b"(cos\nsystem\nS'touch x'\no.", "os.system"),  # OBJ
        (b"\x82\x01.", "the pickle instruction"),  # EXT1
        (b"Pid\n.", "the pickle instruction"),  # PERSID
        (RECONSTRUCT + b"}U\x08__call__Nsb.", "a changed global"),  # BUILD on an admitted global
        (b"cnumpy\nndarray\n}U\x0c__setstate__Nsb.", "a changed global"),
        (b"cnumpy\nndarray\nN}U\x05_callNs\x86b.", "a changed global"),  # BUILD with a slot state
        (b"cnumpy\nndarray\n)\x81.", "the pickle instruction"),  # NEWOBJ
        (b"cnumpy\nndarray\n(K\x05tR.", "an array class called directly"),
        (RECONSTRUCT + b"(cnumpy\ndtype\nK\x00\x85U\x01btR.", "no plain numpy array"),
        (RECONSTRUCT + b"(cnumpy\nndarray\n\x8a\x05\x00\x00\x00\x00\x10\x85U\x01btR.", "no plain numpy array"),
        (b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "an array of dtype 'O8'"),
        (b"cnumpy\ndtype\n(U\x04V100K\x00K\x01tR.", "an array of dtype 'V100'"),
        (DTYPE + b"(K\x03U\x01|U\x03abcNNK\x00K\x00K\x00tb.", "an array of records"),
        (ARRAY + b"(K\x01K\x05\x85" + DTYPE + b"\x89]tb.", "anything but plain numbers"),
        (ARRAY + b"(K\x01K\x05\x85" + DTYPE + b"\x89U\x03abctb.", "in 3 bytes"),
        (ARRAY + b"(K\x01(U\x03abcJ\xff\xff\xff\x7ft" + DTYPE + b"\x89U\x03abctb.", "no tuple of lengths"),
        (b"c_codecs\nencode\n(U\x01xU\x05rot13tR.", "no byte string"),
    ],
)
def test_admitted_names_cannot_be_bent(body, message):
    with pytest.raises(DataError, match=message):
        read_batch(b"\x80\x02" + body)


def traced_peak(content):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_batch(content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "bomb",
    [
        b"Nr\xff\xff\xff\x7f.",  # a memo index of 2^31: 34 GB in the C unpickler
        b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",  # a frame of a terabyte
        b"B" + struct.pack("<I", (1 << 32) - 1) + b"abc.",  # bytes that are not there
        b"\x96" + struct.pack("<Q", 1 << 40) + b"abc.",  # BYTEARRAY8
        # one text of 50 kB, encoded ten thousand times
        b"c_codecs\nencode\nq\x00X\x50\xc3\x00\x00" + b"a" * 50_000 + b"q\x01]("
        + b"h\x00(h\x01X\x06\x00\x00\x00latin1tR" * 10_000 + b"e.",
        # lists of lists: 10^15 elements to whoever walks it
        b"]q\x00(" + b"N" * 1000 + b"e" + b"".join(b"]q%c(" % i + b"h%c" % (i - 1) * 1000 + b"e" for i in range(1, 6))
        + b".",
    ],
    ids=["memo", "frame", "bytes", "bytearray", "encode", "lists"],
)  # fmt: skip
def test_a_small_file_cannot_claim_much_memory(bomb):
    assert traced_peak(b"\x80\x02" + bomb) < 20e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [1, 2, 3]}, r"found uint8 \[4, 3072\] and 3 labels"),
        ({"labels": [0, 1, 2, 10]}, r"expected labels 0 \.\. 9, found 10"),
        ({"labels": [0, 1, 2, -1]}, r"expected labels 0 \.\. 9, found -1"),
        ({"labels": [0, 1, 2, True]}, "found PickledArray and list"),
        ({"labels": [0, 1, 2, [3]]}, "found PickledArray and list"),
        ({"labels": [0, 1, 2, 1 << 70]}, "OverflowError"),
        ({"labels": 5}, "found PickledArray and int"),
        ({"labels": [], "data": np.zeros((0, 3072), np.uint8)}, "list"),
        ({"data": np.zeros((4, 784), np.uint8)}, r"found uint8 \[4, 784\]"),
        ({"data": np.zeros((4, 3072), np.float32)}, r"found float32 \[4, 3072\]"),
        ({"data": b"abc"}, "found bytes and list"),
    ],
)
def test_a_batch_of_another_shape_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        read_batch(python2_pickle(batch_content(**changes)))
    assert "data_batch_1" in str(caught.value)


def test_a_batch_without_its_keys_says_which_it_has():
    with pytest.raises(DataError, match=r"expected .*b'labels'.*found \[b'data', b'fine_labels'\]"):
        read_batch(python2_pickle({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [0]}))


@REUSE
@given(st.integers(0, len(GOOD) - 1))
def test_a_truncated_batch_is_a_data_error(length):
    with pytest.raises(DataError, match="data_batch_1"):
        read_batch(GOOD[:length])


def valid_or_refused(read, n_channels=3):
    try:
        x, y = read()
    except DataError:
        return
    assert x.dtype == np.uint8
    assert x.shape[1] == n_channels
    assert y.dtype == np.int64
    assert len(x) == len(y) > 0
    assert y.min() >= 0
    assert y.max() < 10


@REUSE
@given(st.integers(0, 300), st.binary(min_size=1, max_size=6))
def test_a_batch_with_changed_bytes_is_valid_or_refused(position, changed):
    # The first 300 bytes hold every opcode but those of the pixels.
    damaged = bytearray(GOOD)
    damaged[position : position + len(changed)] = changed
    valid_or_refused(lambda: read_batch(bytes(damaged)))


@REUSE
@given(
    st.lists(
        st.sampled_from([bytes([c]) for c in b"\x80\x02}(]()Nq\x00h\x00K\x01U\x01etsubR\x85\x86."] + [ARRAY, DTYPE])
    )
)
def test_any_sequence_of_opcodes_is_refused(opcodes):
    with pytest.raises(DataError):
        read_batch(b"\x80\x02" + b"".join(opcodes))


@REUSE
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    with pytest.raises(DataError):
        read_batch(content)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9], np.uint8)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_idx_files_are_read(tmp_path, suffix, pack):
    images, labels = tmp_path / f"i{suffix}", tmp_path / f"l{suffix}"
    images.write_bytes(pack(idx(IMAGES)))
    labels.write_bytes(pack(idx(LABELS)))
    x, y = read_idx_pair(images, labels, 10)
    np.testing.assert_array_equal(x, IMAGES[:, None])
    assert y.tolist() == [3, 0, 9]
    assert y.dtype == np.int64


@REUSE
@given(packed=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_idx_file_is_a_data_error(tmp_path, packed, share):
    content = gzip.compress(idx(IMAGES)) if packed else idx(IMAGES)
    path = tmp_path / ("i.gz" if packed else "i")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        DataError, match=rf"cannot read .*{path.name}: expected an IDX file of unsigned bytes with 3 axes"
    ):
        read_idx(path, 3)


@REUSE
@given(packed=st.booleans(), position=st.integers(0, 60), changed=st.binary(min_size=1, max_size=4))
def test_an_idx_file_with_changed_bytes_is_valid_or_refused(tmp_path, packed, position, changed):
    content = bytearray(gzip.compress(idx(IMAGES)) if packed else idx(IMAGES))
    content[position : position + len(changed)] = changed
    images, labels = tmp_path / ("i.gz" if packed else "i"), tmp_path / "l"
    images.write_bytes(content)
    labels.write_bytes(idx(LABELS))
    valid_or_refused(lambda: read_idx_pair(images, labels, 10), n_channels=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES) + b"x", "and more"),
        (idx(LABELS), "magic number|unpack"),
        (b"\x00\x00\x0d\x03" + idx(IMAGES)[4:], "magic number 0x00000d03"),
        (struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 28, 28), "promises 1,683,627,180,032 bytes, more than the file can"),
    ],
)
def test_idx_headers_are_held_against_the_file(tmp_path, content, message):
    for path, packed in ((tmp_path / "i", content), (tmp_path / "i.gz", gzip.compress(content))):
        path.write_bytes(packed)
        with pytest.raises(DataError, match=message):
            read_idx(path, 3)


def test_images_and_labels_must_fit(tmp_path):
    images, labels = tmp_path / "i", tmp_path / "l"
    images.write_bytes(idx(IMAGES))
    for y, message in ((LABELS[:2], "holds 3 images, but .* holds 2 labels"), (LABELS + 1, r"0 \.\. 9, found 10")):
        labels.write_bytes(idx(y))
        with pytest.raises(DataError, match=message):
            read_idx_pair(images, labels, 10)
    images.write_bytes(idx(IMAGES[:, :27]))
    with pytest.raises(DataError, match="expected images of 28x28, found 27x28"):
        read_idx_pair(images, labels, 10)
    for path, empty in ((images, IMAGES[:0]), (labels, LABELS[:0])):
        path.write_bytes(idx(empty))
    with pytest.raises(DataError, match="holds no records"):
        read_idx_pair(images, labels, 10)


def write_mat(path, n=4, compressed=True, **changes):
    rng = np.random.default_rng(3)
    content = {"X": rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": np.arange(10, 10 - n, -1)[:, None]}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    savemat(path, content, do_compression=compressed)
    return content


def test_svhn_is_read_with_ten_as_zero(tmp_path):
    content = write_mat(tmp_path / "train.mat")
    x, y = read_svhn(tmp_path / "train.mat")
    assert y.tolist() == [0, 9, 8, 7]
    assert x.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(x[2, 1, 5, 7], content["X"][5, 7, 1, 2])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_mat_files_are_read_as_scipy_reads_them(tmp_path, dtype, compressed):
    rng = np.random.default_rng(4)
    path = tmp_path / "t.mat"
    arrays = {
        "a": rng.integers(0, 100, (3, 4, 5)).astype(dtype),
        "a_longer_name": np.arange(3).astype(dtype),
        "e": np.zeros((0, 3), dtype),
    }
    savemat(
        path,
        arrays | {"text": "abc", "cells": np.array([1, "b"], object), "z": np.array([1j])},
        do_compression=compressed,
    )
    found, expected = read_mat(path), loadmat(path)
    assert sorted(found) == sorted(arrays)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])


def test_a_small_compressed_matrix_cannot_claim_much_memory(tmp_path):
    path = tmp_path / "bomb.mat"
    header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    for inner in (struct.pack("<II", 14, 0xFFFFFFF0), struct.pack("<II", 14, 4096) + bytes(50_000_000)):
        packed = zlib.compress(inner)
        path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
        tracemalloc.start()
        with pytest.raises(DataError, match=r"an element of 4,294,967,280 bytes|is not 4,096 bytes long"):
            read_svhn(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "found y$"),
        ({"y": None}, "found X$"),
        ({"X": None, "y": None, "z": "text"}, "found no arrays of numbers"),
        ({"X": np.zeros((28, 28, 3, 4), np.uint8)}, r"found X uint8 \[28, 28, 3, 4\]"),
        ({"X": np.zeros((32, 32, 3, 4))}, r"found X float64 \[32, 32, 3, 4\]"),
        ({"X": {"a": 1}}, "found y"),
        ({"y": np.zeros((3, 1), np.uint8)}, r"found y uint8 \[3, 1\] for 4 images"),
        ({"y": np.array([["ab"]], object)}, "found X"),
        ({"y": np.array([[1, 2, 3, 11]])}, "found the label 11"),
        ({"y": np.array([[1, 2, 3, np.nan]])}, "found the label nan"),
        ({"y": np.array([[1, 2, 3, 0.5]])}, "found the label 0.5"),
        ({"y": np.array([[1, 2, 3, 4j]])}, "found X"),
    ],
)
def test_a_mat_file_of_another_kind_is_refused(tmp_path, changes, message):
    write_mat(tmp_path / "train_32x32.mat", **changes)
    with pytest.raises(DataError) as caught:
        read_svhn(tmp_path / "train_32x32.mat")
    assert re.search(message, caught.value.problem)
    assert "train_32x32.mat" in caught.value.problem


@REUSE
@given(compressed=st.booleans(), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_mat_file_is_a_data_error(tmp_path, compressed, share):
    path = tmp_path / "t.mat"
    write_mat(path, 2, compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"t\.mat: expected a MATLAB file with X uint8"):
        read_svhn(path)


@REUSE
@given(compressed=st.booleans(), position=st.integers(0, 300), changed=st.binary(min_size=1, max_size=4))
def test_a_mat_file_with_changed_bytes_is_valid_or_refused(tmp_path, compressed, position, changed):
    path = tmp_path / "t.mat"
    write_mat(path, 2, compressed)
    content = bytearray(path.read_bytes())
    content[position : position + len(changed)] = changed
    path.write_bytes(content)
    valid_or_refused(lambda: read_svhn(path))


def test_a_mat_file_with_an_unfinished_checksum_or_a_length_below_zero_is_refused(tmp_path):
    path = tmp_path / "t.mat"
    write_mat(path, 2, compressed=True)
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 132)
    path.write_bytes(content[:132] + struct.pack("<I", length - 2) + content[136 : 136 + length - 2])
    with pytest.raises(DataError, match="a compressed element that is not"):
        read_svhn(path)
    write_mat(path, 2, compressed=False)
    shape = struct.pack("<4i", 32, 32, 3, 2)
    path.write_bytes(path.read_bytes().replace(shape, struct.pack("<4i", 32, 32, 3, -1)))
    with pytest.raises(DataError, match=r"an array of shape \[32, 32, 3, -1\] with 6,144 values"):
        read_svhn(path)


def write_tar(path, **members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_members_of_an_archive_are_read_in_its_order(tmp_path):
    write_tar(tmp_path / "a.tar.gz", b=b"2", other=b"-", a=b"1")
    members = list(read_tar_members(tmp_path / "a.tar.gz", ["folder/a", "folder/b"]))
    assert members == [("folder/b", b"2"), ("folder/a", b"1")]
    with pytest.raises(DataError, match="folder/c is not there"):
        list(read_tar_members(tmp_path / "a.tar.gz", ["folder/a", "folder/c"]))


def test_links_and_absurd_sizes_in_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("folder/a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="folder/a is not there"):
        list(read_tar_members(path, ["folder/a"]))
    huge = tarfile.TarInfo("folder/a")
    huge.size = 1 << 40
    path.write_bytes(gzip.compress(huge.tobuf() + bytes(1024)))
    with pytest.raises(DataError, match=r"folder/a of 1,099,511,627,776 bytes"):
        list(read_tar_members(path, ["folder/a"]))


@REUSE
@given(share=st.floats(0, 0.95))
def test_a_truncated_archive_is_a_data_error(tmp_path, share):
    write_tar(tmp_path / "a.tar.gz", a=os.urandom(3000))
    content = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"a\.tar\.gz"):
        list(read_tar_members(tmp_path / "a.tar.gz", ["folder/a"]))
