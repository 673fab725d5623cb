"""Scores of attacks and the truth about membership, from a table, an array file or a run folder: what a bound needs."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError, RunFolderError
from memberscope.risk import COLUMNS
from memberscope.several_targets import COLUMNS as TARGET_COLUMNS

NOT_SCORES = ("index", "class", "label", "member", "kind", "copies", *COLUMNS, *TARGET_COLUMNS)
"""Columns (or keys) that are no scores."""
EXPECTED = "a column (or key) member with 0 or 1, and a column for each attack's score, higher = more likely a member"
CANARY_FILE = "canaries.csv.gz"
Group = Literal["population", "canaries"]


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of m records (or runs) and their membership.

    Parameters
    ----------
    scores
        Attack name -> float64 [m], higher = more likely a member.
    member
        bool [m].
    source
        Which file, and which of its records.
    design
        How membership was decided, one of `memberscope.statistics.privacy_bounds.DESIGNS`; None: the file cannot tell.
    design_text
        The same for people: what the run did.
    left_out
        Attack name -> why its score admits no bound.
    claim
        (epsilon, delta) of the accountant of the training, or None.
    copies
        How often a record that is a member was put in.
    """

    scores: Mapping[str, NDArray[np.float64]]
    member: NDArray[np.bool_]
    source: str
    design: str | None = None
    design_text: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    claim: tuple[float, float] | None = None
    copies: int = 1


def read_scores(path: Path, names: Sequence[str] = (), *, group: Group | None = None) -> ScoreTable:
    """Read scores and membership.

    Parameters
    ----------
    path
        A .csv, .csv.gz or .npz file, or the folder of a run.
    names
        Scores to take, ``all`` for all; default: of a run the attack that was fixed before its records were looked at,
        where there is one, else all.
    group
        Of a run folder: its population or its canaries; default: the canaries where there are any.

    Raises
    ------
    EvidenceError
        A missing, unreadable or misshapen file, or an unknown score; names what was expected.
    RunFolderError
        A folder that no run left.
    """
    path = Path(path)
    beside = path.parent / "results.json"
    if path.is_dir():
        return _of_run(path, names, group)
    if path.name in ("scores.csv.gz", CANARY_FILE) and beside.is_file():
        return _of_run(path.parent, names, "canaries" if path.name == CANARY_FILE else "population")
    if group is not None:
        raise EvidenceError(f"{path} is no run folder, so it has no {group}", "leave --records out")
    columns = _columns(path)
    names = () if tuple(names) == ("all",) else names
    return ScoreTable(_chosen(columns, names, path), _member(columns, path), str(path))


def _of_run(folder: Path, names: Sequence[str], group: Group | None) -> ScoreTable:
    from memberscope.report.run_folder import read

    document = read(folder)
    canaries: Any = document.get("canaries")
    group = group or ("canaries" if canaries else "population")
    if group == "canaries" and not canaries:
        raise RunFolderError(f"the run {folder} has no canaries", "run the audit with --canaries N")
    path = folder / (CANARY_FILE if group == "canaries" else "scores.csv.gz")
    columns = _columns(path)
    left_out = {
        attack["name"]: "it learnt from the membership of other records of this audit"
        for attack in document["attacks"]
        if "some membership" in attack["needs"]
    }
    known = {a["name"] for a in document["attacks"]}
    columns = {name: column for name, column in columns.items() if name in known or name in NOT_SCORES}
    asked = [name for name in names if name in left_out]
    if asked:
        raise EvidenceError(f"the score {asked[0]!r} admits no bound: {left_out[asked[0]]}", "choose another attack")
    usable = {name: column for name, column in columns.items() if name not in left_out}
    if tuple(names) == ("all",):
        names = ()
    elif not names:
        fixed = canaries["attack"] if group == "canaries" else document["headline"]
        known_before = group == "canaries" or document.get("headline_fixed")
        names = (fixed,) if known_before and fixed in usable else ()
    design, told = _design_of(document, group)
    privacy = (document.get("target") or {}).get("privacy") or {}
    claim = (float(privacy["epsilon"]), float(privacy["delta"])) if privacy.get("epsilon") is not None else None
    copies = 1
    if group == "canaries":
        from memberscope.audit_bounds import bounded_canaries

        mine, copies = bounded_canaries(np.asarray(columns["copies"], np.int64))
        columns, usable = ({n: c[mine] for n, c in part.items()} for part in (columns, usable))
    member = _member(columns, path)
    return ScoreTable(
        _chosen(usable, names, path), member, f"{folder} ({group})", design, told, left_out, claim, copies
    )


