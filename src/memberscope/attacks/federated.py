"""What all attacks on the rounds of a federation share: pairs of client and record, and scores by client and class.

The score of a pair says how likely the client trained on the record. On partitions that are not IID a client has many
records of its favourite classes, and any score that differs between classes tells the class, which tells nothing about
membership; and records of a class have a level of their own in every score. So a score is centred and scaled by what
known non-members of the same class get under the same client.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Scores
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence
from memberscope.knowledge import Knowledge
from memberscope.rounds import Rounds

GLOBAL = frozenset({Knowledge.TRUE_LABELS, Knowledge.GLOBAL_MODELS})
SUMS = GLOBAL | {Knowledge.SUMS}
UPDATES = GLOBAL | {Knowledge.UPDATES}  # no sums: a server that sends clients different models has no one update

WEIGHT = 10.0
"""The scale of a class counts as much as so many records; what all classes have under a client makes up the rest."""

FEWEST = 5
"""Known non-members of a class, below which the level of the class is that of the candidates."""


class FederatedAttack(Attack):
    """An attack on what was seen of the rounds.

    A subclass says in `both` what pairs score before they are normalised. With `normalised` False that is the score.
    """

    normalised: ClassVar[bool] = True
    about_clients: ClassVar[bool] = True
    """Whether it can tell clients apart; if not, records are compared whoever holds them."""

    def score(self, evidence: Evidence) -> Scores:
        """Score every pair, normalised by client and class unless the attack is a raw one."""
        rounds = rounds_of(evidence)
        if not self.about_clients:
            rounds = rounds.whoever()
        population = rounds.of_population()
        scores, known = self.both(rounds, population)
        return by_client_and_class(scores, rounds, known, population) if self.normalised else scores

    @abstractmethod
    def both(self, rounds: Rounds, population: Rounds) -> tuple[Scores, Scores]:
        """Score the candidate pairs and those of known non-members, float64 [M] and [Q]; Q is 0 where none are."""


class PairAttack(FederatedAttack):
    """An attack that scores each pair by itself."""

    def both(self, rounds: Rounds, population: Rounds) -> tuple[Scores, Scores]:
        """Score both alike."""
        return self.compare(rounds), self.compare(population) if population.n_pairs else np.empty(0)

    @abstractmethod
    def compare(self, rounds: Rounds) -> Scores:
        """Score M pairs, float64 [M], higher = more likely that the client trained on the record."""


def rounds_of(evidence: Evidence) -> Rounds:
    """The rounds, of evidence that an attack has been checked against."""
    if evidence.rounds is None:
        raise EvidenceError("this evidence holds no rounds of a federation", "record the rounds")
    return evidence.rounds


def by_client_and_class(scores: Scores, rounds: Rounds, known: Scores, population: Rounds) -> Scores:
    """Scores less the mean of known non-members of the same client and class, in their standard deviations.

    The variance of a class is drawn towards that of all classes under the client, by `WEIGHT`. Where fewer than
    `FEWEST` non-members of a class are known, the candidates themselves give its level, whoever of them may be a
    member: then nothing is learnt from the level of the class, which is the purpose.
    """
    normal = np.empty(len(scores))
    for client in np.unique(rounds.client):
        mine, theirs = np.flatnonzero(rounds.client == client), np.flatnonzero(population.client == client)
        labels, classes = rounds.labels[mine], population.labels[theirs]
        overall = _spread(scores[mine], labels) if not len(theirs) else _spread(known[theirs], classes)
        for label in np.unique(labels):
            rows = mine[labels == label]
            level = known[theirs[classes == label]]
            if len(level) < FEWEST:
                level = scores[rows]
            squares = np.sum((level - level.mean()) ** 2)
            variance = (squares + WEIGHT * overall) / (len(level) + WEIGHT)
            normal[rows] = (scores[rows] - level.mean()) / np.sqrt(max(variance, _TINY))
    return normal


def _spread(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Variance within classes."""
    squares = sum(float(np.sum((scores[labels == c] - scores[labels == c].mean()) ** 2)) for c in np.unique(labels))
    return squares / max(1, len(scores))


def mean_over_rounds(series: NDArray[np.float64]) -> Scores:
    """Mean over the rounds in which the client took part, float64 [M], of a series [T, M] with NaN elsewhere."""
    there = ~np.isnan(series)
    return np.asarray(np.where(there, series, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1))


def last_round(series: NDArray[np.float64]) -> Scores:
    """The value of the last round in which the client took part, float64 [M]."""
    there = ~np.isnan(series)
    last = len(series) - 1 - there[::-1].argmax(axis=0)
    return np.asarray(series[last, np.arange(series.shape[1])])


def raw(attack: type[FederatedAttack]) -> type[FederatedAttack]:
    """The same attack without normalisation, for whoever asks for it by name."""
    content: dict[str, Any] = {
        "name": f"{attack.name}(raw)",
        "title": f"{attack.title}, raw",
        "normalised": False,
        "costly": True,
        "__doc__": f"{attack.__doc__} Not normalised by client and class.",
        "__module__": attack.__module__,
    }
    return type(f"{attack.__name__}Raw", (attack,), content)


_TINY = 1e-300
