"""Evidence: all that an adversary with stated knowledge has in hand, and nothing more.

Evidence is the wall between training and attacking. It never holds the membership of the records under audit: an
attack that learns from known members is handed them fold by fold (`memberscope.attacks.base.score_records`). Its arrays
are read-only views, so that no attack changes what the next one sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError
from memberscope.evidence_checks import as_labels, check_answers, check_features, check_reference_logits
from memberscope.knowledge import Knowledge
from memberscope.probes import Oracle
from memberscope.reference_signals import ReferenceSignals
from memberscope.rounds import Rounds
from memberscope.signals import Signals
from memberscope.workshop import ReferenceWhiteBox, Workshop

__all__ = [
    "ADVERSARIES",
    "OF_ROUNDS",
    "Adversary",
    "Evidence",
    "Knowledge",
    "adversary_for",
    "from_logits",
    "from_probabilities",
]


@dataclass(frozen=True)
class Adversary:
    """A named set of knowledge: one row of the exposure ladder."""

    name: str
    sees: str
    knowledge: frozenset[Knowledge]


_K = Knowledge
_LABELS_ONLY = frozenset({_K.LABELS, _K.TRUE_LABELS, _K.RECORDS, _K.QUERIES})
_STRANGER = _LABELS_ONLY | {_K.PROBABILITIES, _K.POPULATION}
_INSIDER = _STRANGER | {_K.REFERENCES, _K.REFERENCES_IN, _K.REFERENCE_WEIGHTS, _K.WORKSHOP}
_THIEF = _INSIDER | {_K.WEIGHTS}
_CURIOUS_CLIENT = _THIEF | {_K.SOME_MEMBERSHIP, _K.GLOBAL_MODELS, _K.REFERENCE_FEDERATIONS}
_BEHIND_SECURE_AGGREGATION = _CURIOUS_CLIENT | {_K.SUMS}
_CURIOUS_SERVER = _BEHIND_SECURE_AGGREGATION | {_K.UPDATES}

ADVERSARIES: tuple[Adversary, ...] = (
    Adversary("stranger, labels only", "the predicted class of a record", _LABELS_ONLY),
    Adversary("stranger", "the probability vector", _STRANGER),
    Adversary(
        "informed stranger", "the same, and the membership of some other records", _STRANGER | {_K.SOME_MEMBERSHIP}
    ),
    Adversary("insider", "the stranger's view, and data like the training data to train reference models", _INSIDER),
    Adversary("thief", "the weights", _THIEF),
    Adversary("curious client", "the global model of every round", _CURIOUS_CLIENT),
    Adversary(
        "curious server behind secure aggregation",
        "the global model and the sum of updates of every round",
        _BEHIND_SECURE_AGGREGATION,
    ),
    Adversary("curious server", "every client's update of every round", _CURIOUS_SERVER),
)
"""Weakest first; an attack belongs to the first adversary whose knowledge covers its needs."""

OF_ROUNDS = frozenset({_K.GLOBAL_MODELS, _K.SUMS, _K.UPDATES, _K.REFERENCE_FEDERATIONS})
"""What only a party of a federation sees."""


def adversary_for(needs: frozenset[Knowledge]) -> Adversary:
    """The weakest adversary who could run an attack with these needs."""
    for adversary in ADVERSARIES:
        if needs <= adversary.knowledge:
            return adversary
    return Adversary("everything", "more than any single party sees", frozenset(Knowledge))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an adversary has in hand about N records.

    Parameters
    ----------
    logits
        float32 or float64 [A, N, C]: the target's answer to each of A queries a record (A = 1: the record itself).
    labels
        int64 [N], true classes in 0..C-1.
    queries
        The A names of the queries, ``("none",)`` for the record itself.
    reference_logits
        float [K, A, N, C] or None: the answers of K reference models to the same queries. May be memory-mapped.
    reference_membership
        bool [K, N] or None: whether reference model k was trained on record n. Any number of IN and OUT a record.
    population_logits, population_labels
        float [A, Z, C] and int64 [Z], or None: the target's answers on known non-members that are not under audit.
    population_reference_logits
        float [K, A, Z, C] or None: the reference models' answers on the population (OUT for all of them).
    record_features, population_features
        float [N, F] and [Z, F], or None: the records themselves as vectors (pixels, or what any public model makes of
        them), the same for both. Never features of the target: those are its answers.
    white_box
        Features that need the weights, computed on demand: a function of their name that returns float64 [N] (or
        [N, F], a feature of several parts), or None.
    reference_white_box
        The same of the reference models, whose weights the adversary has who trained them, or None.
    reference_oracle
        Gives the oracle of reference model k on the records, or None.
    workshop
        Trains models on the target's answers, or None.
    oracle
        Answers the predicted class of altered copies of the records, or None.
    rounds
        What a party of a federation saw of its rounds, or None. A record is then a pair of a client and a record that
        this client may have trained on, and the answers are those of the last global model.
    has_logits
        False where only probabilities were seen: `logits` then holds their logarithm.
    has_probabilities
        False where only predicted classes were seen: `logits` then holds 0 for them, and as little as may be else.
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.int64]
    queries: tuple[str, ...] = ("none",)
    reference_logits: NDArray[np.floating] | None = field(default=None, repr=False)
    reference_membership: NDArray[np.bool_] | None = field(default=None, repr=False)
    population_logits: NDArray[np.floating] | None = field(default=None, repr=False)
    population_labels: NDArray[np.int64] | None = field(default=None, repr=False)
    population_reference_logits: NDArray[np.floating] | None = field(default=None, repr=False)
    record_features: NDArray[np.floating] | None = field(default=None, repr=False)
    population_features: NDArray[np.floating] | None = field(default=None, repr=False)
    white_box: Callable[[str], NDArray[np.float64]] | None = field(default=None, repr=False)
    reference_white_box: ReferenceWhiteBox | None = field(default=None, repr=False)
    reference_oracle: Callable[[int], Oracle] | None = field(default=None, repr=False)
    workshop: Workshop | None = field(default=None, repr=False)
    oracle: Oracle | None = field(default=None, repr=False)
    rounds: Rounds | None = field(default=None, repr=False)
    has_logits: bool = True
    has_probabilities: bool = True

    def __post_init__(self) -> None:
        if self.logits.ndim != 3:
            raise EvidenceError(f"logits have shape {self.logits.shape}, expected [A, N, C]", "see `from_logits`")
        check_answers(self.logits, self.labels, "logits")
        if len(self.queries) != self.logits.shape[0]:
            raise EvidenceError(
                f"{len(self.queries)} query names for {self.logits.shape[0]} queries", "name each query"
            )
        self._check_references()
        self._check_population()
        self._check_features()
        if self.rounds is not None and self.rounds.n_pairs != self.n_records:
            raise EvidenceError(
                f"the rounds are about {self.rounds.n_pairs:,} pairs and the answers about {self.n_records:,} records",
                "one answer a pair",
            )
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                value = value.view()
                value.setflags(write=False)
                object.__setattr__(self, f.name, value)

    def _check_references(self) -> None:
        if (self.reference_logits is None) != (self.reference_membership is None):
            raise EvidenceError(
                "reference logits and reference membership go together, and only one was given",
                "give both, or neither",
            )
        if self.reference_logits is None or self.reference_membership is None:
            return
        expected = (self.reference_logits.shape[0], *self.logits.shape)
        check_reference_logits(self.reference_logits, expected, "reference logits", "[K, A, N, C]")
        if self.reference_membership.shape != (expected[0], self.n_records):
            raise EvidenceError(
                f"reference membership has shape {self.reference_membership.shape}, "
                f"expected [K, N] = {(expected[0], self.n_records)}",
                "one row for each reference model",
            )
        if self.reference_membership.dtype != np.bool_:
            raise EvidenceError(
                f"reference membership has dtype {self.reference_membership.dtype}, expected bool",
                "True means that reference model k was trained on record n",
            )

    def _check_population(self) -> None:
        if (self.population_logits is None) != (self.population_labels is None):
            raise EvidenceError(
                "population logits and population labels go together, and only one was given", "give both, or neither"
            )
        if self.population_logits is None or self.population_labels is None:
            if self.population_reference_logits is not None:
                raise EvidenceError("reference logits of a population were given without the population", "give both")
            return
        shape, (queries, _, classes) = self.population_logits.shape, self.logits.shape
        if len(shape) != 3 or (shape[0], shape[2]) != (queries, classes):
            raise EvidenceError(
                f"population logits have shape {shape}, expected [A, Z, C] with A = {queries} and C = {classes}",
                "the target answers the same queries about the population as about the records",
            )
        check_answers(self.population_logits, self.population_labels, "population logits")
        if self.population_reference_logits is not None:
            if self.reference_logits is None:
                raise EvidenceError("the population has reference logits and the records have none", "give both")
            expected = (len(self.reference_logits), *shape)
            name = "population reference logits"
            check_reference_logits(self.population_reference_logits, expected, name, "[K, A, Z, C]")

    def _check_features(self) -> None:
        if self.record_features is not None:
            check_features(self.record_features, self.n_records, "record features")
        if self.population_features is None:
            return
        if self.population_logits is None or self.record_features is None:
            raise EvidenceError(
                "features of a population were given without its logits or without features of the records",
                "give population_logits, population_labels and record_features too",
            )
        check_features(self.population_features, self.population_logits.shape[1], "population features")
        if self.population_features.shape[1] != self.record_features.shape[1]:
            raise EvidenceError(
                f"population features have {self.population_features.shape[1]} columns and record features "
                f"{self.record_features.shape[1]}",
                "compute both in the same way",
            )

    @property
    def n_records(self) -> int:
        """N."""
        return int(self.logits.shape[1])

    @property
    def n_classes(self) -> int:
        """C."""
        return int(self.logits.shape[2])

    @property
    def knowledge(self) -> frozenset[Knowledge]:
        """What can be known from this evidence; `SOME_MEMBERSHIP` is handed out by whoever runs the attack."""
        known = {Knowledge.LABELS, Knowledge.TRUE_LABELS}
        if self.has_probabilities:
            known.add(Knowledge.PROBABILITIES)
        if self.reference_membership is not None:
            known.add(Knowledge.REFERENCES)
            if self.reference_membership.any():
                known.add(Knowledge.REFERENCES_IN)
        if self.record_features is not None:
            known.add(Knowledge.RECORDS)
        if self.population_logits is not None:
            known.add(Knowledge.POPULATION)
        if self.white_box is not None:
            known.add(Knowledge.WEIGHTS)
        own = (self.reference_white_box, self.reference_oracle)
        if self.reference_membership is not None and all(part is not None for part in own):
            known.add(Knowledge.REFERENCE_WEIGHTS)
        if self.workshop is not None:
            known.add(Knowledge.WORKSHOP)
        if self.oracle is not None:
            known.add(Knowledge.QUERIES)
        if self.rounds is not None:
            known |= self.rounds.knowledge
        return frozenset(known)

    @cached_property
    def signals(self) -> Signals:
        """Signals of the first query, float64 [N] each."""
        return Signals(self.logits[0], self.labels)

    @cached_property
    def query_signals(self) -> Signals:
        """Signals of every query, float64 [A, N] each."""
        return Signals(self.logits, self.labels)

    @cached_property
    def references(self) -> ReferenceSignals:
        """Signals of the reference models on the records, reduced from their logits once for all attacks."""
        if self.reference_logits is None or self.reference_membership is None:
            raise EvidenceError("this evidence holds no reference models", "give reference_logits and membership")
        return ReferenceSignals.from_logits(self.reference_logits, self.labels, self.reference_membership)

    @cached_property
    def population_references(self) -> ReferenceSignals:
        """Signals of the reference models on the population, OUT for all of them."""
        if self.population_reference_logits is None or self.population_labels is None:
            raise EvidenceError(
                "this evidence holds no answers of reference models on a population", "give population_reference_logits"
            )
        out = np.zeros((len(self.population_reference_logits), len(self.population_labels)), bool)
        return ReferenceSignals.from_logits(self.population_reference_logits, self.population_labels, out)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Evidence:
        """The evidence about some of the records only, in the order of `rows` (indices, or a mask)."""
        white_box, of_references, asked = self.white_box, self.reference_white_box, self.reference_oracle
        here = np.arange(self.n_records)[rows]
        references = self.reference_logits
        membership = self.reference_membership
        features = self.record_features
        return replace(
            self,
            logits=self.logits[:, rows],
            labels=self.labels[rows],
            reference_logits=None if references is None else references[:, :, rows],
            reference_membership=None if membership is None else membership[:, rows],
            record_features=None if features is None else features[rows],
            white_box=None if white_box is None else lambda name: white_box(name)[rows],
            reference_white_box=None
            if of_references is None
            else lambda model, name, rows: of_references(model, name, here[rows]),
            reference_oracle=None if asked is None else lambda model: asked(model).take(rows),
            workshop=None if self.workshop is None else self.workshop.take(rows),
            oracle=None if self.oracle is None else self.oracle.take(rows),
            rounds=None if self.rounds is None else self.rounds.take(rows),
        )

    def __repr__(self) -> str:
        references = 0 if self.reference_logits is None else len(self.reference_logits)
        population = 0 if self.population_logits is None else self.population_logits.shape[1]
        return (
            f"Evidence({self.n_records:,} records, {self.n_classes} classes, {len(self.queries)} "
            f"quer{'y' if len(self.queries) == 1 else 'ies'}, {references} reference models, population {population:,})"
        )


def from_logits(logits: NDArray[np.floating], labels: NDArray[np.integer], **more: Any) -> Evidence:
    """Evidence from logits [N, C] (one query) or [A, N, C]; `more` goes to `Evidence`."""
    array = np.asarray(logits)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise EvidenceError(f"logits have shape {array.shape}, expected [N, C]", "one row a record, one column a class")
    queries = more.pop("queries", ("none",) if len(array) == 1 else tuple(f"query{i}" for i in range(len(array))))
    return Evidence(array, as_labels(labels), queries=queries, **more)


SUM_TOLERANCE = 0.01
"""How far the probabilities of a record may be from 1 in sum: room for answers rounded to three digits or float16."""


def from_probabilities(probabilities: NDArray[np.floating], labels: NDArray[np.integer], **more: Any) -> Evidence:
    """Evidence from probabilities [N, C] or [A, N, C].

    Their logarithm takes the place of the logits. Probabilities of exactly 0 are taken as the smallest positive
    number of their dtype: a probability rounded to 0 or 1 ties with others at the top of the ROC, and no attack can
    undo that.

    Raises
    ------
    EvidenceError
        Negative values, NaN, infinities, or rows that do not sum to 1 within `SUM_TOLERANCE` (logits, perhaps).
    """
    p = np.asarray(probabilities)
    if p.dtype.kind != "f":
        raise EvidenceError(f"probabilities have dtype {p.dtype}, expected floating point", "did you pass classes?")
    if p.ndim not in (2, 3):
        raise EvidenceError(
            f"probabilities have shape {p.shape}, expected [N, C]", "one row a record, one column a class"
        )
    smallest = max(float(np.finfo(p.dtype).smallest_subnormal), float(np.finfo(np.float64).smallest_subnormal))
    p = p.astype(np.float64)
    broken = ~np.isfinite(p).all(axis=-1)
    if broken.any():
        row = int(np.argwhere(broken)[0][-1])
        raise EvidenceError(
            f"probabilities of record {row} are NaN or infinite", "leave broken records out, or mend the model"
        )
    sums = p.sum(axis=-1)
    bad = (p < 0).any(axis=-1) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        raise EvidenceError(
            f"these are not probabilities: the values of record {place[-1]} lie in "
            f"[{p[place].min():.4g}, {p[place].max():.4g}] and their sum is {sums[place]:.4g}",
            "pass unnormalised outputs as logits instead",
        )
    return from_logits(np.log(np.maximum(p, smallest)), labels, has_logits=False, **more)
