"""Attacks of a curious client: it sees the global model of every round, as does whoever listens to the broadcast."""

from __future__ import annotations

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import GLOBAL, PairAttack, mean_over_rounds
from memberscope.round_features import loss_of
from memberscope.rounds import Rounds

_YEOM = "Yeom et al., CSF 2018; on the global model of a federation"
_GLOBAL_TRAP = "a global model tells that somebody trained on the record, never who"


class GlobalLoss(PairAttack):
    """The loss under the last global model."""

    name, title, needs = "fl-global-loss", "Loss of the final global model", GLOBAL
    about_clients = False
    card = Card(_YEOM, "-L(w^T; x), w^T the last global model", "one forward pass a record", _GLOBAL_TRAP)

    def compare(self, rounds: Rounds) -> Scores:
        """Logit-scaled confidence, which ranks as the loss does."""
        last: Scores = rounds.next_phi()[-1]
        return last


class GlobalTrajectory(PairAttack):
    """The mean loss over the global models."""

    name, title, needs = "fl-global-trajectory", "Mean loss over the global models", GLOBAL
    about_clients = False
    card = Card(
        "Gu, Bai, Xu, CS-MIA, Journal of Information Security and Applications 2022, unsupervised form",
        "mean over rounds of -L(w^t; x)",
        "one forward pass a record and round",
        _GLOBAL_TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean over the models that came out of the rounds."""
        return -mean_over_rounds(loss_of(rounds.next_phi()))


class GlobalLossDrop(PairAttack):
    """How far the loss fell from the first global model seen to the last."""

    name, title, needs = "fl-global-loss-drop", "Fall of the loss between global models", GLOBAL
    about_clients = False
    card = Card(
        "Suri et al., Subject membership inference attacks in federated learning, 2022 (loss across rounds)",
        "L(w^first; x) - L(w^last; x)",
        "two forward passes a record",
        _GLOBAL_TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """First loss less last loss."""
        return loss_of(rounds.sent_phi()[0]) - loss_of(rounds.next_phi()[-1])


class GlobalGradientNorm(PairAttack):
    """The length of the record's gradient at the global models."""

    name, title, needs = "fl-global-gradient-norm", "Gradient norm at the global models", GLOBAL
    about_clients = False
    card = Card(
        "Nasr, Shokri, Houmansadr, IEEE S&P 2019 (the gradient norm among their features)",
        "-mean over rounds of log ||grad L(w^t; x)||",
        "one gradient a record and round",
        _GLOBAL_TRAP,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean of the logarithm, sign turned."""
        return -mean_over_rounds(rounds.log_gradient_norm())
