"""Downloads that are resumed or restarted, verified, and only then given their name.

A transfer goes to ``<name>.part``, which outlives an interruption and is continued by the next attempt or run. Nothing
reads a ``.part`` file; it is renamed once its checksum is right.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from memberscope.errors import DataError
from memberscope.records.files import checksum, how_to_get
from memberscope.records.sources import OfficialFile

_LOG = logging.getLogger("memberscope")
_TRIES_WITHOUT_PROGRESS = 3
_PASSING = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
_TIMEOUT = 30.0
_BLOCK = 1 << 16


class _AddressError(Exception):
    """An address that does not give the file; another one may."""


def fetch(file: OfficialFile, folder: Path, *, progress: bool = True, pause: float = 1.0) -> Path:
    """Download one official file, continuing where an earlier attempt stopped.

    Parameters
    ----------
    file
        What to fetch; its addresses are tried in order.
    folder
        Where it goes, created if need be.
    progress
        Show a progress bar on standard error, where that is a terminal.
    pause
        Seconds before the first retry, doubled for each further one.

    Returns
    -------
    Path
        The file, with the official checksum.

    Raises
    ------
    DataError
        No address gave the file; the disk is full or the folder cannot be written. Names what to do by hand.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    with _writing(part):
        folder.mkdir(parents=True, exist_ok=True)
    failures = []
    with _alone_in(folder), _progress_bar(file, progress) as show:
        if target.is_file():  # another process fetched it while this one waited
            return target
        for url in file.urls:
            _LOG.info("downloading %s (%s bytes) into %s", url, f"{file.size:,}", folder)
            try:
                _fetch_from(url, file, part, show, pause)
            except _AddressError as error:
                failures.append(f"{url}: {error}")
                continue
            with _writing(part):
                part.replace(target)
            return target
    raise DataError(
        f"cannot download {file.name}\n  " + "\n  ".join(failures),
        f"check the network and run again (it goes on where it stopped), or put {how_to_get(file, folder)}",
    )


def _fetch_from(url: str, file: OfficialFile, part: Path, show: Callable[[int], None], pause: float) -> None:
    failed = 0
    restarted = False
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            if not file.size or start < file.size:
                _transfer(url, file, part, start, show)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                part.unlink()  # longer than what the server has
            elif error.code < http.client.INTERNAL_SERVER_ERROR and error.code not in _PASSING:
                raise _AddressError(f"HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        else:
            found = checksum(part, file.checksum.partition(":")[0])
            if found == file.checksum:
                return
            part.unlink()
            if start == 0 or restarted:
                raise _AddressError(f"expected the checksum {file.checksum}, found {found}; discarded")
            restarted = True  # what an earlier run left may belong to another version of the file
            continue
        grown = part.exists() and part.stat().st_size > start
        failed = 0 if grown else failed + 1
        if failed == _TRIES_WITHOUT_PROGRESS:
            raise _AddressError(reason)
        time.sleep(pause * 2 ** max(failed - 1, 0))


def _transfer(url: str, file: OfficialFile, part: Path, start: int, show: Callable[[int], None]) -> None:
    """Append to `part` from byte `start`, or write it anew where the server cannot continue; OSError if cut short."""
    headers = {"User-Agent": "memberscope", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the addresses are ours: sources.py
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
        continued = response.status == http.client.PARTIAL_CONTENT
        if continued and not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            raise ConnectionError("the server continued at another place than asked")
        done = start if continued else 0
        promised = response.headers["Content-Length"]
        total = done + int(promised) if promised and promised.isdigit() else file.size
        if file.size and total != file.size:  # a page of a hotel's network, or another version of the file
            if not start:
                raise _AddressError(f"expected {file.size:,} bytes, found {total:,}")
            part.unlink()
            raise ConnectionError("what an earlier run left does not belong to this file")
        with _writing(part), part.open("ab" if continued else "wb") as output:
            _require_space(part, total - done)
            done += _copy(response, output, done, max(total, file.size), show)
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _copy(
    response: http.client.HTTPResponse, output: BinaryIO, start: int, limit: int, show: Callable[[int], None]
) -> int:
    done = 0
    while block := _receive(response):
        output.write(block)
        done += len(block)
        show(start + done)
        if limit and start + done > limit:
            break  # more than announced: the checksum will say no
    output.flush()
    os.fsync(output.fileno())
    return done


class _ReceiveError(Exception):
    """The network failed while a file was open for writing; told apart from the disk failing."""


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _ReceiveError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except _ReceiveError as error:
        raise ConnectionError(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"disk full while writing {path}", "free some space and run again: it goes on where it stopped"
            ) from error
        raise DataError(
            f"cannot write {path}: {error.strerror or error}", "name a folder that can be written with --data-dir"
        ) from error


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"disk full: {path.name} needs {needed:,} more bytes in {path.parent}, {free:,} are free",
            "free some space, or name another folder with --data-dir",
        )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time download into a folder, where the file system can lock (else the checksum decides)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("another process is downloading into %s: waiting for it", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            _LOG.debug("%s cannot be locked", folder)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _progress_bar(file: OfficialFile, wanted: bool) -> Iterator[Callable[[int], None]]:
    if not wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(file.name, total=file.size or None)
        yield lambda done: bar.update(task, completed=done)
