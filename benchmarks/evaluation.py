"""How long does it take to evaluate a score? Prints a table: seconds, and the ratio to one ROC curve of scikit-learn.

`evaluate` gives every figure with its interval: AUC, average precision, accuracies with thresholds of other folds, TPR
at five FPRs, TNR at two FNRs, PPV at three priors, the same for each class, and both curves. scikit-learn is timed on
`roc_curve` and `roc_auc_score` alone, without any interval. The two alternate; medians of 15 rounds. About half a
minute on one core, no data needed. Exits with 1 if 60,000 records take a second or more.

Usage: python benchmarks/evaluation.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn import metrics

from memberscope.statistics.evaluation import evaluate

ROUNDS = 15
CLAIM_RECORDS, CLAIM_SECONDS = 60_000, 1.0
CASES = [
    (10_000, 0, False),
    (60_000, 0, False),
    (60_000, 10, False),
    (60_000, 100, False),
    (60_000, 10, True),
    (1_000_000, 10, False),
]


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(records: int, classes: int, tied: bool) -> tuple[float, float, float]:
    """Median seconds of `evaluate`, of its JSON, and of scikit-learn's ROC and AUC."""
    rng = np.random.default_rng(0)
    member = rng.random(records) < 0.5
    score = rng.normal(member * 0.6, 1)
    score = np.round(score, 2) if tied else score
    label = rng.integers(classes, size=records) if classes else None
    evaluation = evaluate(score, member, label=label, rng=rng)
    rounds = [
        (
            seconds(lambda: evaluate(score, member, label=label, rng=rng)),
            seconds(lambda: json.dumps(evaluation.to_dict(), allow_nan=False)),
            seconds(lambda: (metrics.roc_curve(member, score), metrics.roc_auc_score(member, score))),
        )
        for _ in range(ROUNDS)
    ]
    ours, written, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
    return ours, written, theirs


def main() -> int:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}\n")
    print("| records | classes | scores | all figures, s | to JSON, s | ratio to one scikit-learn ROC and AUC |")
    print("|---:|---:|---|---:|---:|---:|")
    holds = True
    for records, classes, tied in CASES:
        ours, written, theirs = measure(records, classes, tied)
        holds &= records > CLAIM_RECORDS or ours < CLAIM_SECONDS
        kind = "two decimals" if tied else "untied"
        print(f"| {records:,} | {classes} | {kind} | {ours:.3f} | {written:.3f} | {ours / theirs:.1f} |", flush=True)
    print(f"\n{CLAIM_RECORDS:,} records in under {CLAIM_SECONDS:g} s: {'yes' if holds else 'NO'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
