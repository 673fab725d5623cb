"""Pictures of a federation: who holds what, and how it learns, together and client by client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.report.canvas import COLOURS, GREY, caption, drawing, legend_outside, say
from memberscope.report.wording import count

_NAMED_CLIENTS = 40
_NAMED_CLASSES = 20
_WRITTEN_CELLS = 130


def partition_map(path: Path, counts: NDArray[np.int64], classes: Sequence[str], title: str) -> None:
    """Heat map of clients by classes.

    Parameters
    ----------
    path
        The PNG to write.
    counts
        int64 [clients, classes]: records of each class that each client holds.
    classes
        The names of the classes.
    title
        How the records were shared out.
    """
    clients, n_classes = counts.shape
    size = (2.6 + 0.42 * min(n_classes, 25), 1.9 + 0.3 * min(clients, 25))
    with drawing(path, (max(5.0, size[0]), max(3.2, size[1])), f"Records of each client by class ({title})") as axes:
        image = axes.imshow(counts, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
        axes.grid(visible=False)
        if n_classes <= _NAMED_CLASSES:
            longest = max(map(len, classes))
            axes.set_xticks(range(n_classes), list(classes), rotation=0 if longest < 3 else 45, ha="center")
        axes.set_xlabel("Class")
        if clients <= _NAMED_CLIENTS:
            axes.set_yticks(range(clients))
        axes.set_ylabel("Client")
        figure: Any = axes.figure
        figure.colorbar(image, ax=axes, label="Records", fraction=0.05, pad=0.02)
        if counts.size <= _WRITTEN_CELLS:
            middle = counts.max() / 2
            for (row, column), value in np.ndenumerate(counts):
                colour = "white" if value < middle else "black"
                axes.text(column, row, f"{value}", ha="center", va="center", fontsize=7, color=colour)
        low, high = int(counts.sum(axis=1).min()), int(counts.sum(axis=1).max())
        caption(axes, f"{count(clients)} clients hold {count(low)} to {count(high)} records each.")


def learning_curves(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy by round: the global model on records of nobody, and each client's own model on its own records.

    Parameters
    ----------
    path
        The PNG to write.
    history
        A record a round, as `federation.Federation` has it.
    """
    with drawing(path, (7.2, 4.6), "Learning curves of the federation") as axes:
        if not history:
            say(axes, "no round was finished")
            return
        rounds = [record["round"] for record in history]
        _clients(axes, history)
        axes.plot(rounds, _known(history, "train_acc"), color=COLOURS[0], label="clients' models, own records (mean)")
        if any(record["test_acc"] is not None for record in history):
            axes.plot(
                rounds,
                _known(history, "test_acc"),
                color=COLOURS[1],
                dashes=(6, 2),
                label="global model, records of nobody",
            )
        axes.set_xlabel("Round")
        axes.set_ylabel("Accuracy")
        axes.set_ylim(0, 1.02)
        axes.locator_params(axis="x", integer=True)
        legend_outside(axes)
        failed = sum(len(record["failed"]) for record in history)
        asked = failed + sum(len(record["clients"]) for record in history)
        caption(axes, f"Thin lines: single clients. {count(failed)} of {count(asked)} replies were missing or refused.")


def _clients(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    series: dict[int, tuple[list[int], list[float]]] = {}
    for record in history:
        for entry in record["clients"]:
            rounds, values = series.setdefault(entry["client"], ([], []))
            rounds.append(record["round"])
            values.append(entry["train_acc"])
    for rounds, values in series.values():
        axes.plot(rounds, values, color=GREY, linewidth=0.5, alpha=max(0.08, min(0.6, 12 / len(series))))


def _known(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float("nan") if record[name] is None else record[name] for record in history]
