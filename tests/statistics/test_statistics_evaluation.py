"""The whole evaluation: against scikit-learn and published tools, its invariances, its way through JSON, its words."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from memberscope.errors import ConfigError, EvidenceError, MemberscopeError
from memberscope.statistics.evaluation import FNRS, FPRS, PRIORS, Evaluation, evaluate


def _data(seed, m=600, n=400, shift=1.0, step=0.0):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.r_[np.ones(m, bool), np.zeros(n, bool)])
    score = rng.normal(shift * member, 1)
    return (np.round(score / step) * step if step else score), member


def _evaluate(score, member, **options):
    return evaluate(score, member, rng=np.random.default_rng(0), **options)


def _figures(evaluation):
    """Everything an evaluation says, as JSON text (curves thinned)."""
    return json.dumps(evaluation.to_dict(), allow_nan=False)


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_agrees_with_scikit_learn(step):
    score, member = _data(0, step=step)
    evaluation = _evaluate(score, member)
    assert evaluation.auc.value == pytest.approx(metrics.roc_auc_score(member, score), abs=1e-12)
    assert evaluation.average_precision.value == pytest.approx(
        metrics.average_precision_score(member, score), abs=1e-12
    )
    fpr, tpr, thresholds = metrics.roc_curve(member, score, drop_intermediate=False)
    # Rounded, so that thresholds of equal TPR - FPR are equal: the highest of them is taken.
    assert evaluation.optimal_threshold == thresholds[np.argmax(np.round(tpr - fpr, 12))]
    for point in evaluation.operating_points:
        if point.supported:
            assert point.tpr.value == pytest.approx(tpr[fpr <= point.fpr].max(), abs=1e-12)
    np.testing.assert_allclose(evaluation.roc.tpr, tpr, atol=1e-12)
    np.testing.assert_allclose(evaluation.roc.fpr, fpr, atol=1e-12)


def test_accuracy_at_one_half_is_for_probabilities():
    score, member = _data(1)
    probability = np.clip(np.round(1 / (1 + np.exp(0.5 - score)), 2), 0, 1)
    assert np.any(probability == 0.5)
    evaluation = _evaluate(probability, member, probability=True)
    called = probability >= 0.5
    assert evaluation.accuracy.value == pytest.approx(metrics.accuracy_score(member, called), abs=1e-12)
    assert evaluation.accuracy_confusion == tuple(map(tuple, metrics.confusion_matrix(member, called).tolist()))
    assert evaluation.accuracy.low < evaluation.accuracy.value < evaluation.accuracy.high
    assert (evaluation.accuracy.k, evaluation.accuracy.n) == (int(np.sum(called == member)), 1000)
    assert "accuracy at 0.5" in repr(evaluation)
    without = _evaluate(probability, member)
    assert (without.accuracy, without.accuracy_confusion) == (None, None)
    with pytest.raises(EvidenceError, match=r"must lie in \[0, 1\], found scores from"):
        _evaluate(score, member, probability=True)


@pytest.mark.parametrize("step", [0.0, 0.5])
@pytest.mark.parametrize("folds", [2, 5])
def test_thresholds_come_from_the_other_folds(step, folds):
    score, member = _data(2, step=step)
    fold = np.random.default_rng(1).integers(folds, size=1000)
    evaluation = _evaluate(score, member, folds=fold)
    called = np.zeros(1000, bool)
    for k in range(folds):
        fpr, tpr, thresholds = metrics.roc_curve(member[fold != k], score[fold != k], drop_intermediate=False)
        gain = np.round(tpr - fpr, 12)
        called[fold == k] = score[fold == k] >= thresholds[np.argmax(gain)]
    assert evaluation.confusion_matrix == tuple(map(tuple, metrics.confusion_matrix(member, called).tolist()))
    assert evaluation.accuracy_youden.value == pytest.approx(metrics.accuracy_score(member, called), abs=1e-12)
    balanced = metrics.balanced_accuracy_score(member, called)
    assert evaluation.balanced_accuracy.value == pytest.approx(balanced, abs=1e-12)
    for end in ("value", "low", "high"):
        expected = 2 * getattr(evaluation.balanced_accuracy, end) - 1
        assert getattr(evaluation.advantage, end) == pytest.approx(expected, abs=1e-12)


def test_chosen_thresholds_are_not_optimistic_on_noise():
    """Youden's J chosen and judged on the same records is far above 1/2 on noise; judged on other folds it is not."""
    rng = np.random.default_rng(3)
    same, other = [], []
    for _ in range(300):
        score, member = rng.normal(size=200), np.arange(200) % 2 == 0
        evaluation = evaluate(score, member, rng=rng)
        called = score >= evaluation.optimal_threshold
        same.append(metrics.balanced_accuracy_score(member, called))
        other.append(evaluation.balanced_accuracy.value)
    error = np.std(other) / np.sqrt(300)
    assert abs(np.mean(other) - 0.5) < 4 * error
    assert np.mean(same) > 0.5 + 10 * error


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), step=st.sampled_from([0.0, 0.25, 2.0]), m=st.integers(1, 250), n=st.integers(1, 250))
def test_only_the_order_of_scores_matters(seed, step, m, n):
    score, member = _data(seed, m, n, step=step)
    label = np.random.default_rng(seed).integers(0, 3, m + n)
    fold = np.arange(m + n) % 2
    rng = np.random.default_rng(0)
    if m + n < 3:
        return
    first = evaluate(score, member, label=label, folds=fold, rng=rng)
    shuffle = np.random.default_rng(seed).permutation(m + n)
    again = evaluate(score[shuffle], member[shuffle], label=label[shuffle], folds=fold[shuffle], rng=rng)
    assert _figures(first) == _figures(again)
    moved = evaluate(np.arctan(score) * 3, member, label=label, folds=fold, rng=rng)
    for name in ("auc", "average_precision", "accuracy_youden", "balanced_accuracy", "confusion_matrix", "ppv"):
        assert str(getattr(first, name)) == str(getattr(moved, name))
    assert [p.tpr for p in first.operating_points] == [p.tpr for p in moved.operating_points]


