"""Folders as the LiRA code of Carlini et al. and ML Privacy Meter write them: what is read, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memberscope.answers import read_answers
from memberscope.attacks.lira import LiraOnlinePerRecord
from memberscope.balance import others
from memberscope.errors import EvidenceError
from memberscope.score import score
from memberscope.signals import logit_scaled_confidence
from memberscope.statistics.curves import auc, rank

M, N, C, A = 8, 120, 5, 2


def answers_of(membership: np.ndarray, leak: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [M, N, A, C] of models that are surer of their members, and labels."""
    rng = np.random.default_rng(seed)
    n = membership.shape[1]
    labels = rng.integers(0, C, n)
    logits = rng.normal(size=(len(membership), n, A, C))
    rows = np.arange(n)
    logits[:, rows, :, labels] += (1 + rng.normal(size=(n, 1)) + leak * membership.T)[..., None]
    return logits.astype(np.float32), labels


def write_lira(root: Path, *, balanced: bool = True, epochs: tuple[int, ...] = (9, 10), n: int = N) -> np.ndarray:
    """As train.py, inference.py and score.py of research/mi_lira_2021 leave it; the membership bool [M, N]."""
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0, 1, size=(M, n))
    membership = drawn.argsort(0) < int(0.5 * M) if balanced else drawn <= 0.5
    logits, labels = answers_of(membership)
    root.mkdir(parents=True)
    np.save(root / "x_train.npy", np.zeros((n, 2, 2, 3), np.float32))
    np.save(root / "y_train.npy", labels)
    for expid in range(M):
        folder = root / f"experiment-{expid}_{M}"
        (folder / "logits").mkdir(parents=True)
        (folder / "scores").mkdir()
        (folder / "ckpt").mkdir()
        (folder / "tb").mkdir()
        (folder / "hparams.json").write_text(json.dumps({"arch": "wrn28-2", "num_experiments": M, "pkeep": 0.5}))
        np.save(folder / "keep.npy", np.array(membership[expid], dtype=bool))
        for epoch in epochs:
            shift = 0 if epoch == max(epochs) else 100 * (np.arange(C) == 0)  # earlier epochs answer otherwise
            saved = (logits[expid] + shift)[:, None, :, :].astype(np.float32)
            np.save(folder / "logits" / f"{epoch:010d}", saved)
            np.save(folder / "scores" / f"{epoch:010d}.npy", statistic(saved, labels))
    return membership


