"""`memberscope bound`: what it reads, what it refuses, what it proves, and its exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from memberscope.cli import main
from memberscope.errors import EvidenceError
from memberscope.score_files import read_scores
from memberscope.statistics.privacy_bounds import bound, bound_each


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["bound", *words])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    member = rng.random(1000) < 0.5
    return {"member": member, "strong": rng.normal(size=1000) + 1.5 * member, "noise": rng.normal(size=1000)}


@pytest.fixture(scope="module")
def table(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = ["index,class,member,strong,noise"]
    columns = zip(arrays["member"], arrays["strong"].tolist(), arrays["noise"].tolist(), strict=True)
    lines += [f"{i},cat,{int(member)},{strong!r},{noise!r}" for i, (member, strong, noise) in enumerate(columns)]
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_folder(folder: Path, arrays: dict[str, np.ndarray], protocol: str, **target: object) -> Path:
    """What `memberscope bound` reads of a run folder, and no more."""
    folder.mkdir()
    attacks = [
        {"name": "strong", "needs": ["probabilities"]},
        {"name": "noise", "needs": ["probabilities", "some membership"]},
    ]
    document = {
        "schema_version": 1, "kind": "audit", "run": {}, "dataset": {}, "attacks": attacks, "headline": "strong",
        "records": {"protocol": protocol}, "ladder": [], "exposed": {}, "checks": [], "settings": {},
        "environment": {}, "target": target,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(document))
    rows = [
        f"{i},0,{int(m)},{s!r},{s!r},0.3"
        for i, (m, s) in enumerate(zip(*map(np.ndarray.tolist, (arrays["member"], arrays["strong"])), strict=True))
    ]
    text = "\n".join(["index,class,member,strong,noise,posterior", *rows]) + "\n"
    (folder / "scores.csv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_a_file_without_a_design_gives_no_bound_and_says_what_lacks(capsys, table):
    code, out, _ = run(capsys, str(table))
    assert code == 2
    assert "not a bound" in out
    assert "Say --design" in out


def test_all_scores_at_once_each_with_its_share(capsys, table, arrays):
    code, out, _ = run(capsys, str(table), "--design", "coin-flips", "--json")
    assert code == 0
    document = json.loads(out)
    expected = bound_each({k: arrays[k] for k in ("strong", "noise")}, arrays["member"], design="coin-flips")
    assert list(document["bounds"]) == ["strong", "noise"]
    for name, found in document["bounds"].items():
        assert found["epsilon"] == expected[name].epsilon
        assert found["searched"] == 2
    assert document["comparison"] is None


def test_one_attack_named_in_advance_pays_for_no_search(capsys, table, arrays):
    _, out, _ = run(capsys, str(table), "--design", "coin-flips", "--attacks", "strong", "--guesses", "80,20", "--json")
    found = json.loads(out)["bounds"]["strong"]
    expected = bound(arrays["strong"], arrays["member"], design="coin-flips", guesses=(80, 20))
    assert found["epsilon"] == expected.epsilon > 1
    assert found["counts"] == {"guesses_in": 80, "guesses_out": 20}


def test_npz_and_csv_say_the_same(table, arrays, tmp_path):
    np.savez(tmp_path / "s.npz", index=np.arange(1000), **arrays)
    packed = tmp_path / "s.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    tables = [read_scores(path) for path in (table, packed, tmp_path / "s.npz")]
    for found in tables:
        assert list(found.scores) == ["strong", "noise"]
        assert found.design is None
        np.testing.assert_array_equal(found.scores["strong"], arrays["strong"])
        np.testing.assert_array_equal(found.member, arrays["member"])


def test_several_runs_go_by_thresholds(capsys, tmp_path):
    had = np.repeat([1, 0], 500)
    np.savez(tmp_path / "runs.npz", member=had, score=np.random.default_rng(1).normal(size=1000) + 3 * had)
    words = (str(tmp_path / "runs.npz"), "--method", "several-runs", "--design", "independent-runs")
    code, out, _ = run(capsys, *words, "--threshold", "1.5")
    assert code == 0
    assert "1,000 runs" in out
    code, _, err = run(capsys, *words)
    assert code == 3
    assert "threshold" in err


def test_a_claim_above_the_bound_stands_and_one_below_is_broken_loudly(capsys, table):
    words = (str(table), "--design", "coin-flips", "--attacks", "strong")
    code, out, _ = run(capsys, *words, "--claimed", "8")
    assert code == 0
    assert "≤ true ε ≤ 8.00" in out
    code, out, _ = run(capsys, *words, "--claimed", "1")
    assert code == 1
    assert "BROKEN DP CLAIM" in out
    code, out, _ = run(capsys, *words, "--claimed", "1", "--copies", "3")
    assert code == 0, "a group of three copies has three times the epsilon"


def test_a_run_knows_its_design_its_attacks_and_its_claim(capsys, tmp_path, arrays):
    folder = run_folder(tmp_path / "run", arrays, "random-half", privacy={"epsilon": 0.5, "delta": 1e-6})
    for path in (folder, folder / "scores.csv.gz"):
        code, out, _ = run(capsys, str(path), "--json")
        document = json.loads(out)
        assert code == 1, "the run's own accountant claims 0.5"
        assert document["comparison"]["verdict"] == "contradiction"
        assert list(document["bounds"]) == ["strong"]
        assert document["bounds"]["strong"]["delta"] == 1e-6
        assert document["left_out"] == {"noise": "it learnt from the membership of other records of this audit"}
    code, _, err = run(capsys, str(folder), "--attacks", "noise")
    assert code == 3
    assert "learnt from the membership" in err


@pytest.mark.parametrize("words", [(), ("--design", "coin-flips")])
def test_a_run_whose_members_nobody_drew_is_refused(capsys, tmp_path, arrays, words):
    code, out, err = run(capsys, str(run_folder(tmp_path / "run", arrays, "holdout")), *words)
    assert code == 3
    assert not out
    assert "holdout" in err


def test_a_run_without_canaries_says_so(capsys, tmp_path, arrays):
    code, _, err = run(capsys, str(run_folder(tmp_path / "run", arrays, "random-half")), "--records", "canaries")
    assert code == 3
    assert "--canaries" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("member,a\n", "holds no record"),
        ("member,a\n1,2\n0\n", "row 3: expected 2 fields, found 1"),
        ("a,b\n1,2\n", "has no member"),
        ("member\n1\n0\n", "holds no scores"),
        ("member,a\n1,2\n2,3\n", "values other than 0 and 1"),
        ("member,a\n1,2\n1,3\n", "names no non-members"),
        ("member,a\n1,x\n0,3\n", "'a' holds words"),
        ("member,a,a\n1,2,3\n0,3,4\n", "two columns of one name"),
    ],
)
def test_broken_tables_say_what_is_wrong(tmp_path, content, told):
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(EvidenceError, match=told):
        read_scores(path)


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "o.npz", member=np.array([1, 0]), a=np.array([{}, {}], dtype=object))
    with pytest.raises(EvidenceError, match="cannot be read"):
        read_scores(tmp_path / "o.npz")


def test_npz_of_matrices_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", member=np.array([1, 0]), a=np.zeros((2, 3)))
    with pytest.raises(EvidenceError, match=r"a has shape \(2, 3\)"):
        read_scores(tmp_path / "m.npz")


@pytest.mark.parametrize(("flag", "value"), [("--guesses", "many"), ("--threshold", "high"), ("--attacks", "strnog")])
def test_bad_settings_name_what_would_do(capsys, table, flag, value):
    words = ("--method", "several-runs") if flag == "--threshold" else ()
    code, _, err = run(capsys, str(table), "--design", "coin-flips", flag, value, *words)
    assert code == 3
    assert value in err
