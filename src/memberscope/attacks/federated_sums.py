"""Attacks of a curious server behind secure aggregation: it sees the mean update of all clients, and no single one."""

from __future__ import annotations

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import SUMS, PairAttack, mean_over_rounds
from memberscope.rounds import Rounds

_TRAP = "the sum tells that somebody trained on the record, never who"


class SumCosine(PairAttack):
    """Cosine of the record's gradient with the mean update."""

    name, title, needs = "fl-sum-cosine", "Gradient-update cosine, from sums", SUMS
    about_clients = False
    card = Card(
        "Li, Li, Ribeiro, ICLR 2023, on the sum of updates",
        "mean over rounds of cos(g_x, sum of updates)",
        "one gradient a record and round",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean cosine."""
        return mean_over_rounds(rounds.sum_cosine())


class SumDot(PairAttack):
    """Product of the record's gradient with the mean update."""

    name, title, needs = "fl-sum-dot", "Gradient-update product, from sums", SUMS
    about_clients = False
    card = Card(
        "Li, Li, Ribeiro, ICLR 2023, product instead of cosine, on the sum of updates",
        "mean over rounds of <g_x, sum of updates>",
        "one gradient a record and round",
        _TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean product: to first order how far the round lowered the record's loss."""
        return mean_over_rounds(rounds.sum_dot())
