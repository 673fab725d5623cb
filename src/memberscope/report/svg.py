"""Vector figures for the HTML report: plain SVG text, a few kilobytes each, the same bytes for the same numbers.

Colours and fonts come from the style sheet of the page (classes ``c0`` … ``c7``, ``axis``, ``grid``, …), so that one
figure serves light, dark and print. Every figure has a ``<title>`` and a ``<desc>``. Curves are thinned by leaving
out steps that nobody could see, never by interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from memberscope.report.svg_parts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    dashed,
    frame,
    look,
    percent_label,
    plain_label,
    polyline,
    rate_label,
    short,
    staircase,
    stairs_down,
    svg_document,
    text_at,
)


@dataclass(frozen=True)
class Curve:
    """A line of a figure: `x` and `y` of equal length, and the class and dash that set it apart."""

    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    strong: bool = False
    faint: bool = False
    """One of many in the background: grey and drawn coarsely."""
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None
    """x, low and high of a shaded band."""
    marks: bool = False


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot; `value` is None where the sample does not support it and `note` says so."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""
    strong: bool = False


def swatch(style: int, *, strong: bool = False) -> str:
    """A short piece of the style-th line, for a legend."""
    name, dash = look(style)
    width = ' style="stroke-width:3"' if strong else ""
    return (
        f'<svg class="swatch" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        f'<line class="line {name}" x1="1" y1="5" x2="33" y2="5"{dashed(dash)}{width}/></svg>'
    )


def swatch_chance() -> str:
    """A short piece of the line of guessing."""
    return (
        '<svg class="swatch" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        '<line class="chance" x1="1" y1="5" x2="33" y2="5"/></svg>'
    )


def swatch_faint() -> str:
    """A short piece of a line in the background, for a legend."""
    return (
        '<svg class="swatch" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        '<line class="faint" x1="1" y1="5" x2="33" y2="5"/></svg>'
    )


def swatch_dot(style: int) -> str:
    """A dot of the style-th line, for a legend."""
    return (
        '<svg class="swatch" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        f'<circle class="dot {look(style)[0]}" cx="17" cy="5" r="4"/></svg>'
    )


def roc(
    curves: Sequence[Curve], *, key: str, title: str, desc: str, log: bool, n_members: int = 0, n_nonmembers: int = 0
) -> str:
    """ROC curves, FPR against TPR.

    On logarithmic axes a curve is a staircase: at each false-positive rate the highest true-positive rate that a
    threshold attains; what lies left of one false positive (1/n) is grey. On linear axes vertices are joined, which is
    the area that the AUC counts.
    """
    low = 10.0 ** math.floor(math.log10(1 / max(n_members, n_nonmembers, 10)) + 1e-9) if log else 0.0
    x, y = Scale(low, 1, LEFT, WIDTH - RIGHT, log), Scale(low, 1, HEIGHT - BOTTOM, TOP, log)
    parts = []
    if log and n_nonmembers:
        edge = x(1 / n_nonmembers)
        parts.append(
            f'<rect class="zone" x="{LEFT}" y="{TOP}" width="{short(edge - LEFT)}" height="{short(y.start - TOP)}"/>'
        )
    parts.append(frame(x, y, "False-positive rate", "True-positive rate", rate_label))
    parts.append(f'<path class="chance" d="M{short(x.start)} {short(y.start)}L{short(x.end)} {short(y.end)}"/>')
    path = staircase if log else polyline
    parts += [_band(c, x, y) for c in curves if c.band]
    parts += [_line(c, path(c.x, c.y, x, y, _coarseness(c))) for c in _back_to_front(curves)]
    return svg_document(key, title, desc, "".join(parts))


def precision_recall(curves: Sequence[Curve], *, key: str, title: str, desc: str, share: float) -> str:
    """Precision against recall on linear axes, with a line at the `share` of members, which guessing attains.

    Up to each recall stands the precision of the threshold that attains it, as the average precision counts it.
    """
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, "Recall (members found)", "Precision (accused who are members)", rate_label)]
    parts.append(f'<path class="chance" d="M{short(x.start)} {short(y(share))}H{short(x.end)}"/>')
    parts += [_line(c, stairs_down(c.x, c.y, x, y, _coarseness(c))) for c in _back_to_front(curves)]
    return svg_document(key, title, desc, "".join(parts))


def lines(
    curves: Sequence[Curve], *, key: str, title: str, desc: str, x_label: str, y_label: str, as_percent: bool = False
) -> str:
    """Curves over a common axis (epochs or rounds), from 0 to the largest value."""
    last = max((max(c.x) for c in curves if len(c.x)), default=1.0)
    first = min((min(c.x) for c in curves if len(c.x)), default=0.0)
    top = max((max(c.y) for c in curves if len(c.y)), default=1.0)
    x = Scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = Scale(0, 1 if as_percent else (1.05 * top or 1), HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, x_label, y_label, percent_label if as_percent else plain_label, whole_x=True)]
    parts += [_line(c, polyline(c.x, c.y, x, y, 0)) for c in curves]
    parts += [
        f'<circle class="dot {look(c.style)[0]}" cx="{short(x(a))}" cy="{short(y(b))}" r="3.5"/>'
        for c in curves
        if c.marks or len(c.x) == 1
        for a, b in zip(c.x, c.y, strict=True)
    ]
    return svg_document(key, title, desc, "".join(parts))


def histogram(
    edges: Sequence[float],
    members: Sequence[float],
    nonmembers: Sequence[float],
    *,
    key: str,
    title: str,
    desc: str,
    x_label: str,
) -> str:
    """Two histograms over the same bins, each as the share of its own group (0..1)."""
    top = max([*members, *nonmembers, 1e-9])
    low, high = (edges[0], edges[-1]) if edges[-1] > edges[0] else (edges[0] - 0.5, edges[0] + 0.5)
    x, y = Scale(low, high, LEFT, WIDTH - RIGHT), Scale(0, 1.06 * top, HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, x_label, "Share of the group", percent_label, x_format=plain_label)]
    for style, shares in ((1, nonmembers), (0, members)):
        outline = f"M{short(x(edges[0]))} {short(y.start)}"
        for i, share in enumerate(shares):
            outline += f"V{short(y(share))}H{short(x(edges[i + 1]))}"
        name, dash = look(style)
        outline += f"V{short(y.start)}"
        parts.append(
            f'<path class="fill {name}" d="{outline}Z"/><path class="line {name}"{dashed(dash)} d="{outline}"/>'
        )
    return svg_document(key, title, desc, "".join(parts))


def forest(
    rows: Sequence[Interval], *, key: str, title: str, desc: str, x_label: str, reference: float, reference_label: str
) -> str:
    """A dot and its interval for each row, beside a line at `reference`."""
    ends = [v for r in rows for v in (r.low, r.high, r.value) if v is not None]
    low, high = min([*ends, reference]), max([*ends, reference])
    pad = 0.06 * (high - low) or 0.05
    left, step = 150, 19
    bottom = TOP + 16 + step * len(rows)
    x = Scale(low - pad, high + pad, left, WIDTH - RIGHT)
    parts = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{short(x(tick))}" y1="{TOP + 14}" x2="{short(x(tick))}" y2="{bottom}"/>')
        parts.append(text_at(x(tick), bottom + 16, plain_label(tick), "middle"))
    at = short(x(reference))
    parts.append(f'<line class="chance" x1="{at}" y1="{TOP + 12}" x2="{at}" y2="{bottom}"/>')
    anchor = "start" if x(reference) < (left + WIDTH) / 2 else "end"
    parts.append(text_at(x(reference), TOP + 8, reference_label, anchor, "note"))
    for i, row in enumerate(rows):
        parts.append(_forest_row(row, x, TOP + 16 + step * (i + 0.5)))
    parts.append(text_at(WIDTH / 2 + 40, bottom + 38, x_label, "middle", "label"))
    return svg_document(key, title, desc, "".join(parts), height=bottom + 46)


def strip(value: float | None, low: float | None, high: float | None, *, guess: float, scale: Scale, name: str) -> str:
    """One dot with its interval on a common scale and a mark at `guess`: the small picture in a row of the ladder."""
    parts = [f'<line class="axis" x1="{short(scale.start)}" y1="11" x2="{short(scale.end)}" y2="11"/>']
    parts.append(f'<line class="chance" x1="{short(scale(guess))}" y1="2" x2="{short(scale(guess))}" y2="20"/>')
    parts += [
        f'<line class="grid" x1="{short(scale(t))}" y1="8" x2="{short(scale(t))}" y2="14"/>' for t in scale.ticks()
    ]
    if value is not None and low is not None and high is not None:
        parts.append(f'<line class="whisker c0" x1="{short(scale(low))}" y1="11" x2="{short(scale(high))}" y2="11"/>')
        parts.append(f'<circle class="dot c0" cx="{short(scale(value))}" cy="11" r="4.5"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" viewBox="0 0 160 22" role="img">'
        f"<title>{escape(name)}</title>{''.join(parts)}</svg>"
    )


def _forest_row(row: Interval, x: Scale, middle: float) -> str:
    y = short(middle)
    label = f'<text class="tick{" strong" if row.strong else ""}" x="144" y="{short(middle + 4)}" text-anchor="end">'
    parts = [f"{label}{escape(row.label)}</text>"]
    if row.value is None or row.low is None or row.high is None:
        parts.append(text_at(x.start + 6, middle + 4, row.note, "start", "note"))
        return "".join(parts)
    colour = "c1" if row.strong else "c0"
    parts.append(
        f'<line class="whisker {colour}" x1="{short(x(row.low))}" y1="{y}" x2="{short(x(row.high))}" y2="{y}"/>'
    )
    parts.append(f'<circle class="dot {colour}" cx="{short(x(row.value))}" cy="{y}" r="{4.5 if row.strong else 3.5}"/>')
    return "".join(parts)


def _coarseness(curve: Curve) -> float:
    """Pixels that a step must move to be drawn."""
    return 2.5 if curve.faint else 0.7


def _back_to_front(curves: Sequence[Curve]) -> list[Curve]:
    return sorted(curves, key=lambda c: (not c.faint, c.strong))


def _line(curve: Curve, path: str) -> str:
    if curve.faint:
        return f'<path class="faint" d="{path}"/>' if path else ""
    name, dash = look(curve.style)
    strong = " thick" if curve.strong else ""
    return f'<path class="line {name}{strong}"{dashed(dash)} d="{path}"/>' if path else ""


def _band(curve: Curve, x: Scale, y: Scale) -> str:
    assert curve.band is not None
    at, low, high = curve.band
    there = "L".join(f"{short(x(a))} {short(y(b))}" for a, b in zip(at, high, strict=True))
    back = "L".join(f"{short(x(a))} {short(y(b))}" for a, b in reversed(list(zip(at, low, strict=True))))
    return f'<path class="band {look(curve.style)[0]}" d="M{there}L{back}Z"/>'