def statistic(saved: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What score.py computes from logits [N, 1, A, C]: float64 [N, A]."""
    p = np.exp((saved - saved.max(axis=3, keepdims=True)).astype(np.float64))
    p = p / p.sum(axis=3, keepdims=True)
    rows = np.arange(len(labels))
    right = p[rows, :, :, labels]
    p[rows, :, :, labels] = 0
    return np.asarray(np.log(right.mean(1) + 1e-45) - np.log(p.sum(axis=3).mean(1) + 1e-45))


def write_privacy_meter(root: Path, *, algorithm: str = "rmia", population: int = 40) -> np.ndarray:
    """As Privacy Meter 2 leaves it: models in complementary pairs, probabilities of the true class."""
    rng = np.random.default_rng(0)
    membership = np.full((M, N), True)
    for pair in range(M // 2):
        order = rng.permutation(N)
        membership[2 * pair, order[N // 2 :]] = False
        membership[2 * pair + 1, order[: N // 2]] = False
    logits, labels = answers_of(np.concatenate([membership, np.zeros((M, population), bool)], axis=1))
    p = 1 / (1 + np.exp(-logit_scaled_confidence(logits[:, :, 0], labels)))
    (root / "models").mkdir(parents=True)
    (root / "signals").mkdir()
    (root / "report" / "exp").mkdir(parents=True)
    np.save(root / "models" / "memberships.npy", membership)
    (root / "models" / "models_metadata.json").write_text(json.dumps({str(m): {"model_idx": m} for m in range(M)}))
    (root / "models" / "model_0.pkl").write_bytes(pickle.dumps({"weights": 1}))
    np.save(root / "signals" / f"{algorithm}_signals.npy", p.T[:N].astype(np.float32))
    if population:
        np.save(root / "signals" / f"{algorithm}_signals_pop.npy", p.T[N:].astype(np.float32))
    return membership


def told(path: Path, **more: Any) -> EvidenceError:
    with pytest.raises(EvidenceError) as refusal:
        read_answers(path, **more)
    return refusal.value


def test_lira_experiments_are_read_the_last_one_playing_the_target(tmp_path: Path) -> None:
    membership = write_lira(tmp_path / "exp", balanced=False)
    answers = read_answers(tmp_path / "exp")
    evidence = answers.evidence
    logits, labels = answers_of(membership)
    np.testing.assert_array_equal(answers.member, membership[-1])
    np.testing.assert_array_equal(evidence.labels, labels)
    np.testing.assert_array_equal(evidence.logits, np.moveaxis(logits[-1], 1, 0))
    assert evidence.reference_logits is not None
    np.testing.assert_array_equal(evidence.reference_logits, np.moveaxis(logits[:-1], 2, 1))
    np.testing.assert_array_equal(evidence.reference_membership, membership[:-1])
    assert evidence.queries == ("none", "flip")
    assert "wrn28-2" in answers.notes[0]
    assert "experiment-7_8 plays the target" in answers.notes[0]


def test_scores_alone_hold_the_same_confidences(tmp_path: Path) -> None:
    membership = write_lira(tmp_path / "exp", balanced=False)
    whole = read_answers(tmp_path / "exp", target=2).evidence
    phi, expected = whole.query_signals.phi, LiraOnlinePerRecord().score(whole)
    for folder in (tmp_path / "exp").glob("experiment*"):
        shutil.rmtree(folder / "logits")
    (tmp_path / "exp" / "y_train.npy").unlink()
    answers = read_answers(tmp_path / "exp", target=2)
    np.testing.assert_allclose(answers.evidence.query_signals.phi, phi, atol=1e-6)
    np.testing.assert_allclose(LiraOnlinePerRecord().score(answers.evidence), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(answers.member, membership[2])
    assert answers.class_names == ("another class", "the true class")
    assert not answers.evidence.has_logits
    assert any("scores alone" in note for note in answers.notes)


@pytest.mark.parametrize("target", [0, 5])
def test_a_target_of_the_balance_cannot_be_told_by_counting(tmp_path: Path, target: int) -> None:
    membership = write_lira(tmp_path / "exp")
    answers = read_answers(tmp_path / "exp", target=target)
    evidence = answers.evidence
    assert evidence.reference_membership is not None
    assert evidence.reference_logits is not None
    assert evidence.reference_membership.shape == (M - 2, N)
    np.testing.assert_array_equal(evidence.reference_membership.sum(axis=0), (M - 2) // 2)
    logits, _ = answers_of(membership)
    for n in range(N):  # every reference is another of the models, and the membership is that model's
        found = [np.flatnonzero((logits[:, n] == one).all(axis=(1, 2))) for one in evidence.reference_logits[:, :, n]]
        models = np.concatenate(found)
        assert len(set(models)) == M - 2
        assert target not in models
        np.testing.assert_array_equal(membership[models, n], evidence.reference_membership[:, n])
    assert any("one more of them" in note for note in answers.notes)


def test_without_a_leak_a_balanced_folder_gives_chance(tmp_path: Path) -> None:
    """Left as they are, the counts of 7 models give LiRA with a variance for each record an AUC of 0.43."""
    n = 3000
    rng = np.random.default_rng(1)
    membership = rng.random((M, n)).argsort(0) < M // 2
    phi = rng.normal(size=(M, n))
    figures = {"left": [], "all": []}  # type: dict[str, list[float]]
    for target in range(4):
        beside = others(membership, target)
        rest = np.delete(np.arange(M), target)
        for name, models, inside in (
            ("left", beside.models, beside.membership),
            ("all", np.tile(rest[:, None], n), membership[rest]),
        ):
            values = np.take_along_axis(phi, models, axis=0)
            world = [np.where(inside == side, values, np.nan) for side in (True, False)]
            mean, sd = [np.nanmean(w, axis=0) for w in world], [np.nanstd(w, axis=0) for w in world]
            z = [-0.5 * ((phi[target] - m) / s) ** 2 - np.log(s) for m, s in zip(mean, sd, strict=True)]
            figures[name].append(auc(rank(z[0] - z[1], membership[target])))
    assert abs(np.mean(figures["left"]) - 0.5) < 3 * 0.0105 / 2  # of four AUCs, each with 1,500 and 1,500 records
    assert np.mean(figures["all"]) < 0.46


def test_privacy_meter_is_read_without_the_targets_partner(tmp_path: Path) -> None:
    membership = write_privacy_meter(tmp_path / "run")
    answers = read_answers(tmp_path / "run")
    evidence = answers.evidence
    np.testing.assert_array_equal(answers.member, membership[0])
    np.testing.assert_array_equal(evidence.reference_membership, membership[2:])
    signals = np.load(tmp_path / "run" / "signals" / "rmia_signals.npy")
    np.testing.assert_allclose(evidence.signals.true_probability, signals[:, 0], rtol=1e-5)
    assert evidence.reference_logits is not None
    third = np.asarray(evidence.reference_logits[3])[0]
    np.testing.assert_allclose(1 / (1 + np.exp(third[:, 0] - third[:, 1])), signals[:, 5], rtol=1e-5)
    assert evidence.population_logits is not None
    assert evidence.population_logits.shape == (1, 40, 2)
    assert evidence.population_reference_logits is not None
    assert evidence.population_reference_logits.shape == (M - 2, 1, 40, 2)
    assert any("complement" in note for note in answers.notes)


@pytest.mark.parametrize("write", [write_lira, write_privacy_meter])
def test_a_folder_is_scored(tmp_path: Path, write: Any) -> None:
    membership = write(tmp_path / "run")
    heard: list[str] = []

    class Ear:
        def stage(self, title: str) -> None: ...
        def attack(self, name: str, position: int, total: int) -> None: ...
        def note(self, text: str) -> None:
            heard.append(text)

    audit = score(tmp_path / "run", target=3, attacks=("loss", "lira-online-pooled", "rmia-online"), events=Ear())  # type: ignore[arg-type]
    figures = {a["name"]: a["evaluation"]["auc"]["value"] for a in audit.document["attacks"]}
    assert figures["lira-online-pooled"] > 0.75
    assert audit.document["records"]["members"] == membership[3].sum()
    assert audit.document["reproduce"] == [
        "memberscope score run --target 3 --attacks loss lira-online-pooled rmia-online"
    ]
    assert "plays the target" in heard[0]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no answers that can be read" in told(tmp_path / "empty").problem
    write_lira(tmp_path / "outer" / "cifar10")
    assert "outer/cifar10 does" in told(tmp_path / "outer").problem
    assert "holds 8 models, and no number 8" in told(tmp_path / "outer" / "cifar10", target=8).problem
    np.savez(tmp_path / "file.npz", logits=np.zeros((4, 2)))
    assert "no folder of many models" in told(tmp_path / "file.npz", target=0).problem


def test_broken_lira_folders_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "exp"
    write_lira(root)
    labels = np.load(root / "y_train.npy")
    (root / "y_train.npy").unlink()
    assert "y_train.npy" in told(root).problem
    np.save(root / "y_train.npy", labels[:50])
    assert "expected whole numbers [N] with N at least 120" in told(root).problem
    np.save(root / "y_train.npy", labels)
    place = root / "experiment-7_8" / "logits" / "0000000010.npy"
    good = place.read_bytes()
    np.save(place, np.zeros((N, 2, C), np.float32))
    assert "expected [N, 1, A, C]" in told(root).problem
    place.write_bytes(good[: len(good) // 2])
    assert "cannot be read" in told(root).problem
    np.save(place, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "Python objects, which are never loaded" in told(root).problem
    place.write_bytes(pickle.dumps({"a": 1}))
    assert "is not an .npy file" in told(root).problem
    place.write_bytes(good)
    np.save(root / "experiment-7_8" / "keep.npy", np.ones(7, bool))
    assert "keep.npy" in told(root).problem


def test_experiments_without_answers_are_left_out_and_told(tmp_path: Path) -> None:
    root = tmp_path / "exp"
    membership = write_lira(root)
    shutil.rmtree(root / "experiment-7_8" / "logits")
    answers = read_answers(root)
    np.testing.assert_array_equal(answers.member, membership[6])
    assert any("1 of 8 experiments hold no logits" in note for note in answers.notes)
    for folder in root.glob("experiment*"):
        shutil.rmtree(folder / "logits", ignore_errors=True)
        shutil.rmtree(folder / "scores")
    assert "run inference.py" in told(root).hint


def test_broken_privacy_meter_folders_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_privacy_meter(root, algorithm="loss", population=0)
    assert read_answers(root).evidence.population_logits is None
    place = root / "signals" / "loss_signals.npy"
    signals = np.load(place)
    np.save(place, signals[:30])
    assert "with audit.data_size Privacy Meter draws records" in told(root).hint
    np.save(place, signals - 1)
    assert "outside 0..1" in told(root).problem
    signals[3] = 1
    np.save(place, signals)
    assert any("1 of 120 records have a probability that was rounded to 1" in note for note in read_answers(root).notes)
    place.rename(root / "signals" / "rmia_ramia_signals.npy")
    assert "audit once with Privacy Meter" in told(root).hint
