"""`memberscope federate audit` on apps that know nothing of it, and on what a tap recorded."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from sklearn.datasets import load_digits

from memberscope.cli import main
from memberscope.errors import ConfigError
from memberscope.federated.foreign_audit import malicious_server
from memberscope.federated.transcript import Transcript

APPS = Path(__file__).parent / "apps"
SHORT = "num-server-rounds=4 local-epochs=20"
ATTACKS = ("--attacks", "fl-global-loss", "fl-local-loss", "fl-cosine", "fl-matched-filter")


@pytest.fixture
def app_dir(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app whose labels are drawn by lot: what it learns, it can only have memorised."""
    monkeypatch.setenv("MEMBERSCOPE_OUTPUT_DIR", str(tmp_path / "outputs"))
    folder = tmp_path / "app"
    shutil.copytree(APPS / getattr(request, "param", "message_api"), folder)
    (folder / "data").mkdir()
    x, _ = load_digits(return_X_y=True)
    y = np.random.default_rng(0).integers(0, 2, 400)
    np.savez(folder / "data" / "digits.npz", x=x[:400].astype(np.uint8), y=y)
    return folder


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["federate", "audit", *words])
    return int(stop.value.code or 0)


def name_of(app: Path) -> str:
    return next(p.name for p in app.iterdir() if (p / "task.py").is_file())


def figures(capsys: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("app_dir", ["message_api", "legacy"], indirect=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_unmodified_app_is_audited_by_one_command_and_again_from_its_recording(app_dir: Path, capsys: Any) -> None:
    package, out = name_of(app_dir), app_dir.parent / "run"
    given = ("--model", f"{package}.task:Net", "--records", f"{package}.task:load_data", "--classes", "10", *ATTACKS)
    assert run(str(app_dir), *given, "--run-config", SHORT, "--out", str(out), "--json", "--device", "cpu") == 0
    found = figures(capsys)
    by_name = {a["name"]: a for a in found["attacks"]}
    assert {a["status"] for a in by_name.values()} == {"run"}
    auc = {name: a["evaluation"]["auc"] for name, a in by_name.items()}
    assert auc["fl-local-loss"]["low"] > 0.5  # labels drawn by lot can only be memorised
    assert found["federation"]["view"] == "server"
    assert found["federation"]["clients"] == 4
    assert found["headline"] == "fl-matched-filter"
    assert (out / "report.html").is_file()
    assert not list((app_dir.parent / "outputs").glob("*"))
    (command,) = found["reproduce"]
    words = shlex.split(command)
    assert words[:4] == ["memberscope", "federate", "audit", app_dir.name]
    assert sorted(words[4:]) == sorted((*given, "--run-config", SHORT))
    t = Transcript.open(out / "transcript")
    assert t.rounds == [1, 2, 3, 4]
    assert t.problems == ()
    again = (str(app_dir), "--transcript", str(out / "transcript"), *given, "--out", str(app_dir.parent / "again"))
    assert run(*again, "--json", "--device", "cpu") == 0
    document = figures(capsys)
    assert {a["name"]: a["evaluation"]["auc"] for a in document["attacks"]} == auc
    assert document["target"]["device"] == "cpu"
    assert "--device" not in document["reproduce"][0]


def test_the_sums_of_an_app_show_less_and_a_malicious_server_is_reported_apart(app_dir: Path, capsys: Any) -> None:
    given = (str(app_dir), "--model", "digits_app.task:Net", "--records", "digits_app.task:load_data")
    more = ("--classes", "10", "--run-config", "num-server-rounds=3 local-epochs=10", "--json")
    assert run(*given, *more, "--sums-only", "--attacks", "fl-sum-matched-filter") == 0
    document = figures(capsys)
    assert document["federation"]["view"] == "server behind secure aggregation"
    (row,) = [r for r in document["ladder"] if r["adversary"] == "curious server"]
    assert row["status"] != "measured"
    assert run(*given, *more, *ATTACKS, "--malicious", "isolate:1") == 0
    document = figures(capsys)
    (bad,) = document["federation"]["tampered"]
    assert bad["clients"] == [1]
    assert bad["party"][0].startswith("isolate:1")
    assert bad["corrected_for"] > 3  # the replies of the isolated client were attacked, not the global model alone
    assert bad["auc"]["value"] > 0.6
    assert abs(bad["accuracy"]["honest"] - 0.5) < 0.2  # labels by lot, two classes
    assert abs(bad["accuracy"]["tampered"] - 0.5) < 0.2
    folder = Path(document["folder"])
    assert Transcript.open(folder / "malicious").tampered[0].startswith("isolate:1")
    assert [p.name for p in (app_dir.parent / "outputs").iterdir() if "recorded" in p.name] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing to audit was named"),
        (("APP",), "APP alone is not enough"),
        (("APP", "--model", "digits_app.task:Net"), "--model and --records go together"),
        (("APP", "--model", "digits_app.task:No", "--records", "digits_app.task:load_data"), "cannot import the model"),
        (("APP", "--model", "digits_app.task:Net", "--records", "digits_app.task:load_data"), "expected logits"),
        (("APP", "--model", "digits_app.task:Net", "--records", "no.npz"), "there is no file of records"),
        (
            ("APP", "--model", "mlp", "--records", "digits_app.task:load_data", "--malicious", "bribe:1"),
            "isolate:K cuts client K off",
        ),
        (
            ("APP", "--model", "digits_app.task:Net", "--records", "digits_app.task:load_data", "--device", "cuda:99"),
            "device = 'cuda:99': there is no such device here",
        ),
        (("--transcript", "APP", "--model", "mlp", "--records", "r.npz"), "no transcript in"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_run(
    words: tuple[str, ...], told: str, app_dir: Path, capsys: Any
) -> None:
    assert run(*(str(app_dir) if word == "APP" else word for word in words)) == 3
    assert told.replace("APP", str(app_dir)) in capsys.readouterr().err
    assert not list(app_dir.parent.rglob("events.jsonl"))


def test_a_malicious_server_has_a_name() -> None:
    with pytest.raises(ConfigError, match="'isolate' is unknown"):
        malicious_server("isolate")
