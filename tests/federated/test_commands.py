"""What the pages on federations say can be typed, and what is typed is told in the pages."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from memberscope.cli import main
from memberscope.federated.config import FederationConfig
from memberscope.federated.strategies import available
from memberscope.training.recipe import Recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "federated.md").read_text(encoding="utf-8")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_flags_of_the_page_exist() -> None:
    known = {f.name for kind in (FederationConfig, Recipe) for f in fields(kind)}
    known |= {"resume", "superlink", "root_certificates", "weights", "workers", "table"}  # the last two of studies
    for flag in re.findall(r"`--([a-z-]+)", PAGE):
        assert flag.replace("-", "_") in known, flag


def test_every_setting_of_a_federation_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "federate", "--help")
    assert code == 0
    assert "memberscope federate --dataset digits" in out
    for f in fields(FederationConfig):
        if f.name != "recipe":
            assert f"--{f.name.replace('_', '-')}" in out
    assert "study" in out


def test_partitions_and_strategies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "list", "partitions")
    for name in re.findall(r"^\| `([a-z]+)", PAGE, re.MULTILINE)[:6]:
        assert re.search(rf"^{name}\b", out, re.MULTILINE), name
    _, out, _ = run(capsys, "list", "strategies")
    assert "proximal_mu" in out
    for name in available():
        assert f"`{name}`" in PAGE, name


def test_a_run_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "--dataset digits --model mlp --clients 3 --rounds 2 --batch-size 64 --drop-out 0.3 --record nothing".split()
    )
    code, out, err = run(capsys, "federate", *words, "--out", str(tmp_path))
    assert code == 0, err
    assert "Accuracy of the global model" in out
    assert "replies were missing or refused" in out
    (folder,) = tmp_path.iterdir()
    assert run(capsys, "federate", "--resume", str(folder))[0] == 0  # nothing is left to do: it says the same again
    code, _, err = run(capsys, "federate", "--resume", str(folder), "--rounds", "3")
    assert (code, "with --resume the run folder has all other settings" in err) == (3, True)
    flags = ["--resume", str(folder), "--dataset", "digits"]
    code, _, err = run(capsys, "federate", *flags)
    assert (code, "other settings" in err) == (3, True)
    code, _, err = run(capsys, "federate", "--rounds", "3")
    assert (code, "no dataset was named" in err) == (3, True)
