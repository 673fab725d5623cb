"""From results.json to the vector figures of the report, each with its legend, its reading and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memberscope.report import svg, wording
from memberscope.report.bands import roc_band
from memberscope.report.document import (
    NAMED_LINES,
    Cell,
    Figure,
    Results,
    Table,
    headline,
    interval_table,
    ranked,
    shown_rates,
)

LINEAR_FPRS = (0.01, 0.05, 0.1, 0.2, 0.5)
RECALLS = (0.01, 0.05, 0.1, 0.5)
FOREST_ROWS = 40
MOST_BANDS = 3
EPOCH_ROWS = 60


def roc_figures(results: Results) -> list[Figure]:
    """The ROC on linear and on logarithmic axes, all attacks; empty where none ran."""
    attacks = ranked(results)
    if not attacks:
        return []
    best = attacks[0]["evaluation"]
    return [_roc(attacks, best, log=True), _roc(attacks, best, log=False)]


def precision_figure(results: Results) -> Figure | None:
    """Precision against recall of every attack, or None where none ran."""
    attacks = ranked(results)
    if not attacks:
        return None
    best = attacks[0]["evaluation"]
    share = best["n_members"] / (best["n_members"] + best["n_nonmembers"])
    curves = [
        svg.Curve(a["evaluation"]["pr"]["recall"], a["evaluation"]["pr"]["precision"], i, i == 0, i >= NAMED_LINES)
        for i, a in enumerate(attacks)
    ]
    rows = [
        [Cell(a["name"])] + [Cell(wording.percent(_precision(a["evaluation"]["pr"], recall))) for recall in RECALLS]
        for a in attacks
    ]
    title = "Precision against recall"
    return Figure(
        "precision",
        title,
        "How to read it: as more members are found (to the right), a smaller share of the accusations is right. The "
        f"dotted line is the share of members among these records, {wording.percent(share)}; where members are rarer, "
        "the whole picture lies lower. AP: average precision.",
        svg.precision_recall(
            curves,
            key="precision",
            title=title,
            desc=f"Precision against recall of {wording.listing([a['name'] for a in attacks])}.",
            share=share,
        ),
        Table(("Attack", *(f"Precision at recall {wording.rate(r)}" for r in RECALLS)), rows),
        [
            *_legend(attacks, "average_precision", "AP"),
            (svg.swatch_chance(), "guessing", f"precision {wording.percent(share)}"),
        ],
    )


def overlay(evaluations: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """One log-log ROC for one evaluation of each run, `name` being that of the run."""
    entries = [{"name": e["name"], "evaluation": e} for e in evaluations]
    largest = max(evaluations, key=lambda e: int(e["n_nonmembers"]))
    bands = len(entries) if len(entries) <= MOST_BANDS else 0
    return _roc(entries, largest, log=True, key="overlay", title=title, bands=bands, alike=True)


def histogram_figure(results: Results) -> Figure | None:
    """Scores of members and of non-members under the headline attack, or None where they were not kept."""
    best = headline(results)
    bins = (best or {}).get("histogram")
    if not best or not bins:
        return None
    groups = {name: _shares(bins[name]) for name in ("members", "nonmembers")}
    evaluation = best["evaluation"]
    desc = (
        f"Histogram of the scores of {wording.count(evaluation['n_members'])} members and "
        f"{wording.count(evaluation['n_nonmembers'])} non-members under {best['title']}."
    )
    drawing = svg.histogram(
        bins["edges"],
        groups["members"],
        groups["nonmembers"],
        key="histogram",
        title=f"Scores of members and non-members, {best['name']}",
        desc=desc,
        x_label="Score (higher: more likely a member)",
    )
    rows = [
        [Cell(f"{wording.significant(a)} to {wording.significant(b)}")]
        + [Cell(wording.count(bins[g][i]), wording.percent(groups[g][i])) for g in ("members", "nonmembers")]
        for i, (a, b) in enumerate(zip(bins["edges"], bins["edges"][1:], strict=False))
    ]
    outside = bins.get("outside") or 0
    left_out = f" {wording.plural(outside, 'record')} beyond the ends of the axis are counted in the outermost bins."
    return Figure(
        "histogram",
        f"Scores under {best['title']}",
        "How to read it: the attack calls a record a member when its score lies far enough to the right. Where the two "
        "shapes lie on each other it can only guess; a part of the solid shape that stands alone at the right is made "
        "of members who can be named with confidence." + (left_out if outside else ""),
        drawing,
        Table(("Score", "Members", "Non-members"), rows),
        [
            (svg.swatch(0), "members", f"n = {wording.count(evaluation['n_members'])}"),
            (svg.swatch(1), "non-members", f"n = {wording.count(evaluation['n_nonmembers'])}"),
        ],
    )


def learning_figures(results: Results) -> list[Figure]:
    """Accuracy and loss by epoch, or by round of a federation; empty where the history is missing."""
    target = results.get("target") or {}
    history = target.get("history") or []
    if not history:
        return []
    words = wording.learning_words(results)
    accuracy, loss = target.get("test_acc"), target.get("test_loss")
    return [
        _learning(history, accuracy, ("train_acc", "val_acc"), "accuracy", "Accuracy", words, as_percent=True),
        _learning(history, loss, ("train_loss", "val_loss"), "loss", "Cross-entropy (nats)", words),
    ]


def class_figure(results: Results) -> Figure | None:
    """AUC of each class under the headline attack, most exposed first, or None where there are no classes."""
    best = headline(results)
    classes = best["evaluation"].get("per_class") if best else None
    if not best or not classes:
        return None
    ordered = by_exposure(classes)
    rows = [_whole(best["evaluation"]["auc"])] + [_class_interval(c) for c in ordered[:FOREST_ROWS]]
    shown = f", the {FOREST_ROWS} most exposed of {len(ordered)}" if len(ordered) > FOREST_ROWS else ""
    drawing = svg.forest(
        rows,
        key="classes",
        title=f"AUC of each class{shown}, {best['name']}",
        desc=f"Dots with intervals: AUC of {best['title']} in each class, beside that of all records.",
        x_label=f"AUC ({wording.level(best['evaluation'].get('confidence'))} intervals, adjusted for all classes)",
        reference=0.5,
        reference_label="guessing",
    )
    return Figure(
        "classes",
        f"Who is exposed: AUC by class{shown}",
        "How to read it: each dot is one class under the headline attack, its line the interval, widened so that all "
        "classes together are right at the stated level. A class whose line lies wholly right of the first row is more "
        "exposed than the records on average; one whose line crosses the dashed mark cannot be told from guessing.",
        drawing,
        interval_table("Class", rows),
    )


def by_exposure(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Classes by AUC, highest first; those without a figure last."""
    return sorted(classes, key=lambda c: (-_value(c.get("auc")), c["label"]))


