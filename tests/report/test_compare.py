import json
from html.parser import HTMLParser

import numpy as np
import pytest

from memberscope.errors import ConfigError, RunFolderError
from memberscope.report.compare import compare, difference


@pytest.fixture
def runs(make_results):
    return [
        make_results(),
        make_results(strength=0.5, seed=3, run_id="cifar10_epoch20_2026-11-23_11-00-00"),
        make_results(n=1000, strength=0.2, seed=4, run_id="cifar10_epoch10_2026-11-23_12-00-00"),
    ]


def test_a_row_for_each_run_with_intervals_and_the_lowest_rate_that_all_support(runs):
    comparison = compare(runs)
    assert comparison.fpr == 0.01
    assert len(comparison.rows) == 3
    assert all(len(row) == len(comparison.header) for row in comparison.rows)
    first = dict(zip(comparison.header, comparison.rows[0], strict=True))
    evaluation = next(a for a in runs[0]["attacks"] if a["name"] == runs[0]["headline"])["evaluation"]
    auc = evaluation["auc"]
    assert first["AUC"] == f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"
    assert first["AUC difference"] == "–"
    assert "/4,000)" in first["TPR at FPR 1\N{NO-BREAK SPACE}%"]
    assert comparison.rows[1][comparison.header.index("AUC difference")].startswith("\N{MINUS SIGN}")


def test_one_attack_can_be_held_fixed(runs):
    comparison = compare(runs, attack="loss")
    assert {row[comparison.header.index("attack")] for row in comparison.rows} == {"loss"}
    assert len(comparison.notes) == 1  # no word of how attacks were picked


def test_how_attacks_were_picked_is_said(runs):
    runs[1]["headline"] = "loss"
    notes = " ".join(compare(runs).notes)
    assert "--attack NAME judges all by one" in notes
    assert "do not allow for the choice" in notes
    for run in runs:
        run["headline_fixed"] = True
    assert "do not allow for the choice" not in " ".join(compare(runs).notes)


def test_a_run_without_the_attack_is_shown_as_such(runs):
    runs[1]["attacks"] = [a for a in runs[1]["attacks"] if a["name"] != "loss"]
    comparison = compare(runs, attack="loss")
    assert "did not run" in comparison.rows[1]
    assert len(comparison.rows[1]) == len(comparison.header)


def test_what_cannot_be_compared_is_said(runs):
    runs[1]["dataset"]["fingerprint"] = "another"
    runs[2]["checks"][0]["status"] = "problem"
    notes = " ".join(compare(runs).notes)
    assert "different records" in notes
    assert runs[2]["run"]["id"] in notes


def test_refusals_say_what_to_do(runs):
    with pytest.raises(ConfigError, match="a comparison needs two"):
        compare(runs[:1])
    with pytest.raises(ConfigError, match="no run has figures of 'nothing'") as caught:
        compare(runs, attack="nothing")
    assert "loss" in caught.value.hint
    runs[0]["schema_version"] = 99
    with pytest.raises(RunFolderError, match="schema version 99"):
        compare(runs)


def test_the_difference_covers_a_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n, p, q, covered, z = 4000, 0.30, 0.33, 0, 1.959964
    trials = 2000
    for _ in range(trials):
        ends = []
        for share in (p, q):
            value = rng.binomial(n, share) / n
            half = z * np.sqrt(value * (1 - value) / n)
            ends.append({"value": value, "low": value - half, "high": value + half})
        change = difference(*ends)
        covered += change["low"] <= p - q <= change["high"]
    assert abs(covered / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)
    assert difference({"value": None, "low": 0, "high": 1}, ends[0]) is None


def test_the_page_is_self_contained_and_the_same_twice(runs):
    runs[0]["run"]["id"] = "<script>alert(1)</script>"
    page = compare(runs).html()
    assert page == compare(json.loads(json.dumps(runs))).html()
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="', "").replace("http://www.w3.org/2000/svg", "")
    HTMLParser().feed(page)
    assert page.count('class="band') == 3


def test_the_picture_is_written(tmp_path, runs):
    compare(runs).png(tmp_path / "roc.png")
    assert 5_000 < (tmp_path / "roc.png").stat().st_size < 60_000


def test_equal_names_are_told_apart(make_results):
    comparison = compare([make_results(), make_results()])
    assert comparison.names == tuple(f"{make_results()['run']['id']} ({i})" for i in (1, 2))
    assert comparison.rows[1][comparison.header.index("AUC difference")].startswith("0 (")
