"""z-scores: each round a client's figure against those of the other clients, on a scale shared by the records.

FedMIA takes the normal distribution function of each round's z-score, which saturates: ten strong rounds and ten decent
ones then look alike. And its scale comes from the few other clients, record by record, which is noisy. Here the
z-scores are averaged as they are, on a scale pooled over the records of a client and round.
"""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import UPDATES, PairAttack, mean_over_rounds
from memberscope.errors import EvidenceError
from memberscope.rounds import Rounds

_PAPER = "this project; FedMIA (Zhu et al., CVPR 2025) with pooled scale and without saturation"
_TRAP = "a non-member that another client trained on lowers its score; needs three clients a round"


class ZCosine(PairAttack):
    """Pooled z-score of the gradient-update cosine."""

    name, title, needs = "fl-z-cosine", "z-score of the cosine among clients", UPDATES
    card = Card(
        _PAPER,
        "mean over rounds of (cos_k - mean of other clients) / pooled sigma",
        "one gradient a record and round, for all clients together",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean z-score."""
        return pooled_z(rounds, "cosine")


class ZLoss(PairAttack):
    """Pooled z-score of the logit-scaled confidence."""

    name, title, needs = "fl-z-loss", "z-score of the confidence among clients", UPDATES
    card = Card(
        _PAPER,
        "mean over rounds of (phi_k - mean of other clients) / pooled sigma",
        "one forward pass a record, client and round",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean z-score."""
        return pooled_z(rounds, "phi")


def pooled_z(rounds: Rounds, name: str) -> Scores:
    """Mean z-score of a series of `memberscope.rounds.SERIES`, float64 [M]."""
    own, others = rounds.own(name), rounds.others(name)
    if np.isnan(others.mean).all(axis=0).any():
        raise EvidenceError(
            "a z-score compares a client with at least two others in a round",
            "record rounds with three clients or more",
        )
    return mean_over_rounds((own - others.mean) / np.maximum(others.pooled, 1e-300))
