"""Reading files of answers: whatever is damaged, hostile or misnamed ends in one `EvidenceError`, never in code run."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError

KEYS = "keys logits or probabilities [N, C], labels [N], member 0/1 [N]"
COLUMNS = "columns z0, z1, ... (logits) or p0, p1, ... (probabilities), label, member"

_KNOWN = ("logits", "probabilities", "labels", "member", "classes", "reference_logits", "reference_membership")

# What zipfile, zlib, lzma and NumPy's header parser raise on damaged files; MemoryError where a header claims too much.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that answers may consist of; other keys are named but left unread.

    Raises
    ------
    EvidenceError
        Not an .npz file, a damaged one, or one with Python objects (which are never loaded: they can run code).
    """
    try:
        with path.open("rb") as raw:
            if not zipfile.is_zipfile(raw):
                raise EvidenceError(
                    f"{path} is not an .npz file, or its end is missing", "write it again with numpy.savez"
                )
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                return {key: _array(file, key, path) if key in _KNOWN else np.empty(0) for key in file.files}
    except DAMAGE as error:
        raise EvidenceError(f"{path} cannot be read: {error}", "write it again with numpy.savez") from None


def _array(file: Any, key: str, path: Path) -> NDArray[Any]:
    try:
        array = file[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise EvidenceError(
            f"{path}: {key} holds Python objects, which are never loaded (they can run code)",
            "save plain numeric arrays with numpy.savez",
        ) from None
    if not isinstance(array, np.ndarray):  # NumPy gives back the bytes of a member that is no array
        raise EvidenceError(f"{path}: {key} is not a NumPy array", "write it again with numpy.savez")
    return array


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped: read where it is looked at.

    Raises
    ------
    EvidenceError
        Not an .npy file, a damaged one, or one with Python objects (which are never loaded: they can run code).
    """
    try:
        with path.open("rb") as raw:
            if raw.read(6) != b"\x93NUMPY":
                raise EvidenceError(f"{path} is not an .npy file", "write it again with numpy.save")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except DAMAGE as error:
        if "Python objects" in str(error) or "allow_pickle" in str(error):
            raise EvidenceError(
                f"{path} holds Python objects, which are never loaded (they can run code)",
                "save plain numeric arrays with numpy.save",
            ) from None
        raise EvidenceError(f"{path} cannot be read: {error}", "write it again with numpy.save") from None


def read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Logits or probabilities, labels and member from comma-separated text, gzip-compressed if it ends in .gz.

    Raises
    ------
    EvidenceError
        Unreadable text, missing, doubled or unnumbered columns, lines of another length or with words for numbers.
    """
    try:
        lines = _lines(path)
        header = [name.strip() for name in next(lines, (0, []))[1]]
        key, columns = _columns(header, path)
        rows = [_numbers(row, columns, len(header), number, path) for number, row in lines]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error, MemoryError) as error:
        raise EvidenceError(
            f"{path} cannot be read as text: {error}", "save it as UTF-8 comma-separated text"
        ) from None
    if not rows:
        raise EvidenceError(f"{path} holds no record", f"expected {COLUMNS}")
    table = np.stack(rows)
    return {key: table[:, :-2], "labels": table[:, -2], "member": table[:, -1]}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Non-empty rows with the number of the line that they end on."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""))
    return ((reader.line_num, row) for row in reader if row)


def _columns(header: list[str], path: Path) -> tuple[str, list[int]]:
    """What the answers are, and where they, the label and the membership stand."""
    logits, probabilities = _numbered(header, "z", path), _numbered(header, "p", path)
    shown = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
    wrong = [f"no column {name}" for name in ("label", "member") if name not in header]
    wrong += [f"two columns {name}" for name in ("label", "member") if header.count(name) > 1]
    if not logits and not probabilities:
        wrong.append("no column z0 or p0")
    if logits and probabilities:
        wrong.append("logits and probabilities both")
    if wrong:
        raise EvidenceError(f"{path} has {' and '.join(wrong)} (found: {shown or 'nothing'})", f"expected {COLUMNS}")
    ends = [header.index("label"), header.index("member")]
    return ("logits", logits + ends) if logits else ("probabilities", probabilities + ends)


def _numbered(header: list[str], letter: str, path: Path) -> list[int]:
    found = sorted((int(m[1]), i) for i, name in enumerate(header) if (m := re.fullmatch(rf"{letter}([0-9]+)", name)))
    if [number for number, _ in found] != list(range(len(found))):
        raise EvidenceError(
            f"{path}: columns {letter}{found[0][0]}..{letter}{found[-1][0]} are not numbered without gaps or doubles "
            f"from {letter}0",
            f"expected {COLUMNS}",
        )
    return [position for _, position in found]


def _numbers(row: list[str], columns: list[int], width: int, line: int, path: Path) -> NDArray[np.float64]:
    if len(row) != width:
        raise EvidenceError(
            f"{path}, line {line}: expected {width} fields, found {len(row)}: {','.join(row)[:80]!r}",
            "mend or remove the line; decimals have a point, not a comma",
        )
    try:
        return np.array([float(row[column]) for column in columns])
    except ValueError as error:
        raise EvidenceError(f"{path}, line {line}: {error}", "mend or remove the line") from None
