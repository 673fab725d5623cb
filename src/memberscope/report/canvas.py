"""What the PNG figures share: size, style, colours, captions, and a file with the same bytes for the same figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope.files import replacing
from memberscope.report.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
PALETTE = 256
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008) without yellow, which is lost on white."""
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (9, 2, 2, 2, 2, 2)),
)
MEMBER, NONMEMBER, TEST, GREY = COLOURS[0], COLOURS[1], COLOURS[2], "#767676"
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3,
    "lines.linewidth": 1.4,
}


@contextmanager
def drawing(
    path: Path, size: tuple[float, float], title: str, *, box: tuple[float, float, float, float] | None = None
) -> Iterator[Axes]:
    """Axes of a figure that is written to `path` when the block ends well; the reader's own style plays no part.

    Parameters
    ----------
    path
        The PNG to write, whole or not at all.
    size
        Width and height in inches.
    title
        What the figure shows.
    box
        Left, bottom, width and height of the axes in parts of the figure. None lets matplotlib find room for labels
        and legend, which takes as long again as the drawing: too long for two figures a class.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from PIL import Image

    with matplotlib.style.context(["default", _STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1) if box is None else None
        figure = Figure(figsize=size, dpi=DPI, layout=layout)
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_subplot(title=title) if box is None else figure.add_axes(box, title=title)
        yield axes
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    # A palette makes the file three times smaller, and no colour of a line drawing moves by 20 of 255.
    indexed = picture.quantize(PALETTE, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with replacing(Path(path)) as temporary:
        indexed.save(temporary, format="PNG", optimize=True, dpi=(DPI, DPI))


def say(axes: Axes, text: str) -> None:
    """Write why there is nothing to see where the curve would be."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#444444")


def caption(axes: Axes, *lines: str) -> None:
    """Small print below the figure."""
    figure: Any = axes.figure
    figure.supxlabel("\n".join(lines), x=0.02, y=0.02, ha="left", va="bottom", fontsize=8, color="#444444")


def legend_outside(axes: Axes) -> None:
    """The legend to the right of the axes, in two columns where it is long."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if len(labels) <= 12 else 2
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, ncols=columns, labelspacing=0.7
    )


def groups(n_members: int, n_nonmembers: int) -> str:
    """How many records of each kind the figure is made from."""
    return f"n = {count(n_members)} members, {count(n_nonmembers)} non-members"
