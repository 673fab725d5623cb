"""The audit of a federation, from a recording to a run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope.errors import DataError, RunFolderError
from memberscope.federated.audit import Asked, audit_federation
from memberscope.federated.exposure import BY_CLIENT, BY_SERVER
from memberscope.federated.subject import Subject, of_transcript
from memberscope.result import Audit

ATTACKS = ("loss", "fl-global-matched-filter", "fl-sum-matched-filter", "fl-cosine", "fl-matched-filter")
ASKED = Asked(records=120, population=200, attacks=ATTACKS)


def subject_of(tiny: Any, folder: Path, **more: Any) -> Subject:
    return of_transcript(
        tiny,
        tiny.net,
        tiny.x,
        tiny.y,
        tiny.owner,
        tiny.member,
        name="tiny",
        features=folder,
        by_coin=True,
        learning_rate=0.1,
        **more,
    )


@pytest.fixture(scope="module")
def tiny(tiny_federation: Any) -> Any:
    return tiny_federation(population=700)


@pytest.fixture(scope="module")
def isolated(tiny_federation: Any) -> Any:
    """The server sends client 1 a model of its own."""
    tiny = tiny_federation(population=700)
    for number in tiny.rounds[1:]:
        tiny.sent_apart[number, 1] = tiny.replies[number - 1][1]
    tiny.tampered = ("isolates client 1",)
    return tiny


@pytest.fixture(scope="module")
def found(tiny: Any, isolated: Any, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folders = [tmp_path_factory.mktemp(name) for name in ("honest", "isolated")]
    return audit_federation(subject_of(tiny, folders[0]), ASKED, tampered=[subject_of(isolated, folders[1])])


def row_of(found: Audit, adversary: str) -> dict[str, Any]:
    return next(row for row in found.document["ladder"] if row["adversary"] == adversary)


def test_every_seat_has_its_row(found: Audit) -> None:
    assert found.headline == "fl-matched-filter"
    for adversary, attack in (
        ("stranger", "loss"),
        ("curious client", "fl-global-matched-filter"),
        ("curious server behind secure aggregation", "fl-sum-matched-filter"),
        ("curious server", "fl-matched-filter"),
    ):
        row = row_of(found, adversary)
        assert (row["status"], row["attack"]) == ("measured", attack)
        assert row["auc"]["low"] < row["auc"]["value"] < row["auc"]["high"]
    server, client = row_of(found, "curious server"), row_of(found, "curious client")
    assert server["auc"]["low"] > client["auc"]["value"] > 0.6
    assert server["fixed"]
    assert all(result.null is not None and result.null.passed for result in found.results)


def test_each_record_is_asked_about_once_with_its_own_client(found: Audit, tiny: Any) -> None:
    assert len(np.unique(found.index)) == len(found.index)
    np.testing.assert_array_equal(found.member, tiny.member[found.index])
    assert (tiny.owner[found.index] >= 0).all()
    assert found.document["reproduce"] == [
        f"memberscope federate audit tiny --candidates 120 --attacks {' '.join(ATTACKS)}"
    ]


def test_clients_are_told_apart(found: Audit) -> None:
    told = found.document["federation"]
    clients = told["per_client"]["clients"]
    assert {c["name"] for c in clients} == {f"client {k}" for k in range(5)}
    assert all(c["auc"]["low"] > 0.5 for c in clients)
    whose = {a["attack"]: a["auc"] for a in told["whose"]["attacks"]}
    assert whose["fl-update-matched-filter"]["low"] > 0.6
    for way in told["whose"]["source"]:
        assert way["accuracy"]["low"] > way["chance"] == 0.2
        assert sum(r["records"] for r in way["recall"]) == way["accuracy"]["n"]
    assert [s["attack"] for s in told["seats"]] == [*ATTACKS[1:3], "fl-matched-filter"]


def test_malicious_parties_are_reported_apart(found: Audit) -> None:
    (one,) = found.document["federation"]["tampered"]
    assert one["party"] == ["isolates client 1"]
    assert one["clients"] == [1]
    assert 100 < one["pairs"] <= 120
    # What the same attacks find of this client where nobody cheats stands beside it: here they find the same.
    assert one["honest"]["auc"]["attack"] in BY_SERVER
    assert one["honest"]["auc"]["low"] < one["auc"]["value"] < one["honest"]["auc"]["high"]
    row = row_of(found, "malicious client / server")
    assert row["status"] == "measured"
    assert row["auc"]["value"] == one["auc"]["value"]


def test_an_ascending_party_is_judged_on_its_records_from_where_it_sits(
    tiny: Any, tiny_federation: Any, tmp_path: Path
) -> None:
    rows = np.flatnonzero(tiny.owner > 0)[::10]
    pairs = tiny.owner[rows].astype(np.int64), rows
    altered = tiny_federation(population=700)
    seen: dict[str, dict[str, Any]] = {}
    for party in ("ascent-client:0 (client 0 moves its reply)", "ascent (the server sends all clients a model)"):
        altered.tampered = (party,)
        bad = replace(subject_of(altered, tmp_path / "bad"), ascended=pairs)
        asked = Asked(records=120, population=200, attacks=("loss",))
        audit = audit_federation(subject_of(tiny, tmp_path / "honest"), asked, tampered=[bad, bad])
        seen[party[:8]] = audit.document["federation"]["tampered"][0]
    client, server = seen["ascent-c"], seen["ascent ("]
    for one, attacks in ((client, BY_CLIENT), (server, BY_SERVER)):
        assert one["clients"] == [1, 2, 3, 4]
        assert one["pairs"] == len(rows)
        assert one["corrected_for"] == 2 * len(attacks)
        assert one["auc"]["attack"] in attacks
        assert one["auc"] == one["honest"]["auc"]  # nothing was altered here
    assert server["auc"]["value"] > client["auc"]["value"] > 0.55


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flower's own imports
def test_what_cannot_be_audited_is_said_before_anything_is_computed(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    for more in ({"tampered": [tmp_path / "none"]}, {"references": [tmp_path / "none"]}):
        with pytest.raises(RunFolderError, match="none"):
            audit_federation(subject_of(tiny, tmp_path / "features"), ASKED, **more)
    assert not (tmp_path / "features").exists()


def test_a_run_folder_with_a_federated_page_is_left(found: Audit, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "run")
    html = (folder / "report.html").read_text()
    for text in ("The federation", "Whose is it?", "client 3", "With a malicious party", "isolates client 1"):
        assert text in html
    assert json.loads((folder / "results.json").read_text())["kind"] == "federation"
    assert "fl-matched-filter" in (folder / "results.csv").read_text()


def test_behind_secure_aggregation_no_client_is_told_apart(tiny: Any, tmp_path: Path) -> None:
    tiny.only_sums = True
    try:
        found = audit_federation(subject_of(tiny, tmp_path), Asked(records=120, population=200, attacks=ATTACKS[:3]))
    finally:
        tiny.only_sums = False
    assert found.headline == "fl-sum-matched-filter"
    assert row_of(found, "curious server")["status"] == "not measured"
    assert found.document["federation"]["whose"] is None


def test_reference_federations_show_what_rounds_are_without_a_record(
    tiny: Any, tiny_federation: Any, tmp_path: Path
) -> None:
    others = [tiny_federation(population=700, coins=coin) for coin in range(3)]
    references = [subject_of(one, tmp_path / str(i)) for i, one in enumerate(others)]
    asked = Asked(records=120, population=200, attacks=("fl-cosine", "fl-lira-cosine"))
    found = audit_federation(subject_of(tiny, tmp_path / "target"), asked, references=references)
    cosine, lira = (r.evaluation.auc for r in found.results if r.evaluation is not None)
    assert lira.low > 0.7
    assert cosine.low > 0.7
    moved = tiny_federation(population=650, per_client=130)
    with pytest.raises(DataError, match="other clients hold"):
        audit_federation(subject_of(tiny, tmp_path / "target"), asked, references=[subject_of(moved, tmp_path / "m")])
