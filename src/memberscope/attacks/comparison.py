"""A model's answers held beside those of reference models, and reference models that play the target.

Whatever an attack fits, it fits on reference models whose membership the adversary knows: one of them plays the target
and the others remain references. In a design with equally many IN and OUT models a record, the others then hold one IN
model less for a member and one OUT model less for a non-member: their counts spell out the answer. So for every record
one more model, of the other side, is left out: members and non-members of the played target have the same counts, and
on data without any leakage an attack finds nothing (LiRA per record, 8 models: AUC 0.50 instead of 0.43).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Scores
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence, Knowledge
from memberscope.reference_signals import ReferenceSignals
from memberscope.signals import Floats, logit_scaled_confidence
from memberscope.statistics.curves import auc, rank

OFFLINE = frozenset({Knowledge.PROBABILITIES, Knowledge.TRUE_LABELS, Knowledge.REFERENCES})
"""What an attack needs that uses the OUT models of a record only."""

ONLINE = OFFLINE | {Knowledge.REFERENCES_IN}
"""What an attack needs that uses the IN models of a record too."""

PLAYERS = 8
"""How many reference models play the target, at most."""

PLAYED_RECORDS, PLAYED_VALUES = 20_000, 2_000_000
"""Records, and records times models, with which models play the target, at most: of more, so many are sampled."""

FEWEST = 20
"""A played target with fewer members or non-members teaches nothing."""


class Comparison:
    """A target's confidences beside those of reference models.

    Parameters
    ----------
    phi_at
        Computes the target's phi, float64 [A, N], at a temperature.
    references
        The reference models' signals on the same records.
    """

    def __init__(self, phi_at: Callable[[float], Floats], references: ReferenceSignals) -> None:
        self._phi_at, self.references = phi_at, references

    @classmethod
    def of(cls, evidence: Evidence) -> Comparison:
        """The target under audit beside its reference models."""
        references = evidence.references
        if not references.n_out.any():
            raise EvidenceError(
                "every reference model was trained on every record",
                "reference models must leave records out: train each on a random half",
            )

        def phi_at(temperature: float) -> Floats:
            if temperature == 1.0:
                return evidence.query_signals.phi
            return logit_scaled_confidence(evidence.logits, evidence.labels, temperature)

        return cls(phi_at, references)

    def phi(self, temperature: float = 1.0) -> Floats:
        """float64 [A, N]: the target's logit-scaled confidence at a temperature."""
        return self._phi_at(temperature)


@dataclass(frozen=True, eq=False)
class Played:
    """A reference model in the part of the target.

    Parameters
    ----------
    comparison
        Its confidences on M records beside those of the models that are left.
    member
        bool [M]: whether it was trained on them.
    """

    comparison: Comparison
    member: NDArray[np.bool_]


def play(references: ReferenceSignals, model: int) -> Played | None:
    """Let one reference model play the target on every record that has a model of the other side to leave out.

    The one left out is the next model, cyclically by number: for complementary pairs it is the partner. Returns None
    where fewer than `FEWEST` members or non-members remain, or no OUT model is left on any record.
    """
    order, k = references.order, references.n_models
    if k < 3:
        return None
    place = (order == model).argmax(axis=1)
    member = place < references.n_in
    on_the_other_side = (np.arange(k) < references.n_in[:, None]) != member[:, None]
    distance = np.where(on_the_other_side, (order.astype(np.int64) - model) % k, k)
    opponent = distance.argmin(axis=1)
    rows = np.flatnonzero(on_the_other_side.any(axis=1))
    member = member[rows]
    if min(member.sum(), len(member) - member.sum()) < FEWEST:
        return None
    here = references.take(rows)
    places = np.stack([place, opponent], axis=1)[rows]
    left = here.without(places)
    if not left.n_out.any():
        return None
    return Played(Comparison(lambda temperature: here.at(places[:, 0], temperature), left), member)


def played_targets(references: ReferenceSignals, rng: np.random.Generator) -> list[Played]:
    """Up to `PLAYERS` reference models, each in the part of the target; empty where there are too few models."""
    most = min(PLAYED_RECORDS, max(2000, PLAYED_VALUES // references.n_models))
    if references.n_records > most:
        references = references.take(np.sort(rng.choice(references.n_records, most, replace=False)))
    models = np.unique(np.linspace(0, references.n_models - 1, PLAYERS).round().astype(int))
    played = (play(references, int(model)) for model in models)
    return [one for one in played if one is not None]


class ReferenceAttack(Attack):
    """An attack that compares the target's confidences with those of reference models, record by record.

    It never sees how many reference models were trained on a record but through means and variances; what it fits, it
    fits in `fit` on reference models that play the target.
    """

    needs = OFFLINE

    def score(self, evidence: Evidence) -> Scores:
        """Fit on the reference models where there is something to fit, then compare the target with them."""
        comparison = Comparison.of(evidence)
        self.fit(lambda: played_targets(evidence.references, self.rng))
        return self.compare(comparison)

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Fit on reference models that play the target; most attacks have nothing to fit and do not ask for them."""
        del played

    @abstractmethod
    def compare(self, comparison: Comparison) -> Scores:
        """Score the records of a comparison, float64 [N], higher = more likely a member of its target."""


def best_setting(played: list[Played], grid: tuple[float, ...], score: Callable[[Comparison, float], Scores]) -> float:
    """The setting of a grid under which the played targets' members are told best, by their mean AUC."""
    told = [np.mean([auc(rank(score(one.comparison, setting), one.member)) for one in played]) for setting in grid]
    return grid[int(np.argmax(told))]


def log_t(x: Floats, freedom: Floats, location: Floats, scale2: Floats) -> Floats:
    """Log-density of Student's t with `freedom` degrees of freedom, a location and a squared scale."""
    from scipy.special import gammaln

    half = 0.5 * freedom
    constant = gammaln(half + 0.5) - gammaln(half) - 0.5 * np.log(np.pi * freedom * scale2)
    return np.asarray(constant - (half + 0.5) * np.log1p((x - location) ** 2 / (freedom * scale2)))
