"""The picture files of a run folder, under the names that the mission promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.report import class_plots, plots
from memberscope.report.wording import learning_words


def write_all(
    folder: Path,
    document: Mapping[str, Any],
    *,
    label: NDArray[np.int64],
    member: NDArray[np.bool_],
    max_confidence: NDArray[np.float64],
    scores: NDArray[np.float64] | None,
) -> None:
    """Write every picture of a run.

    Parameters
    ----------
    document
        Content of ``results.json``.
    label, member, max_confidence
        int64, bool, float64 [N] of the audited records.
    scores
        float64 [N] of the headline attack, or None where no attack ran.
    """
    run = [a["evaluation"] for a in document["attacks"] if a["evaluation"] is not None]
    headline = document["headline"]
    best = next((evaluation for evaluation in run if evaluation["name"] == headline), None)
    plots.roc_curve(folder / "roc_curve.png", run, headline=headline)
    plots.roc_curve_loglog(folder / "roc_curve_loglog.png", run, headline=headline)
    plots.pr_curve(folder / "pr_curve.png", run, headline=headline)
    plots.confusion_matrix(folder / "confusion_matrix.png", best)
    target = document["target"] or {}
    history = target.get("history") or []
    words = learning_words(document)
    plots.accuracy_curve(folder / "accuracy_curve.png", history, test=target.get("test_acc"), words=words)
    plots.loss_curve(folder / "loss_curve.png", history, test=target.get("test_loss"), words=words)
    for k, name in enumerate(document["dataset"]["classes"]):
        rows = label == k
        of_class = np.zeros(int(rows.sum())) if scores is None else scores[rows]
        class_plots.roc_curve(
            folder / f"class_{k}_roc_curve.png", k, name, of_class, member[rows], attack=headline or ""
        )
        class_plots.confidence_histogram(
            folder / f"class_{k}_confidence_histogram.png", k, name, max_confidence[rows], member[rows]
        )