def _roc(
    attacks: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    *,
    log: bool,
    key: str | None = None,
    title: str | None = None,
    bands: int = 1,
    alike: bool = False,
) -> Figure:
    curves = []
    for i, attack in enumerate(attacks):
        evaluation = attack["evaluation"]
        band = roc_band(evaluation) if log and i < bands else None
        strong = i == 0 and not alike
        curves.append(svg.Curve(evaluation["roc"]["fpr"], evaluation["roc"]["tpr"], i, strong, i >= NAMED_LINES, band))
    key = key or ("roc-log" if log else "roc")
    title = title or ("ROC at low error (logarithmic axes)" if log else "ROC (linear axes)")
    groups = f"{wording.count(best['n_members'])} members, {wording.count(best['n_nonmembers'])} non-members"
    drawing = svg.roc(
        curves,
        key=key,
        title=title,
        desc=f"True- against false-positive rate of {wording.listing([a['name'] for a in attacks])}; {groups}.",
        log=log,
        n_members=best["n_members"],
        n_nonmembers=best["n_nonmembers"],
    )
    legend = _legend(attacks, "auc", "AUC", alike=alike)
    legend.append((svg.swatch_chance(), "guessing", "AUC 0.5"))
    return Figure(key, title, _roc_reading(best, log, alike), drawing, _roc_numbers(attacks, best, log), legend)


def _legend(
    attacks: Sequence[Mapping[str, Any]], figure: str, short: str, *, alike: bool = False
) -> list[tuple[str, str, str]]:
    """Swatch, name and figure of each line; those beyond what can be told apart share one entry."""
    told = [
        (
            svg.swatch(i, strong=i == 0 and not alike),
            a["name"],
            f"{short} {wording.estimate_text(a['evaluation'][figure])}",
        )
        for i, a in enumerate(attacks[:NAMED_LINES])
    ]
    others = [v for a in attacks[NAMED_LINES:] if wording.known(v := a["evaluation"][figure]["value"])]
    if others:
        low, high = wording.significant(min(others)), wording.significant(max(others))
        told.append((svg.swatch_faint(), f"{len(others)} others", f"{short} from {low} to {high}"))
    return told


