"""sacroml (SACRO-ML): LiRA in its three modes, and its worst case.

Its LiRA trains the shadow models itself; here it is given the answers of the bank, in the lists that its own
`_get_shadow_signals` fills, and computes its scores. The worst case learns from four fifths of the true members and is
judged on the rest, ten times: one column a repetition.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sacroml.attacks import utils
from sacroml.attacks.likelihood_attack import LIRAAttack
from sacroml.attacks.worst_case_attack import WorstCaseAttack
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main

logging.disable(logging.INFO)


def _lira(case: Case, mode: str) -> np.ndarray:
    n = len(case.labels)
    outside: dict[int, list[float]] = {i: [] for i in range(n)}
    inside: dict[int, list[float]] = {i: [] for i in range(n)}
    for answers, trained in zip(case.reference_probabilities, case.reference_membership, strict=True):
        for i, p in enumerate(answers):
            (inside if trained[i] else outside)[i].append(utils.logit(p))
    with tempfile.TemporaryDirectory() as folder:
        attack = LIRAAttack(output_dir=folder, write_report=False, mode=mode)
        scores, _ = attack._compute_scores(case.labels, case.probabilities, outside, inside)
    return np.array(scores)[:, 1]  # the column that its own figures are computed from, in every mode


def _worst_case(case: Case) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        attack = WorstCaseAttack(output_dir=folder, write_report=False, n_dummy_reps=0, report_individual=True)
        attack.attack_from_preds(case.probabilities[case.member], case.probabilities[~case.member])
    order = np.concatenate([np.flatnonzero(case.member), np.flatnonzero(~case.member)])
    truth = case.member[order].astype(float)
    scores = np.full((len(order), attack.n_reps), np.nan)
    for column, (seed, told) in enumerate(zip(attack._get_reproducible_split(), attack.attack_metrics, strict=True)):
        _, asked = train_test_split(
            np.arange(len(order)), test_size=attack.test_prop, stratify=truth, random_state=seed, shuffle=True
        )
        assert np.array_equal(truth[asked], np.asarray(told["individual"]["member"], float))
        scores[order[asked], column] = told["individual"]["member_prob"]
    return scores


if __name__ == "__main__":
    main(
        {
            "LiRA online": lambda case: _lira(case, "online-carlini"),
            "LiRA offline, one-sided": lambda case: _lira(case, "offline"),
            "LiRA offline, two-sided": lambda case: _lira(case, "offline-carlini"),
            "classifier (rf)": _worst_case,
        },
        version("sacroml"),
    )
