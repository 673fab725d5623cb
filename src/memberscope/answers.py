"""Answers computed elsewhere, in any framework: npz or csv files that `memberscope score` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.answer_files import COLUMNS, KEYS, read_csv, read_npz
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, from_logits, from_probabilities


@dataclass(frozen=True, eq=False)
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
    notes
        What the reader should tell the user.
    """

    evidence: Evidence
    member: NDArray[np.bool_]
    source: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_answers(path: Path, *, target: int | None = None) -> Answers:
    """Read an .npz, .csv or .csv.gz file of answers, or the folder of another tool (`memberscope.answer_folders`).

    Parameters
    ----------
    path
        The file or folder.
    target
        Of a folder of many models: which one plays the target.

    Raises
    ------
    EvidenceError
        Missing or unreadable file, missing or ambiguous keys, wrong shapes or values; names what was expected.
    """
    path = Path(path)
    if path.is_dir():
        from memberscope.answer_folders import read_folder

        return read_folder(path, target)
    if target is not None:
        raise EvidenceError(f"{path} is no folder of many models", "--target chooses a model of a folder: leave it out")
    if not path.is_file():
        raise EvidenceError(f"no file {path}", "give the path of an .npz or .csv file of answers, or of a folder")
    name = path.name.lower()
    if name.endswith(".npz"):
        return _from_arrays(read_npz(path), path)
    if name.endswith((".csv", ".csv.gz")):
        return _from_arrays(read_csv(path), path)
    raise EvidenceError(f"{path} is neither .npz nor .csv nor .csv.gz", f"npz: {KEYS}; csv: {COLUMNS}")


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
        what = "both logits and probabilities" if both else "neither logits nor probabilities"
        raise EvidenceError(f"{where} holds {what}{_found(arrays)}", f"expected {KEYS}")
    for key in ("labels", "member"):
        if key not in arrays:
            raise EvidenceError(f"{where} holds no {key}{_found(arrays)}", f"expected {KEYS}")
    values = arrays[both[0]]
    if values.ndim not in (2, 3):
        raise EvidenceError(
            f"{where}: {both[0]} have shape {values.shape}, expected [N, C], or [N, A, C] with A queries a record",
            "one row a record",
        )
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.ndim == 3:
        values = np.moveaxis(values, 1, 0)  # queries come first inside
    make = from_logits if both[0] == "logits" else from_probabilities
    try:
        evidence = make(values, arrays["labels"], **_references(arrays))
    except EvidenceError as error:
        raise EvidenceError(f"{where}: {error.problem}", error.hint) from None
    names = _class_names(arrays.get("classes"), evidence.n_classes, where)
    return Answers(evidence, as_member(arrays["member"], evidence.n_records, where), where, names)


def _found(arrays: dict[str, NDArray[Any]]) -> str:
    return f" (found: {', '.join(sorted(arrays)) or 'nothing'})"


def _class_names(names: NDArray[Any] | None, n_classes: int, where: str) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(n_classes)))
    if names.shape != (n_classes,):
        raise EvidenceError(
            f"{where}: classes have shape {names.shape}, expected one name for each of {n_classes} columns",
            "leave the key classes out to have the classes numbered",
        )
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names.tolist())


def _references(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    keys = [k for k in ("reference_logits", "reference_membership") if k in arrays]
    if not keys:
        return {}
    if len(keys) == 1:
        raise EvidenceError(
            f"{keys[0]} stands alone", "reference_logits [K, N, C] and reference_membership [K, N] go together"
        )
    logits, membership = arrays["reference_logits"], arrays["reference_membership"]
    if logits.ndim not in (3, 4):
        raise EvidenceError(
            f"reference_logits have shape {logits.shape}, expected [K, N, C] or [K, N, A, C]", "stack the models"
        )
    if membership.dtype.kind not in "biuf" or not np.isin(membership, (0, 1)).all():
        raise EvidenceError("reference_membership holds values other than 0 and 1", "1 means trained on it")
    logits = logits[:, None] if logits.ndim == 3 else np.moveaxis(logits, 2, 1)
    return {"reference_logits": logits, "reference_membership": membership.astype(bool)}
