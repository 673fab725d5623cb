"""Attacks that hold a record against known non-members: no reference model, and a threshold with a meaning."""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.evidence import Evidence, Knowledge
from memberscope.signals import Floats, logit_scaled_confidence


def above_population(scores: Floats, population: Floats) -> Scores:
    """Where each score stands among those of Z known non-members, float64 [N] in (0, 1).

    ``floor(s (Z + 1)) / (Z + 1)`` is the share of Z + 1 that the record beats: calling records with ``s >= 1 - f``
    members has an expected false-positive rate of at most f, whatever the distribution (a conformal p-value; exact for
    f = 1/(Z + 1), 2/(Z + 1), ...). Within a step records keep the order of their scores, so nothing ties at the top.
    """
    z = len(population)
    beaten = np.searchsorted(np.sort(population), scores, side="left")
    return np.asarray((beaten + 0.5 + np.arctan(scores) / np.pi) / (z + 1))


class AttackP(Attack):
    """A record is called a member if few known non-members are as confident."""

    name = "attack-p"
    title = "Attack-P (population threshold)"
    needs = frozenset({Knowledge.PROBABILITIES, Knowledge.TRUE_LABELS, Knowledge.POPULATION})
    card = Card(
        "Ye et al. 2022 (CCS), section 4.2",
        "share of known non-members with a larger loss; calling records with 1 - f or more members has false-positive "
        "rate f",
        "one query a record, and as many non-members as 1 / f",
        "its ROC is that of the loss threshold: what it adds is a threshold whose false-positive rate is known "
        "beforehand. Below f = 1 / (Z + 1) it claims nothing.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Share of the population that is less confident, first query."""
        assert evidence.population_logits is not None
        assert evidence.population_labels is not None
        population = logit_scaled_confidence(evidence.population_logits[0], evidence.population_labels)
        return above_population(evidence.signals.phi, population)
