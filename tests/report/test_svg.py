import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope.report import svg
from memberscope.report.svg_parts import LEFT, RIGHT, TOP, WIDTH, Scale, look, staircase

HOSTILE = '"><script>alert(1)</script>&'


def elements(text, name):
    root = ElementTree.fromstring(text)
    return root.findall(f".//{{http://www.w3.org/2000/svg}}{name}")


def roc(log=True, **more):
    x = np.linspace(0, 1, 300)
    curve = svg.Curve(x.tolist(), np.sqrt(x).tolist(), 0, strong=True, **more)
    return svg.roc([curve], key="k", title=HOSTILE, desc=HOSTILE, log=log, n_members=1000, n_nonmembers=1000)


@pytest.mark.parametrize("log", [True, False])
def test_a_figure_is_well_formed_named_and_inert(log):
    text = roc(log)
    assert "<script" not in text
    assert elements(text, "title")[0].text == HOSTILE
    assert elements(text, "desc")[0].text == HOSTILE
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "k-t k-d"


def test_every_kind_of_figure_is_well_formed_with_hostile_names():
    rows = [svg.Interval(HOSTILE, 0.6, 0.5, 0.7, strong=True), svg.Interval("b", None, None, None, HOSTILE)]
    scale = Scale(1, 10_000, 6, 154, log=True)
    drawings = [
        svg.forest(rows, key="f", title="t", desc="d", x_label=HOSTILE, reference=0.5, reference_label=HOSTILE),
        svg.histogram([0, 1, 2], [0.5, 0.5], [1.0, 0.0], key="h", title="t", desc="d", x_label=HOSTILE),
        svg.lines([svg.Curve([1, 2], [0.1, 0.9])], key="l", title="t", desc="d", x_label=HOSTILE, y_label=HOSTILE),
        svg.precision_recall([svg.Curve([0, 0.5, 1], [1, 0.8, 0.5])], key="p", title="t", desc="d", share=0.5),
        svg.strip(112, 92, 134, guess=10, scale=scale, name=HOSTILE),
        svg.strip(None, None, None, guess=10, scale=scale, name="nothing"),
        svg.swatch(3, strong=True),
        svg.swatch_dot(2),
        svg.swatch_chance(),
    ]
    for text in drawings:
        ElementTree.fromstring(text)
        assert "<script" not in text
    assert "b" in [t.text for t in elements(drawings[0], "text")]
    assert HOSTILE in [t.text for t in elements(drawings[0], "text")]


def test_the_grey_zone_ends_at_one_false_positive():
    zone = next(r for r in elements(roc(), "rect") if r.get("class") == "zone")
    assert float(zone.get("x")) == LEFT
    expected = Scale(1e-3, 1, LEFT, WIDTH - RIGHT, log=True)(1 / 1000) - LEFT
    assert float(zone.get("width")) == pytest.approx(expected, abs=0.06)
    assert not [r for r in elements(roc(log=False), "rect") if r.get("class") == "zone"]


def test_a_band_is_drawn_where_it_is_given():
    band = ([0.01, 0.1, 1.0], [0.05, 0.2, 0.9], [0.2, 0.5, 1.0])
    assert 'class="band c0"' in roc(band=band)
    assert "band" not in roc()


@given(st.lists(st.tuples(st.floats(1e-4, 1), st.floats(0, 1)), min_size=1, max_size=60))
def test_a_staircase_never_interpolates_and_stays_in_the_frame(points):
    x = np.sort([p[0] for p in points])
    y = np.sort([p[1] for p in points])
    along, up = Scale(1e-4, 1, 0, 400, log=True), Scale(1e-4, 1, 300, 0, log=True)
    path = staircase(x.tolist(), y.tolist(), along, up)
    if not (y > 0).any():
        assert path == ""
        return
    assert set(re.findall("[A-Z]", path)) <= {"M", "H", "V"}
    heights = [float(v) for v in re.findall(r"V([-\d.]+)", path)]
    drawn = [round(up(v), 1) for v in y]
    assert all(min(abs(h - d) for d in [*drawn, 300]) < 0.11 for h in heights)
    assert all(-0.1 <= h <= 300.1 for h in heights)


def test_a_curve_that_leaves_zero_late_is_not_drawn_along_the_axis():
    along, up = Scale(1e-3, 1, 0, 300, log=True), Scale(1e-3, 1, 300, 0, log=True)
    path = staircase([0.0, 0.5, 1.0], [0.0, 0.8, 1.0], along, up)
    assert path.startswith(f"M{along(0.5):.1f} 300V")


def test_thinning_keeps_a_curve_of_many_points_small_and_complete():
    x = np.linspace(0, 1, 100_000)
    curve = svg.Curve(x.tolist(), np.sqrt(x).tolist())
    text = svg.roc([curve], key="k", title="t", desc="d", log=False)
    assert len(text) < 15_000
    path = next(p.get("d") for p in elements(text, "path") if "line" in p.get("class"))
    assert path.endswith(f"L{WIDTH - RIGHT} {TOP}")


def test_no_two_of_the_first_42_lines_look_alike():
    assert len({look(i) for i in range(42)}) == 42


def test_axes_label_round_values():
    assert Scale(0, 1, 0, 100).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Scale(1e-4, 1, 0, 100, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    assert Scale(0.47, 0.73, 0, 100).ticks() == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7])


def test_learning_curves_of_one_epoch_and_of_constant_loss_can_be_drawn():
    one = svg.lines([svg.Curve([1], [0.0])], key="l", title="t", desc="d", x_label="Epoch", y_label="Loss")
    assert elements(one, "circle")
    assert "nan" not in one.lower()
