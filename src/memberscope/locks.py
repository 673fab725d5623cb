"""Locks between processes: files that the kernel holds for a process, and gives up when it dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from memberscope.errors import MemberscopeError


@contextlib.contextmanager
def claim(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process alone holds the lock file inside the block; False: another process does.

    With `wait` it is always this one: the others wait.

    Raises
    ------
    MemberscopeError
        Its folder cannot be written.
    """
    descriptor = _locked(lock, wait=wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Removed while it is held: whoever opened it in between sees that the name is gone, and opens anew.
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(lock: Path, *, wait: bool) -> int | None:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise MemberscopeError(
                f"cannot write {lock.parent}: {error.strerror or error}", "choose a folder that can be written"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _has_name(descriptor, lock):
            return descriptor
        os.close(descriptor)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
