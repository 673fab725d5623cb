"""`memberscope study`: many audits over a grid, one table, one picture."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

EXIT_BUSY, EXIT_FAILED = 2, 3


def study(
    file: Path,
    *,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    table: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    data_dir: Path | None = None,
    unverified_data: bool | None = None,
    models_dir: Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    workers: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Audit every row of a grid, attackers adapted to each, and show what each keeps and what it gives away.

    For example:
        memberscope study defenses.toml --dry-run
        memberscope study defenses.toml
        memberscope study defenses.toml --table

    An audit that is there is not made again, one that was interrupted goes on, so the same command may be given again
    and again. docs/study.md shows how a study is written.

    Exit codes: 0 done; 2 other processes are still at some audits; 3 some failed.

    Parameters
    ----------
    file
        TOML: [base] with settings of all audits, [rows.NAME] with what each row changes, [axes] with lists of values.
    dry_run
        Say how many trainings it takes and how long they take here, by a measurement of seconds; train nothing.
    table
        Write tables and pictures of what is there; run nothing.
    out
        Folder for outputs; default: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs. The study gets a folder of its name there.
    data_dir
        Folder of the datasets' files.
    unverified_data
        Take files whose checksum is not the official one: you vouch for them.
    models_dir
        Folder for trained models; default: $MEMBERSCOPE_MODELS_DIR, else ./models.
    device
        auto, cpu, cuda, cuda:1, mps.
    threads
        CPU threads; default: all cores.
    workers
        Reference models that are trained at once; or a Ray cluster (ray, ray://HOST:10001, HOST:6379), on which audits
        are made at once where that is quicker.
    json
        Print one JSON document on standard output.
    quiet
        No progress.
    """
    from memberscope.console import Console
    from memberscope.study import run, state
    from memberscope.study_config import read_study
    from memberscope.study_files import markdown, write_tables

    config = read_study(file)
    given = {
        "out": out, "data_dir": data_dir, "unverified_data": unverified_data, "models_dir": models_dir,
        "device": device, "threads": threads, "workers": workers,
    }  # fmt: skip
    where: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    folder = config.folder(out)
    if dry_run:
        return _plan(config, folder, where, as_json=json)
    if table:
        found = state(config, folder)
        write_tables(found)
    else:
        found = run(config, where, events=Console(quiet=quiet or json))
    if json:
        content = {"folder": str(folder), "complete": found.complete, "audits": found.lines()}
        sys.stdout.write(json_format.dumps(content, ensure_ascii=False, default=str) + "\n")
    else:
        sys.stdout.write(markdown(found) + f"\nTables and pictures: {folder.resolve()}\n")
    if found.failures:
        return EXIT_FAILED
    return EXIT_BUSY if found.busy else 0


def _plan(config: Any, folder: Path, where: dict[str, Any], *, as_json: bool) -> int:
    from memberscope.study_plan import describe, plan

    planned = plan(config, folder, where)
    if as_json:
        audits = [
            {"audit": str(p.cell), "done": p.done, "trainings": p.trainings, "seconds": p.seconds} for p in planned
        ]
        sys.stdout.write(json_format.dumps({"audits": audits}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(describe(planned)) + "\n")
    return 0
