"""The picture of a study: what each row keeps of the accuracy, and what it still gives away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memberscope.report.canvas import COLOURS, GREY, caption, drawing, say
from memberscope.report.wording import rate, shorten
from memberscope.study_table import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.6, 5.6)
ADAPTIVE = "Attackers are adaptive: their reference models are trained with the row's own defense."
_OFFSETS = ((7, 5), (7, -11), (-7, 5), (-7, -11), (7, 17), (7, -23), (-7, 17), (-7, -23), (7, 29), (7, -35))
_CHARACTER = (5.0, 10.0)


def tradeoff(
    path: Path,
    points: Sequence[Point],
    fpr: float | None,
    *,
    title: str,
    of_whom: str,
    about: str = ADAPTIVE,
    level: str = "95 %",
) -> None:
    """Draw test accuracy against leakage, with intervals, and the rows that no other row beats joined by a line.

    Parameters
    ----------
    path
        The PNG to write.
    points
        Rows of the study; may be empty, the figure then says so.
    fpr
        False-positive rate of the leakage.
    title
        What the figure shows.
    of_whom
        Whose records leak: "members", "canaries".
    about
        Who attacked, a sentence below the figure.
    level
        Of the intervals.
    """
    with drawing(path, SIZE, title) as axes:
        if not points or fpr is None:
            say(axes, f"no finished audit with reference models and figures of its {of_whom}")
            return
        front = sorted((p for p in points if p.front), key=lambda p: p.accuracy[0])
        axes.plot([p.accuracy[0] for p in front], [p.leakage[0] for p in front], color=COLOURS[2], lw=1.2, zorder=1)
        for point in points:
            _mark(axes, point)
        axes.axhline(fpr, color=GREY, lw=1, ls=":")
        axes.set_yscale("log")
        least = min(
            [
                fpr,
                *(p.leakage[1] for p in points if p.leakage[1] > 0),
                *(p.leakage[0] for p in points if p.leakage[0] > 0),
            ]
        )
        most = max([fpr, *(end for p in points for end in p.leakage if isfinite(end))])
        axes.set_ylim(max(least, fpr / 10) / 1.6, min(1.0, most) * 1.6)
        ends = [end for p in points for end in p.accuracy if isfinite(end)]
        room = 0.08 * (max(ends) - min(ends)) + 0.002
        axes.set_xlim(min(ends) - room, min(max(ends) + 3 * room, max(1.0, max(ends) + room)))
        axes.yaxis.set_minor_formatter(lambda value, _: rate(value) if f"{value:e}"[0] in "25" else "")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.yaxis.set_major_formatter(lambda value, _: rate(value))
        axes.set_xlabel("Test accuracy")
        axes.set_ylabel(f"True-positive rate at a false-positive rate of {rate(fpr)}")
        axes.annotate(
            "guessing",
            (axes.get_xlim()[1], fpr),
            (-4, 3),
            textcoords="offset points",
            ha="right",
            color=GREY,
            fontsize=8,
        )
        _label(axes, points)
        caption(
            axes,
            "Down and to the right is better. The line joins rows that no other row beats in both; "
            + _bars(points, level),
            about,
        )


def _mark(axes: Axes, point: Point) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = point.accuracy, point.leakage
    shown = max(y, 1e-9)
    colour = COLOURS[2] if point.front else COLOURS[0]
    axes.errorbar(
        x,
        shown,
        xerr=[[max(0.0, x - x_low)], [max(0.0, x_high - x)]],
        yerr=[[max(0.0, shown - max(y_low, 1e-9))], [max(0.0, y_high - shown)]],
        fmt="o" if point.front else "s",
        color=colour,
        mfc=colour if point.front else "white",
        ms=6,
        lw=0.9,
        capsize=2,
        zorder=3,
    )


def _bars(points: Sequence[Point], level: str) -> str:
    seeds = sorted({p.runs for p in points})
    if seeds == [1]:
        return f"bars: {level}, over records of one training each."
    return f"bars: {level}, over {' or '.join(map(str, seeds))} trainings a row."


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside the points, each where it covers least of what stands already."""
    figure: Any = axes.figure
    figure.canvas.draw()
    scale = figure.dpi / 72
    places = [axes.transData.transform((p.accuracy[0], max(p.leakage[0], 1e-9))) for p in points]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in places]
    edges: tuple[float, float] = (axes.bbox.x0, axes.bbox.x1)
    for point, (x, y) in zip(points, places, strict=True):
        name = shorten(point.name, 34) + (f" ({point.detail})" if point.detail else "")
        width, height = len(name) * _CHARACTER[0] * scale, _CHARACTER[1] * scale

        def box(offset: tuple[int, int], x: float = x, y: float = y, w: float = width, h: float = height) -> Box:
            left = x + offset[0] * scale - (w if offset[0] < 0 else 0)
            return left, y + offset[1] * scale, left + w, y + offset[1] * scale + h

        def cost(offset: tuple[int, int], box: Callable[[tuple[int, int]], Box] = box) -> float:
            left, _, end, _ = box(offset)
            return _covered(box(offset), taken) + 1e3 * max(0.0, edges[0] - left, end - edges[1])

        best = min(_OFFSETS, key=cost)
        taken.append(box(best))
        axes.annotate(
            name,
            (point.accuracy[0], max(point.leakage[0], 1e-9)),
            best,
            textcoords="offset points",
            ha="right" if best[0] < 0 else "left",
            fontsize=8,
            color="#222222",
        )


Box = tuple[float, float, float, float]


def _covered(box: Box, others: Sequence[Box]) -> float:
    """Area of a box that others cover."""
    return sum(
        max(0.0, min(box[2], o[2]) - max(box[0], o[0])) * max(0.0, min(box[3], o[3]) - max(box[1], o[1]))
        for o in others
    )
