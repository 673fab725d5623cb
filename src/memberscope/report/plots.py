"""The PNG figures of a run folder: for slides, papers and whoever does not open the HTML report.

Every function writes one file, whole or not at all; the same input gives the same bytes. Colours are those that
colour-blind readers can tell apart, and lines differ in their dashes as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.report.bands import roc_band
from memberscope.report.canvas import (
    COLOURS,
    DASHES,
    GREY,
    MEMBER,
    NONMEMBER,
    TEST,
    caption,
    drawing,
    groups,
    legend_outside,
    say,
)
from memberscope.report.document import NAMED_LINES
from memberscope.report.wording import CENTRAL, LearningWords, count, known, level, percent, shorten, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Evaluation = Mapping[str, Any]
"""`Evaluation.to_dict()`."""

FPR_LABEL = "False-positive rate (non-members called members)"
TPR_LABEL = "True-positive rate (members found)"
WIDE = (7.2, 5.2)
MOST_BANDS = 3


def roc_curve(path: Path, evaluations: Sequence[Evaluation], *, headline: str | None = None) -> None:
    """ROC of every attack on linear axes, with the AUC and its interval in the legend.

    Parameters
    ----------
    path
        The PNG to write.
    evaluations
        `Evaluation.to_dict()` of every attack that ran; may be empty, the figure then says so.
    headline
        Name of the attack to draw thick; the one with the highest AUC where None.
    """
    with drawing(path, WIDE, "ROC: members found against non-members accused") as axes:
        if not evaluations:
            say(axes, "no attack ran")
            return
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="guessing: AUC 0.5")
        for evaluation, style in _lines(evaluations, headline):
            axes.plot(evaluation["roc"]["fpr"], evaluation["roc"]["tpr"], **style)
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal", xlabel=FPR_LABEL, ylabel=TPR_LABEL)
        legend_outside(axes)
        _caption(axes, evaluations, "The further a line bends to the upper left, the more the attack knows.")


def roc_curve_loglog(path: Path, evaluations: Sequence[Evaluation], *, headline: str | None = None) -> None:
    """ROC of every attack on logarithmic axes, where the confident accusations are; the headline with its band.

    Parameters
    ----------
    path, evaluations, headline
        As for `roc_curve`.
    """
    with drawing(path, WIDE, "ROC at low error (logarithmic axes)") as axes:
        _loglog(axes, evaluations, headline, bands=1)


def overlaid_roc(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Log-log ROC of several runs, named and ordered as given, with a band each where they are few enough to see.

    Parameters
    ----------
    path
        The PNG to write.
    evaluations
        `Evaluation.to_dict()` of one attack a run, `name` being that of the run.
    """
    with drawing(path, (8.6, 5.2), "ROC of the runs at low error (logarithmic axes)") as axes:
        _loglog(axes, evaluations, None, bands=len(evaluations) if len(evaluations) <= MOST_BANDS else 0, ranked=False)


def pr_curve(path: Path, evaluations: Sequence[Evaluation], *, headline: str | None = None) -> None:
    """Precision against recall of every attack, with the average precision in the legend.

    Parameters
    ----------
    path, evaluations, headline
        As for `roc_curve`.
    """
    with drawing(path, WIDE, "Precision against recall: how often an accusation is right") as axes:
        if not evaluations:
            say(axes, "no attack ran")
            return
        first = evaluations[0]
        share = first["n_members"] / (first["n_members"] + first["n_nonmembers"])
        axes.axhline(share, color=GREY, lw=1, ls=":", label=f"guessing: {percent(share)} are members")
        for evaluation, style in _lines(evaluations, headline, figure="average_precision", short="AP"):
            # Up to each recall stands the precision of the threshold that attains it, as the AP counts it.
            axes.step(evaluation["pr"]["recall"], evaluation["pr"]["precision"], where="pre", **style)
        axes.set(xlim=(0, 1), ylim=(0, 1.005))
        axes.set(xlabel="Recall (members found)", ylabel="Precision (accused who are members)")
        legend_outside(axes)
        _caption(axes, evaluations, "Precision falls with the share of members; here it is that of these records.")


