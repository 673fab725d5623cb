"""Files written whole or not at all: a temporary name in the same folder, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memberscope.errors import MemberscopeError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes the place of `path`, else it is removed.

    The block does nothing but write: an `OSError` in it is told as a failure to write `path`.

    Raises
    ------
    MemberscopeError
        The disk is full or the folder cannot be written; `path` is then as it was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise _write_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(ordinary_mode(0o666))
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path, *, seconds: float = 0.0) -> None:
    """Remove what writers of `path` left beside it that were killed; `seconds` is how long ago they must have begun."""
    for left_behind in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left_behind.stat().st_mtime >= seconds:
                left_behind.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8 to `path`, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinities are refused rather than written as invalid JSON."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def ordinary_mode(mode: int) -> int:
    """The permissions that a new file or folder would have: temporary ones are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def _write_error(path: Path, error: OSError) -> MemberscopeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MemberscopeError(
            f"disk full while writing {path}", "free some space and run the same command again; nothing was overwritten"
        )
    return MemberscopeError(f"cannot write {path}: {error.strerror or error}", "choose a folder that can be written")
