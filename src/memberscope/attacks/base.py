"""What an attack is, and the one way in which attacks are run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import Adversary, Evidence, Knowledge, adversary_for

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Card:
    """One paragraph about an attack: what a reader must know before quoting its figures."""

    paper: str
    formula: str
    cost: str
    traps: str = ""


class Attack(ABC):
    """Scores every record from evidence alone: float64 [N], higher = more likely a member.

    A subclass states its `name` (variants carry their variant in it), a readable `title`, the knowledge it `needs`
    and its `card`. Keyword arguments of ``__init__`` are its settings. It never sees the membership of a record that
    it scores: it is not in the evidence.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Knowledge]]
    card: ClassVar[Card]
    probability: ClassVar[bool] = False
    """Whether the score is a probability of membership, so that 0.5 is a threshold of its own."""

    def __init__(self, *, rng: np.random.Generator | None = None) -> None:
        self.rng = rng if rng is not None else np.random.default_rng(0)

    @abstractmethod
    def score(self, evidence: Evidence) -> Scores:
        """Score every record of the evidence.

        Parameters
        ----------
        evidence
            What the adversary has in hand about N records.

        Returns
        -------
        float64 [N], higher = more likely a member.
        """

    @classmethod
    def adversary(cls) -> Adversary:
        """The weakest adversary who could run this attack."""
        return adversary_for(cls.needs)


class InformedAttack(Attack):
    """An attack that learns from records whose membership it was told, and scores others."""

    @abstractmethod
    def fit(self, evidence: Evidence, member: NDArray[np.bool_]) -> None:
        """Learn from M records whose membership is known.

        Parameters
        ----------
        evidence
            About those M records only.
        member
            bool [M].
        """


def missing_knowledge(attack: type[Attack], evidence: Evidence) -> list[Knowledge]:
    """What the attack needs and the evidence does not hold, in a fixed order."""
    held = evidence.knowledge | {Knowledge.SOME_MEMBERSHIP}
    return [knowledge for knowledge in Knowledge if knowledge in attack.needs - held]


def require_knowledge(attack: type[Attack], evidence: Evidence) -> None:
    """Raise a `MissingKnowledgeError` that names what is missing and how to get it."""
    missing = missing_knowledge(attack, evidence)
    if missing:
        raise MissingKnowledgeError(
            f"attack {attack.name!r} needs {' and '.join(k.value for k in missing)}",
            " ".join(HOW_TO_GET[k] for k in missing),
        )


HOW_TO_GET: dict[Knowledge, str] = {
    Knowledge.LABELS: "Query the model.",
    Knowledge.PROBABILITIES: "Let the model answer with probabilities or logits.",
    Knowledge.TRUE_LABELS: "Give the labels.",
    Knowledge.SOME_MEMBERSHIP: "Give the member column.",
    Knowledge.POPULATION: "Set records of the same kind aside as a population (--population).",
    Knowledge.RECORDS: "Give record_features (and population_features).",
    Knowledge.REFERENCES: "Train reference models with --shadows K, or give reference_logits and reference_membership.",
    Knowledge.REFERENCES_IN: "Train reference models on random halves of the records under audit (--shadows K).",
    Knowledge.WEIGHTS: "Audit the model itself (`memberscope audit`): answers alone do not hold the weights.",
    Knowledge.ROUNDS: "Record the rounds of a federation.",
}


def score_records(
    attack: type[Attack],
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    rng: np.random.Generator,
    folds: int = 5,
    groups: NDArray[np.int64] | None = None,
) -> Scores:
    """Run an attack on every record of the evidence.

    An `InformedAttack` is cross-fitted: the records are split into folds with the same share of members, and each fold
    is scored by a fresh attack object that learnt from the other folds and was given nothing about this one but its
    evidence. Any other attack is given the evidence and never `member`.

    Parameters
    ----------
    attack
        The class of the attack.
    evidence
        About N records.
    member
        bool [N], the truth. Only an informed attack sees any of it, and never for a record that it scores.
    rng
        Draws the folds and seeds the attack.
    folds
        Number of folds, at least 2.
    groups
        int64 [N] or None: records with equal numbers stay in one fold (near-duplicates, for example).

    Returns
    -------
    float64 [N], higher = more likely a member.

    Raises
    ------
    MissingKnowledgeError
        The evidence lacks what the attack needs.
    EvidenceError
        Too few members or non-members for the folds, or the attack answered NaN or a wrong shape.
    """
    require_knowledge(attack, evidence)
    n = evidence.n_records
    if not issubclass(attack, InformedAttack):
        return _checked(attack.name, attack(rng=rng).score(evidence), n)
    if Knowledge.REFERENCES not in attack.needs:  # what it does not use is not copied fold by fold
        evidence = replace(evidence, reference_logits=None, reference_membership=None, population_reference_logits=None)
    scores = np.full(n, np.nan)
    fold_of = stratified_folds(member, folds, rng, groups=groups)
    for fold in range(folds):
        known, scored = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        fresh = attack(rng=rng.spawn(1)[0])
        fresh.fit(evidence.take(known), member[known])
        scores[scored] = _checked(attack.name, fresh.score(evidence.take(scored)), len(scored))
    return scores


def stratified_folds(
    member: NDArray[np.bool_], folds: int, rng: np.random.Generator, *, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Fold number of every record, int64 [N]: the share of members is the same in every fold.

    Raises
    ------
    EvidenceError
        Fewer members or non-members than folds.
    """
    smallest = min(int(member.sum()), int((~member).sum()))
    if folds < 2 or smallest < folds:
        raise EvidenceError(
            f"{folds} folds need at least {max(folds, 2)} members and as many non-members; the smaller group has "
            f"{smallest}",
            "give more records, or use fewer folds",
        )
    fold_of = np.empty(len(member), np.int64)
    for group in (member, ~member):
        rows = rng.permutation(np.flatnonzero(group))
        fold_of[rows] = np.arange(len(rows)) % folds
    if groups is not None:
        first = np.full(int(groups.max()) + 1, -1, np.int64)
        first[groups[::-1]] = fold_of[::-1]  # a group follows its first record
        fold_of = first[groups]
    return fold_of


def _checked(name: str, scores: Scores, n: int) -> Scores:
    scores = np.asarray(scores, np.float64)
    if scores.shape != (n,):
        raise EvidenceError(f"attack {name!r} returned scores of shape {scores.shape}, expected ({n},)", "")
    if np.isnan(scores).any():
        raise EvidenceError(f"attack {name!r} returned NaN for {int(np.isnan(scores).sum()):,} of {n:,} records", "")
    return scores
