"""Answers computed elsewhere, in any framework: npz or csv files that `memberscope score` reads."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, from_logits, from_probabilities

_KEYS = "keys logits or probabilities [N, C], labels [N], member 0/1 [N]"
_COLUMNS = "columns z0, z1, ... (logits) or p0, p1, ... (probabilities), label, member"


@dataclass(frozen=True)
class Answers:
    """A model's answers about N records, and the truth to hold attacks against.

    Parameters
    ----------
    evidence
        What the adversary sees.
    member
        bool [N].
    source
        The file, as named by the user.
    class_names
        C names.
    """

    evidence: Evidence
    member: NDArray[np.bool_]
    source: str
    class_names: tuple[str, ...]


def read_answers(path: Path) -> Answers:
    """Read an .npz, .csv or .csv.gz file of answers.

    Raises
    ------
    EvidenceError
        Missing or unreadable file, missing or ambiguous keys, wrong shapes or values; names what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise EvidenceError(f"no file {path}", "give the path of an .npz or .csv file of answers")
    name = path.name.lower()
    if name.endswith(".npz"):
        return _from_arrays(_read_npz(path), path)
    if name.endswith((".csv", ".csv.gz")):
        return _from_arrays(_read_csv(path), path)
    raise EvidenceError(f"{path} is neither .npz nor .csv", f"npz: {_KEYS}; csv: {_COLUMNS}")


def as_member(values: NDArray[Any], n: int, where: str) -> NDArray[np.bool_]:
    """The member column as bool [N].

    Raises
    ------
    EvidenceError
        Wrong length, values other than 0 and 1, or one group empty.
    """
    array = np.asarray(values)
    if array.shape != (n,):
        raise EvidenceError(f"{where}: member has shape {array.shape}, expected ({n},)", "one entry a record")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise EvidenceError(
            f"{where}: member holds values other than 0 and 1", "1 means that the model was trained on it"
        )
    member = array.astype(bool)
    if member.all() or not member.any():
        group = "non-members" if member.all() else "members"
        raise EvidenceError(f"{where}: member names no {group}", "an audit compares members with non-members")
    return member


def _from_arrays(arrays: dict[str, NDArray[Any]], path: Path) -> Answers:
    where = str(path)
    both = [key for key in ("logits", "probabilities") if key in arrays]
    if len(both) != 1:
        found = ", ".join(sorted(arrays)) or "nothing"
        what = "both logits and probabilities" if both else "neither logits nor probabilities"
        raise EvidenceError(f"{where} holds {what} (found: {found})", f"expected {_KEYS}")
    for key in ("labels", "member"):
        if key not in arrays:
            raise EvidenceError(f"{where} holds no {key} (found: {', '.join(sorted(arrays))})", f"expected {_KEYS}")
    values = arrays[both[0]]
    if values.ndim not in (2, 3):
        raise EvidenceError(f"{where}: {both[0]} has shape {values.shape}, expected [N, C]", "one row a record")
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.ndim == 3:  # [N, A, C] in files; queries come first inside
        values = np.moveaxis(values, 1, 0)
    more = _references(arrays, where)
    try:
        make = from_logits if both[0] == "logits" else from_probabilities
        evidence = make(values, arrays["labels"], **more)
    except EvidenceError as error:
        raise EvidenceError(f"{where}: {error.problem}", error.hint) from None
    names = arrays.get("classes")
    class_names = tuple(str(n) for n in names) if names is not None else tuple(map(str, range(evidence.n_classes)))
    if len(class_names) != evidence.n_classes:
        raise EvidenceError(
            f"{where}: {len(class_names)} class names for {evidence.n_classes} columns", "one name a class"
        )
    return Answers(evidence, as_member(arrays["member"], evidence.n_records, where), where, class_names)


def _references(arrays: dict[str, NDArray[Any]], where: str) -> dict[str, Any]:
    keys = [k for k in ("reference_logits", "reference_membership") if k in arrays]
    if not keys:
        return {}
    if len(keys) == 1:
        raise EvidenceError(
            f"{where} holds {keys[0]} alone", "reference_logits [K, N, C] and reference_membership [K, N] go together"
        )
    logits, membership = arrays["reference_logits"], arrays["reference_membership"]
    if logits.ndim == 4:  # [K, N, A, C] in files
        logits = np.moveaxis(logits, 2, 1)
    elif logits.ndim == 3:
        logits = logits[:, None]
    else:
        raise EvidenceError(
            f"{where}: reference_logits has shape {logits.shape}, expected [K, N, C] or [K, N, A, C]",
            "stack the models",
        )
    if not np.isin(membership, (0, 1)).all():
        raise EvidenceError(f"{where}: reference_membership holds values other than 0 and 1", "1 means trained on it")
    return {"reference_logits": logits, "reference_membership": membership.astype(bool)}


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise EvidenceError(
                f"{path} holds Python objects, which are never loaded (they can run code)",
                "save plain numeric arrays with numpy.savez",
            ) from None
        raise EvidenceError(f"{path} is damaged: {error}", "write it again with numpy.savez") from None
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, SyntaxError, zipfile.error) as error:
        raise EvidenceError(f"{path} is not a readable .npz file: {error}", "write it again with numpy.savez") from None
    except (NotImplementedError, RuntimeError) as error:
        raise EvidenceError(f"{path} is packed in a way that cannot be read: {error}", "use numpy.savez") from None


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    header, rows = _csv_rows(path)
    logits = _numbered(header, "z")
    probabilities = _numbered(header, "p")
    missing = [name for name in ("label", "member") if name not in header]
    if missing or bool(logits) == bool(probabilities):
        raise EvidenceError(f"{path} has columns {', '.join(header[:12])}", f"expected {_COLUMNS}")
    answers = logits or probabilities
    table = np.empty((len(rows), len(answers) + 2))
    columns = [*answers, header.index("label"), header.index("member")]
    for number, row in enumerate(rows):
        try:
            table[number] = [float(row[column]) for column in columns]
        except (ValueError, IndexError):
            shown = ",".join(row)[:80]
            raise EvidenceError(
                f"{path}, line {number + 2}: expected {len(header)} numbers, found {shown!r}", "mend or remove the line"
            ) from None
    key = "logits" if logits else "probabilities"
    return {key: table[:, :-2], "labels": table[:, -2], "member": table[:, -1]}


def _csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        lines = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zipfile.error) as error:
        raise EvidenceError(f"{path} is not readable text: {error}", "save it as UTF-8 comma-separated text") from None
    if len(lines) < 2:
        raise EvidenceError(f"{path} holds no record", f"expected {_COLUMNS}")
    return [name.strip() for name in lines[0]], lines[1:]


def _numbered(header: list[str], letter: str) -> list[int]:
    found = {int(m[1]): i for i, name in enumerate(header) if (m := re.fullmatch(rf"{letter}(\d+)", name))}
    if found and sorted(found) != list(range(len(found))):
        raise EvidenceError(
            f"columns {letter}{min(found)}..{letter}{max(found)} are not numbered without gaps from {letter}0",
            f"expected {_COLUMNS}",
        )
    return [found[i] for i in range(len(found))]
