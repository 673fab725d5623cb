"""What the PNG figures share: size, style, colours, captions, and a file with the same bytes for the same figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from memberscope.files import replacing
from memberscope.report.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

DPI = 110
EXACT = 128
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
    from PIL import Image as Images

    with matplotlib.style.context(["default", _STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1) if box is None else None
        figure = Figure(figsize=size, dpi=DPI, layout=layout)
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_subplot() if box is None else figure.add_axes(box)
        axes.set_title(title, y=None if box is None else 1.01)  # a stated height spares looking for a free one
        yield axes
        canvas.draw()
        picture = Images.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with replacing(Path(path)) as temporary:
        _indexed(picture).save(temporary, format="PNG", optimize=True, dpi=(DPI, DPI))


def _indexed(picture: Image) -> Image:
    """The picture in 256 colours, a third of the bytes: its most frequent colours exactly, the others nearly.

    Pillow's own mapping to a palette looks colours up by their upper bits and turns a white ground grey.
    """
    from PIL import Image as Images

    found = cast("list[tuple[int, tuple[int, int, int]]]", picture.getcolors(picture.width * picture.height))
    colours = np.asarray([colour for _, colour in sorted(found, key=lambda entry: (-entry[0], entry[1]))], np.int32)
    spread = picture.quantize(256 - EXACT, method=Images.Quantize.MAXCOVERAGE, dither=Images.Dither.NONE).getpalette()
    palette = np.concatenate([colours[:EXACT], np.asarray(spread, np.int32).reshape(-1, 3)])[:256]
    nearest = ((colours[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    table = np.zeros(1 << 24, np.uint8)
    table[_packed(colours)] = nearest
    indexed = Images.fromarray(table[_packed(np.asarray(picture, np.int32))])
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    return indexed


def _packed(colours: NDArray[np.int32]) -> NDArray[np.int32]:
    """Red, green and blue in the last axis as one number."""
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def say(axes: Axes, text: str) -> None:
    """Write why there is nothing to see where the curve would be."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#444444")


def caption(axes: Axes, *lines: str) -> None:
    """Small print below the figure."""
    figure: Any = axes.figure
    place = {} if figure.get_layout_engine() else {"y": 0.02, "va": "bottom"}  # a layout finds its own place
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=8, color="#444444", **place)


def legend_outside(axes: Axes) -> None:
    """The legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, labelspacing=0.6)


def groups(n_members: int, n_nonmembers: int) -> str:
    """How many records of each kind the figure is made from."""
    return f"n = {count(n_members)} members, {count(n_nonmembers)} non-members"
