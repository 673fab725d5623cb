"""Several runs side by side: a table with intervals, and one log-log ROC with a line for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memberscope.errors import ConfigError
from memberscope.report import wording
from memberscope.report.document import Cell, Results, Table, checked, estimate_cell, headline, point_at, ranked
from memberscope.report.figures import overlay

ACCURACIES = ("train_acc", "test_acc")
OTHER_RECORDS = "Mind: the runs are on different records, so the differences are not between models alone."


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, each judged by one attack.

    Parameters
    ----------
    names
        One name a run, each different.
    runs
        Contents of their results.json.
    attacks
        For each run the entry of the attack that it is judged by, or None where it has none.
    fpr
        The lowest false-positive rate that all runs support, or None.
    header, cells
        The table: one row a run, the first is the one that differences refer to. `rows` is the same as plain text.
    notes
        What to mind when reading the table.
    """

    names: tuple[str, ...]
    runs: tuple[Results, ...]
    attacks: tuple[Mapping[str, Any] | None, ...]
    fpr: float | None
    header: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[list[str]]:
        """The table as plain text."""
        return [
            [f"{c.text} ({'; '.join(c.detail.splitlines())})" if c.detail else c.text for c in r] for r in self.cells
        ]

    def png(self, path: Path) -> None:
        """Write the log-log ROC of all runs as a PNG."""
        from memberscope.report.plots import overlaid_roc

        overlaid_roc(path, self._evaluations())

    def html(self) -> str:
        """The comparison as one self-contained HTML page: the table and the log-log ROC."""
        from memberscope.report.render import render_page

        figure = overlay(self._evaluations(), title="ROC of the runs (logarithmic axes)")
        table = Table(self.header, self.cells)
        return render_page(
            "compare.html.j2", names=self.names, table_of_runs=table, figure_of_runs=figure, notes=self.notes
        )

    def _evaluations(self) -> list[dict[str, Any]]:
        """Evaluations under the names of their runs, in the order of the runs."""
        pairs = zip(self.names, self.attacks, strict=True)
        return [{**attack["evaluation"], "name": name} for name, attack in pairs if attack is not None]


