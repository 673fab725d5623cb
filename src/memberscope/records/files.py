"""Where the official files are: found in the data folder or downloaded into it, and held against their checksums."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from memberscope.errors import DataError
from memberscope.records.sources import OFFICIAL, FileSet, OfficialFile

_KNOWN = {
    file.checksum: f"{file.name} of {name}" for name, sets in OFFICIAL.items() for group in sets for file in group.files
}


@dataclass(frozen=True)
class Request:
    """What `load` was asked for.

    Parameters
    ----------
    path
        What follows the colon in ``npz:PATH``; None for datasets that take none.
    data_dir
        The data folder; need not exist.
    unverified
        The user vouches for files whose checksums differ.
    progress
        Show progress where standard error is a terminal.
    download
        Missing files may be downloaded.
    """

    path: Path | None
    data_dir: Path
    unverified: bool
    progress: bool
    download: bool


@dataclass(frozen=True)
class Located:
    """A complete set of official files on disk."""

    files: tuple[OfficialFile, ...]
    paths: tuple[Path, ...]
    folder: str

    @property
    def stamp(self) -> list[list[str | int]]:
        """Name, bytes and time of change (ns) of every file: another stamp, another content."""
        states = [(path, path.stat()) for path in self.paths]
        return [[f"{self.folder}/{path.name}", state.st_size, state.st_mtime_ns] for path, state in states]


def data_folder(data_dir: Path | str | None) -> Path:
    """Give the data folder: `data_dir`, else ``MEMBERSCOPE_DATA_DIR``, else ``./data``. It need not exist yet.

    Raises
    ------
    DataError
        It is a file.
    """
    folder = Path(data_dir or os.environ.get("MEMBERSCOPE_DATA_DIR") or "data").expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"the data folder {folder} is a file, expected a folder", "name another one with --data-dir")
    return folder


def locate(sets: tuple[FileSet, ...], data_dir: Path) -> Located | None:
    """Find the first of `sets` whose files all lie in the data folder."""
    for group in sets:
        paths = tuple(data_dir / group.folder / file.name for file in group.files)
        if all(path.is_file() for path in paths):
            return Located(group.files, paths, group.folder)
    return None


def obtain(name: str, sets: tuple[FileSet, ...], request: Request) -> Located:
    """Find the files of dataset `name`, or download those that are missing.

    Raises
    ------
    DataError
        They are not there, and may not or cannot be downloaded; says what was found, and what to put where.
    """
    located = locate(sets, request.data_dir)
    if located is not None:
        return located
    if not request.download:
        raise _missing(name, sets, request.data_dir)
    from memberscope.records.download import fetch

    group = next(group for group in sets if all(file.urls for file in group.files))
    folder = request.data_dir / group.folder
    for file in group.files:
        if not (folder / file.name).is_file():
            fetch(file, folder, progress=request.progress)
    return Located(group.files, tuple(folder / file.name for file in group.files), group.folder)


def verify(name: str, located: Located, *, unverified: bool) -> str | None:
    """Hold every file against its official checksum.

    Parameters
    ----------
    name
        Dataset, for messages.
    located
        The files.
    unverified
        The user vouches for files that differ.

    Returns
    -------
    str or None
        None if every checksum matches; else, if the user vouches for the files, how many differ.

    Raises
    ------
    DataError
        A checksum differs and nobody vouches for the file, or the file is another official one under a wrong name
        (which nobody can vouch for). Names file, expected and found.
    """
    differing = []
    for file, path in zip(located.files, located.paths, strict=True):
        found = checksum(path, file.checksum.partition(":")[0])
        if found == file.checksum:
            continue
        if found in _KNOWN:
            raise DataError(
                f"{path} is not {file.name} of {name}: by its checksum ({found}) it is {_KNOWN[found]}",
                "keep the files of each dataset in a folder of their own",
            )
        differing.append(f"{path}: expected {file.checksum}, found {found}{_size_note(file, path)}")
    if not differing:
        return None
    total = len(located.files)
    if not unverified:
        files = "file" if total == 1 else "files"
        raise DataError(
            f"{len(differing)} of {total} {files} of {name} differ from the official ones by their checksums:\n  "
            + "\n  ".join(differing),
            "delete them to have them downloaded; or, if you know where they come from and vouch for them, "
            "use --unverified-data (or MEMBERSCOPE_UNVERIFIED_DATA=1)",
        )
    return f"{len(differing)} of {total} checksums differ from the official ones"


def checksum(path: Path, algorithm: str) -> str:
    """Give the checksum of a file as ``<algorithm>:<hex>``.

    Raises
    ------
    DataError
        The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check that it is a file that you may read") from error
    return f"{algorithm}:{digest.hexdigest()}"


def how_to_get(file: OfficialFile, folder: Path) -> str:
    """Say where a file can be had and where to put it by hand."""
    return f"{file.urls[0]} into {folder} ({file.checksum})"


def _size_note(file: OfficialFile, path: Path) -> str:
    size = path.stat().st_size
    if not file.size or size == file.size:
        return ""
    note = ", so it looks truncated" if size < file.size else ""
    return f" ({size:,} bytes instead of {file.size:,}{note})"


def _missing(name: str, sets: tuple[FileSet, ...], data_dir: Path) -> DataError:
    def absent(group: FileSet) -> list[str]:
        return [file.name for file in group.files if not (data_dir / group.folder / file.name).is_file()]

    nearest = min(sets, key=lambda group: len(absent(group)) / len(group.files))
    lacking, folder = absent(nearest), data_dir / nearest.folder
    if len(lacking) < len(nearest.files):
        problem = f"{name} is incomplete in {folder}: {', '.join(lacking)} missing"
    else:
        names = " or ".join(dict.fromkeys(f"{group.folder}/{group.files[0].name}".lstrip("/") for group in sets))
        problem = f"{name} is not in {data_dir}: expected {names}, found none of them"
    group = next(group for group in sets if all(file.urls for file in group.files))
    wanted = "; ".join(how_to_get(file, data_dir / group.folder) for file in group.files)
    return DataError(problem, f"allow the download, name the folder with --data-dir, or put {wanted}")
