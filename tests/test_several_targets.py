"""Several targets: members and seeds of their own, one bank, and figures over all of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope import audit as run_audit
from memberscope import data_loader
from memberscope.attacks.registry import HEADLINE
from memberscope.audit import draw_membership
from memberscope.config import AuditConfig, from_settings
from memberscope.errors import ConfigError
from memberscope.result import Audit
from memberscope.statistics.over_targets import agreement_of_targets, excess_variance, spread

ATTACKS = ("loss", HEADLINE)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 20)).astype(np.float32) + 0.3 * y[:, None].astype(np.float32)
    folder = tmp_path_factory.mktemp("several")
    np.savez(folder / "toy.npz", x=x, y=y)
    dataset = {"dataset": f"npz:{folder / 'toy.npz'}", "model": "mlp", "epochs": 12, "device": "cpu"}
    return dataset | {"protocol": "random-half", "shadows": 4, "attacks": ATTACKS, "models_dir": folder / "models"}


@pytest.fixture(scope="module")
def audited(fast: dict[str, Any]) -> Audit:
    return run_audit(**fast, targets=3)


def test_each_target_has_members_of_its_own_and_all_set_the_same_records_apart(fast: dict[str, Any]) -> None:
    config = from_settings(fast)
    dataset = data_loader.load(config.dataset)
    splits = [draw_membership(config, dataset, number) for number in range(3)]
    for split in splits[1:]:
        np.testing.assert_array_equal(split.validation, splits[0].validation)
        np.testing.assert_array_equal(split.audited, splits[0].audited)
        assert 0.4 < (split.member == splits[0].member)[split.audited].mean() < 0.6
    assert (splits[1].member != splits[2].member).any()
    np.testing.assert_array_equal(draw_membership(config, dataset).member, splits[0].member)


def test_figures_of_every_target_and_over_all(fast: dict[str, Any], audited: Audit) -> None:
    alone = run_audit(**fast, load=True)
    np.testing.assert_array_equal(alone.scores[HEADLINE], audited.scores[HEADLINE])  # the first target is the audit's
    assert alone.document["targets"] is None
    told = audited.document["targets"]
    assert told["number"] == len(told["targets"]) == 3
    assert len({target["folder"] for target in told["targets"]}) == 3
    figure = told["attacks"][HEADLINE]["auc"]
    values = [one.evaluation(HEADLINE).auc.value for one in audited.targets.targets]
    assert figure["values"] == pytest.approx(values)
    assert figure["mean"]["value"] == pytest.approx(np.mean(values))
    assert figure["sd"] == pytest.approx(np.std(values, ddof=1))
    assert figure["mean"]["low"] < min(values) or figure["sd"] < 0.02
    assert [one["fpr"] for one in told["attacks"]["loss"]["tpr"]] == [0.1]
    found = {f.code: f for f in audited.findings}
    assert {found["MIA005"].status, found["MIA010"].status} <= {"passed", "caution"}
    assert "Over 3 targets, mean of" in repr(audited)
    assert not any("Other trainings" in line for line in audited.document["not_tested"])


def test_a_run_of_several_targets_explains_itself(audited: Audit, tmp_path: Path) -> None:
    folder = audited.save(tmp_path / "run")
    with (folder / "results.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["attack"] == HEADLINE)
    figure = audited.document["targets"]["attacks"][HEADLINE]
    assert row["targets"] == "3"
    assert float(row["targets_auc_sd"]) == figure["auc"]["sd"]
    assert float(row["targets_tpr_at_fpr_0.1_mean_low"]) == figure["tpr"][0]["mean"]["low"]
    with gzip.open(folder / "scores.csv.gz", "rt") as text:
        records = list(csv.DictReader(text))
    counts = np.array([[int(r["member_in"]), int(r["found_in"])] for r in records])
    assert set(counts[:, 0]) == {0, 1, 2, 3}
    assert (counts[:, 1] <= counts[:, 0]).all()
    for number, target in enumerate(audited.targets.targets[1:], start=2):
        with gzip.open(folder / f"scores_target_{number}.csv.gz", "rt") as text:
            records = list(csv.DictReader(text))
        assert [r["member"] == "1" for r in records] == target.member.tolist()
        assert [float(r[HEADLINE]) for r in records] == target.scores[HEADLINE].tolist()
    json.loads((folder / "results.json").read_text())
    report = (folder / "report.html").read_text()
    for said in ("Several trainings of the recipe", "Are the same records found?", "Over 3 trainings"):
        assert said in report


def test_an_existing_model_is_one_target() -> None:
    with pytest.raises(ConfigError, match="--targets 2 trains models"):
        AuditConfig(dataset="digits", weights="w", membership="m", targets=2)


def test_spread_by_hand_and_its_coverage() -> None:
    figure = spread([0.6, 0.7, 0.8])
    assert (figure.mean.value, figure.sd) == (pytest.approx(0.7), pytest.approx(0.1))
    assert figure.mean.high == pytest.approx(0.7 + 4.302653 * 0.1 / np.sqrt(3))
    rng = np.random.default_rng(0)
    draws = rng.normal(0.6, 0.02, (2000, 4))
    inside = [one.mean.low <= 0.6 <= one.mean.high for one in map(spread, draws)]
    assert abs(np.mean(inside) - 0.95) < 0.02
    assert spread([0.0, 0.001]).mean.low == 0.0
    same = spread([0.0, 0.0, 0.0])
    assert (same.mean.value, same.sd) == (0.0, 0.0)
    assert np.isnan([same.mean.low, same.mean.high]).all()  # three zeros do not prove that there is never more
    with pytest.raises(ConfigError, match="1 target has no spread"):
        spread([0.5])


def test_excess_variance_is_seen_and_ordinary_variance_is_not() -> None:
    rng = np.random.default_rng(1)
    p = [excess_variance(rng.normal(0.6, 0.01, 3), [0.01] * 3) for _ in range(2000)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 0.02
    assert excess_variance([0.6, 0.7, 0.8], [0.01] * 3) < 1e-6


def test_agreement_by_hand_and_by_chance() -> None:
    member = np.array([[True] * 6, [True] * 6, [False] * 3 + [True] * 3])
    found = np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 1]], bool)
    told = agreement_of_targets(found, member)
    assert told.jaccard == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert (told.eligible, told.found, told.always) == (6, 4, 1)
    rng = np.random.default_rng(0)
    everyone = np.ones((3, 50_000), bool)
    independent = agreement_of_targets(rng.random((3, 50_000)) < 0.1, everyone)
    assert independent.jaccard == pytest.approx(independent.by_chance, abs=0.01)
    nobody = agreement_of_targets(np.zeros((2, 5), bool), np.ones((2, 5), bool))
    assert np.isnan(nobody.jaccard)
    assert nobody.found == 0
