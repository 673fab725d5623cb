"""Malicious parties by name, in federations of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from federation_settings import settings

from memberscope.errors import ConfigError
from memberscope.events import Events
from memberscope.federated.federation import Federation, federate
from memberscope.federated.malice import Malice, ascended, parse
from memberscope.federated.transcript import Transcript
from memberscope.records.pool import Dataset


def taped(run: Federation) -> Transcript:
    assert run.transcript is not None
    return Transcript.open(run.transcript)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[k], other[k]) for k in one)


def test_an_isolating_server_is_named_in_settings_and_transcript(run: Callable[..., Federation]) -> None:
    bad = run(malicious="isolate:2", record="updates", rounds=2)
    assert bad.config.to_dict()["malicious"] == "isolate:2"
    t = taped(bad)
    assert t.problems == ()
    assert t.tampered[0].startswith("isolate:2 ")
    assert same(t.sent_to(2, 2), t.received(1, 2))
    assert same(t.sent_to(2, 1), t.sent(2))


def test_an_interrupted_one_begins_anew_and_a_finished_one_is_kept(run: Callable[..., Federation]) -> None:
    whole = run(malicious="isolate:2", record="updates", rounds=3)
    notes: list[str] = []

    class Stopping(Events):
        def note(self, text: str) -> None:
            notes.append(text)

        def federation_round(self, record: Any, rounds: int, seconds_left: float) -> None:
            if record["round"] == 2 and not notes:
                raise KeyboardInterrupt

    folder = whole.folder.parent / "stopped"
    with pytest.raises(KeyboardInterrupt):
        federate(whole.config, dataset=whole.dataset, folder=folder, events=Stopping())
    for _ in range(2):
        again = federate(whole.config, dataset=whole.dataset, folder=folder, events=Stopping(), resume=True)
        assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert len([note for note in notes if "begins anew" in note]) == 1
    t = taped(again)
    assert t.rounds == [1, 2, 3]
    assert same(t.sent_to(3, 2), t.received(2, 2))


def test_an_ascending_server_alters_what_its_client_is_sent_alone(run: Callable[..., Federation]) -> None:
    t = taped(run(malicious="ascent:1:0.01", record="updates", rounds=1))
    assert not same(t.sent_to(1, 1), t.sent(1))
    assert same(t.sent_to(1, 0), t.sent(1))
    assert "200 candidates, gamma 0.01" in t.tampered[0]


def test_an_ascending_client_alters_its_own_reply_alone(run: Callable[..., Federation]) -> None:
    bad, honest = (taped(run(record="updates", rounds=1, **more)) for more in ({"malicious": "ascent-client:3"}, {}))
    assert bad.tampered[0].startswith("ascent-client:3 ")
    assert honest.tampered == ()
    assert [same(bad.received(1, k), honest.received(1, k)) for k in range(4)] == [True, True, True, False]


def test_half_of_what_is_ascended_was_trained_on(run: Callable[..., Federation]) -> None:
    for more, party in (({}, "ascent:1"), ({}, "ascent-client:1"), ({"held_fraction": 0.0}, "ascent-client:1")):
        design = run(record="nothing", rounds=1, **more).design
        client, record = ascended(parse(party), design)
        assert (len(record), design.member[record].sum()) == (200, 100)
        held = design.owner[record] >= 0
        assert held.all() == (not more)
        np.testing.assert_array_equal(client[held], design.owner[record[held]])
        assert set(client) == ({1} if party == "ascent:1" else set(range(design.n_clients)) - {1})
        assert np.bincount(client[~held]).max(initial=0) < 40  # dealt to all in turn
    assert len(ascended(parse("isolate:1"), design)[1]) == 0


def test_names_are_read_and_others_refused(digits: Dataset, tmp_path: Path) -> None:
    assert parse("ascent:7:1e-3") == Malice("ascent", 7, 1e-3)
    assert parse("isolate:0") == Malice("isolate", 0, 0.0)
    for wrong in ("isolate", "isolate:x", "bribe:1", "isolate:1:2", "ascent:1:1e", ":1"):
        with pytest.raises(ConfigError, match="is unknown"):
            settings(malicious=wrong)
    with pytest.raises(ConfigError, match="there are 4 clients"):
        federate(settings(malicious="isolate:4"), dataset=digits, folder=tmp_path / "r")
