"""TensorFlow Privacy (tensorflow-empirical-privacy or tensorflow-privacy): LiRA, calibration, and its attack suite.

Its LiRA takes a list of IN and a list of OUT confidences a record, negative where a member is likely. Its suite
(threshold, entropy, logistic regression) learns from records whose membership is known, in folds of its own.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import advanced_mia

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main


def _lists(case: Case, world: np.ndarray) -> list[np.ndarray]:
    return [case.reference_phi[world[:, i], i][:, None] for i in range(len(case.labels))]


def _lira(case: Case, option: str) -> np.ndarray:
    inside, outside = _lists(case, case.reference_membership), _lists(case, ~case.reference_membership)
    found = advanced_mia.compute_score_lira(case.phi[:, None], inside, outside, option=option, median_or_mean="mean")
    return -np.asarray(found)  # log p(OUT) - log p(IN), or log p(OUT): low where a member is likely


def _offset(case: Case) -> np.ndarray:
    found = advanced_mia.compute_score_offset(
        case.phi[:, None], _lists(case, case.reference_membership), _lists(case, ~case.reference_membership)
    )
    return np.asarray(found)


def _suite(case: Case, kind: str) -> np.ndarray:
    # Here and not above: beside a recent scikit-learn it does not import, and LiRA does.
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
        AttackInputData,
        AttackType,
    )
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.membership_inference_attack import (
        run_attacks,
    )

    inside, outside = case.member, ~case.member
    given = AttackInputData(
        logits_train=case.logits[inside],
        logits_test=case.logits[outside],
        labels_train=case.labels[inside],
        labels_test=case.labels[outside],
    )
    (result,) = run_attacks(given, attack_types=(getattr(AttackType, kind),)).single_attack_results
    scores = np.full(len(case.labels), np.nan)
    scores[inside], scores[outside] = result.membership_scores_train, result.membership_scores_test
    return scores


def _version() -> str:
    for name in ("tensorflow-empirical-privacy", "tensorflow-privacy"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise SystemExit("neither package is installed")


if __name__ == "__main__":
    main(
        {
            "LiRA online": lambda case: _lira(case, "both"),
            "LiRA offline, two-sided": lambda case: _lira(case, "out"),
            "offset (calibration)": _offset,
            "threshold": lambda case: _suite(case, "THRESHOLD_ATTACK"),
            "classifier (lr)": lambda case: _suite(case, "LOGISTIC_REGRESSION"),
        },
        _version(),
    )
