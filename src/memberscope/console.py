"""Drawing on a terminal what the library tells: stages, progress of trainings with an honest time left, the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memberscope.config import AuditConfig, from_settings
from memberscope.events import Events

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from memberscope.result import Audit
    from memberscope.training.bank_progress import BankProgress


class Console(Events):
    """Draws on standard error; without a terminal one plain line a stage and an epoch in ten."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self._quiet = quiet
        self._rich = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None

    def stage(self, title: str) -> None:
        """Print the title of a stage."""
        if not self._quiet:
            self._rich.print(f"[bold]{title}[/bold]")

    def note(self, text: str) -> None:
        """Print a note, even when quiet: it is about what the user gets."""
        self._rich.print(text, style="yellow", markup=False)

    def detail(self, text: str) -> None:
        """Print something about the work that lies ahead."""
        if not self._quiet:
            self._rich.print(f"  {text}", markup=False)

    def attack(self, name: str, position: int, total: int) -> None:
        """Print the attack that begins."""
        if not self._quiet:
            self._rich.print(f"  [{position + 1}/{total}] {name}", markup=False)

    def training(self, *, model: str, records: int, epochs: int) -> Any:
        """Begin a progress display for one training."""
        if self._quiet:
            return None
        self._rich.print(f"  {model} on {records:,} records, {epochs} epochs", markup=False)
        if not self._rich.is_terminal:
            return _Lines(self._rich, epochs)
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("  epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[figures]}"),
            console=self._rich,
            transient=True,
        )
        self._progress.start()
        task = self._progress.add_task("training", total=1.0, epoch=1, epochs=epochs, figures="")
        return _Bar(self._progress, task, epochs)

    def trained(self) -> None:
        """End the progress display."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def federation(self, *, model: str, clients: int, records: int, rounds: int) -> None:
        """Print what is trained."""
        if not self._quiet:
            self._rich.print(f"  {model}, {clients:,} clients on {records:,} records, {rounds} rounds", markup=False)

    def federation_client(self, client: int, done: int, expected: int) -> None:
        """Show how far the round is, on a terminal."""
        if not self._quiet and self._rich.is_terminal:
            self._rich.print(f"  {done}/{expected} clients, the last {client:<6}", end="\r", markup=False)

    def federation_round(self, record: Mapping[str, Any], rounds: int, seconds_left: float) -> None:
        """A line for the first, every tenth and the last round (every round on a terminal), and for each failure."""
        if self._quiet:
            return
        from memberscope.report.wording import duration

        number = int(record["round"])
        if self._rich.is_terminal or number in (1, rounds) or number % max(1, rounds // 10) == 0:
            figures = [
                f"{name} {record[key]:.3f}"
                for name, key in (("clients' accuracy", "train_acc"), ("accuracy on records of nobody", "test_acc"))
                if record[key] is not None
            ]
            left = f", {duration(max(1, round(seconds_left)))} left" if number < rounds else ""
            self._rich.print(f"  round {number}/{rounds}  {', '.join(figures)}{left}", markup=False)
        for entry in record["failed"]:
            who = f"client {entry['client']}" if entry["client"] is not None else f"node {entry['node']}"
            self._rich.print(f"    round {number}: {who} left out: {entry['reason']}", style="yellow", markup=False)

    def references(self, *, models: int, there: int) -> BankProgress:
        """Begin a progress display for the reference models."""
        from memberscope.console_bank import BankBar, BankLines

        if self._quiet or not self._rich.is_terminal:
            return BankLines(self.note, None if self._quiet else self.detail, there)
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("  reference models {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._rich,
            transient=True,
        )
        self._progress.start()
        task = self._progress.add_task("references", total=models, completed=there, left="")
        return BankBar(self.note, self.detail, self._progress, task)

    def references_trained(self) -> None:
        """End the progress display."""
        self.trained()


class _Lines:
    """A line for the first, every tenth and the last epoch."""

    def __init__(self, rich: Any, epochs: int) -> None:
        self._rich, self._epochs = rich, epochs

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        del epoch, step, steps, loss

    def on_epoch(self, record: Mapping[str, Any], epochs: int, seconds_left: float) -> None:
        epoch = int(record["epoch"])
        if epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
            self._rich.print(f"  epoch {epoch}/{epochs}  {_figures(record, seconds_left)}", markup=False)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, epochs: int) -> None:
        self._progress, self._task, self._epochs = progress, task, epochs

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        del loss
        done = (epoch - 1 + step / max(1, steps)) / self._epochs
        self._progress.update(self._task, completed=done, epoch=epoch)

    def on_epoch(self, record: Mapping[str, Any], epochs: int, seconds_left: float) -> None:
        epoch = int(record["epoch"])
        self._progress.update(self._task, completed=epoch / epochs, epoch=epoch, figures=_figures(record, seconds_left))


def _figures(record: Mapping[str, Any], seconds_left: float) -> str:
    from memberscope.report.wording import duration

    text = f"loss {record['train_loss']:.3f}, accuracy {record['train_acc']:.3f}"
    if record.get("val_acc") is not None:
        text += f", validation {record['val_acc']:.3f}"
    return f"{text}, {duration(max(1, round(seconds_left)))} left" if seconds_left else text


def run_audit(settings: Mapping[str, Any] | AuditConfig, *, as_json: bool = False, quiet: bool = False) -> int:
    """Audit, write the run folder, append to the shared table, print the answer; returns the exit code."""
    from memberscope.audit import audit
    from memberscope.report.run_folder import append_rows, check_writable, csv_rows, new_folder, read

    config = settings if isinstance(settings, AuditConfig) else from_settings(settings)
    console = Console(quiet=quiet or as_json)
    check_writable(config.output_dir)  # before hours of training, and not after
    result = audit(config, events=console)
    console.stage("Writing the run folder")
    name = f"{result.document['dataset']['name']}_epoch{config.recipe.epochs}"
    folder = result.save(new_folder(config.output_dir, name))
    append_rows(config.output_dir / "results.csv", csv_rows(read(folder)))
    show(result, folder, as_json=as_json)
    return result.exit_code


def show(result: Audit, folder: Path | None, *, as_json: bool = False) -> None:
    """Print the answer on standard output: text for people, or one JSON document for programs."""
    from memberscope.report.proof import proof_lines
    from memberscope.report.wording import guarantee
    from memberscope.summary import ci, summary_lines

    document = result.document
    if as_json:
        # A program wants figures: the curves stay in results.json, whose folder is named.
        figures = {**document, "attacks": [_without_curves(a) for a in document["attacks"]]}
        sys.stdout.write(json.dumps({**figures, "folder": str(folder) if folder else None}, allow_nan=False) + "\n")
        return
    lines = []
    target = document["target"]
    if target is not None:
        val = "-" if target["val_acc"] is None else f"{target['val_acc']:.4f}"
        lines += [
            f"Accuracy: train {target['train_acc']:.4f}, validation {val}, test {target['test_acc']:.4f}; "
            f"generalisation gap {target['generalization_gap']:.4f}"
        ]
        if target.get("privacy"):
            lines.append(f"Differential privacy: {guarantee(target['privacy'])}")
    lines += summary_lines(document)
    lines += _ladder_lines(document, ci)
    lines += proof_lines(document)
    policy = document["policy"]
    if policy is not None:
        lines.append(f"Policy ({policy['owner']}): {policy['verdict']}: {policy['text']}")
    if folder is not None:
        lines.append(f"Report: {(folder / 'report.html').resolve()}")
    sys.stdout.write("\n".join(lines) + "\n")


def _without_curves(attack: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = attack["evaluation"]
    if evaluation is None:
        return dict(attack)
    return {**attack, "evaluation": {k: v for k, v in evaluation.items() if k not in ("roc", "pr")}}


def _ladder_lines(document: Mapping[str, Any], ci: Any) -> list[str]:
    lines = ["Exposure ladder:"]
    for row in document["ladder"]:
        if row["status"] != "measured":
            ruled_out = row["adversary"] in ((document.get("federation") or {}).get("unseen") or {})
            lines.append(f"  {row['adversary']}: {'ruled out' if ruled_out else 'not measured'} ({row['reason']})")
            continue
        tpr = row["tpr"]
        at = "" if tpr is None else f"TPR {ci(tpr['estimate'], 4)} at {tpr['fpr']:.4g} FPR ({row['attack']}), "
        more = f"; below the {row['more']}, who sees less: at least that" if row.get("more") else ""
        lines.append(f"  {row['adversary']}: {at}AUC {ci(row['auc'])} ({row['auc_attack']}){more}")
    return lines
