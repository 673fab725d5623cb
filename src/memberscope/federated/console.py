"""What the command line shows of a federation: progress by client and round, and its outcome."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from memberscope.console import Console
from memberscope.errors import ConfigError
from memberscope.federated import config as settings
from memberscope.federated.config import FederationConfig
from memberscope.federated.federation import CONFIG, Federation, federate, new_run_folder
from memberscope.federated.recorder import say_nothing_but_warnings
from memberscope.federated.references import FOLDER

_SHOWN_REASONS = 5


def run_federation(
    config: FederationConfig | None,
    *,
    resume: Path | None = None,
    superlink: str | None = None,
    root_certificates: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Train (or go on training) a federation and print its outcome; returns the exit code."""
    console = Console(quiet=quiet or as_json)
    if quiet or as_json:
        say_nothing_but_warnings()
    if resume is not None:
        if config is not None:
            raise ConfigError("--resume was given with other settings", "its settings are those in its run folder")
        config = settings.read(resume / CONFIG)
    if config is None:
        raise ConfigError("no dataset was named", "for example: memberscope federate --dataset digits")
    if superlink is None:
        if root_certificates is not None:
            raise ConfigError("--root-certificates was given without --superlink", "in this process nothing travels")
        run = federate(config, events=console, folder=resume, resume=resume is not None)
    else:
        for name in ("malicious", "references"):
            if getattr(config, name):
                raise ConfigError(f"--{name} is for federations in this process", "leave --superlink out")
        from memberscope.federated.deploy import SuperLink, deploy

        place = SuperLink(superlink, root_certificates)
        folder = resume or new_run_folder(config)
        run = deploy(config, place, folder=folder, events=console, resume=resume is not None)
    show(run, as_json=as_json)
    return 0


def run_study(file: Path, *, table: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Run a study of federations (or only write its table) and print it; returns the exit code."""
    from memberscope.commands.study import EXIT_BUSY, EXIT_FAILED
    from memberscope.federated import study

    if quiet or as_json:
        say_nothing_but_warnings()
    config = study.read_study(file)
    where = study.where_of(**given)
    folder = config.folder(where.get("out"))
    if table:
        lines = study.write_tables(config, folder)
    else:
        lines = study.run(config, where, events=Console(quiet=quiet or as_json))
    if as_json:
        sys.stdout.write(json.dumps({"folder": str(folder), "lines": lines}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(study.markdown(config, lines) + f"\nTables and pictures: {folder}\n")
    states = {line["status"] for line in lines}
    if "failed" in states:
        return EXIT_FAILED
    return EXIT_BUSY if "missing" in states and not table else 0


def show(run: Federation, *, as_json: bool = False) -> None:
    """Print the outcome on standard output: text for people, or one JSON document for programs."""
    summary = run.summary
    if as_json:
        sys.stdout.write(json.dumps({**summary, "folder": str(run.folder)}, allow_nan=False) + "\n")
        return
    sizes = run.design.partition.sizes
    records = summary["records"]
    lines = [
        f"{summary['clients']:,} clients ({run.config.partition}) of {int(sizes.min()):,} to {int(sizes.max()):,} "
        f"records{_absent(summary)}, {summary['rounds']} rounds: {records['trained_on']:,} records trained on, "
        f"{records['held']:,} held by clients and not trained on, {records['of_nobody']:,} of nobody",
        "Accuracy of the global model: " + _accuracies(summary["accuracy"]),
        *_failures(run.history, summary["failures"]),
        *_guarantees(summary["privacy"], summary["record_privacy"], summary["canaries"]),
        *_references(run.config.references),
        f"Run folder: {run.folder.resolve()}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _absent(summary: dict[str, Any]) -> str:
    absent = summary["clients"] - summary["took_part"]
    return f" ({absent:,} of them took part in no round)" if absent else ""


def _references(number: int) -> list[str]:
    if not number:
        return []
    return [f"{number} reference federations in {FOLDER}/: memberscope federate audit takes them"]


def _accuracies(accuracy: dict[str, float | None]) -> str:
    names = {"trained_on": "trained on", "held": "held", "of_nobody": "of nobody"}
    return ", ".join(f"{names[k]} {v:.4f}" for k, v in accuracy.items() if v is not None)


def _failures(history: list[dict[str, Any]], failures: dict[str, int]) -> list[str]:
    if not failures["replies"]:
        return []
    counts: dict[str, int] = {}
    for record in history:
        for entry in record["failed"]:
            counts[entry["reason"]] = counts.get(entry["reason"], 0) + 1
    lines = [f"{failures['replies']:,} of {failures['of']:,} replies were missing or refused:"]
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {number} x {reason}" for reason, number in common[:_SHOWN_REASONS]]
    if len(common) > _SHOWN_REASONS:
        lines.append(f"  and {len(common) - _SHOWN_REASONS} more reasons, in rounds/history.jsonl")
    return lines


def _guarantees(
    clients: dict[str, Any] | None, records: dict[str, Any] | None, canaries: dict[str, Any] | None
) -> list[str]:
    from memberscope.report.wording import canary_estimate, client_guarantee

    lines = []
    if clients is not None:
        lines.append(f"Central differential privacy: {client_guarantee(clients)}")
    if canaries is not None:
        lines.append(f"Canary clients: {canary_estimate(canaries, clients)}")
    if records is not None:
        epsilon = "no epsilon (no noise)" if records["epsilon"] is None else f"epsilon {records['epsilon']:.3g}"
        lines.append(f"DP-SGD at the clients: {epsilon} at delta {records['delta']:g} for each record, at the least")
    return lines
