"""A likelihood ratio over rounds, with reference federations that show what the rounds look like without a record.

A reference federation has the same clients with the same records, and coins of its own: about half of them leave a
record out. Its rounds are numbered like those of the target, and round by round the target's figure is held against
theirs: LiRA (Carlini et al., IEEE S&P 2022) on a series.
"""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import UPDATES, PairAttack
from memberscope.errors import EvidenceError
from memberscope.knowledge import Knowledge
from memberscope.round_features import Floats
from memberscope.rounds import Rounds

OF_OTHERS = 1.0
"""The mean over the other clients of the same round counts as much as so many reference federations."""


class ReferenceSeries(PairAttack):
    """Gaussian likelihood ratio of the cosine, summed over rounds."""

    name, title = "fl-lira-cosine", "Likelihood ratio over rounds, with reference federations"
    needs = UPDATES | {Knowledge.REFERENCE_FEDERATIONS}
    card = Card(
        "Carlini et al., IEEE S&P 2022 (LiRA), on the cosine of Li, Li, Ribeiro, ICLR 2023, round by round",
        "sum over rounds of log N(cos; mu_in, s) / N(cos; mu_out, s); means over reference federations with and "
        "without the record, s pooled over records",
        "R federations like the target, and their features",
        "rounds of one federation are not independent, so the sum ranks and is no probability",
    )

    def compare(self, rounds: Rounds) -> Scores:
        """Sum of the log-ratios, over the rounds in which the client took part."""
        own, others = rounds.own("cosine"), rounds.others("cosine").mean
        references = [
            (rounds.of_reference(reference).own("cosine"), reference.trained(rounds.client, rounds.record))
            for reference in rounds.references
        ]
        if any(values.shape != own.shape for values, _ in references):
            raise EvidenceError("reference federations have other rounds", "record the same rounds of all of them")
        prior = np.where(np.isnan(others), 0.0, others)
        known = np.where(np.isnan(others), 0.0, OF_OTHERS)
        out, n_out = _mean(references, False, prior, known)
        with_it, n_in = _mean(references, True, np.zeros_like(own), np.zeros_like(own))
        seen = (n_out > 0) & ~np.isnan(own)
        gap = np.array([_gap(with_it[t] - out[t], (n_in[t] > 0) & seen[t]) for t in range(len(own))])
        # Where no reference federation holds the record its IN level is that of all records, above its own OUT level.
        inside = np.where(n_in > 0, with_it, out + gap[:, None])
        variance = np.array([_variance(references, out, inside, t) for t in range(len(own))])[:, None]
        ratio = ((own - out) ** 2 - (own - inside) ** 2) / (2 * variance)
        return np.asarray(np.where(seen, ratio, 0.0).sum(axis=0))


_References = list[tuple[Floats, np.ndarray]]


def _mean(references: _References, member: bool, prior: Floats, weight: Floats) -> tuple[Floats, Floats]:
    total, count = prior * weight, weight.copy()
    for values, trained in references:
        counts = (trained == member) & ~np.isnan(values)
        total += np.where(counts, values, 0.0)
        count += counts
    return total / np.maximum(count, 1e-12), count


def _gap(differences: Floats, known: np.ndarray) -> float:
    return float(differences[known].mean()) if known.any() else 0.0


def _variance(references: _References, out: Floats, inside: Floats, t: int) -> float:
    """Mean square of the reference federations' figures about the level of their side."""
    squares = [
        np.square(values[t] - np.where(trained, inside[t], out[t]))[~np.isnan(values[t])]
        for values, trained in references
    ]
    return max(float(np.concatenate(squares).mean()), 1e-300)
