"""Difficulty calibration: a record's confidence less what is usual for that record."""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, ReferenceAttack
from memberscope.attacks.lira import fit_worlds
from memberscope.reference_moments import means
from memberscope.reference_signals import log_probability
from memberscope.signals import Floats

_COST = "from one reference model on; one query a record"


def mean_log_probabilities(comparison: Comparison) -> tuple[Floats, Floats]:
    """Mean ``log p_y`` of the IN and of the OUT models, float64 [A, N]; an empty world borrows, moved by the shift."""
    inside, outside = comparison.references.mean_log_probability()
    has_in, has_out = comparison.references.n_in > 0, comparison.references.n_out > 0
    if not has_in.any() or (has_in & has_out).all():
        return inside, outside
    some_in, some_out = (has_in & has_out,) * 2 if (has_in & has_out).any() else (has_in, has_out)
    shift = inside[:, some_in].mean(axis=1, keepdims=True) - outside[:, some_out].mean(axis=1, keepdims=True)
    return np.where(has_in, inside, outside + shift), np.where(has_out, outside, inside - shift)


class DifficultyCalibration(ReferenceAttack):
    """Loss less the mean loss of models that did not see the record."""

    name = "difficulty-calibration"
    title = "Difficulty calibration (Watson)"
    card = Card(
        "Watson et al. 2022 (ICLR), eq. 4",
        "mean loss over OUT models less the target's loss, averaged over queries",
        _COST + "; OUT models only",
        "on phi instead of the loss it finds four times as many members at 0.1 % FPR: that is lira-offline-onesided.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Calibrated loss."""
        _, outside = mean_log_probabilities(comparison)
        return np.asarray((log_probability(comparison.phi()) - outside).mean(axis=0))


class DifficultyMidpoint(ReferenceAttack):
    """Loss against the middle between models that saw the record and models that did not."""

    name = "difficulty-midpoint"
    title = "Difficulty midpoint (Sablayrolles)"
    needs = ONLINE
    card = Card(
        "Sablayrolles et al. 2019 (ICML), section 5 (MALT)",
        "(mean loss over IN models + mean loss over OUT models) / 2 less the target's loss, averaged over queries",
        _COST,
        "does not know how far the two worlds lie apart, so a record that training hardly moves counts as much as one "
        "that it moves far.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Loss against the midpoint."""
        inside, outside = mean_log_probabilities(comparison)
        return np.asarray((log_probability(comparison.phi()) - 0.5 * (inside + outside)).mean(axis=0))


class DifficultyMidpointPhi(ReferenceAttack):
    """Logit-scaled confidence against the middle of both worlds."""

    name = "difficulty-midpoint(phi)"
    title = "Difficulty midpoint on phi"
    needs = ONLINE
    card = Card(
        "Sablayrolles et al. 2019 (ICML), section 5, on the scale of Carlini et al. 2022 (S&P), table II",
        "phi - (mean phi over IN models + mean phi over OUT models) / 2, averaged over queries",
        _COST,
        DifficultyMidpoint.card.traps,
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Phi against the midpoint."""
        worlds = fit_worlds(comparison)
        return np.asarray((comparison.phi() - 0.5 * (worlds.mean_in + worlds.mean_out)).mean(axis=0))


class AttackR(ReferenceAttack):
    """Rank of the target among the models that did not see the record."""

    name = "attack-r"
    title = "Attack-R (rank among OUT models)"
    card = Card(
        "Ye et al. 2022 (CCS), section 4.3",
        "share of OUT models with a larger loss, averaged over queries; within a step records are ordered by how many "
        "standard deviations they lie above the OUT mean",
        "K reference models, OUT only; one query a record",
        "its steps are 1 / (OUT models + 1) wide: as published it says nothing below that FPR.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Share of OUT models that are less confident."""
        phi, references = comparison.phi(), comparison.references

        def less_confident(block: Floats, query: int, rows: slice) -> None:
            np.less(block, phi[query, rows, None], out=block)

        _, share = means(references.phi(), less_confident)
        worlds = fit_worlds(comparison)
        within = 0.5 + np.arctan((phi - worlds.mean_out) / np.sqrt(worlds.var_out)) / np.pi
        share = np.where(references.n_out > 0, share, within)
        return np.asarray(((share * references.n_out + within) / (references.n_out + 1)).mean(axis=0))