def compare(runs: Sequence[Results], *, attack: str | None = None) -> Comparison:
    """Compare runs by one attack each.

    Parameters
    ----------
    runs
        At least two contents of results.json; differences refer to the first.
    attack
        Name of the attack to judge every run by; None judges each by the attack that its own answer is given for.

    Raises
    ------
    ConfigError
        Fewer than two runs, or an attack that none of them ran.
    RunFolderError
        A run of another schema version.
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run was given, a comparison needs two", "give the folders of two or more runs")
    for run in runs:
        checked(run)
    chosen = tuple(_choose(run, attack) for run in runs)
    if all(entry is None for entry in chosen):
        ran = sorted({a["name"] for run in runs for a in ranked(run)})
        raise ConfigError(
            f"no run has figures of {attack!r}" if attack else "no attack ran in any of these runs",
            f"attacks that ran: {', '.join(ran)}" if ran else "see their reports for the reasons",
        )
    names = _names(runs)
    fpr = _common_rate([c["evaluation"] for c in chosen if c is not None])
    header = (
        "run",
        "model",
        "epochs",
        "members / non-members",
        "train acc",
        "test acc",
        "gap",
        "attack",
        "AUC",
        "AUC difference",
    )
    tpr = (f"TPR at FPR {wording.rate(fpr)}", "TPR difference") if fpr else ("TPR at low FPR",)
    cells = tuple(_row(n, r, c, chosen[0], fpr) for n, r, c in zip(names, runs, chosen, strict=True))
    return Comparison(names, tuple(runs), chosen, fpr, (*header, *tpr), cells, _notes(runs, chosen, attack))


def _choose(run: Results, attack: str | None) -> Mapping[str, Any] | None:
    if attack is None:
        return headline(run)
    return next((a for a in ranked(run) if a["name"] == attack), None)


def _names(runs: Sequence[Results]) -> tuple[str, ...]:
    """The ids of the runs; equal ones are numbered."""
    ids = [str(run["run"]["id"]) for run in runs]
    return tuple(f"{name} ({ids[:i].count(name) + 1})" if ids.count(name) > 1 else name for i, name in enumerate(ids))


def _common_rate(evaluations: Sequence[Mapping[str, Any]]) -> float | None:
    supported = [
        {float(p["fpr"]) for p in e["operating_points"] if p.get("supported") and p.get("tpr")} for e in evaluations
    ]
    return min(set.intersection(*supported), default=None) if supported else None


def _row(
    name: str,
    run: Results,
    attack: Mapping[str, Any] | None,
    first: Mapping[str, Any] | None,
    fpr: float | None,
) -> tuple[Cell, ...]:
    target, records = run.get("target") or {}, run.get("records") or {}
    gap = target.get("generalization_gap")
    facts = [
        Cell(name),
        Cell(wording.shorten(str(target.get("model") or wording.DASH), 40)),
        Cell(wording.count(target["epochs"]) if wording.known(target.get("epochs")) else wording.DASH),
        Cell(f"{wording.count(records.get('members'))} / {wording.count(records.get('nonmembers'))}"),
        *(Cell(wording.percent(target[k]) if wording.known(target.get(k)) else wording.DASH) for k in ACCURACIES),
        Cell(f"{wording.significant(100 * gap)} points" if wording.known(gap) else wording.DASH),
    ]
    nothing = Cell(wording.DASH)
    if attack is None:
        return (*facts, Cell("did not run"), *[nothing] * (3 if fpr is None else 4))
    evaluation = attack["evaluation"]
    base = None if attack is first or first is None else first["evaluation"]
    told = [Cell(attack["name"]), estimate_cell(evaluation["auc"])]
    told.append(_change(difference(evaluation["auc"], base["auc"])) if base else nothing)
    if fpr is None:
        return (*facts, *told, Cell("n too small"))
    told.append(estimate_cell(_tpr(evaluation, fpr), as_percent=True))
    told.append(_change(difference(_tpr(evaluation, fpr), _tpr(base, fpr)), points=True) if base else nothing)
    return (*facts, *told)


def _tpr(evaluation: Mapping[str, Any], fpr: float) -> Mapping[str, Any]:
    point = point_at(evaluation, fpr)
    assert point is not None
    found: Mapping[str, Any] = point["tpr"]
    return found


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float] | None:
    """`one` minus `other` with an interval, from the intervals of both (MOVER); None where a figure is missing.

    It holds for independent figures. Two runs judged on the same records share the luck of the draw, and the interval
    is then wider than it need be.

    References
    ----------
    R. Newcombe, Statistics in Medicine 17 (1998), method 10; G. Zou and A. Donner, Statistics in Medicine 27 (2008).
    """
    ends = [e.get(key) for e in (one, other) for key in ("value", "low", "high")]
    if not all(map(wording.known, ends)):
        return None
    a, a_low, a_high, b, b_low, b_high = map(float, ends)  # type: ignore[arg-type]
    return {
        "value": a - b,
        "low": a - b - math.hypot(a - a_low, b_high - b),
        "high": a - b + math.hypot(a_high - a, b - b_low),
    }


def _change(change: Mapping[str, float] | None, *, points: bool = False) -> Cell:
    """A difference with its sign; in points where the figures are percentages."""
    if change is None:
        return Cell(wording.DASH)
    scale = 100 if points else 1
    value, low, high = (
        f"{'+' if change[k] > 0 else ''}{wording.significant(scale * change[k])}".replace("-", wording.MINUS)
        for k in ("value", "low", "high")
    )
    return Cell(f"{value} points" if points else value, f"{low} to {high}")


def _notes(runs: Sequence[Results], chosen: Sequence[Mapping[str, Any] | None], attack: str | None) -> tuple[str, ...]:
    notes = [
        "Differences are to the first run; an interval that holds 0 means that these runs cannot be told apart. It "
        "covers the choice of records, not the luck of one training: compare several seeds before you credit a change.",
    ]
    prints = {(run.get("dataset") or {}).get("fingerprint") for run in runs}
    if len(prints) > 1:
        notes.append(OTHER_RECORDS)
    if len({c["name"] for c in chosen if c is not None}) > 1:
        notes.append(
            "Each run is judged by the attack that its own answer is given for, and these differ: --attack NAME judges "
            "all by one."
        )
    if attack is None and any(len(ranked(run)) > 1 and not run.get("headline_fixed") for run in runs):
        notes.append(
            "An attack that was picked as the strongest of its run flatters it: these intervals do not allow for the "
            "choice, as those of the run's own report do."
        )
    doubtful = [str(run["run"]["id"]) for run in runs if any(c["status"] == "problem" for c in run.get("checks", []))]
    if doubtful:
        notes.append(
            f"A check found a problem in {wording.listing(doubtful)}: see the report before using its figures."
        )
    return tuple(notes)