def test_points_are_shown_only_where_the_sample_supports_them():
    score, member = _data(4, m=500, n=1500)
    evaluation = _evaluate(score, member)
    assert [point.fpr for point in evaluation.operating_points] == list(FPRS)
    assert [point.supported for point in evaluation.operating_points] == [True, True, False, False, False]
    assert [(row.fpr, row.prior) for row in evaluation.ppv] == [(f, p) for f in (0.1, 0.01) for p in PRIORS]
    assert [point.fnr for point in evaluation.tnr_at_fnr] == list(FNRS)
    assert [point.supported for point in evaluation.tnr_at_fnr] == [False, False]
    text = repr(evaluation)
    assert "TPR at 0.1 % FPR" in text
    assert "not shown, it needs 10,000 non-members and there are 1,500" in text
    assert "not shown, it needs 1,000 members and there are 500" in text
    assert evaluation.tpr_at(0.01) is evaluation.operating_points[1]
    with pytest.raises(KeyError, match=r"no operating point at FPR 0\.02"):
        evaluation.tpr_at(0.02)


def test_classes_are_judged_one_by_one_and_together():
    rng = np.random.default_rng(5)
    label = np.repeat([0, 1, 2, 4], [400, 2600, 300, 6])
    member = np.arange(label.size) % 2 == 0
    member[label == 4] = True
    score = rng.normal((label == 1) * member * 1.0, 1)
    names = ["plane", "car", "bird", "cat", "deer"]
    evaluation = _evaluate(score, member, label=label, class_names=names)
    plane, car, bird, cat, deer = evaluation.per_class
    assert [r.name for r in evaluation.per_class] == names
    assert [(r.n_members, r.n_nonmembers) for r in (plane, cat, deer)] == [(200, 200), (0, 0), (6, 0)]

    alone = _evaluate(score[label == 1], member[label == 1])
    assert car.auc == alone.auc
    assert car.tpr_at_1pct == alone.tpr_at(0.01) == car.operating_point
    assert plane.operating_point == plane.tpr_at_10pct
    assert "it needs 1,000 non-members and there are 200" in str(plane.tpr_at_1pct)
    # Three classes can be judged: each interval is made at 1 - 0.05 / 3.
    stricter = evaluate(score[label == 1], member[label == 1], confidence=1 - 0.05 / 3, rng=rng)
    assert car.auc_adjusted.low == pytest.approx(stricter.auc.low)
    assert car.tpr_adjusted.high == pytest.approx(stricter.tpr_at(0.01).tpr.high)
    assert car.auc_adjusted.low < car.auc.low < car.auc.high < car.auc_adjusted.high
    assert car.p_adjusted < 1e-10
    assert min(plane.p_adjusted, bird.p_adjusted) > 0.05

    assert np.isnan([cat.auc.value, cat.p_adjusted, deer.auc.value, deer.p_adjusted]).all()
    assert deer.auc.note == "6 members and 0 non-members in this class"
    assert (deer.tpr_adjusted, deer.operating_point.supported) == (None, False)
    assert "classes with AUC other than 1/2" in repr(evaluation)
    assert "1 of 3 that can be judged (Holm)" in repr(evaluation)

    unnamed = _evaluate(score, member, label=label)
    assert [(r.label, r.name) for r in unnamed.per_class] == [(0, "0"), (1, "1"), (2, "2"), (4, "4")]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    m=st.integers(1, 1200),
    n=st.integers(1, 1200),
    step=st.sampled_from([0.0, 0.5, 50.0]),
    infinite=st.booleans(),
    shift=st.sampled_from([0.0, 1.0, 30.0, -30.0]),
)
def test_survives_json_whole(seed, m, n, step, infinite, shift):
    score, member = _data(seed, m, n, shift=shift, step=step)
    if infinite:
        score[0], score[-1] = np.inf, -np.inf
    label = np.arange(m + n) % 7
    evaluation = _evaluate(score, member, label=label, name="loss")
    text = _figures(evaluation)
    again = Evaluation.from_dict(json.loads(text))
    assert _figures(again) == text
    assert max(len(again.roc.fpr), len(again.pr.recall)) <= 400
    assert repr(again) == repr(evaluation)
    for point in evaluation.operating_points:
        if point.supported:
            assert again.roc.tpr_at(point.fpr) == point.tpr.value


