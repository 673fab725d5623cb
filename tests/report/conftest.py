"""Invented results for the tests of the report: simulated scores, evaluated and assembled by the real code.

No number made here measures anything. `make_results` gives what `results.json` would hold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from memberscope import document
from memberscope.attacks.base import Attack, Card
from memberscope.attacks.registry import ATTACKS
from memberscope.attacks.runner import AttackResult, Null
from memberscope.checks import Finding
from memberscope.evidence import Knowledge
from memberscope.report.histogram import score_histogram
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.curves import rank
from memberscope.statistics.evaluation import evaluate

STRENGTH = {
    "four-features-lr": 0.95,
    "four-features-trees": 0.9,
    "gap": 0.45,
    "loss": 0.6,
    "phi": 0.6,
    "hinge": 0.62,
    "confidence": 0.5,
}
NINE = (
    "four-features-lr",
    "four-features-trees",
    "gap",
    "loss",
    "phi",
    "hinge",
    "confidence",
    "entropy",
    "modified-entropy",
)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CHECKS = (
    Finding("MIA001", "Members and non-members differ without the model", "passed", "They cannot be told apart.", {}),
    Finding("MIA002", "Records in both groups", "caution", "12 members and 12 non-members have equal content.", {}),
    Finding("MIA003", "Reference accuracy", "not applicable", "No reference models were used.", {}),
    Finding("MIA008", "Attacks at chance on permuted membership", "passed", "All sit at chance.", {}),
    Finding("MIA013", "Unverified files", "muted", "Muted by the user. Files were not verified.", {}),
)
PROBLEM = Finding(
    "MIA001",
    "Members and non-members differ without the model",
    "problem",
    "A classifier that never saw the model tells members from non-members (AUC 0.61, permutation p = 0.0099).",
    {"auc": 0.61},
)


def simulated(
    n: int, classes: int, strength: float, rng: np.random.Generator, truth: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """Scores that shift members by `strength`, more in some classes, with a heavy tail of sure cases."""
    shift = strength * (0.5 + label / max(1, classes - 1)) * rng.gamma(0.7, 1.0, n)
    return rng.normal(size=n) + truth * shift


def attack_class(name: str, title: str = "", needs: frozenset[Knowledge] | None = None) -> type[Attack]:
    """An attack of this name; nothing runs it."""
    card = Card("Nobody 2026, section 1", "f(x)", "one query a record", "invented for a test.")
    body = {
        "name": name,
        "title": title or name,
        "needs": needs or frozenset({Knowledge.PROBABILITIES}),
        "card": card,
        "score": lambda self, evidence: np.zeros(evidence.n_records),
    }
    return type("Invented", (Attack,), body)


def build(
    *,
    n: int = 4000,
    classes: tuple[str, ...] = CIFAR,
    attacks: int | None = None,
    kind: str = "audit",
    strength: float = 1.0,
    seed: int = 0,
    run_id: str = "cifar10_epoch50_2026-11-23_10-00-00",
) -> dict[str, Any]:
    """The document of an invented run with n members and n non-members."""
    rng = np.random.default_rng(seed)
    truth = np.arange(2 * n) < n
    label = rng.integers(0, len(classes), 2 * n)
    kinds = (
        [ATTACKS[name] for name in NINE] if attacks is None else [attack_class(f"attack{i}") for i in range(attacks)]
    )
    results = []
    for i, attack in enumerate(kinds):
        own = 0.9 * strength * (STRENGTH.get(attack.name, 0.9 - 0.03 * i))
        score = simulated(2 * n, len(classes), own, rng, truth, label)
        if attack.name == "gap":
            score = (score > -0.6).astype(float)
        if attack.probability:
            score = 1 / (1 + np.exp(-score))
        evaluation = evaluate(
            score,
            truth,
            name=attack.name,
            label=label,
            class_names=classes,
            rng=np.random.default_rng(1),
            probability=attack.probability,
        )
        null = Null(auc_estimate(rank(score, rng.permutation(truth)), 0.999), 0.999)
        results.append(AttackResult(attack, "run", "", 0.31 + i, score, evaluation, null))
    results.append(
        AttackResult(
            attack_class("lira", "Likelihood ratio", frozenset({Knowledge.REFERENCES})),
            "skipped",
            "needs reference models trained on known random halves of the pool. Train them with --shadows K.",
        )
    )
    results.append(
        AttackResult(
            attack_class("broken", "Somebody's plug-in"),
            "failed",
            "ZeroDivisionError: division by zero (score, line 12)",
            0.02,
        )
    )
    assembled = document.assemble(
        kind=kind,
        dataset=_dataset(classes, n, kind),
        records={
            "protocol": "holdout" if kind == "audit" else "given",
            "members": n,
            "nonmembers": n,
            "validation": n // 10,
            "class_mix_difference": 0.0123,
        },
        target=_target() if kind == "audit" else None,
        results=results,
        member=truth,
        findings=CHECKS,
        settings={"dataset": "cifar10", "attacks": ["auto"], "folds": 5, "confidence": 0.95, "seed": 0, "epochs": 50},
        environment={
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "device": "cpu",
            "cores": 2,
        },
        run={
            "id": run_id,
            "created": "2026-11-23T10:00:00+00:00",
            "tool_version": "0.1.0",
            "command": "memberscope audit cifar10",
            "seed": 0,
            "seconds": {"data": 0.4, "training": 61.0, "attacks": 12.3, "total": 75.1},
        },
        policy=None,
        top_records=None,
        reproduce=["memberscope audit --config config.toml"],
        confidence=0.95,
        seed=0,
    )
    for entry, result in zip(assembled["attacks"], results, strict=True):
        if result.scores is not None:
            entry["histogram"] = score_histogram(result.scores, truth)
    assembled["files"] = [{"name": "roc_curve.png", "bytes": 41234, "sha256": "ab" * 32}]
    return document.without_nan(assembled)


def _dataset(classes: tuple[str, ...], n: int, kind: str) -> dict[str, Any]:
    return {
        "name": "cifar10",
        "source": "official files",
        "verified": True if kind == "audit" else None,
        "fingerprint": "0123456789abcdef",
        "n_records": 2 * n,
        "n_classes": len(classes),
        "classes": list(classes),
        "input_shape": [3, 32, 32] if kind == "audit" else None,
    }


def _target() -> dict[str, Any]:
    history = [
        {
            "epoch": e,
            "train_loss": 2.2 * 0.93**e,
            "train_acc": 1 - 0.75 * 0.93**e,
            "val_loss": 1.0 + 0.9 * 0.8**e + 0.01 * e,
            "val_acc": 0.71 - 0.4 * 0.8**e,
        }
        for e in range(1, 51)
    ]
    return {
        "model": "simple-cnn",
        "epochs": 50,
        "recipe": {"model": "simple-cnn", "epochs": 50, "optimizer": "sgd", "learning_rate": 0.05},
        "trained": True,
        "origin": "trained in this run",
        "train_acc": 0.9801,
        "val_acc": 0.7105,
        "test_acc": 0.7072,
        "generalization_gap": 0.2729,
        "weights_sha256": "c0ffee" * 10 + "abcd",
        "parameters": 545_098,
        "precision": "bf16",
        "device": "cpu",
        "images_per_second": 24_310.2,
        "history": history,
    }


@cache
def _cached(**settings: Any) -> Mapping[str, Any]:
    return build(**settings)


@pytest.fixture
def make_results() -> Callable[..., dict[str, Any]]:
    """`build`, computed once for the same arguments and copied, so that a test may change what it gets."""

    def make(**settings: Any) -> dict[str, Any]:
        return copy.deepcopy(dict(_cached(**settings)))

    return make
