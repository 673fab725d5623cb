"""Downloads against a local server that interrupts, lies, and loses files: resumed or restarted, never half-used."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from memberscope.errors import DataError
from memberscope.records import download
from memberscope.records.download import fetch
from memberscope.records.sources import OfficialFile

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does: `cuts` are the bytes after which it drops each of the first connections."""

    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    wrong_start: int = 0
    drip: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        do = self.server.behaviour
        asked = self.headers["Range"]
        do.asked.append((self.path, asked))
        status = do.statuses.pop(0) if do.statuses else 200
        if status != 200 or self.path.startswith("/lost"):
            self.send_error(status if status != 200 else 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and do.ranges else 0
        if start > len(do.content) or (asked and do.ranges and start == len(do.content)):
            self.send_error(416)
            return
        body = do.content[start:]
        self.send_response(206 if asked and do.ranges else 200)
        if asked and do.ranges:
            self.send_header("Content-Range", f"bytes {start + do.wrong_start}-{len(do.content) - 1}/{len(do.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: do.cuts.pop(0)] if do.cuts else body
        step = 4096 if do.drip else len(sent) or 1
        for begin in range(0, len(sent), step):
            self.wfile.write(sent[begin : begin + step])
            time.sleep(do.drip)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.handle_error = lambda *args: None  # a client that goes away is no error here
        running.behaviour = Behaviour()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def official(server, *paths, size=307_200):
    host = f"http://127.0.0.1:{server.server_address[1]}"
    return OfficialFile("data.bin", SHA256, size, tuple(f"{host}/{path}" for path in paths or ("data.bin",)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_under_its_name(server, tmp_path):
    path = fetch(official(server), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["data.bin"]


def test_an_interrupted_transfer_is_continued_where_it_stopped(server, tmp_path):
    server.behaviour.cuts = [100_000, 50_000]
    assert fetch(official(server), tmp_path, pause=0).read_bytes() == CONTENT
    assert [asked for _, asked in server.behaviour.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path) == ["data.bin"]


def test_what_one_run_left_the_next_run_continues(server, tmp_path):
    server.behaviour.cuts = [70_000, 0, 0, 0]
    with pytest.raises(DataError, match=r"the connection ended after 70,000 of 307,200 bytes"):
        fetch(official(server), tmp_path, pause=0)
    assert names(tmp_path) == ["data.bin.part"]
    assert fetch(official(server), tmp_path).read_bytes() == CONTENT
    assert server.behaviour.asked[-1][1] == "bytes=70000-"


def test_a_killed_download_leaves_no_file_under_the_final_name(server, tmp_path):
    server.behaviour.drip = 0.05
    file = official(server)
    code = (
        "from pathlib import Path\nfrom memberscope.records.download import fetch\n"
        f"from memberscope.records.sources import OfficialFile\nfetch({file!r}, Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "data.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = part.stat().st_size
    assert 0 < left < len(CONTENT)
    assert names(tmp_path) == ["data.bin.part"]
    server.behaviour.drip = 0
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.asked[-1][1] == f"bytes={left}-"


def test_a_server_that_cannot_continue_makes_it_start_again(server, tmp_path):
    server.behaviour.ranges = False
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(official(server), tmp_path).read_bytes() == CONTENT
    assert server.behaviour.asked == [("/data.bin", "bytes=1000-")]


def test_a_server_that_continues_elsewhere_is_not_believed(server, tmp_path):
    server.behaviour.wrong_start = 5
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="continued at another place than asked"):
        fetch(official(server), tmp_path, pause=0)


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"x"], ids=["part", "whole", "more"])
def test_leftovers_of_another_version_are_discarded(server, tmp_path, left):
    (tmp_path / "data.bin.part").write_bytes(left)
    assert fetch(official(server), tmp_path, pause=0).read_bytes() == CONTENT
    assert server.behaviour.asked[-1][1] is None


def test_it_starts_again_once_only(server, tmp_path):
    server.behaviour.content = bytes(len(CONTENT))
    server.behaviour.cuts = [len(CONTENT), 500]
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="discarded"):
        fetch(official(server), tmp_path, pause=0)
    assert [asked for _, asked in server.behaviour.asked] == ["bytes=1000-", None, "bytes=500-"]


def test_a_complete_leftover_needs_no_network(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert fetch(official(server), tmp_path).read_bytes() == CONTENT
    assert server.behaviour.asked == []


def test_leftovers_of_another_length_are_discarded(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    server.behaviour.content = CONTENT + b"more"
    with pytest.raises(DataError, match=r"expected 307,200 bytes, found 307,204"):
        fetch(official(server), tmp_path, pause=0)
    assert names(tmp_path) == []


def test_a_range_the_server_refuses_makes_it_start_again(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    server.behaviour.statuses = [416]
    assert fetch(official(server), tmp_path, pause=0).read_bytes() == CONTENT
    assert [asked for _, asked in server.behaviour.asked] == ["bytes=1000-", None]


def test_a_wrong_checksum_names_both_and_leaves_nothing(server, tmp_path):
    wrong = bytes(len(CONTENT))
    server.behaviour.content = wrong
    with pytest.raises(DataError) as caught:
        fetch(official(server), tmp_path)
    assert f"expected the checksum {SHA256}" in caught.value.problem
    assert f"found sha256:{hashlib.sha256(wrong).hexdigest()}; discarded" in caught.value.problem
    assert names(tmp_path) == []
    assert len(server.behaviour.asked) == 1


def test_a_login_page_instead_of_the_file_is_refused_by_its_length(server, tmp_path):
    server.behaviour.content = b"<html>please sign in</html>"
    with pytest.raises(DataError, match="expected 307,200 bytes, found 27"):
        fetch(official(server), tmp_path)
    assert names(tmp_path) == []


def test_the_next_address_is_tried(server, tmp_path):
    path = fetch(official(server, "lost/data.bin", "data.bin"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [path for path, _ in server.behaviour.asked] == ["/lost/data.bin", "/data.bin"]


def test_when_no_address_has_it_the_message_says_what_to_do(server, tmp_path):
    file = official(server, "lost/a", "lost/b")
    with pytest.raises(DataError) as caught:
        fetch(file, tmp_path)
    for url in file.urls:
        assert f"{url}: HTTP 404 Not Found" in caught.value.problem
    assert f"put {file.urls[0]} into {tmp_path} ({SHA256})" in caught.value.hint


def test_a_passing_server_error_is_tried_again(server, tmp_path):
    server.behaviour.statuses = [503, 429]
    assert fetch(official(server), tmp_path, pause=0).read_bytes() == CONTENT
    server.behaviour.statuses = [503] * 3
    (tmp_path / "data.bin").unlink()
    with pytest.raises(DataError, match="HTTP 503 Service Unavailable"):
        fetch(official(server), tmp_path, pause=0)


def test_without_a_network_the_message_names_address_folder_and_checksum(server, tmp_path):
    file = official(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError) as caught:
        fetch(file, tmp_path, pause=0)
    assert re.search(rf"cannot download data\.bin\n  {file.urls[0]}: .*refused", caught.value.problem)
    assert f"put {file.urls[0]} into {tmp_path} ({SHA256})" in caught.value.hint


def test_a_file_without_known_size_is_fetched_too(server, tmp_path):
    server.behaviour.cuts = [1000]
    assert fetch(official(server, size=0), tmp_path, pause=0).read_bytes() == CONTENT


def test_a_disk_too_small_is_noticed_before_the_transfer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(DataError, match=r"disk full: data\.bin\.part needs 307,200 more bytes in .*, 5 are free"):
        fetch(official(server), tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_fills_up_is_named(server, tmp_path):
    (tmp_path / "data.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"disk full while writing .*data\.bin\.part") as caught:
        fetch(official(server), tmp_path)
    assert "goes on where it stopped" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=rf"cannot write .*: {os.strerror(errno.ENOTDIR)}"):
        fetch(official(server), tmp_path / "file" / "below")


def test_two_processes_fetch_a_file_once(server, tmp_path):
    server.behaviour.drip = 0.002
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(official(server), tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in found] == [True] * 3
    assert len(server.behaviour.asked) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(server, tmp_path, monkeypatch, capsys):
    fetch(official(server), tmp_path)
    assert capsys.readouterr() == ("", "")
    for wanted in (False, True):
        (tmp_path / "data.bin").unlink()
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        fetch(official(server), tmp_path, progress=wanted)
        assert ("data.bin" in terminal.getvalue()) is wanted
