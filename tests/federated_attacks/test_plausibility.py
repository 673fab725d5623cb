"""A claim of who trained on what that does not fit the recording is doubted; a true one is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope.events import Events
from memberscope.federated import audit
from memberscope.federated.audit import Asked
from memberscope.federated.plausibility import doubts
from memberscope.federated.subject import Subject, of_transcript


@pytest.fixture(scope="module")
def tiny(tiny_federation: Any) -> Any:
    return tiny_federation(population=700)


def subject_of(tiny: Any, folder: Path, **changes: Any) -> Subject:
    given = {name: getattr(tiny, name) for name in ("x", "y", "owner", "member")} | changes
    return of_transcript(
        tiny,
        tiny.net,
        given["x"],
        given["y"],
        given["owner"],
        given["member"],
        name="tiny",
        features=folder,
        by_coin=True,
    )


def answer(about: Subject) -> Any:
    chosen = audit.choose(about, Asked(records=100, population=400))
    evidence = audit.observe(about, chosen, Asked(), Events())
    assert evidence.rounds is not None
    return doubts(about, chosen, evidence.rounds)


@pytest.mark.parametrize("skew", [False, True])
def test_a_true_claim_passes(tiny_federation: Any, skew: bool, tmp_path: Path) -> None:
    status, text, numbers = answer(subject_of(tiny_federation(population=700, skew=skew), tmp_path))
    assert status == "passed", text
    assert numbers["clients_that_fit_another"] == 0
    assert numbers["cosine_of_reply_and_model"] > 0.5


def test_clients_that_are_numbered_otherwise_are_found(tiny: Any, tmp_path: Path) -> None:
    moved = np.where(tiny.owner >= 0, (tiny.owner + 1) % 5, -1).astype(np.int32)
    status, text, numbers = answer(subject_of(tiny, tmp_path, owner=moved))
    assert status == "problem"
    assert "numbered otherwise" in text
    assert "the records of client 0 are fitted best by client 4" in text
    assert numbers["clients_that_fit_another"] == numbers["clients_compared"] == 5


def test_inputs_that_are_prepared_otherwise_are_found(tiny: Any, tmp_path: Path) -> None:
    status, text, _ = answer(subject_of(tiny, tmp_path, x=np.ascontiguousarray(tiny.x[:, ::-1])))
    assert status != "passed"
    assert "otherwise than in training" in text


def test_differences_instead_of_models_are_found(tiny: Any, tmp_path: Path) -> None:
    class Deltas(type(tiny)):  # type: ignore[misc]
        def received(self, round_: int, client: int) -> Any:
            sent = self.sent(round_)
            return {name: a - sent[name] for name, a in super().received(round_, client).items()}

    other = Deltas(**{f: getattr(tiny, f) for f in tiny.__dataclass_fields__})
    status, text, numbers = answer(replace(subject_of(tiny, tmp_path), transcript=other))
    assert status == "problem"
    assert "look like differences" in text
    assert numbers["cosine_of_reply_and_model"] < 0.3


def test_a_number_of_examples_that_is_not_claimed_is_told(tiny: Any, tmp_path: Path) -> None:
    fewer = tiny.member & (np.arange(len(tiny.member)) % 3 > 0)
    status, text, numbers = answer(subject_of(tiny, tmp_path, member=fewer))
    assert status == "caution"
    assert "examples, and" in text
    assert numbers["examples_said"] > 1.3 * numbers["members_claimed"]
