"""Pieces of an SVG figure: scales, frames, paths, and numbers written short."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from memberscope.report.wording import significant

WIDTH, HEIGHT = 480, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 46
COLOURS = 7
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 2", "12 3 2 3 2 3")


@dataclass(frozen=True)
class Scale:
    """From data to pixels along one axis, linear or logarithmic, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of `value`; what lies outside the axis is drawn at its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to label: decades, or multiples of 1, 2 or 5 of a power of ten."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**k for k in range(first, last + 1)]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def look(style: int) -> tuple[str, str]:
    """Class and dash pattern of the style-th line: no two of the first 42 share both."""
    return f"c{style % COLOURS}", DASHES[(style % COLOURS + style // COLOURS) % len(DASHES)]


def frame(
    x: Scale,
    y: Scale,
    x_label: str,
    y_label: str,
    y_format: Callable[[float], str],
    *,
    x_format: Callable[[float], str] | None = None,
    whole_x: bool = False,
) -> str:
    """Axes with grid, tick labels and names; `whole_x` labels whole numbers only (epochs)."""
    x_format = x_format or (plain_label if whole_x else y_format)
    parts = []
    for tick in x.ticks():
        if whole_x and tick != round(tick):
            continue
        at = short(x(tick))
        parts.append(f'<line class="grid" x1="{at}" y1="{TOP}" x2="{at}" y2="{short(y.start)}"/>')
        parts.append(text_at(x(tick), y.start + 17, x_format(tick), "middle"))
    for tick in y.ticks():
        at = short(y(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at}" x2="{WIDTH - RIGHT}" y2="{at}"/>')
        parts.append(text_at(LEFT - 6, y(tick) + 4, y_format(tick), "end"))
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{short(y.start)}H{WIDTH - RIGHT}"/>')
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle", "label"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="label" transform="translate(13 {short(middle)}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def staircase(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, step: float = 0.7) -> str:
    """Go right at the height last attained, then up; moves below `step` pixels wait until they add up.

    On a logarithmic axis nothing can be drawn at zero: the line begins where the curve leaves it.
    """
    first = next((i for i, b in enumerate(ys) if b > 0 or not y.log), None)
    if first is None:
        return ""
    px, py = short(x(xs[first])), short(y(ys[first]))
    path = f"M{px} {py}" if xs[first] <= x.low else f"M{px} {short(y.start)}V{py}"
    return path + _stairs(xs[first:], ys[first:], x, y, step, (x(xs[first]), y(ys[first])), "HV")


def stairs_down(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, step: float = 0.7) -> str:
    """Go to the next height first, then right; moves below `step` pixels wait until they add up."""
    if len(xs) < 2:
        return ""
    start = x(xs[0]), y(ys[1])
    return f"M{short(start[0])} {short(start[1])}" + _stairs(xs[1:], ys[1:], x, y, step, start, "VH")


def polyline(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, step: float = 0.7) -> str:
    """Join the points by straight lines; points within `step` pixels of the last are left out."""
    points = [f"{short(px)} {short(py)}" for px, py in _apart(xs, ys, x, y, step, (math.inf, math.inf))]
    return "M" + "L".join(points) if points else ""


def _stairs(
    xs: Sequence[float],
    ys: Sequence[float],
    x: Scale,
    y: Scale,
    step: float,
    start: tuple[float, float],
    order: Literal["HV", "VH"],
) -> str:
    """The moves of a staircase from `start` on: of each, first the one that `order` names first."""
    path, (px, py) = "", start
    for qx, qy in _apart(xs, ys, x, y, step, start):
        across = f"H{short(qx)}" if short(qx) != short(px) else ""
        along = f"V{short(qy)}" if short(qy) != short(py) else ""
        path += across + along if order == "HV" else along + across
        px, py = qx, qy
    return path


def _apart(
    xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, step: float, start: tuple[float, float]
) -> Iterator[tuple[float, float]]:
    """Pixels of the points that lie at least `step` pixels, across or along, from the one kept before; and the last."""
    (px, py), last = start, len(xs) - 1
    for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
        qx, qy = x(a), y(b)
        if i == last or abs(qx - px) >= step or abs(qy - py) >= step:
            yield qx, qy
            px, py = qx, qy


def svg_document(key: str, title: str, desc: str, body: str, *, height: float = HEIGHT) -> str:
    """One figure with its title and description, both found by screen readers."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {short(height)}" role="img" '
        f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(desc)}</desc>{body}</svg>'
    )


def text_at(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    """A piece of text, escaped; `anchor` is start, middle or end."""
    return f'<text class="{name}" x="{short(x)}" y="{short(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def dashed(dash: str) -> str:
    """The attribute that dashes a line."""
    return f' stroke-dasharray="{dash}"' if dash else ""


def short(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def rate_label(value: float) -> str:
    """A round rate as a tick of an axis: 0.1 %."""
    return f"{100 * value:.6g} %"


def percent_label(value: float) -> str:
    """A share as a tick of an axis."""
    return f"{100 * value:.4g} %"


def plain_label(value: float) -> str:
    """A number as a tick of an axis."""
    return significant(value).rstrip("0").rstrip(".") if value and abs(value) < 1 else f"{value:.6g}"