def _design_of(document: Mapping[str, Any], group: Group) -> tuple[str | None, str]:
    protocol = document["records"]["protocol"]
    if group == "canaries":
        return "coin-flips", "each canary was put in by its own fair coin"
    if protocol == "random-half":
        return "coin-flips", "protocol random-half: each record was put in by its own fair coin"
    if protocol == "holdout":
        return "observational", "protocol holdout: the official training part against the official test part"
    return None, "membership was stated by whoever brought the model"


def _chosen(columns: Mapping[str, NDArray[Any]], names: Sequence[str], path: Path) -> dict[str, NDArray[np.float64]]:
    import difflib

    there = {name: column for name, column in columns.items() if name not in NOT_SCORES}
    if not there:
        raise EvidenceError(
            f"{path} holds no scores (found: {', '.join(columns) or 'nothing'})", f"expected {EXPECTED}"
        )
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, list(there), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(there)}"
            raise EvidenceError(f"{path} holds no score {name!r}", hint)
    found = {}
    for name in names or there:
        try:
            found[name] = np.asarray(there[name], np.float64)
        except ValueError:
            hint = "name the columns that are scores with --attacks"
            raise EvidenceError(f"{path}: the column {name!r} holds words, not numbers", hint) from None
    return found


def _member(columns: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.bool_]:
    from memberscope.answers import as_member

    if "member" not in columns:
        raise EvidenceError(f"{path} has no member (found: {', '.join(columns) or 'nothing'})", f"expected {EXPECTED}")
    try:
        values = np.asarray(columns["member"], np.float64)
    except ValueError:
        raise EvidenceError(f"{path}: member holds words, not 0 and 1", "1 means that it was trained on") from None
    return as_member(values, len(values), str(path))


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise EvidenceError(f"no file {path}", "give a .csv, .csv.gz or .npz file of scores, or the folder of a run")
    name = path.name.lower()
    if name.endswith(".npz"):
        return _npz(path)
    if name.endswith((".csv", ".csv.gz")):
        return _csv(path)
    raise EvidenceError(f"{path} is neither .csv nor .csv.gz nor .npz", f"expected {EXPECTED}")


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    from memberscope.answer_files import DAMAGE

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
    except DAMAGE as error:
        raise EvidenceError(f"{path} cannot be read: {error}", "write plain arrays with numpy.savez") from None
    length = len(arrays["member"]) if arrays.get("member", np.empty(())).ndim == 1 else None
    for key, array in arrays.items():
        if array.ndim != 1 or (length is not None and len(array) != length):
            raise EvidenceError(
                f"{path}: {key} has shape {array.shape}, expected one entry for each record", f"expected {EXPECTED}"
            )
    return arrays


def _csv(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error, MemoryError) as error:
        hint = "save it as UTF-8 comma-separated text"
        raise EvidenceError(f"{path} cannot be read as text: {error}", hint) from None
    header = [name.strip() for name in rows[0]] if rows else []
    if len(rows) < 2 or len(set(header)) != len(header):
        what = "holds no record" if len(rows) < 2 else "has two columns of one name"
        raise EvidenceError(f"{path} {what} (header: {', '.join(header) or 'nothing'})", f"expected {EXPECTED}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise EvidenceError(
                f"{path}, row {number}: expected {len(header)} fields, found {len(row)}", "mend the row"
            )
    return {name: _numbers([row[column] for row in rows[1:]]) for column, name in enumerate(header)}


def _numbers(words: list[str]) -> NDArray[Any]:
    """Numbers where all of them are; else the words as they are, which only matters if they are asked for."""
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return np.array(words)
