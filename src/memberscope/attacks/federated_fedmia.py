"""FedMIA as published: each round a client's figure is held against those of the other clients, record by record.

On a fixed pool of candidates. The authors' code draws the non-members anew for every round and client and then averages
over rounds, so that each non-member's score is a mean over different records; that alone multiplied the true-positive
rate at 0.1 % false positives by five on equal scores.

The paper leaves out other clients above mu + 3 sigma where partitions are not IID. Among ten or fewer nobody can lie so
far out, and among many IID ones hardly anybody does, so it is done always.
"""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import UPDATES, PairAttack, mean_over_rounds
from memberscope.errors import EvidenceError
from memberscope.rounds import Rounds

_PAPER = "Zhu et al., FedMIA, CVPR 2025"
_TRAP = (
    "a non-member that another client trained on lowers its score, so held-out records and records of other clients "
    "are two questions; needs three clients a round"
)


class FedMiaLoss(PairAttack):
    """FedMIA-I: the loss."""

    name, title, needs = "fl-fedmia-loss", "FedMIA-I (loss)", UPDATES
    card = Card(
        _PAPER,
        "mean over rounds of Phi((S_k - mu) / sigma), S = -L, mu and sigma over the other clients",
        "one forward pass a record, client and round",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean probability."""
        return fedmia(rounds, "minus-loss")


class FedMiaCosine(PairAttack):
    """FedMIA-II: the cosine of gradient and update."""

    name, title, needs = "fl-fedmia-cosine", "FedMIA-II (cosine)", UPDATES
    card = Card(
        _PAPER,
        "mean over rounds of Phi((S_k - mu) / sigma), S = cosine, mu and sigma over the other clients",
        "one gradient a record and round, for all clients together",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean probability."""
        return fedmia(rounds, "cosine")


def fedmia(rounds: Rounds, name: str) -> Scores:
    """The score of the paper from a series of `memberscope.rounds.SERIES`, float64 [M]."""
    from scipy.special import ndtr

    own, others = rounds.own(name), rounds.others(name)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (own - others.mean) / others.std
    # Other clients that all answer alike leave no scale: the sign alone counts.
    z = np.where(others.std > 0, z, np.sign(own - others.mean) * np.inf)
    z = np.where((others.std == 0) & (own == others.mean), 0.0, z)
    if np.isnan(others.mean).all(axis=0).any():
        raise EvidenceError(
            "FedMIA compares a client with at least two others in a round", "record rounds with three clients or more"
        )
    return mean_over_rounds(np.where(np.isnan(others.mean), np.nan, ndtr(z)))
