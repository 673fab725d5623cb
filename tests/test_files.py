"""Files are written whole or not at all: errors, full disks and killed writers leave what was there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memberscope.errors import MemberscopeError
from memberscope.files import replacing, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "deep" / "a.bin", b"\0\xff\r\n")
    assert (tmp_path / "new" / "deep" / "a.bin").read_bytes() == b"\0\xff\r\n"
    write_text(tmp_path / "a.txt", "ε = 0.5\n")
    assert (tmp_path / "a.txt").read_bytes() == "ε = 0.5\n".encode()
    write_json(tmp_path / "a.json", {"ε": [1, None, True]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ε": [1, None, True]}
    assert names(tmp_path) == ["a.json", "a.txt", "new"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
        assert os.umask(0o027) == 0o027  # asking for the mask does not change it
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    write_text(path, "old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("code", "problem", "hint"),
    [
        (
            errno.ENOSPC,
            "disk full while writing {}",
            "free some space and run the same command again; nothing was over",
        ),
        (
            errno.EDQUOT,
            "disk full while writing {}",
            "free some space and run the same command again; nothing was over",
        ),
        (errno.EIO, "cannot write {}: Input/output error", "choose a folder that can be written"),
    ],
)
def test_a_disk_that_fails_is_named_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, problem: str, hint: str
) -> None:
    path = tmp_path / "a"
    write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MemberscopeError) as refusal:
        write_text(path, "new")
    assert refusal.value.problem == problem.format(path)
    assert refusal.value.hint.startswith(hint)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_disk_that_fills_up_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the kernel stops the write after 4,096 of 100,000 bytes."""
    write_text(tmp_path / "a", "old")
    program = f"""
import resource, signal
from pathlib import Path
from memberscope.errors import MemberscopeError
from memberscope.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes(Path({str(tmp_path / "a")!r}), bytes(100_000))
except MemberscopeError as error:
    print(error.problem)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"cannot write {tmp_path / 'a'}: File too large"
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemberscopeError, match=r"cannot write .*file/a: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "a", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MemberscopeError, match=r"cannot write .*folder: Is a directory\n  choose a folder"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_is_none_is_refused_before_anything_is_touched(tmp_path: Path, value: float) -> None:
    write_text(tmp_path / "a.json", "{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auc": value})
    assert (tmp_path / "a.json").read_text() == "{}"
    assert names(tmp_path) == ["a.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, whole = tmp_path / "a", [bytes([byte]) * 300_000 for byte in range(20)]
    write_bytes(path, whole[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while len(seen) < 1 or not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in whole:
        write_bytes(path, content)
    stop.set()
    reader.join()
    assert seen <= set(whole)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    program = f"""
import sys, time
from pathlib import Path
from memberscope.files import replacing
with replacing(Path({str(tmp_path / "a")!r})) as temporary:
    temporary.write_text("half of the new")
    print("writing", flush=True)
    time.sleep(60)
"""
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert (tmp_path / "a").read_text() == "old"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["a"]
    write_text(tmp_path / "a", "new")  # what the killed one left is in nobody's way
    assert (tmp_path / "a").read_text() == "new"