def confusion_matrix(path: Path, evaluation: Evaluation | None) -> None:
    """Counts and row percentages of one attack, each half judged by the threshold chosen on the other half.

    Parameters
    ----------
    path
        The PNG to write.
    evaluation
        `Evaluation.to_dict()` of the headline attack, or None where none ran.
    """
    title = "Confusion matrix" + (f": {shorten(evaluation['name'], 32)}" if evaluation else "")
    with drawing(path, (5.4, 4.4), title) as axes:
        if evaluation is None or not evaluation.get("confusion_matrix"):
            say(axes, "no attack ran" if evaluation is None else "too few records to choose a threshold on others")
            return
        (tn, fp), (fn, tp) = evaluation["confusion_matrix"]
        counts = np.asarray([[tp, fn], [fp, tn]], np.float64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for (i, j), share in np.ndenumerate(shares):
            text = f"{count(counts[i, j])}\n{percent(share)} of the row"
            axes.text(j, i, text, ha="center", va="center", color="white" if share > 0.6 else "black")
        axes.set_xticks([0, 1], ["called member", "called non-member"])
        axes.set_yticks([0, 1], ["member", "non-member"], rotation=90, va="center")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        caption(
            axes,
            f"{groups(evaluation['n_members'], evaluation['n_nonmembers'])}. Rows: the truth.",
            "Each half was judged by the threshold (Youden's J) chosen on the other half.",
        )


def accuracy_curve(
    path: Path, history: Sequence[Mapping[str, Any]], *, test: float | None = None, words: LearningWords = CENTRAL
) -> None:
    """Accuracy on members and on validation records by epoch; the final test accuracy is a mark at the right.

    Parameters
    ----------
    path
        The PNG to write.
    history
        One mapping an epoch: epoch, train_acc, val_acc (None where it was not measured). Empty where the model came
        without its history; the figure then says so.
    test
        Final accuracy on the test records, or None.
    words
        Whether the steps are epochs or rounds, and whose the curves are.
    """
    with drawing(path, (6.4, 4.2), f"Accuracy by {words.step}") as axes:
        _learning_curve(axes, history, ("train_acc", "val_acc"), test, words)
        axes.set(ylabel="Accuracy", ylim=(0, 1.02))


def loss_curve(
    path: Path, history: Sequence[Mapping[str, Any]], *, test: float | None = None, words: LearningWords = CENTRAL
) -> None:
    """Loss on members and on validation records by epoch; as `accuracy_curve`, with train_loss and val_loss.

    Parameters
    ----------
    path, history, words
        As for `accuracy_curve`.
    test
        Final loss on the test records, or None.
    """
    with drawing(path, (6.4, 4.2), f"Loss by {words.step}") as axes:
        _learning_curve(axes, history, ("train_loss", "val_loss"), test, words)
        axes.set(ylabel="Cross-entropy (nats)", ylim=(0, None))


def _loglog(
    axes: Axes, evaluations: Sequence[Evaluation], headline: str | None, *, bands: int, ranked: bool = True
) -> None:
    if not evaluations:
        say(axes, "no attack ran")
        return
    n_nonmembers = max(e["n_nonmembers"] for e in evaluations)
    largest = max([n_nonmembers, *(e["n_members"] for e in evaluations), 10])
    low = 10.0 ** math.floor(math.log10(1 / largest) + 1e-9)
    axes.axvspan(low, 1 / n_nonmembers, color="#e8e8e8", lw=0, zorder=0)
    axes.plot([low, 1], [low, 1], color=GREY, lw=1, ls=":", label="guessing")
    for i, (evaluation, style) in enumerate(_lines(evaluations, headline, ranked=ranked)):
        fpr, tpr = _from_zero(evaluation["roc"], low)
        axes.step(fpr, tpr, where="post", **style)
        band = roc_band(evaluation) if i < bands else None
        if band is not None:
            axes.fill_between(*band, color=style["color"], alpha=0.18, lw=0)
    axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1.1), aspect="equal")
    axes.set(xlabel=FPR_LABEL, ylabel=TPR_LABEL)
    legend_outside(axes)
    shaded = "" if not bands else " Shaded: interval of the thick line." if ranked else " Shaded: intervals."
    _caption(axes, evaluations, f"Grey: below one false positive the sample says nothing.{shaded}")


