"""Attacks by one signal and one threshold: the floor that any other attack must beat."""

from __future__ import annotations

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.evidence import Evidence, Knowledge

_LABELS = frozenset({Knowledge.LABELS, Knowledge.TRUE_LABELS})
_PROBABILITIES = frozenset({Knowledge.PROBABILITIES})
_BOTH = _PROBABILITIES | {Knowledge.TRUE_LABELS}
_ONE_QUERY = "one query a record"


class CorrectnessGap(Attack):
    """A record that the model classifies rightly is called a member."""

    name = "gap"
    title = "Correctness gap"
    needs = _LABELS
    card = Card(
        "Yeom et al. 2018 (CSF), section 3; Choquette-Choo et al. 2021 (ICML), section 3",
        "1 if argmax z = y, else 0; balanced accuracy is 1/2 + (train accuracy - test accuracy) / 2",
        _ONE_QUERY + ", labels only",
        "two values only: no low-FPR claim can come from it. An attack that does not beat it has learnt nothing.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """1.0 where the first query is answered with the true class, else 0.0."""
        return evidence.signals.correct.astype(float)


class Loss(Attack):
    """A record with a small loss is called a member."""

    name = "loss"
    title = "Loss threshold"
    needs = _BOTH
    card = Card(
        "Yeom et al. 2018 (CSF), adversary 2",
        "log p_y (minus the cross-entropy), in float64 from logits",
        _ONE_QUERY,
        "in float32 the loss of a tenth of all records is exactly 0, which ties the most confident members; one global "
        "threshold finds many members but none surely (TPR about FPR at low FPR).",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Minus the loss."""
        return evidence.signals.true_log_probability


class LogitScaledConfidence(Attack):
    """The loss on the scale where it looks Gaussian."""

    name = "phi"
    title = "Logit-scaled confidence"
    needs = _BOTH
    card = Card(
        "Carlini et al. 2022 (S&P), section VI-A",
        "z_y - logsumexp over c != y of z_c, that is log p_y / (1 - p_y)",
        _ONE_QUERY,
        "ranks exactly as the loss does; only its scale and its freedom from ties differ.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Phi."""
        return evidence.signals.phi


class Hinge(Attack):
    """The margin of the true class over the runner-up, in logits."""

    name = "hinge"
    title = "Hinge margin"
    needs = _BOTH
    card = Card(
        "Carlini et al. 2022 (S&P), section VI-A",
        "z_y - max over c != y of z_c",
        _ONE_QUERY,
        "unlike the loss it ignores all classes but two; close to phi when one wrong class dominates.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Hinge."""
        return evidence.signals.hinge


class Confidence(Attack):
    """A confident answer is called a member, whatever the true class."""

    name = "confidence"
    title = "Maximum confidence"
    needs = _PROBABILITIES
    card = Card(
        "Salem et al. 2019 (NDSS), adversary 3",
        "max_c p_c, ranked by its log-odds so that values near 1 do not tie",
        _ONE_QUERY + ", no true label needed",
        "a confidently wrong answer counts as a member.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Log-odds of the largest probability."""
        return evidence.signals.log_max_odds


class Entropy(Attack):
    """A certain answer is called a member, whatever the true class."""

    name = "entropy"
    title = "Prediction entropy"
    needs = _PROBABILITIES
    card = Card(
        "Shokri et al. 2017 (S&P), section VII; Song & Mittal 2021 (USENIX Security), section 4",
        "sum_c p_c log p_c (minus the softmax entropy)",
        _ONE_QUERY + ", no true label needed",
        "a certainly wrong answer counts as a member.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Minus the entropy."""
        return -evidence.signals.entropy


class ModifiedEntropy(Attack):
    """Entropy that knows the true class."""

    name = "modified-entropy"
    title = "Modified entropy"
    needs = _BOTH
    card = Card(
        "Song & Mittal 2021 (USENIX Security), eq. 7",
        "(1 - p_y) log p_y + sum over c != y of p_c log(1 - p_c)",
        _ONE_QUERY,
        "one global threshold here; the published form sets one for each class on reference models.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Minus the modified entropy."""
        return -evidence.signals.modified_entropy