def test_a_long_curve_is_thinned_and_still_gives_every_operating_point():
    score, member = _data(10, 20_000, 20_000)
    evaluation = _evaluate(score, member, label=np.arange(40_000) % 3)
    again = Evaluation.from_dict(json.loads(_figures(evaluation)))
    assert len(evaluation.roc.fpr) == 40_001
    assert len(again.roc.fpr) <= 400
    assert [again.roc.tpr_at(p.fpr) == p.tpr.value for p in evaluation.operating_points[:3]] == [True] * 3
    # Everything else is what it was, values and types alike.
    for name in ("auc", "accuracy", "confusion_matrix", "tpr_at_zero_fp", "tnr_at_fnr", "ppv", "per_class"):
        assert getattr(again, name) == getattr(evaluation, name)
    assert again.operating_points[:3] == evaluation.operating_points[:3]


def test_infinite_threshold_comes_back_from_json():
    evaluation = _evaluate(np.array([np.inf, np.inf, 0.0, 0.0]), np.array([True, True, False, False]))
    assert evaluation.optimal_threshold == np.inf
    assert evaluation.to_dict()["optimal_threshold"] == "inf"
    assert Evaluation.from_dict(json.loads(_figures(evaluation))).optimal_threshold == np.inf


def test_a_single_record_leaves_no_other_fold_to_choose_a_threshold_on():
    evaluation = _evaluate(np.array([1.0, 0.0, 0.5]), np.array([True, False, False]))
    assert evaluation.confusion_matrix is None
    assert np.isnan(evaluation.balanced_accuracy.value)
    assert str(evaluation.advantage) == "undefined (each group needs a record in every other fold)"
    assert (evaluation.auc.low, evaluation.auc.high) == (pytest.approx(0.025), 1.0)


