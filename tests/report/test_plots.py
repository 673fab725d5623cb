import numpy as np
import pytest
from PIL import Image

from memberscope.report import class_plots, plots
from memberscope.report.canvas import DPI
from memberscope.report.document import NAMED_LINES, ranked

LIMIT = 60_000


@pytest.fixture
def evaluations(make_results):
    return [attack["evaluation"] for attack in ranked(make_results())]


def ink(path):
    """Share of pixels that are not white."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return float((pixels < 250).mean())


def drawings(evaluations, history):
    rng = np.random.default_rng(0)
    member = np.arange(400) < 200
    scores = rng.normal(size=400) + member
    confidence = 1 - rng.beta(1, 4, 400)
    return {
        "roc_curve": lambda p: plots.roc_curve(p, evaluations, headline=evaluations[0]["name"]),
        "roc_curve_loglog": lambda p: plots.roc_curve_loglog(p, evaluations),
        "pr_curve": lambda p: plots.pr_curve(p, evaluations),
        "overlaid_roc": lambda p: plots.overlaid_roc(p, evaluations[:3]),
        "confusion_matrix": lambda p: plots.confusion_matrix(p, evaluations[0]),
        "accuracy_curve": lambda p: plots.accuracy_curve(p, history, test=0.7),
        "loss_curve": lambda p: plots.loss_curve(p, history),
        "class_roc": lambda p: class_plots.roc_curve(p, 3, "cat", scores, member, attack="toy"),
        "class_confidence": lambda p: class_plots.confidence_histogram(p, 3, "cat", confidence, member),
    }


def test_every_figure_is_small_readable_and_the_same_twice(tmp_path, evaluations, make_results):
    history = make_results()["target"]["history"]
    for name, draw in drawings(evaluations, history).items():
        first, second = tmp_path / f"{name}.png", tmp_path / f"{name}_again.png"
        draw(first)
        draw(second)
        assert first.read_bytes() == second.read_bytes(), name
        assert first.stat().st_size < LIMIT, name
        with Image.open(first) as picture:
            assert picture.width >= 500
            assert picture.info["dpi"][0] == pytest.approx(DPI, abs=0.1)
        assert ink(first) > 0.02, name
    assert not list(tmp_path.glob(".*"))


def test_large_areas_keep_their_exact_colour(tmp_path, evaluations):
    plots.roc_curve_loglog(tmp_path / "a.png", evaluations)
    colours = {colour for _, colour in Image.open(tmp_path / "a.png").convert("RGB").getcolors(1 << 20)}
    assert {(255, 255, 255), (0xE8, 0xE8, 0xE8), (0x00, 0x72, 0xB2)} <= colours


def test_the_readers_own_matplotlib_style_changes_nothing(tmp_path, evaluations):
    import matplotlib

    plots.roc_curve(tmp_path / "a.png", evaluations)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "axes.facecolor": "red"}):
        plots.roc_curve(tmp_path / "b.png", evaluations)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_forty_attacks_are_all_drawn_and_the_strongest_named(tmp_path, make_results, monkeypatch):
    many = [a["evaluation"] for a in ranked(make_results(n=500, attacks=40, classes=("a", "b")))]
    legends = []
    monkeypatch.setattr(plots, "legend_outside", lambda axes: legends.append(axes.get_legend_handles_labels()[1]))
    for draw in (plots.roc_curve, plots.roc_curve_loglog, plots.pr_curve):
        draw(tmp_path / "many.png", many)
        assert (tmp_path / "many.png").stat().st_size < LIMIT
        names = legends.pop()
        assert len(names) == 1 + NAMED_LINES + 1
        assert names[1].startswith(many[0]["name"])
        assert names[-1] == "28 others"


def said(monkeypatch):
    """What a figure says instead of showing a curve."""
    texts = []
    for module in (plots, class_plots):
        monkeypatch.setattr(module, "say", lambda axes, text: texts.append(text))
    return texts


def test_figures_without_a_curve_exist_and_say_why(tmp_path, monkeypatch):
    texts = said(monkeypatch)
    cases = [
        (lambda p: plots.roc_curve(p, []), "no attack ran"),
        (lambda p: plots.roc_curve_loglog(p, []), "no attack ran"),
        (lambda p: plots.pr_curve(p, []), "no attack ran"),
        (lambda p: plots.confusion_matrix(p, None), "no attack ran"),
        (lambda p: plots.loss_curve(p, []), "no training history is known for this model"),
    ]
    for i, (draw, expected) in enumerate(cases):
        draw(tmp_path / f"{i}.png")
        assert texts.pop() == expected
        assert (tmp_path / f"{i}.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ([True, True], "no ROC: no non-members in this class"),
        ([False, False], "no ROC: no members in this class"),
        ([], "no ROC: no records of this class"),
    ],
)
def test_a_class_without_a_group_gets_a_figure_that_says_so(tmp_path, monkeypatch, member, expected):
    texts = said(monkeypatch)
    truth = np.array(member, bool)
    path = tmp_path / "class.png"
    class_plots.roc_curve(path, 0, "a", np.zeros(len(truth)), truth, attack="toy")
    assert texts == [expected]
    assert path.exists()
    class_plots.confidence_histogram(path, 0, "a", np.full(len(truth), 0.9), truth)
    assert texts[1:] == ([] if member else ["no records of this class"])


def test_no_attack_means_no_roc_of_a_class(tmp_path, monkeypatch):
    texts = said(monkeypatch)
    class_plots.roc_curve(tmp_path / "c.png", 0, "a", np.zeros(2), np.array([True, False]))
    assert texts == ["no ROC: no attack ran"]


def test_a_very_long_class_name_does_not_break_the_figure(tmp_path):
    class_plots.confidence_histogram(
        tmp_path / "c.png", 7, "x" * 500, np.array([0.2, 0.9, 0.99]), np.array([True, False, True])
    )
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width < 600


@pytest.mark.parametrize(("spread", "nines"), [(2.0, 5), (15.0, 7), (20.0, 10), (40.0, 15)])
def test_the_axis_of_confidence_goes_as_far_as_the_records_do(spread, nines):
    confidence = 1 / (1 + np.exp(-np.linspace(0, spread, 101)))
    assert class_plots._nines(confidence) == nines
    assert np.mean(confidence > 1 - 10.0**-nines) <= 0.1 or nines == 15


def test_a_missing_test_accuracy_or_validation_is_left_out(tmp_path):
    history = [{"epoch": 1, "train_acc": 0.3, "val_acc": None, "train_loss": 2.0, "val_loss": None}]
    plots.accuracy_curve(tmp_path / "a.png", history, test=None)
    plots.loss_curve(tmp_path / "l.png", history, test=float("nan"))
    assert ink(tmp_path / "a.png") > 0.01


def test_confidences_near_one_are_told_apart(tmp_path):
    member = np.arange(200) < 100
    far, near = np.where(member, 0.9999, 0.99), np.where(member, 0.9901, 0.99)
    for name, values in (("far", far), ("near", near)):
        class_plots.confidence_histogram(tmp_path / f"{name}.png", 0, "a", values, member)
    assert (tmp_path / "far.png").read_bytes() != (tmp_path / "near.png").read_bytes()
    class_plots.confidence_histogram(tmp_path / "ends.png", 0, "a", np.where(member, 1.0, 0.0), member)
    assert ink(tmp_path / "ends.png") > 0.02
