"""A policy: read strictly, judged by intervals, and never called kept while it cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope.attacks.runner import run_attacks
from memberscope.attacks.threshold import Loss
from memberscope.document import without_nan
from memberscope.errors import ConfigError
from memberscope.evidence import from_logits
from memberscope.policy import EXIT_CODES, EXIT_FAILED, Policy, judge, read_policy

GOOD = 'metric = "tpr"\nfpr = 0.01\nthreshold = 0.02\nowner = "DPO"\nreason = "agreed"\n'
POLICY = Policy(metric="auc", threshold=0.6, owner="DPO", reason="agreed")


def written(folder: Path, text: str) -> Path:
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    return folder / "policy.toml"


def figure(low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": None if low is None or high is None else (low + high) / 2, "low": low, "high": high}


def entry(
    name: str, low: float | None, high: float | None, *, tpr: tuple[float, float] | None = None
) -> dict[str, Any]:
    points = [{"fpr": 0.01, "supported": tpr is not None, "tpr": tpr and figure(*tpr)}]
    evaluation = {"auc": figure(low, high), "advantage": figure(low, high), "operating_points": points}
    return {"name": name, "status": "run", "evaluation": evaluation}


def failed(name: str, status: str = "failed") -> dict[str, Any]:
    return {"name": name, "status": status, "evaluation": None}


@pytest.mark.parametrize("text", [GOOD, "[policy]\n" + GOOD])
def test_a_policy_is_read_from_its_table_or_the_top_level(tmp_path: Path, text: str) -> None:
    expected = Policy(metric="tpr", fpr=0.01, threshold=0.02, owner="DPO", reason="agreed")
    assert read_policy(written(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("metric = ", "cannot read the policy FILE: Invalid value"),
        (GOOD.replace("fpr = ", "fpt = "), "FILE: unknown key 'fpt'"),
        ("policy = 3\n", "FILE: policy is not a table"),
        ("[[policy]]\n" + GOOD, "FILE: policy is not a table"),
        (GOOD.replace('owner = "DPO"\n', ""), "FILE: owner: Field required"),
        ("", "FILE: metric: Field required; threshold: Field required; owner: Field required; reason: Field required"),
        (GOOD.replace('"tpr"', '"accuracy"'), "FILE: metric: Input should be 'tpr', 'auc' or 'advantage'"),
        (GOOD.replace("0.02", '"small"'), "FILE: threshold: Input should be a valid number"),
        (GOOD.replace("0.02", "2"), "FILE: threshold = 2.0 is outside [0, 1]"),
        (GOOD.replace("0.02", "nan"), "FILE: threshold = nan is outside [0, 1]"),
        (GOOD.replace("0.01", "0.05"), "FILE: no figure is computed at fpr = 0.05"),
        (GOOD.replace("0.01", "0"), "FILE: no figure is computed at fpr = 0.0"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        read_policy(path)
    assert refusal.value.problem.replace(str(path), "FILE").startswith(told)
    assert refusal.value.hint


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the policy .*nothing\.toml: .*No such file"):
        read_policy(tmp_path / "nothing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot read the policy .*codec can't decode"):
        read_policy(tmp_path / "binary.toml")


VERDICTS = [
    (
        [entry("a", 0.5, 0.55), entry("b", 0.52, 0.6)],
        "within",
        "ROC-AUC is at most 0.6 (b: 0.56 [0.52, 0.6]), within 0.6",
    ),
    ([entry("a", 0.5, 0.55), entry("b", 0.61, 0.7)], "exceeds", "ROC-AUC of b is 0.655 [0.61, 0.7], wholly above 0.6"),
    (
        [entry("a", 0.5, 0.55), entry("b", 0.55, 0.65)],
        "cannot tell",
        "ROC-AUC of b is 0.6 [0.55, 0.65], and the threshold 0.6 lies inside",
    ),
    # By the interval, not by the point: 0.6 +- 0.001 exceeds no more than 0.55 +- 0.06 keeps.
    ([entry("a", 0.6, 0.61)], "cannot tell", "ROC-AUC of a is 0.605 [0.6, 0.61], and the threshold 0.6 lies inside"),
    ([entry("a", 0.62, 0.63), entry("b", 0.4, 0.9)], "exceeds", "ROC-AUC of a is 0.625 [0.62, 0.63], wholly above 0.6"),
    ([], "cannot tell", "no attack has a ROC-AUC that this sample supports"),
    ([entry("a", None, None)], "cannot tell", "no attack has a ROC-AUC that this sample supports"),
    (
        [entry("a", 0.5, 0.55), failed("b")],
        "cannot tell",
        "of the attacks with a figure, ROC-AUC is at most 0.55 (a: 0.525 [0.5, 0.55]), within 0.6; but b failed",
    ),
    (
        [entry("a", 0.5, 0.55), entry("b", None, None)],
        "cannot tell",
        "of the attacks with a figure, ROC-AUC is at most 0.55 (a: 0.525 [0.5, 0.55]), within 0.6; but b has no such "
        "figure",
    ),
    ([entry("a", 0.7, 0.8), failed("b")], "exceeds", "ROC-AUC of a is 0.75 [0.7, 0.8], wholly above 0.6"),
    (
        [entry("a", 0.5, 0.55), failed("b", "skipped")],
        "within",
        "ROC-AUC is at most 0.55 (a: 0.525 [0.5, 0.55]), within 0.6",
    ),
]


@pytest.mark.parametrize(("attacks", "verdict", "text"), VERDICTS)
def test_the_interval_decides(attacks: list[dict[str, Any]], verdict: Any, text: str) -> None:
    judged = judge(POLICY, attacks)
    assert judged["verdict"] == verdict
    assert judged["text"] == text
    assert judged["exit_code"] == EXIT_CODES[verdict]
    assert (judged["owner"], judged["reason"], judged["threshold"]) == ("DPO", "agreed", 0.6)


def test_each_metric_is_judged_by_its_own_figure() -> None:
    attacks = [entry("a", 0.3, 0.4, tpr=(0.05, 0.07))]
    tpr = Policy(metric="tpr", fpr=0.01, threshold=0.02, owner="DPO", reason="agreed")
    judged = judge(tpr, attacks)
    assert judged["verdict"] == "exceeds"
    assert (
        judged["text"]
        == "true-positive rate at a false-positive rate of 0.01 of a is 0.06 [0.05, 0.07], wholly above 0.02"
    )
    too_few = judge(tpr, [entry("a", 0.3, 0.4)])
    assert too_few["verdict"] == "cannot tell"
    assert too_few["text"].startswith("no attack has a true-positive rate at a false-positive rate of 0.01 that")
    advantage = Policy(metric="advantage", threshold=0.4, owner="DPO", reason="agreed")
    assert judge(advantage, attacks)["verdict"] == "within"


def test_exit_codes_are_those_of_the_report() -> None:
    assert (EXIT_CODES, EXIT_FAILED) == ({"within": 0, "exceeds": 1, "cannot tell": 2}, 3)


@pytest.mark.parametrize(("metric", "verdict"), [("auc", "exceeds"), ("advantage", "exceeds"), ("tpr", "cannot tell")])
def test_real_results_can_be_judged(metric: Any, verdict: str) -> None:
    rng = np.random.default_rng(0)
    labels, member = rng.integers(0, 3, 400), rng.permutation(np.arange(400) < 200)
    logits = rng.normal(0, 1, (400, 3))
    logits[np.arange(400), labels] += 3 * member
    results = run_attacks([Loss], from_logits(logits, labels), member, class_names="abc")
    attacks = [without_nan(result.to_dict()) for result in results]
    threshold = 0.1 if metric == "advantage" else 0.6
    policy = Policy(metric=metric, threshold=threshold, owner="DPO", reason="agreed")
    assert judge(policy, attacks)["verdict"] == verdict