def _lines(
    evaluations: Sequence[Evaluation],
    headline: str | None,
    *,
    figure: str = "auc",
    short: str = "AUC",
    ranked: bool = True,
) -> Iterator[tuple[Evaluation, dict[str, Any]]]:
    """Each evaluation with its style and legend; `ranked`: from the headline down by AUC, as in the HTML report."""
    ordered = list(evaluations)
    if ranked:
        ordered.sort(key=lambda e: -(e["auc"]["value"] if known(e["auc"]["value"]) else -1))
        ordered.sort(key=lambda e: e["name"] != headline)
    for i, evaluation in enumerate(ordered):
        estimate = evaluation[figure]
        if i >= NAMED_LINES:
            told = f"{len(ordered) - NAMED_LINES} others" if i == NAMED_LINES else "_"
            yield evaluation, {"color": GREY, "lw": 0.7, "alpha": 0.5, "zorder": 2.5, "label": told}
            continue
        bounds = (estimate.get("low"), estimate.get("high"))
        ends = f" [{significant(bounds[0])}, {significant(bounds[1])}]" if all(map(known, bounds)) else ""
        name = shorten(evaluation["name"], 28 if ranked else 44)
        yield (
            evaluation,
            {
                "color": COLOURS[i % len(COLOURS)],
                "ls": DASHES[(i % len(COLOURS) + i // len(COLOURS)) % len(DASHES)],
                "lw": (1.3 if i else 2.6) if ranked else 1.8,
                "zorder": 3 if i else 4,
                "label": f"{name}\n{short} {significant(estimate.get('value'))}{ends}",
            },
        )


def _learning_curve(
    axes: Axes, history: Sequence[Mapping[str, Any]], keys: tuple[str, str], test: float | None, words: LearningWords
) -> None:
    from matplotlib.ticker import MaxNLocator

    final = f"{words.final}: {significant(test)}" if known(test) else ""
    last = None
    for key, colour, dash, text in (
        (keys[0], MEMBER, "-", words.curves[0]),
        (keys[1], NONMEMBER, (0, (6, 2)), words.curves[1]),
    ):
        points = [(row["epoch"], row[key]) for row in history if known(row.get(key))]
        if points:
            x, y = zip(*points, strict=True)
            last = x[-1]
            axes.plot(x, y, color=colour, ls=dash, marker="o" if len(x) == 1 else None, label=text)
    if last is None:
        say(axes, f"no training history is known for this model\n{final}".rstrip())
        return
    if test is not None and final:
        axes.plot([last], [test], color=TEST, marker="D", ls="none", ms=7, label=final, clip_on=False, zorder=5)
    axes.set(xlabel=words.step.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="best")
    caption(axes, words.brief)


def _caption(axes: Axes, evaluations: Sequence[Evaluation], reading: str) -> None:
    sizes = {(e["n_members"], e["n_nonmembers"]) for e in evaluations}
    told = groups(*sizes.pop()) if len(sizes) == 1 else "numbers of records differ"
    caption(axes, f"{told}; {level(evaluations[0]['confidence'])} intervals.", reading)


def _from_zero(roc: Mapping[str, Sequence[float]], low: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC from where it leaves TPR 0, with FPR 0 at the left end of the logarithmic axis."""
    fpr, tpr = np.asarray(roc["fpr"], np.float64), np.asarray(roc["tpr"], np.float64)
    seen = tpr > 0
    return np.maximum(fpr[seen], low), tpr[seen]
