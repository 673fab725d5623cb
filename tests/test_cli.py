"""The command line as a user meets it: help at once, errors that say what to do, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memberscope.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    n = 3000
    y, member = rng.integers(0, 3, n), rng.random(n) < 0.5
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), y] += 2 + member
    path = tmp_path_factory.mktemp("answers") / "answers.npz"
    np.savez(path, logits=logits.astype(np.float32), labels=y, member=member)
    return path


@pytest.fixture(scope="module")
def run_folder(answers: Path) -> Path:
    folder = answers.parent / "run"
    with pytest.raises(SystemExit) as stop:
        main(["score", str(answers), "--out", str(folder), "--quiet"])
    assert stop.value.code == 0
    return folder


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from memberscope.cli import app; app(['--help'], result_action='return_value');"
        "heavy = [m for m in ('torch', 'sklearn', 'scipy', 'matplotlib', 'pandas') if m in sys.modules];"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memberscope audit --dataset digits" in done.stdout


@pytest.mark.parametrize("command", ["audit", "score", "bound", "report", "compare", "list"])
def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "For example:" in out
    assert f"memberscope {command}" in out


@pytest.mark.parametrize("command", [("audit",), ("federate",)])
def test_settings_stand_under_headings(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    heading, of = "", {}
    for line in out.splitlines():
        if line.startswith("╭"):
            heading = line.strip("╭─╮ ")
        elif (flag := line.lstrip("│* ").split(" ")[0]).startswith("--") and not flag.startswith("--no-"):
            of[flag] = heading
    assert "Parameters" not in of.values()
    assert of["--dataset"] == "Data"
    assert of["--epochs"] == "Training"
    assert of["--dp-epsilon"].startswith("Defenses")
    assert of["--seed"] == of["--quiet"] == "Running"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "sore")
    assert code == 3
    assert "unknown command 'sore'" in err
    assert "memberscope score" in err


@pytest.mark.parametrize("flags", [("--epoch", "3"), ("--epochs", "many"), ("--protocol", "guess")])
def test_a_mistyped_flag_is_a_failure_and_no_verdict(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    code, out, err = run(capsys, "audit", "--dataset", "digits", *flags)
    assert code == 3
    assert flags[0] in out + err


def test_unknown_attack_names_the_nearest(capsys: pytest.CaptureFixture[str], answers: Path, tmp_path: Path) -> None:
    code, _, err = run(capsys, "score", str(answers), "--attacks", "los", "--out", str(tmp_path / "r"))
    assert code == 3
    assert "did you mean loss" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attacks", "los"], "unknown attack 'los'\n  did you mean loss"),
        (["--out", "answers.npz"], "cannot write answers.npz: "),
    ],
    ids=["attack", "out"],
)
def test_an_audit_that_cannot_end_well_does_not_begin(
    capsys: pytest.CaptureFixture[str], answers: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(answers.parent)
    code, _, err = run(capsys, "audit", "--dataset", "digits", "--epochs", "1", "--models-dir", "none", *words)
    assert code == 3
    assert told in err
    assert "Obtaining the target" not in err


@pytest.mark.parametrize(
    ("flag", "value"), [("--seed", "-1"), ("--prior", "0"), ("--folds", "1"), ("--confidence", "1")]
)
def test_score_refuses_the_numbers_that_an_audit_refuses(
    capsys: pytest.CaptureFixture[str], answers: Path, tmp_path: Path, flag: str, value: str
) -> None:
    code, _, err = run(capsys, "score", str(answers), flag, value, "--out", str(tmp_path / "r"))
    assert code == 3
    assert f"{flag[2:]} = {value}" in err
    assert "is out of range" in err


def test_config_with_an_unknown_key_names_key_and_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "audit.toml"
    config.write_text('dataset = "digits"\nepocs = 3\n')
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--config", str(config)])
    assert stop.value.code != 0
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert "epocs" in text
    assert "audit.toml" in text.replace("│ ", "").replace(" ", "")


def test_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "audit", "--config", "nowhere.toml")
    assert code == 3
    assert "no config file 'nowhere.toml'" in err


def test_weights_without_membership(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "audit", "--dataset", "digits", "--weights", "w.safetensors")
    assert code == 3
    assert "--weights was given without --membership" in err


@pytest.mark.parametrize("what", ["datasets", "models", "attacks", "defenses"])
def test_list(capsys: pytest.CaptureFixture[str], what: str) -> None:
    code, out, _ = run(capsys, "list", what)
    expected = {"datasets": "cifar10", "models": "simplecnn", "attacks": "four-features-lr", "defenses": "dropout"}
    assert code == 0
    assert expected[what] in out


def test_list_shows_the_cards_of_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "attacks", "loss", "rmia-offline")
    assert code == 0
    first, second = out.strip().split("\n\n")
    assert first.startswith("loss\n  Loss threshold. Paper: Yeom")
    assert "Traps: " in second
    code, everything, _ = run(capsys, "list", "attacks", "--cards")
    assert code == 0
    assert first in everything
    code, _, err = run(capsys, "list", "attacks", "rmia-ofline")
    assert code == 3
    assert "did you mean rmia-offline" in err
    code, _, err = run(capsys, "list", "models", "mlp")
    assert code == 3
    assert "takes no further word" in err


def test_score_writes_exactly_the_promised_files(run_folder: Path) -> None:
    expected = {
        "roc_curve.png", "roc_curve_loglog.png", "pr_curve.png", "confusion_matrix.png", "accuracy_curve.png",
        "loss_curve.png", "results.csv", "results.json", "scores.csv.gz", "config.toml", "environment.json",
        "report.html",
    }  # fmt: skip
    expected |= {f"class_{k}_{what}.png" for k in range(3) for what in ("roc_curve", "confidence_histogram")}
    assert {path.name for path in run_folder.iterdir()} == expected


def test_the_command_of_a_score_names_what_was_asked_for(
    capsys: pytest.CaptureFixture[str], answers: Path, tmp_path: Path
) -> None:
    words = ["--attacks", "gap", "--confidence", "0.9", "--seed", "3", "--ignore", "MIA015"]
    _, out, _ = run(capsys, "score", str(answers), *words, "--json", "--out", str(tmp_path / "r"))
    document = json.loads(out)
    assert document["run"]["command"] == " ".join(["memberscope score answers.npz", *words])
    assert document["reproduce"] == [document["run"]["command"]]


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], answers: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "score", str(answers), "--out", str(tmp_path / "r"), "--json", "--attacks", "loss")
    document = json.loads(out)
    assert code == 0
    assert document["headline"] == "loss"
    assert document["attacks"][0]["evaluation"]["auc"]["value"] > 0.6


def test_same_seed_same_scores(
    capsys: pytest.CaptureFixture[str], answers: Path, run_folder: Path, tmp_path: Path
) -> None:
    run(capsys, "score", str(answers), "--out", str(tmp_path / "again"), "--quiet")
    assert (tmp_path / "again" / "scores.csv.gz").read_bytes() == (run_folder / "scores.csv.gz").read_bytes()


def test_a_run_folder_is_never_overwritten(capsys: pytest.CaptureFixture[str], answers: Path, run_folder: Path) -> None:
    before = (run_folder / "results.json").read_bytes()
    code, _, err = run(capsys, "score", str(answers), "--out", str(run_folder), "--quiet")
    assert code == 3
    assert "exists and is not empty" in err
    assert (run_folder / "results.json").read_bytes() == before


def test_report_renders_again_to_the_same_bytes(capsys: pytest.CaptureFixture[str], run_folder: Path) -> None:
    before = (run_folder / "report.html").read_bytes()
    code, out, _ = run(capsys, "report", str(run_folder))
    assert code == 0
    assert out.strip().endswith("report.html")
    assert (run_folder / "report.html").read_bytes() == before


def test_report_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "report", str(tmp_path))
    assert code == 3
    assert "is not a run folder" in err


@pytest.mark.parametrize(("threshold", "code"), [(0.99, 0), (0.01, 1), (0.18, 2)])
def test_policy_sets_the_exit_code(
    capsys: pytest.CaptureFixture[str], answers: Path, tmp_path: Path, threshold: float, code: int
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'[policy]\nmetric = "tpr"\nfpr = 0.1\nthreshold = {threshold}\nowner = "DPO"\nreason = "test"\n'
        if code != 2
        else f'[policy]\nmetric = "tpr"\nfpr = 0.00001\nthreshold = {threshold}\nowner = "DPO"\nreason = "test"\n'
    )
    found, out, _ = run(
        capsys, "score", str(answers), "--attacks", "loss", "--policy", str(policy), "--out", str(tmp_path / "r")
    )
    assert found == code
    assert "Policy (DPO):" in out


def test_compare(capsys: pytest.CaptureFixture[str], answers: Path, run_folder: Path, tmp_path: Path) -> None:
    run(capsys, "score", str(answers), "--attacks", "gap", "--out", str(tmp_path / "gap"), "--quiet")
    code, out, _ = run(capsys, "compare", str(run_folder), str(tmp_path / "gap"), "--out", str(tmp_path / "both"))
    assert code == 0
    assert "gap" in out
    assert any(path.suffix == ".png" for path in (tmp_path / "both").iterdir())


def test_compare_by_one_attack(capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path) -> None:
    words = ["compare", str(run_folder), str(run_folder), "--out", str(tmp_path / "both"), "--attack"]
    code, out, _ = run(capsys, *words, "entropy")
    assert code == 0
    assert sum("  entropy  " in line for line in out.splitlines()) == 2
    code, _, err = run(capsys, *words, "entropie")
    assert code == 3
    assert "no run has figures of 'entropie'" in err


def test_compare_needs_two(capsys: pytest.CaptureFixture[str], run_folder: Path) -> None:
    code, _, err = run(capsys, "compare", str(run_folder))
    assert code == 3
    assert "at least two" in err


def test_an_interrupted_command_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt("interrupted: 3 of 16 reference models are trained and kept")

    monkeypatch.setattr("memberscope.console.run_audit", interrupted)
    code, _, err = run(capsys, "audit", "--dataset", "digits")
    assert code == 130
    assert err == "\nInterrupted: 3 of 16 reference models are trained and kept.\n"