def _roc_reading(best: Mapping[str, Any], log: bool, alike: bool) -> str:
    if not log:
        return (
            "How to read it: each point is a threshold; to the right stands how many non-members it wrongly accuses, "
            "upwards how many members it finds. Guessing follows the dotted line. Straight pieces are ties, which only "
            "a coin could break."
        )
    return (
        "How to read it: the left part is what an accuser needs who must rarely be wrong. A line above the dotted one "
        "finds more members than guessing at the same false-positive rate. The shaded band is the "
        f"{wording.level(best.get('confidence'))} interval of {'its' if alike else 'the strongest'} line, at each rate "
        f"for itself. In the grey zone, below one false positive among {wording.count(best['n_nonmembers'])}, the "
        "sample says nothing."
    )


def _roc_numbers(attacks: Sequence[Mapping[str, Any]], best: Mapping[str, Any], log: bool) -> Table:
    fprs = shown_rates(best) if log else LINEAR_FPRS
    rows = []
    for attack in attacks:
        evaluation = attack["evaluation"]
        cells = [Cell(attack["name"])]
        for fpr in fprs:
            if fpr * evaluation["n_nonmembers"] < 10 * (1 - 1e-9):
                cells.append(Cell("n too small", "", "muted"))
            else:
                cells.append(Cell(wording.percent(_attained(evaluation["roc"], fpr))))
        rows.append(cells)
    header = ["Attack", *(f"TPR at FPR {wording.rate(f)}" for f in fprs)]
    return Table(header, rows, "Highest true-positive rate that a threshold attains at or below each rate.")


def _attained(roc: Mapping[str, Sequence[float]], fpr: float) -> float:
    return max((t for f, t in zip(roc["fpr"], roc["tpr"], strict=True) if f <= fpr * (1 + 1e-12)), default=0.0)


def _precision(pr: Mapping[str, Sequence[float]], recall: float) -> float | None:
    """Precision of the first kept threshold that finds at least this share of the members."""
    return next((p for r, p in zip(pr["recall"], pr["precision"], strict=True) if r >= recall), None)


def _learning(
    history: Sequence[Mapping[str, Any]],
    test: float | None,
    keys: tuple[str, str],
    key: str,
    unit: str,
    words: wording.LearningWords,
    *,
    as_percent: bool = False,
) -> Figure:
    curves, legend = [], []
    write = wording.percent if as_percent else wording.significant
    for style, (column, name) in enumerate(zip(keys, words.curves, strict=True)):
        points = [(row["epoch"], row[column]) for row in history if wording.known(row.get(column))]
        if points:
            x, y = zip(*points, strict=True)
            curves.append(svg.Curve(x, y, style))
            legend.append((svg.swatch(style), name, f"last {write(y[-1])}"))
    if wording.known(test):
        curves.append(svg.Curve((history[-1]["epoch"],), (test,), 2, marks=True))
        legend.append((svg.swatch_dot(2), words.final, write(test)))
    step = max(1, -(-len(history) // EPOCH_ROWS))
    listed = [row for i, row in enumerate(history) if (i + 1) % step == 0 or i in (0, len(history) - 1)]
    rows = [[Cell(str(r["epoch"])), *(Cell(write(r.get(c))) for c in keys)] for r in listed]
    title = f"{unit.split(' (')[0]} by {words.step}"
    return Figure(
        key,
        title,
        words.reading,
        svg.lines(
            curves,
            key=key,
            title=title,
            desc=f"{title}, {' and '.join(words.curves)}, over {wording.plural(len(history), words.step)}.",
            x_label=words.step.capitalize(),
            y_label=unit,
            as_percent=as_percent,
        ),
        Table(
            (words.step.capitalize(), *(name.capitalize() for name in words.curves)),
            rows,
            f"Every {step}th {words.step}." if step > 1 else "",
        ),
        legend,
    )


def _whole(auc: Mapping[str, Any]) -> svg.Interval:
    return svg.Interval("all records", auc.get("value"), auc.get("low"), auc.get("high"), "", strong=True)


def _class_interval(entry: Mapping[str, Any]) -> svg.Interval:
    label = wording.shorten(str(entry.get("name") or entry["label"]), 21)
    auc = entry.get("auc_adjusted") or entry.get("auc") or {}
    if not all(wording.known(auc.get(end)) for end in ("value", "low", "high")):
        n_members, n_nonmembers = entry.get("n_members"), entry.get("n_nonmembers")
        return svg.Interval(label, None, None, None, f"{n_members} members, {n_nonmembers} non-members: no AUC")
    return svg.Interval(label, auc["value"], auc["low"], auc["high"])


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [c / total if total else 0.0 for c in counts]


def _value(auc: Mapping[str, Any] | None) -> float:
    value = (auc or {}).get("value")
    return float(value) if wording.known(value) else -1.0
