"""Canaries in an audit, what it proves by its coins, and a broken promise of differential privacy told loudly."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import memberscope
from memberscope.attacks.base import Attack
from memberscope.attacks.registry import get_attack
from memberscope.attacks.runner import AttackResult
from memberscope.audit import draw_membership, load_records
from memberscope.audit_bounds import bounded_canaries, bounds_of_audit, claim_of
from memberscope.canary_audit import put_in
from memberscope.checks import Context, run_checks
from memberscope.cli import main
from memberscope.config import AuditConfig, from_settings
from memberscope.errors import ConfigError
from memberscope.records.subset import take
from memberscope.report.proof import bounds_figure, bounds_table, canary_table, proof_lines
from memberscope.report.render import render

RNG = np.random.default_rng(0)
COINS = RNG.random(800) < 0.5
SCORES = RNG.normal(size=800) + 2.0 * COINS


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 1500)
    x = (0.7 * rng.normal(size=(1500, 12)) + np.eye(12)[y]).astype(np.float32)
    path = tmp_path_factory.mktemp("records") / "toy.npz"
    np.savez(path, x_train=x[:1000], y_train=y[:1000], x_test=x[1000:], y_test=y[1000:])
    return path


def settings(records: Path, **changes) -> AuditConfig:
    given = {
        "dataset": f"npz:{records}", "protocol": "random-half", "model": "mlp", "epochs": 60, "canaries": 160,
        "attacks": ["loss", "phi", "four-features-lr"], "kind": ["mislabelled", "duplicated"],
        "models_dir": records.parent / "models",
    }  # fmt: skip
    return from_settings(given | changes)


@pytest.fixture(scope="module")
def run(records: Path):
    config = settings(records)
    audit = memberscope.audit(config)
    return config, audit, audit.save(records.parent / "run")


def test_canaries_are_audited_apart_from_ordinary_records(run):
    config, audit, _ = run
    dataset = load_records(config)
    ordinary = draw_membership(config, dataset)
    _, split, canaries = put_in(config, dataset, ordinary)
    assert not set(audit.index) & set(canaries.place)
    np.testing.assert_array_equal(audit.member, ordinary.member[audit.index])
    np.testing.assert_array_equal(audit.canaries.member, split.member[canaries.index])
    assert audit.document["records"]["members"] == int(audit.member.sum())


def test_reference_models_are_compared_with_the_target_on_ordinary_records(records):
    """A canary with another label is answered wrongly by whoever did not learn it: it says nothing of the recipe."""
    config = settings(records, shadows=2, kind=["mislabelled"], attacks=["loss"], epochs=5)
    audit = memberscope.audit(config)
    told = audit.document["references"]
    assert told["accuracy_others"] == pytest.approx(audit.document["target"]["test_acc"], abs=0.03)
    [finding] = [f for f in audit.findings if f.code == "MIA003"]
    assert finding.numbers["references"] == told["accuracy_others"]


def test_every_kind_has_figures_and_the_worst_case_stands_out(run):
    _, audit, _ = run
    content = audit.document["canaries"]
    assert content["records"] == 160
    assert [kind["kind"] for kind in content["kinds"]] == ["mislabelled", "duplicated"]
    assert [kind["copies"] for kind in content["kinds"]] == [1, 3]
    for kind in content["kinds"]:
        assert kind["members"] + kind["nonmembers"] == 80
        assert [a["name"] for a in kind["attacks"]] == ["loss", "phi"], "four-features-lr learns from coins"
    average = next(a for a in audit.document["attacks"] if a["name"] == content["attack"])
    worst = content["kinds"][0]
    assert worst["auc"]["low"] > average["evaluation"]["auc"]["high"]


def test_the_file_of_canaries_gives_the_bound_of_the_report(run, capsys):
    _, audit, folder = run
    with gzip.open(folder / "canaries.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 160
    assert {row["copies"] for row in rows if row["kind"] == "duplicated"} == {"3"}
    with pytest.raises(SystemExit) as stop:
        main(["bound", str(folder), "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)["bounds"]
    proven = audit.document["bounds"]["canaries"]
    assert list(found) == [audit.document["bounds"]["attacks"]["canaries"]]
    (one,) = found.values()
    assert one["m"] == proven["m"] == 80, "those that are in once; copies test a group"
    assert one["epsilon"] == pytest.approx(proven["epsilon"], abs=0.3), "ties are broken by another generator"
    assert proven["epsilon"] > audit.document["bounds"]["population"]["epsilon"]


def test_the_report_shows_worst_case_and_proof(run):
    _, audit, folder = run
    html = (folder / "report.html").read_text()
    assert "The worst case: canaries" in html
    assert "What is proven" in html
    assert html == render(json.loads((folder / "results.json").read_text()))
    table = canary_table(audit.document)
    assert [row[0].text for row in table.rows] == ["ordinary records", "mislabelled", "duplicated"]
    assert len(bounds_table(audit.document).rows) == 3
    assert any(line.startswith("Canaries, mislabelled") for line in proof_lines(audit.document))
    assert any(line.startswith("Proven on canaries") for line in proof_lines(audit.document))


def test_under_holdout_the_canaries_alone_are_bounded(records):
    audit = memberscope.audit(settings(records, protocol="holdout", kind="mislabelled", canaries=100, epochs=2))
    bounds = audit.document["bounds"]
    assert bounds["population"] is None
    assert bounds["canaries"]["valid"]
    assert audit.canaries.canaries.place.max() < 1000, "the official test part is left as it is"
    assert audit.document["records"]["nonmembers"] == 500


def test_without_coins_nothing_is_proven(records):
    audit = memberscope.audit(settings(records, protocol="holdout", canaries=0, epochs=1))
    assert audit.document["bounds"] is None
    assert audit.document["canaries"] is None
    assert canary_table(audit.document) is bounds_table(audit.document) is bounds_figure(audit.document) is None
    check = next(c for c in audit.document["checks"] if c["code"] == "MIA016")
    assert check["status"] == "not applicable"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "poisoned"}, "no kind of canary"),
        ({"canaries": -1}, "canaries = -1"),
        ({"weights": "w.pt", "membership": "m.npy"}, "trained already"),
    ],
)
def test_canaries_that_cannot_be_are_refused(records, changes, told):
    with pytest.raises(ConfigError, match=told):
        settings(records, **changes)


def result(name: str, scores: np.ndarray) -> AttackResult:
    attack: type[Attack] = get_attack(name)
    return AttackResult(attack, "run", scores=scores)


def proven(claim: tuple[float, float] | None, **changes):
    given = {"coins": True, "fixed": None, "canaries": None, "claim": claim, "confidence": 0.95, "seed": 0}
    return bounds_of_audit([result("loss", SCORES), result("four-features-lr", SCORES)], COINS, **(given | changes))


def test_an_attack_that_saw_coins_bounds_nothing():
    found = proven(None)
    assert found.attacks == {"population": "loss"}
    assert found.population.searched == 1
    assert bounds_of_audit(
        [result("four-features-lr", SCORES)], COINS,
        coins=True, fixed=None, canaries=None, claim=None, confidence=0.95, seed=0,
    ) is None  # fmt: skip
    assert proven(None, coins=False) is None


def test_the_best_of_several_attacks_is_paid_for_unless_it_was_fixed():
    results = [result("loss", SCORES), result("entropy", RNG.normal(size=800))]
    given = {"coins": True, "canaries": None, "claim": None, "confidence": 0.95, "seed": 0}
    searched = bounds_of_audit(results, COINS, fixed=None, **given)
    fixed = bounds_of_audit(results, COINS, fixed="loss", **given)
    assert (searched.population.searched, fixed.population.searched) == (2, 1)
    assert 0 < searched.population.epsilon < fixed.population.epsilon


@pytest.mark.parametrize(
    ("claim", "status"),
    [((1.0, 1e-6), "problem"), ((9.0, 1e-6), "passed"), ((1.0, 0.0), "problem"), (None, "not applicable")],
)
def test_a_broken_promise_is_a_problem(claim, status):
    found = proven(claim)
    context = Context([], COINS, 0.0, 1.0, None, None, claim=None if found is None else found.comparison)
    finding = next(f for f in run_checks(context) if f.code == "MIA016")
    assert finding.status == status
    assert ("BROKEN DP CLAIM" in finding.text) == (status == "problem")


def test_the_figure_shows_lower_and_upper_bound_and_that_they_do_not_meet():
    for claim, broken in (((1.0, 1e-6), True), ((9.0, 1e-6), False)):
        document = {"bounds": json.loads(json.dumps(proven(claim).to_dict()))}
        figure = bounds_figure(document)
        assert "at most, accountant" in figure.svg
        assert ("do not meet" in figure.reading) == broken
        assert ('class="zone"' in figure.svg) != broken, "the true epsilon lies in between, if anywhere"


def test_bounds_prefer_canaries_that_are_in_once():
    mine, copies = bounded_canaries(np.array([1, 3, 1]))
    assert (mine.tolist(), copies) == ([True, False, True], 1)
    mine, copies = bounded_canaries(np.array([3, 3]))
    assert (mine.all(), copies) == (True, 3)


def test_the_claim_is_read_off_the_target():
    assert claim_of({"privacy": {"epsilon": 3, "delta": 1e-5}}) == (3.0, 1e-5)
    assert claim_of({}) is claim_of({"privacy": None}) is None


def test_a_subset_keeps_classes_parts_and_order(records):
    whole = load_records(settings(records, canaries=0))
    part = take(whole, 300, np.random.default_rng(0))
    assert part.n == 300
    for label in range(3):
        for train in (True, False):
            have = ((part.y == label) & (part.is_train == train)).sum()
            assert abs(have - ((whole.y == label) & (whole.is_train == train)).sum() / 5) <= 1
    rows = [int(np.flatnonzero((whole.x == row).all(axis=1))[0]) for row in part.x]
    assert rows == sorted(rows)
    assert take(whole, 6, np.random.default_rng(0)).n == 6
    assert load_records(settings(records, canaries=0, subset=300)).n == 300
    for count in (5, 1501):
        with pytest.raises(ConfigError, match="subset of"):
            take(whole, count, np.random.default_rng(0))
