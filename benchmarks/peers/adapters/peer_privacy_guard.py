"""privacyguard-platform (facebookresearch/PrivacyGuard): LiRA, RMIA and calibration on data frames of confidences.

Defaults are its own but for one: by default its online RMIA averages the larger half of the reference models' answers,
which is told apart from the average over all of them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from privacy_guard.analysis.mia.aggregate_analysis_input import AggregationType
from privacy_guard.attacks.calib_attack import CalibAttack, CalibScoreType
from privacy_guard.attacks.lira_attack import LiraAttack
from privacy_guard.attacks.rmia_attack import RmiaAttack

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main


def _in_order(case: Case, result: Any) -> np.ndarray:
    """Scores of members and non-members, which it takes apart, in the order of the records."""
    scores = np.empty(len(case.member))
    scores[case.member] = result.df_train_user["score"]
    scores[~case.member] = result.df_test_user["score"]
    return scores


def _lira(case: Case, online: bool) -> np.ndarray:
    """Means and deviations as its prepare_lira_data computes them, then its attack."""
    columns: dict[str, Any] = {"user_id": np.arange(len(case.labels)), "score_orig": case.phi}
    for name, world in (("in", case.reference_membership), ("out", ~case.reference_membership)):
        masked = np.where(world, case.reference_phi, np.nan)
        columns[f"score_mean_{name}"] = np.nanmean(masked, axis=0)
        columns[f"score_std_{name}"] = np.nanstd(masked, axis=0) + 1e-8
    frame = pd.DataFrame(columns).rename(
        columns={} if online else {"score_mean_out": "score_mean", "score_std_out": "score_std"}
    )
    attack = LiraAttack(
        frame[case.member].copy(), frame[~case.member].copy(), AggregationType.NONE, online_attack=online
    )
    return _in_order(case, attack.run_attack())


def _rmia(case: Case, online: bool, models: int | None = None) -> np.ndarray:
    """Its population z is scored like the other records too."""
    columns = {f"score_ref_{k}": row for k, row in enumerate(case.reference_probabilities)}
    columns |= {f"member_ref_{k}": row for k, row in enumerate(case.reference_membership)}
    frame = pd.DataFrame({"user_id": np.arange(len(case.labels)), "score_orig": case.own_probability} | columns)
    attack = RmiaAttack(
        frame[case.member].copy(),
        frame[~case.member].copy(),
        frame.iloc[case.population_rows].copy(),
        AggregationType.NONE,
        num_reference_models=models,
        online=online,
    )
    return _in_order(case, attack.run_attack())


def _calibration(case: Case) -> np.ndarray:
    """Loss less that of another model: here the mean probability of the OUT models."""
    world = ~case.reference_membership
    outside = np.where(world, case.reference_probabilities, 0).sum(axis=0) / world.sum(axis=0)
    frames = [
        pd.DataFrame({"user_id": np.arange(len(p)), "label": 1, "predictions": p})
        for p in (case.own_probability, outside)
    ]
    parts = [frame[rows].copy() for frame in frames for rows in (case.member, ~case.member)]
    return _in_order(case, CalibAttack(*parts, AggregationType.NONE, True, CalibScoreType.LOSS).run_attack())


if __name__ == "__main__":
    main(
        {
            "LiRA online": lambda case: _lira(case, True),
            "LiRA offline": lambda case: _lira(case, False),
            "RMIA online, larger half": lambda case: _rmia(case, True),
            "RMIA online": lambda case: _rmia(case, True, len(case.reference_membership)),
            "RMIA offline": lambda case: _rmia(case, False),
            "calibration (loss)": _calibration,
        },
        version("privacyguard-platform"),
    )
