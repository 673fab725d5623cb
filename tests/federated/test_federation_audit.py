"""Audits of federations of ours: who is asked about, what stands beside the figures, what cannot be known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.federated import exposure, subject
from memberscope.federated.audit import Asked, audit_federation
from memberscope.federated.federation import Federation
from memberscope.result import Audit
from memberscope.training import model_files

Run = Callable[..., Federation]
ASKED = Asked(records=60, attacks=("loss", "fl-global-loss", "fl-sum-cosine", "fl-cosine"))


def audit(run: Federation, asked: Asked = ASKED) -> Audit:
    return audit_federation(run.folder, asked)


def row_of(found: Audit, adversary: str) -> dict[str, Any]:
    return next(row for row in found.document["ladder"] if row["adversary"] == adversary)


def test_clients_that_never_took_part_are_not_asked_about_from_any_seat(run: Run) -> None:
    """Nobody trained on their records: counted as members they would make secure aggregation look like protection."""
    more = {"clients": 8, "fraction": 0.25, "rounds": 2, "local_epochs": 20}
    plain, sums = run(record="updates", **more), run(record="updates", secure_aggregation=True, **more)
    assert sums.summary["weights_sha256"] == plain.summary["weights_sha256"]
    took_part = sorted({c["client"] for record in plain.history for c in record["clients"]})
    assert len(took_part) < 8
    assert plain.summary["took_part"] == len(took_part)
    trained = plain.design.member & np.isin(plain.design.owner, took_part)
    assert plain.summary["records"]["trained_on"] == trained.sum()
    seen = [subject.of_run(one.folder) for one in (plain, sums)]
    assert [one.clients.tolist() for one in seen] == [took_part] * 2
    found = [audit(one) for one in (plain, sums)]
    assert row_of(found[0], "stranger")["auc"] == row_of(found[1], "stranger")["auc"]
    assert found[1].document["federation"]["holders"] == 8
    assert f"{len(took_part)} that took part, of 8 that hold records" in found[1].report()


def test_a_seat_that_the_protocol_takes_away_is_ruled_out_and_defenses_are_named(run: Run) -> None:
    run_ = run(record="updates", secure_aggregation=True, dropout=0.5, central_noise=0.1, central_clip=1.0)
    found = audit(run_)
    row = row_of(found, "curious server")
    assert row["status"] == "not measured"
    assert row["reason"] == "the protocol shows it sums of updates and no client's own"
    assert "ruled out: the protocol shows it sums" in found.report()
    assert found.document["target"]["defenses"] == ["dropout", "central DP (noise 0.1)", "secure aggregation"]
    assert "what its accountant promises is told, and not tested" in found.report()
    assert "Here, for a client: epsilon" in found.report()
    assert "Accuracy by round" in found.report()


def test_where_each_class_is_one_clients_the_rest_of_the_audit_stands(run: Run) -> None:
    found = audit(run(record="updates", clients=10, partition="pathological:1", rounds=2))
    whose = found.document["federation"]["whose"]
    assert whose["attacks"] == []
    assert whose["reason"] == "no two clients have members of one class"
    assert all(way["by_class"] == 1.0 for way in whose["source"])
    assert "was not measured: no two clients have members of one class" in found.report()


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Devices that models were asked to be on, in turn."""
    seen: list[str | None] = []
    load = model_files.load

    def noted(*args: Any, device: str | None = None, **more: Any) -> Any:
        seen.append(device)
        return load(*args, device="cpu" if device == "auto" else device, **more)

    monkeypatch.setattr(model_files, "load", noted)
    return seen


def test_models_are_asked_where_the_federation_was_trained(run: Run, asked_for: list[str | None]) -> None:
    trained = run(record="updates", rounds=1, device="cpu:0")
    assert subject.of_run(trained.folder).target["device"] == "cpu:0"
    found = audit_federation(trained.folder, ASKED, tampered=[trained.folder])
    assert found.document["target"]["device"] == "cpu:0"
    audit_federation(trained.folder, ASKED, device="cpu", tampered=[trained.folder])
    assert asked_for == ["cpu:0", "cpu:0", "cpu:0", "cpu", "cpu"]
    assert "--device" not in found.document["reproduce"][0]


class _Notes(Events):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_device_that_is_not_here_is_an_error_only_where_it_was_asked_for(
    run: Run, asked_for: list[str | None]
) -> None:
    trained = run(record="updates", rounds=1)
    settings = trained.folder / "config.toml"
    text = settings.read_text()
    assert 'device = "cpu"' in text
    settings.write_text(text.replace('device = "cpu"', 'device = "cuda:99"'))
    events = _Notes()
    audit_federation(trained.folder, ASKED, tampered=[trained.folder], events=events)
    (told,) = [note for note in events.notes if "cuda:99" in note]
    assert "not here" in told
    assert asked_for == ["auto", "cpu"]
    with pytest.raises(ConfigError, match="no such device here"):
        audit_federation(trained.folder, ASKED, device="cuda:99")


def test_clients_with_too_few_records_are_unknown_and_no_proof_of_safety(run: Run) -> None:
    assert exposure.too_few(5, 3, 20)
    assert exposure.too_few(3, 3, 1) == (1 / 20 > 0.05)
    assert not exposure.too_few(20, 20, 20)
    found = audit(
        run(record="updates", clients=12, partition="sizes:0.3", rounds=2), Asked(attacks=("fl-matched-filter",))
    )
    told = found.document["federation"]["per_client"]
    few = [c for c in told["clients"] if c["too_few"]]
    assert few
    assert told["few"]["n_members"] == sum(c["n_members"] for c in few)
    assert told["clients"][: -len(few)] == [c for c in told["clients"] if not c["too_few"]]  # they come last
    assert "too few records to tell" in found.report()
