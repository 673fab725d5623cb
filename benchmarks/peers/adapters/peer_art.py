"""adversarial-robustness-toolbox (ART): its black-box attack, a classifier of the target's answers.

It learns from records whose membership the attacker knows: here from one half of them, and scores the other, both ways.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from art.attacks.inference.membership_inference import MembershipInferenceBlackBox, MembershipInferenceBlackBoxRuleBased
from art.estimators.classification import BlackBoxClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main


def _target(case: Case) -> BlackBoxClassifier:
    """A classifier whose records are their own numbers."""
    classes = case.logits.shape[1]
    return BlackBoxClassifier(lambda x: case.probabilities[x[:, 0].astype(int)], (1,), classes)


def _learned(case: Case, kind: str) -> np.ndarray:
    fold = np.random.default_rng(0).permutation(len(case.labels)) % 2
    scores = np.empty(len(case.labels))
    for k in (0, 1):
        known, asked = fold != k, fold == k
        attack = MembershipInferenceBlackBox(_target(case), attack_model_type=kind)
        inside, outside = known & case.member, known & ~case.member
        attack.fit(
            x=None,
            y=case.labels[inside],
            test_x=None,
            test_y=case.labels[outside],
            pred=case.probabilities[inside],
            test_pred=case.probabilities[outside],
        )
        found = attack.infer(None, case.labels[asked], pred=case.probabilities[asked], probabilities=True)
        scores[asked] = found[:, -1]
    return scores


def _gap(case: Case) -> np.ndarray:
    attack = MembershipInferenceBlackBoxRuleBased(_target(case))
    return attack.infer(np.arange(len(case.labels))[:, None], case.labels)


if __name__ == "__main__":
    main(
        {
            "gap": _gap,
            "classifier (lr)": lambda case: _learned(case, "lr"),
            "classifier (rf)": lambda case: _learned(case, "rf"),
            "classifier (gb)": lambda case: _learned(case, "gb"),
            "classifier (nn, its default)": lambda case: _learned(case, "nn"),
        },
        version("adversarial-robustness-toolbox"),
    )
