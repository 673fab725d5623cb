"""A run is a folder that explains itself: written whole or not at all, and read back for reports and comparisons."""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import hashlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope.document import SCHEMA_VERSION
from memberscope.errors import MemberscopeError, RunFolderError
from memberscope.files import ordinary_mode, write_bytes, write_json, write_text
from memberscope.locks import claim

if TYPE_CHECKING:
    from memberscope.result import Audit
    from memberscope.several_targets import TargetResult

_NEEDED = ("run", "dataset", "records", "attacks", "headline", "ladder", "exposed", "checks", "settings", "environment")


def refuse_occupied(folder: Path) -> None:
    """Refuse a run folder that holds something.

    Raises
    ------
    RunFolderError
        It exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is not empty", "choose another folder: a run is never overwritten")


def check_writable(parent: Path) -> None:
    """Make the folder that run folders go into, and see that it takes files.

    Raises
    ------
    MemberscopeError
        The place cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise _cannot_write(parent, error) from error


def new_folder(parent: Path, name: str) -> Path:
    """Make the empty folder ``parent/name_YYYY-MM-DD_HH-MM-SS``: of two runs in one second, one waits for the next.

    Raises
    ------
    MemberscopeError
        The place cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            folder = parent / f"{name}_{stamp}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            time.sleep(0.2)
    except OSError as error:
        raise _cannot_write(parent, error) from error


def write(audit: Audit, folder: Path) -> Path:
    """Write the run folder under a hidden name and rename it, so that a run folder is complete or empty.

    An empty `folder` is taken, and is gone if the run could not be written.

    Raises
    ------
    RunFolderError
        `folder` exists and is not empty.
    MemberscopeError
        The disk is full or the place cannot be written.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        draft.chmod(ordinary_mode(0o777))
    except OSError as error:
        raise _cannot_write(folder.parent, error) from error
    try:
        _fill(audit, draft, folder.name)
        draft.replace(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        if draft.exists():
            shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
    return folder


def _cannot_write(path: Path, error: OSError) -> MemberscopeError:
    told = f"cannot write {path}: {error.strerror or error}"
    return MemberscopeError(told, "free some space, or choose another folder with --out")


def read(folder: Path) -> dict[str, Any]:
    """The document of a run folder.

    Raises
    ------
    RunFolderError
        Not a run folder, or one of another schema, or incomplete.
    """
    path = Path(folder) / "results.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(
            f"{folder} is not a run folder: it has no results.json", "give the folder of a run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON
        raise RunFolderError(f"{path} cannot be read: {error}", "run the audit again") from None
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION or isinstance(found, bool):
        raise RunFolderError(
            f"{path} has schema version {found!r}, expected {SCHEMA_VERSION}",
            "render it with the version of memberscope that wrote it",
        )
    lacking = [key for key in _NEEDED if key not in document]
    if lacking:
        raise RunFolderError(f"{path} lacks {', '.join(lacking)}", "run the audit again")
    return dict(document)


def rerender(folder: Path) -> Path:
    """Render ``report.html`` of a run folder again from its ``results.json`` alone."""
    from memberscope.report.render import render

    path = Path(folder) / "report.html"
    write_text(path, render(read(folder)))
    return path


def csv_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row an attack: the run, its accuracies, the attack's figures with intervals, and every setting."""
    target = document["target"] or {}
    common = {
        "run": document["run"]["id"],
        "dataset": document["dataset"]["name"],
        "epochs": target.get("epochs"),
        "model": target.get("model"),
        **{key: target.get(key) for key in ("train_acc", "val_acc", "test_acc", "generalization_gap")},
        "defenses": " ".join(target.get("defenses") or []),
        **{f"dp_{key}": (target.get("privacy") or {}).get(key) for key in ("epsilon", "delta", "noise_multiplier")},
        "members": document["records"]["members"],
        "nonmembers": document["records"]["nonmembers"],
    }
    settings = {f"setting_{key}": _cell(value) for key, value in document["settings"].items()}
    spreads = (document.get("targets") or {}).get("attacks") or {}
    return [
        {**common, **_attack_columns(attack), **_spread_columns(spreads.get(attack["name"])), **settings}
        for attack in document["attacks"]
    ]


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a shared table, safely when several runs end at once.

    Runs take turns by a lock on a file beside the table, and the table is replaced whole: a reader or a crash never
    meets half a row. Columns that only some runs have are empty in the others.

    Raises
    ------
    RunFolderError
        The table there is not one that was written here; it stays as it is.
    """
    path = Path(path)
    try:
        with claim(path.with_name(f".{path.name}.lock"), wait=True):
            write_text(path, csv_text([*_table(path), *rows]))
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


def _table(path: Path) -> list[dict[str, Any]]:
    hint = "move it away, or choose another folder with --out"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunFolderError(f"{path} is not a table of runs: {error}", hint) from None
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise RunFolderError(f"{path} is not a table of runs: row {number} has more fields than columns", hint)
    return rows


# confusion_matrix belongs to accuracy_youden, accuracy_confusion to the accuracy of a probability at 0.5.
_OTHERS = ("optimal_threshold", "confusion_matrix", "accuracy_confusion")


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))
_REALISED = (("fpr", "true_fpr"), ("tpr", "tpr"))


def _attack_columns(attack: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = attack["evaluation"]
    row: dict[str, Any] = {"attack": attack["name"], "status": attack["status"], "reason": attack["reason"]}
    names = ("attack_accuracy", "attack_roc_auc", "attack_avg_precision")
    if evaluation is None:
        return {**row, **dict.fromkeys((*names, *_OTHERS))}
    accuracy = evaluation["accuracy"] or evaluation["accuracy_youden"]
    figures = {
        "attack_accuracy": accuracy,
        "attack_roc_auc": evaluation["auc"],
        "attack_avg_precision": evaluation["average_precision"],
        "accuracy_youden": evaluation["accuracy_youden"],
        "balanced_accuracy": evaluation["balanced_accuracy"],
        "advantage": evaluation["advantage"],
    }
    for name, figure in figures.items():
        row |= {name: figure["value"], f"{name}_low": figure["low"], f"{name}_high": figure["high"]}
    row |= {name: _cell(evaluation[name]) for name in _OTHERS}
    for point in (*evaluation["operating_points"], evaluation["tpr_at_zero_fp"]):
        name, tpr = f"tpr_at_fpr_{point['fpr']:g}", point["tpr"] if point["supported"] else None
        row |= {f"{name}{end}": tpr and tpr[key] for end, key in _ENDS}
    return row | _calibrated_columns(attack.get("calibrated") or {})


def _calibrated_columns(calibrated: Mapping[str, Any]) -> dict[str, Any]:
    """What thresholds from reference models do: the realised rates, and how often an accusation is right by prior."""
    row: dict[str, Any] = {}
    for point in calibrated.get("points", []):
        if point["supported"]:
            figures = {f"calibrated_{name}_at_{point['fpr']:g}": point[key] for name, key in _REALISED}
            row |= {f"{name}{end}": v[key] for name, v in figures.items() for end, key in _ENDS}
    for value in calibrated.get("ppv", []):
        name = f"calibrated_ppv_at_{value['fpr']:g}_prior_{value['prior']:g}"
        row |= {f"{name}{end}": value["ppv"][key] for end, key in _ENDS}
    return row


def _spread_columns(spread: Mapping[str, Any] | None) -> dict[str, Any]:
    """Mean and standard deviation over targets, with the interval of the mean."""
    if not spread:
        return {}
    figures = {"targets_auc": spread["auc"]}
    figures |= {f"targets_tpr_at_fpr_{one['fpr']:g}": one for one in spread["tpr"]}
    row: dict[str, Any] = {"targets": len(spread["auc"]["values"])}
    for name, one in figures.items():
        row |= {f"{name}_mean{end}": one["mean"][key] for end, key in _ENDS} | {f"{name}_sd": one["sd"]}
    return row


def _fill(audit: Audit, folder: Path, name: str) -> None:
    from memberscope.config import to_toml
    from memberscope.report.pictures import write_all
    from memberscope.report.render import render

    document = json.loads(json.dumps(audit.document))
    document["run"]["id"] = name
    write_all(
        folder,
        document,
        label=audit.label,
        member=audit.member,
        max_confidence=audit.max_confidence,
        scores=audit.scores.get(audit.headline or ""),
    )
    write_text(folder / "results.csv", csv_text(csv_rows(document)))
    write_bytes(folder / "scores.csv.gz", _scores(audit))
    for number, target in enumerate(audit.targets.targets[1:] if audit.targets is not None else (), start=2):
        write_bytes(folder / f"scores_target_{number}.csv.gz", _scores_of(target, audit))
    if audit.canaries is not None:
        write_bytes(folder / "canaries.csv.gz", _packed(audit.canaries.columns()))
    write_text(folder / "config.toml", to_toml(document["settings"]))
    write_json(folder / "environment.json", document["environment"])
    document["files"] = [_manifest(path) for path in sorted(folder.iterdir())]
    write_json(folder / "results.json", document)
    write_text(folder / "report.html", render(document))


def _scores(audit: Audit) -> bytes:
    columns = {"index": audit.index, "class": audit.label, "member": audit.member.astype(np.int64), **audit.scores}
    if audit.risk is not None:
        columns |= audit.risk.columns()
    if audit.targets is not None:
        columns |= audit.targets.columns()
    return _packed({name: column.tolist() for name, column in columns.items()})


def _scores_of(target: TargetResult, audit: Audit) -> bytes:
    columns = {"index": audit.index, "class": audit.label, "member": target.member.astype(np.int64), **target.scores}
    return _packed({name: column.tolist() for name, column in columns.items()})


def _packed(columns: Mapping[str, Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    as_text = ([v if isinstance(v, str) else repr(v) for v in column] for column in columns.values())
    writer.writerows(zip(*as_text, strict=True))
    return gzip.compress(text.getvalue().encode(), compresslevel=6, mtime=0)  # no time inside: same run, same bytes


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated text; columns that only some rows have are empty in the others."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _manifest(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
