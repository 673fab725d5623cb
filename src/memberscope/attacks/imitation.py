"""Attacks that train models on the target's answers: what it would say of a record that it had not seen.

They take trainings for each audit (a workshop), so ``auto`` leaves them to those who name them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import FEWEST, ONLINE
from memberscope.attacks.lira import whole_means
from memberscope.attacks.trees import fit_trees, log_odds
from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge
from memberscope.reference_moments import Moments
from memberscope.signals import Floats, logit_scaled_confidence
from memberscope.workshop import Imitation, Workshop

_TIE_BREAK = 1e-6


class Imia(Attack):
    """The target beside models that imitate it without the record."""

    name = "imia"
    title = "IMIA (imitating reference models)"
    needs = ONLINE | {Knowledge.WORKSHOP}
    costly = True
    card = Card(
        "Imitative membership inference attack (USENIX Security 2026), the adaptive form, after its released code",
        "(phi - mu OUT)^2 - (phi - mu IN)^2, averaged over queries; mu OUT is the mean phi of models trained on random "
        "halves of the records to imitate the target (true classes for four fifths of the epochs, then half mean "
        "squared difference from the target's logits, half true classes) over those without the record, mu IN the "
        "mean over ordinary IN models; 0 where mu IN is the smaller",
        "10 trainings by the target's recipe for each target, beside the reference models; one query a record",
        "the released code keeps the epoch of the best test accuracy and may weigh the true and the runner-up class; "
        "here the last epoch is kept and all classes weigh the same. Logits are imitated up to the constant that "
        "probabilities do not show.",
    )

    def __init__(self, *, models: int = 10, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.models = models

    def score(self, evidence: Evidence) -> Scores:
        """Squared distance from the imitating models less that from the IN models."""
        assert evidence.workshop is not None
        n = evidence.n_records
        if not (~_membership(evidence)).any():
            raise EvidenceError(
                "every reference model was trained on every record",
                "reference models must leave records out: train each on a random half",
            )
        total, count = np.zeros((len(evidence.queries), n)), np.zeros(n)
        for pair in range(-(-self.models // 2)):
            half = np.zeros(n, bool)
            half[self.rng.permutation(n)[: n // 2]] = True
            for rows in (half, ~half)[: min(2, self.models - 2 * pair)]:
                imitation = Imitation(
                    "records", rows, evidence.logits[0], _seed(self.rng), weight=0.5, begins=0.8, distance="logits"
                )
                phi = logit_scaled_confidence(evidence.workshop.train(imitation)[-1], evidence.labels)
                total[:, ~rows] += phi[:, ~rows]
                count[~rows] += 1
        inside, outside = evidence.references.moments()
        imitated = Moments(count.astype(np.int64), np.divide(total, count, where=count > 0, out=total), outside.ss)
        means = whole_means(inside, imitated, inside.mean, imitated.mean)
        phi = evidence.query_signals.phi
        nearer = (phi - means.outside) ** 2 - (phi - means.inside) ** 2
        score = np.where(means.inside < means.outside, 0.0, nearer).mean(axis=0)
        return np.asarray(score + _TIE_BREAK * np.arctan(phi.mean(axis=0)))


class DistillationTrajectory(Attack):
    """How fast models that imitate the target come to be sure of a record."""

    name = "distillation-trajectory"
    title = "Loss trajectory by distillation (TrajectoryMIA)"
    needs = ONLINE | {Knowledge.POPULATION, Knowledge.WORKSHOP}
    costly = True
    card = Card(
        "Liu et al. 2022 (CCS), section 4",
        "gradient-boosted trees on phi of the target and of models distilled from its answers about a population, "
        "after each of up to 20 evenly spread epochs, taught by one reference model that is distilled likewise",
        "2 trainings by the target's recipe on the population; one query a record",
        "as good as the population is large: the published form distils on tens of thousands of records. phi takes the "
        "place of the loss, which rounds to 0 for confident records.",
    )
    snapshots = 20

    def score(self, evidence: Evidence) -> Scores:
        """Log-odds of membership, first query."""
        if evidence.population_reference_logits is None or evidence.population_logits is None:
            raise MissingKnowledgeError(
                f"attack {self.name!r} needs the answers of the reference models on the population",
                "give population_reference_logits beside population_logits",
            )
        assert evidence.workshop is not None
        assert evidence.reference_logits is not None
        membership = _membership(evidence)
        inside = membership.sum(axis=1)
        able = np.flatnonzero(np.minimum(inside, evidence.n_records - inside) >= FEWEST)
        if not len(able):
            raise EvidenceError(
                "no reference model has members and non-members enough among the records under audit to learn from",
                f"train reference models on random halves of the records; at least {FEWEST} of each are needed",
            )
        teacher = int(able[0])
        taught = self._features(
            evidence.workshop,
            np.asarray(evidence.population_reference_logits[teacher][0]),
            np.asarray(evidence.reference_logits[teacher][0]),
            evidence.labels,
        )
        classifier = fit_trees(taught, membership[teacher], self.rng)
        mine = self._features(
            evidence.workshop, np.asarray(evidence.population_logits[0]), evidence.logits[0], evidence.labels
        )
        return log_odds(classifier, mine, evidence.signals.phi)

    def _features(
        self,
        workshop: Workshop,
        on_population: NDArray[np.floating],
        on_records: NDArray[np.floating],
        labels: NDArray[np.int64],
    ) -> Floats:
        """Phi of the model and of those distilled from it, float64 [N, 1 + S]."""
        everyone = np.ones(len(on_population), bool)
        imitation = Imitation("population", everyone, on_population, _seed(self.rng), snapshots=self.snapshots)
        distilled = workshop.train(imitation)[:, 0]
        return np.column_stack(
            [logit_scaled_confidence(on_records, labels), logit_scaled_confidence(distilled, labels).T]
        )


def _membership(evidence: Evidence) -> NDArray[np.bool_]:
    assert evidence.reference_membership is not None
    return evidence.reference_membership


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
