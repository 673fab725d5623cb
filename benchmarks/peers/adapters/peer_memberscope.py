"""memberscope, from the same arrays: logits to scores, the reduction of the reference logits counted."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from memberscope.attacks.base import InformedAttack
from memberscope.attacks.registry import get_attack
from memberscope.attacks.runner import score_records
from memberscope.evidence import Evidence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main

NAMES = (
    "lira-online-pooled",
    "lira-online-per-record",
    "lira-online-eb",
    "lira-offline-onesided",
    "lira-offline-twosided",
    "rmia-online",
    "rmia-online(T=2)",
    "rmia-offline",
    "rank-fusion",
    "taught-fusion",
    "difficulty-calibration",
    "difficulty-midpoint(phi)",
    "attack-r",
    "shadow-classifier",
    "four-features-lr",
    "four-features-trees",
    "loss",
    "gap",
)


def _scores(case: Case, name: str) -> np.ndarray:
    evidence = Evidence(
        case.logits[None],
        case.labels,
        reference_logits=case.reference_logits[:, None],
        reference_membership=case.reference_membership,
    )
    attack = get_attack(name)
    if issubclass(attack, InformedAttack):
        order = np.random.default_rng(0).permutation(len(case.labels))
        evidence = evidence.take(order)
        found = score_records(attack, evidence, case.member[order], rng=np.random.default_rng(0), folds=2)
        scores = np.empty(len(found))
        scores[order] = found
        return scores
    return score_records(attack, evidence, case.member, rng=np.random.default_rng(0))


if __name__ == "__main__":
    main({name: partial(_scores, name=name) for name in NAMES}, version("memberscope"))
