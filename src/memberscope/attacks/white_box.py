"""White-box attacks: what the weights add to the answers."""

from __future__ import annotations

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, Knowledge

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
