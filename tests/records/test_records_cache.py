"""The decoded cache gives back what was written, and nothing else whatever happens to its file."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from memberscope.records import cache
from memberscope.records.pool import Dataset

REUSE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STAMP = [["batches/a", 12, 34], ["batches/b", 56, 78]]


def pool(kind="images"):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (9, 3, 3, 5), dtype=np.uint8) if kind == "images" else rng.random((9, 7), np.float32)
    return Dataset("toy", x, np.arange(9) % 2, ("größer", "kleiner"), np.arange(9) < 6, "made here", verified=True)


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_a_pool_comes_back_as_it_was(tmp_path, kind):
    path = cache.cache_path(tmp_path, "toy")
    assert path == tmp_path / ".memberscope-cache" / "toy.safetensors"
    written = pool(kind)
    cache.write(path, written, STAMP)
    found = cache.read(path, STAMP)
    assert found is not None
    for name in ("x", "y", "is_train"):
        a, b = getattr(found, name), getattr(written, name)
        assert type(a) is np.ndarray
        assert a.dtype == b.dtype
        assert a.flags.aligned
        np.testing.assert_array_equal(a, b)
    assert (found.name, found.classes, found.source, found.verified) == ("toy", written.classes, "made here", True)
    assert found.fingerprint == written.fingerprint


def test_the_file_is_plain_safetensors(tmp_path):
    cache.write(tmp_path / "toy.safetensors", pool(), STAMP)
    tensors = load_file(tmp_path / "toy.safetensors")
    np.testing.assert_array_equal(tensors["x"], pool().x)
    assert sorted(tensors) == ["is_train", "x", "y"]


def test_changes_in_memory_do_not_reach_the_file(tmp_path):
    cache.write(tmp_path / "toy", pool(), STAMP)
    cache.read(tmp_path / "toy", STAMP).x[:] = 0
    assert cache.read(tmp_path / "toy", STAMP).x.any()


def test_other_source_files_make_the_cache_stale(tmp_path):
    cache.write(tmp_path / "toy", pool(), STAMP)
    assert cache.read(tmp_path / "toy", [STAMP[0], ["batches/b", 56, 79]]) is None
    assert cache.read(tmp_path / "toy", STAMP[:1]) is None
    assert cache.read(tmp_path / "absent", STAMP) is None


@REUSE
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_cache_is_not_believed(tmp_path, share):
    cache.write(tmp_path / "toy", pool(), STAMP)
    content = (tmp_path / "toy").read_bytes()
    (tmp_path / "toy").write_bytes(content[: int(share * len(content))])
    assert cache.read(tmp_path / "toy", STAMP) is None


@REUSE
@given(share=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_means_nothing(tmp_path, share, change):
    cache.write(tmp_path / "toy", pool(), STAMP)
    content = bytearray((tmp_path / "toy").read_bytes())
    content[int(share * len(content))] ^= change
    (tmp_path / "toy").write_bytes(content)
    found = cache.read(tmp_path / "toy", STAMP)
    if found is not None:
        assert found.fingerprint == pool().fingerprint
        assert (found.name, found.classes, found.source, found.verified) == ("toy", pool().classes, "made here", True)


@pytest.mark.parametrize(
    ("old", "new"), [(b"made here", b"made hero"), (b"kleiner", b"feiner!"), (b'"true"', b'"TRUE"')]
)
def test_a_changed_header_is_noticed(tmp_path, old, new):
    cache.write(tmp_path / "toy", pool(), STAMP)
    content = (tmp_path / "toy").read_bytes()
    assert content.count(old) == 1
    (tmp_path / "toy").write_bytes(content.replace(old, new))
    assert cache.read(tmp_path / "toy", STAMP) is None


def test_more_bytes_than_promised_are_noticed(tmp_path):
    cache.write(tmp_path / "toy", pool(), STAMP)
    with (tmp_path / "toy").open("ab") as file:
        file.write(b"\0")
    assert cache.read(tmp_path / "toy", STAMP) is None


def test_where_nothing_can_be_written_it_is_said_once(tmp_path, caplog):
    (tmp_path / ".memberscope-cache").write_text("in the way")
    path = cache.cache_path(tmp_path, "toy")
    with caplog.at_level(logging.WARNING, "memberscope"):
        for _ in range(3):
            cache.write(path, pool(), STAMP)
    assert [record.getMessage()[:63] for record in caplog.records] == [
        "no decoded cache, every load decodes the files again: cannot wri"[:63]
    ]
    assert cache.read(path, STAMP) is None
