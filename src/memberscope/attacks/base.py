"""What an attack is, and the one way in which attacks are run."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar

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
    costly: ClassVar[bool] = False
    """Whether it takes minutes for tens of thousands of records: ``auto`` leaves it out, naming it runs it."""

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
    """An attack that learns from records whose membership it was told, and scores others.

    That it needs the membership of some records is added to its `needs`.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if hasattr(cls, "needs"):
            cls.needs = cls.needs | {Knowledge.SOME_MEMBERSHIP}

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
    Knowledge.QUERIES: "Audit the model itself (`memberscope audit`), so that it can be asked again.",
    Knowledge.WORKSHOP: "Audit the model itself (`memberscope audit`), so that models can be trained on its answers.",
    Knowledge.REFERENCE_WEIGHTS: "Audit the model itself with --shadows K: answers alone do not hold the weights.",
    Knowledge.WEIGHTS: "Audit the model itself (`memberscope audit`): answers alone do not hold the weights.",
    Knowledge.GLOBAL_MODELS: "Record the rounds of a federation (`memberscope federate`).",
    Knowledge.SUMS: "Record the rounds at the server of the federation.",
    Knowledge.REFERENCE_FEDERATIONS: "Train federations of the same clients with other coins (references=).",
    Knowledge.UPDATES: "Record each client's reply at the server, without secure aggregation.",
}


def score_records(
    attack: type[Attack],
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    rng: np.random.Generator,
    folds: int = 5,
) -> Scores:
    """Run an attack on every record of the evidence.

    An `InformedAttack` is cross-fitted: the records are split into folds with the same share of members, and each fold
    is scored by a fresh attack object that learnt from the other folds and was given nothing about this one but its
    evidence. Attributes of its class are put back after each fold: kept, they would tell the next fold the
    membership of the records that it scores. Any other attack is given the evidence and never `member`.

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
    if member.shape != (n,):
        raise EvidenceError(f"member has shape {member.shape}, expected ({n},)", "one entry a record")
    if not issubclass(attack, InformedAttack):
        return _checked(attack.name, attack(rng=_own(rng)).score(evidence), n)
    if Knowledge.REFERENCES not in attack.needs:  # what it does not use is not copied fold by fold
        evidence = replace(evidence, reference_logits=None, reference_membership=None, population_reference_logits=None)
    scores = np.full(n, np.nan)
    fold_of = _folds(evidence, member, folds, rng)
    for fold in np.unique(fold_of):
        # In random order, for members may come first in the pool.
        known, scored = (rng.permutation(np.flatnonzero(part)) for part in (fold_of != fold, fold_of == fold))
        with _forgetting(attack):
            fresh = attack(rng=_own(rng))
            fresh.fit(evidence.take(known), member[known])
            scores[scored] = _checked(attack.name, fresh.score(evidence.take(scored)), len(scored))
    return scores


def _folds(evidence: Evidence, member: NDArray[np.bool_], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Folds of records; in a federation folds of clients, for who knows members knows them client by client.

    With fewer than two clients, or where a fold of clients would leave the others without members or without
    non-members, folds of records.
    """
    if evidence.rounds is None:
        return stratified_folds(member, folds, rng)
    client = evidence.rounds.client
    clients = rng.permutation(np.unique(client))
    of_client = dict(zip(clients.tolist(), (np.arange(len(clients)) % folds).tolist(), strict=True))
    fold_of = np.array([of_client[k] for k in client.tolist()])
    for fold in np.unique(fold_of):
        rest = member[fold_of != fold]
        if not rest.any() or rest.all():
            return stratified_folds(member, folds, rng)
    return fold_of


def stratified_folds(member: NDArray[np.bool_], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
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
            "give more records, or use fewer folds (at least 2)",
        )
    fold_of = np.empty(len(member), np.int64)
    for group in (member, ~member):
        rows = rng.permutation(np.flatnonzero(group))
        fold_of[rows] = np.arange(len(rows)) % folds
    return fold_of


def crossfit_confidence(confidence: float) -> float:
    """The level at which an interval made for fixed scores holds `confidence` for cross-fitted ones.

    Two folds meet twice, each once as the teacher of the other's scorer: where there is nothing to learn, a figure is
    a sum over pairs of folds that counts each pair twice, and its variance is double that of fixed scores. On null data
    (4 features, 400 records, 5 folds, 4,000 draws) plain 95 % intervals of the AUC miss 1/2 in 15 % of the cases and
    these in 5 %. Where there is much to learn the scorers agree, and these are wider than they need be.
    """
    from scipy.special import ndtr, ndtri

    wide = 1 - 2 * ndtr(-sqrt(2) * ndtri((1 + confidence) / 2))
    return min(float(wide), 1 - 1e-12)


def _own(rng: np.random.Generator) -> np.random.Generator:
    """A generator for an attack, from which the seed of the audit (and so of the membership) cannot be read."""
    return np.random.default_rng(rng.integers(2**63, size=2))


@contextlib.contextmanager
def _forgetting(attack: type[Attack]) -> Iterator[None]:
    """Put the data attributes of the class and its parents back as they were before the block."""
    classes = [cls for cls in attack.__mro__ if issubclass(cls, Attack)]
    before = [{name: copy.deepcopy(value) for name, value in _data(cls).items()} for cls in classes]
    try:
        yield
    finally:
        for cls, kept in zip(classes, before, strict=True):
            for name in _data(cls).keys() - kept.keys():
                delattr(cls, name)
            for name, value in kept.items():
                setattr(cls, name, value)


def _data(cls: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(cls).items()
        if not (name.startswith("__") or name == "_abc_impl" or callable(value) or hasattr(value, "__get__"))
    }


def _checked(name: str, scores: Scores, n: int) -> Scores:
    scores = np.array(scores, np.float64)  # a copy: attacks may hand out what the evidence keeps
    if scores.shape != (n,):
        raise EvidenceError(
            f"attack {name!r} returned scores of shape {scores.shape}, expected ({n},)", "this is a bug of the attack"
        )
    if np.isnan(scores).any():
        raise EvidenceError(
            f"attack {name!r} returned NaN for {int(np.isnan(scores).sum()):,} of {n:,} records",
            "this is a bug of the attack",
        )
    return scores
