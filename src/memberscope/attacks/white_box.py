"""White-box attacks: what the weights add to the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import FEWEST, ONLINE
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, Knowledge
from memberscope.signals import Floats, Signals

LEARNT_GRADIENTS = 20_000
"""Records of reference models to learn from, at most, all models together: each costs a backward pass."""

TEACHERS = 4
"""Reference models to learn from, at most."""

_NEEDS = frozenset({Knowledge.WEIGHTS, Knowledge.TRUE_LABELS})


def _feature(evidence: Evidence, name: str) -> Scores:
    if evidence.white_box is None:
        raise EvidenceError("this evidence does not hold the weights", "audit the model itself")
    return evidence.white_box(name)


class WeightGradientNorm(Attack):
    """A record whose gradient with respect to the weights is small is called a member."""

    name = "gradient-norm(weights)"
    title = "Gradient norm, weights"
    needs = _NEEDS
    costly = True
    card = Card(
        "Nasr et al. 2019 (S&P), section III; Chen et al. 2022 (RelaxLoss, ICLR), white-box attacks",
        "minus the logarithm of the l2 norm of the gradient of the record's loss with respect to all weights",
        "one forward and backward pass a record",
        "ranks nearly as the loss does where the model fits its members exactly; BatchNorm statistics are those of "
        "evaluation, so that a record's gradient depends on that record alone.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Minus the log of the norm."""
        return -_feature(evidence, "log_gradient_norm_weights")


class InputGradientNorm(Attack):
    """A record whose gradient with respect to the input is small is called a member."""

    name = "gradient-norm(input)"
    title = "Gradient norm, input"
    needs = _NEEDS
    card = Card(
        "Rezaei & Liu 2021 (CVPR), section 3; Chen et al. 2022 (RelaxLoss, ICLR), white-box attacks",
        "minus the logarithm of the l2 norm of the gradient of the record's loss with respect to the record",
        "one forward and backward pass a record",
        "close to the distance to the decision boundary to first order.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Minus the log of the norm."""
        return -_feature(evidence, "log_gradient_norm_input")


class WhiteBoxClassifier(Attack):
    """A classifier of answers and gradients, taught by reference models whose weights are at hand."""

    name = "white-box-classifier"
    title = "White-box classifier, learned on reference models (Nasr)"
    needs = ONLINE | {Knowledge.WEIGHTS, Knowledge.REFERENCE_WEIGHTS}
    costly = True
    card = Card(
        "Nasr et al. 2019 (S&P), section III, the supervised passive global attacker",
        "gradient-boosted trees on phi, the loss, the three largest log-probabilities, and the logarithms of the l2 "
        "norms of the gradients of the weights of each layer and of the record, taught by up to 4 reference models "
        "about records in and out of their training",
        "the weights of the target and of one reference model; a forward and two backward passes a record, and as many "
        "for up to 20,000 records of reference models",
        "the published form learns a neural network from whole gradients, on members of the target itself: a stronger "
        "assumption, under which it is judged on what it was told. Reference models see other records, so what is "
        "learned is one rule for all records; it adds little where the model fits its members exactly.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Log-odds of membership, first query."""
        assert evidence.reference_logits is not None
        assert evidence.reference_membership is not None
        assert evidence.reference_white_box is not None
        membership, n = evidence.reference_membership, evidence.n_records
        inside = membership.sum(axis=1)
        able = np.flatnonzero(np.minimum(inside, n - inside) >= FEWEST)
        if not len(able):
            raise EvidenceError(
                "no reference model has members and non-members enough among the records under audit to learn from",
                f"train reference models on random halves of the records; at least {FEWEST} of each are needed",
            )
        teachers = able[: min(TEACHERS, max(1, LEARNT_GRADIENTS // n))]
        features, member = [], []
        for model in map(int, teachers):
            rows = np.arange(n)
            if n > LEARNT_GRADIENTS // len(teachers):
                rows = np.sort(self.rng.choice(n, LEARNT_GRADIENTS // len(teachers), replace=False))
            look = _looking_into(evidence.reference_white_box, model, rows)
            answers = np.asarray(evidence.reference_logits[model][0])[rows]
            features.append(_white_box_features(answers, evidence.labels[rows], look))
            member.append(membership[model, rows])
        classifier = fit_trees(np.concatenate(features), np.concatenate(member), self.rng)
        mine = _white_box_features(evidence.logits[0], evidence.labels, lambda name: _feature(evidence, name))
        return log_odds(classifier, mine, evidence.signals.phi)


def _looking_into(white_box: Any, model: int, rows: NDArray[np.int64]) -> Callable[[str], NDArray[np.float64]]:
    return lambda name: np.asarray(white_box(model, name, rows))


def _white_box_features(
    logits: NDArray[np.floating], labels: NDArray[np.int64], look: Callable[[str], NDArray[np.float64]]
) -> Floats:
    signals = Signals(logits, labels)
    top = np.sort(signals.log_probabilities, axis=-1)[:, :-4:-1]
    gradients = look("log_gradient_norm_layers"), look("log_gradient_norm_input")
    return np.column_stack([signals.phi, signals.loss, top, *gradients])