def test_frame_and_html_hold_every_figure():
    score, member = _data(6, 1000, 1000)
    evaluation = _evaluate(score, member, name="<loss>", label=np.arange(2000) % 4)
    frame = evaluation.to_frame()
    assert list(frame.columns) == [
        "figure", "class", "fpr", "fnr", "prior", "value", "low", "high", "k", "n", "method", "note",
    ]  # fmt: skip
    points = frame[(frame.figure == "tpr") & frame["class"].isna()]
    assert points.fpr.tolist() == [*FPRS, 0.0]
    assert points[points.fpr == 0.01].value.item() == evaluation.tpr_at(0.01).tpr.value
    assert points[points.fpr == 0.001].note.item().endswith("it needs 10,000 non-members and there are 1,000")
    assert frame[frame.figure == "auc"]["class"].tolist()[1:] == ["0", "1", "2", "3"]
    assert frame[frame.figure == "ppv"].prior.tolist() == [*PRIORS, *PRIORS]
    page = evaluation._repr_html_()
    assert "Evaluation of &lt;loss&gt;: 1,000 members, 1,000 non-members, 95 % intervals" in page
    assert f"<th style='text-align:left'>AUC</th><td>{evaluation.auc}</td>" in page


def test_frame_without_pandas_says_what_is_missing(monkeypatch):
    evaluation = _evaluate(*_data(7, 10, 10))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MemberscopeError, match=r"to_frame\(\) needs pandas") as error:
        evaluation.to_frame()
    assert "rows()" in error.value.hint


@pytest.mark.parametrize(
    ("options", "kind", "problem"),
    [
        ({"confidence": 1.0}, ConfigError, "confidence must lie between 0 and 1, found 1.0"),
        ({"folds": 1}, ConfigError, "folds must be at least 2, found 1"),
        ({"folds": np.zeros(20, int)}, ConfigError, "one of at least two non-negative fold numbers"),
        ({"folds": np.arange(19)}, ConfigError, r"each of 20 records .* found shape \(19,\)"),
        ({"label": np.zeros(19, int)}, EvidenceError, r"labels must be 20 whole numbers, found shape \(19,\)"),
        ({"label": np.zeros(20)}, EvidenceError, "labels must be 20 whole numbers.*dtype float64"),
        ({"label": np.arange(20), "class_names": ["a", "b"]}, EvidenceError, "label 2 has no name: 2 class names"),
        ({"label": -np.ones(20, int), "class_names": ["a"]}, EvidenceError, "label -1 has no name"),
    ],
)
def test_refuses_settings_that_cannot_be_meant(options, kind, problem):
    score, member = _data(8, 10, 10)
    with pytest.raises(kind, match=problem):
        _evaluate(score, member, **options)


def test_the_generator_only_deals_the_folds():
    score, member = _data(9)
    first, same, other = (evaluate(score, member, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert _figures(first) == _figures(same)
    assert first.auc == other.auc
    assert first.operating_points == other.operating_points
    assert first.confusion_matrix != other.confusion_matrix


@pytest.mark.shared
def test_agrees_with_the_published_tools(shared_dir):
    with np.load(shared_dir / "reference" / "metrics_eps.npz") as file:
        reference = {name: file[name] for name in file.files}
    evaluation = _evaluate(reference["scores"], reference["member"])
    assert evaluation.auc.value == pytest.approx(float(reference["auc"]), abs=1e-12)
    for fpr in ("0.1", "0.01", "0.001", "0.0001", "1e-05", "0"):
        expected = float(reference[f"tpr_at_{fpr}_conservative"])
        assert evaluation.roc.tpr_at(float(fpr)) == pytest.approx(expected, abs=1e-12)
    assert evaluation.tpr_at(0.1).tpr.value == pytest.approx(0.303, abs=1e-12)
    assert evaluation.tpr_at_zero_fp.tpr.value == pytest.approx(0.011, abs=1e-12)
    best = np.max(evaluation.roc.tpr - evaluation.roc.fpr)
    assert (1 + best) / 2 == pytest.approx(float(reference["balanced_acc_max"]), abs=1e-12)
    # The maximum over thresholds on the records themselves is above what a threshold of other folds achieves.
    assert evaluation.balanced_accuracy.value < float(reference["balanced_acc_max"])
