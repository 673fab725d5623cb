"""Attacks of a curious server on one client's models and updates, without comparing them with other clients'."""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import UPDATES, PairAttack, last_round, mean_over_rounds
from memberscope.errors import EvidenceError
from memberscope.rounds import Rounds

_LI = "Li, Li, Ribeiro, Effective passive membership inference attacks in federated learning, ICLR 2023"
_FORWARD = "one forward pass a record, client and round"
_GRADIENT = "one gradient a record and round, for all clients together"


class LocalLoss(PairAttack):
    """The loss under the client's last model."""

    name, title, needs = "fl-local-loss", "Loss of the client's last model", UPDATES
    card = Card(
        "Yeom et al., CSF 2018; on a client's model",
        "-L(w_k^T; x), w_k^T the client's last model",
        "one forward pass a record and client",
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Logit-scaled confidence, which ranks as the loss does."""
        return last_round(rounds.own("phi"))


class LocalTrajectory(PairAttack):
    """The mean loss over the client's models."""

    name, title, needs = "fl-local-trajectory", "Mean loss over the client's models", UPDATES
    card = Card(
        "Gu, Bai, Xu, CS-MIA, Journal of Information Security and Applications 2022 (Loss-Series in FedMIA)",
        "mean over rounds of -L(w_k^t; x)",
        _FORWARD,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean loss, sign turned."""
        return -mean_over_rounds(rounds.own("loss"))


class LossDrop(PairAttack):
    """How far the client's training lowered the loss."""

    name, title, needs = "fl-loss-drop", "Fall of the loss in the client's training", UPDATES
    card = Card(
        "to first order the gradient-update product of Li, Li, Ribeiro, ICLR 2023, from losses alone",
        "mean over rounds of L(w^t; x) - L(w_k^t; x)",
        _FORWARD,
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Mean fall."""
        return mean_over_rounds(rounds.own("loss-drop"))


class Cosine(PairAttack):
    """Cosine of the record's gradient with the client's update."""

    name, title, needs = "fl-cosine", "Gradient-update cosine", UPDATES
    card = Card(_LI, "mean over rounds of cos(g_x, w^t - w_k^t)", _GRADIENT)

    def compare(self, rounds: Rounds) -> Scores:
        """Mean cosine."""
        return mean_over_rounds(rounds.own("cosine"))


class Dot(PairAttack):
    """Product of the record's gradient with the client's update."""

    name, title, needs = "fl-dot", "Gradient-update product", UPDATES
    card = Card(f"{_LI}, product instead of cosine", "mean over rounds of <g_x, w^t - w_k^t>", _GRADIENT)

    def compare(self, rounds: Rounds) -> Scores:
        """Mean product."""
        return mean_over_rounds(rounds.own("dot"))


class DotOverLength(PairAttack):
    """Product of the record's gradient with the direction of the client's update."""

    name, title, needs = "fl-dot-over-length", "Gradient-update product over the update's length", UPDATES
    card = Card(f"{_LI}, product over length", "mean over rounds of <g_x, w^t - w_k^t> / ||w^t - w_k^t||", _GRADIENT)

    def compare(self, rounds: Rounds) -> Scores:
        """Mean product."""
        return mean_over_rounds(rounds.own("dot-over-length"))


class GradientDifference(PairAttack):
    """How much nearer to the update the record's gradient is than nothing at all."""

    name, title, needs = "fl-gradient-difference", "Gradient difference", UPDATES
    card = Card(
        _LI,
        "mean over rounds of ||D||^2 - ||D - g_x||^2 with D = (w^t - w_k^t) / eta",
        _GRADIENT,
        "needs the clients' learning rate eta: without it the update is far shorter than any gradient, and the figure "
        "is -||g_x||^2",
    )

    def compare(self, rounds: Rounds) -> Scores:
        """2 <D, g> - ||g||^2, averaged."""
        if rounds.learning_rate is None:
            raise EvidenceError("the clients' learning rate is unknown", "give it: the server of a federation sets it")
        rate = np.reshape(rounds.learning_rate, (-1, 1))
        return mean_over_rounds(2 * rounds.own("dot") / rate - np.exp(2 * rounds.own("log-norm")))
