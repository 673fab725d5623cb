"""Thresholds and probabilities as an insider has them: from reference models, then held against the target.

Reading the threshold off the target's own non-members, as every ROC does, gives an adversary what nobody has. An
insider lets reference models play the target: their members are known. A played model leaves its place among the
references empty, and one more of the other side is left out of each record's comparison (`attacks.comparison.play`),
else the number that is left would tell members from non-members. The target must then be compared with as many, or its
scores would be drawn from another distribution than those that the threshold was read off: for each record one IN and
one OUT model are left out at random. Target and played models then differ in nothing that an adversary controls, and a
threshold for 1 % of the played models' non-members lets through 1 % of the target's, on average over targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.comparison import Comparison, Played, ReferenceAttack, played_targets
from memberscope.errors import MemberscopeError
from memberscope.signals import logit_scaled_confidence
from memberscope.statistics.evaluation import FPRS, PRIORS
from memberscope.statistics.fixed_thresholds import at_thresholds, thresholds_for
from memberscope.statistics.operating import predictive_values
from memberscope.statistics.points import OperatingPoint, PredictiveValue
from memberscope.statistics.posterior import Posterior

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.evidence import Evidence

FEWEST_MODELS = 4
"""One plays, one is left out, and an IN and an OUT model remain."""

MATCHED = 64
"""From more models on, one pair more or less changes no score that could be noticed: the target keeps them all."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """An attack with thresholds from reference models.

    Parameters
    ----------
    players
        Reference models that the thresholds were read off.
    models
        Reference models that the target was compared with for it.
    points
        For each false-positive rate aimed at, what its threshold does to the target's records.
    ppv
        Of those called members, the share that is, by prior.
    posterior
        What a score says about membership.
    scores
        float64 [N]: the target's scores on the scale of the thresholds; NaN for records without a reference model on
        either side.
    """

    players: int
    models: int
    points: tuple[OperatingPoint, ...]
    ppv: tuple[PredictiveValue, ...]
    posterior: Posterior
    scores: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, but for NaN."""
        return {
            "players": self.players,
            "models": self.models,
            "points": [asdict(point) for point in self.points],
            "ppv": [asdict(value) for value in self.ppv],
        }


def calibrate_all(
    results: Sequence[AttackResult],
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Calibrated]:
    """Calibrate every attack that compares the target with reference models; empty where there are too few of them.

    Parameters
    ----------
    results
        What became of the attacks; those that ran are calibrated.
    evidence
        About N records.
    member
        bool [N]; thresholds and probabilities are fixed before it is looked at.
    """
    attacks = [r.attack for r in results if r.scores is not None and issubclass(r.attack, ReferenceAttack)]
    if not attacks or evidence.reference_membership is None or len(evidence.reference_membership) < FEWEST_MODELS:
        return {}
    played = played_targets(evidence.references, seeds.generator(seed, "evaluation", "players"))
    target, rows = _matched(evidence, seeds.generator(seed, "evaluation", "matched"))
    calibrated = {}
    for attack in attacks:
        assert issubclass(attack, ReferenceAttack)
        rng = seeds.generator(seed, "attacks", f"calibrated {attack.name}")
        try:
            one = _calibrate(attack, played, target, member[rows], rng, confidence)
        except MemberscopeError:  # too little to calibrate by; the attack itself stands
            continue
        if one is not None:
            scores = np.full(evidence.n_records, np.nan)
            scores[rows] = one.scores
            calibrated[attack.name] = replace(one, scores=scores)
    return calibrated


def _calibrate(
    attack: type[ReferenceAttack],
    played: list[Played],
    target: Comparison,
    member: NDArray[np.bool_],
    rng: np.random.Generator,
    confidence: float,
) -> Calibrated | None:
    learns = attack.fit is not ReferenceAttack.fit
    # What was fitted on a model is surer of it than of others, so thresholds are read off models that taught nothing.
    teachers, judged = (played[::2], played[1::2]) if learns else ([], played)
    if not judged or (learns and not teachers):
        return None
    ready = attack(rng=rng)
    if learns:
        ready.fit(lambda: teachers)
    known = np.concatenate([ready.compare(one.comparison) for one in judged])
    inside = np.concatenate([one.member for one in judged])
    thresholds, posterior = thresholds_for(known, inside, FPRS), Posterior.learn(known, inside)
    scores = ready.compare(target)
    points = at_thresholds(scores, member, thresholds, confidence)
    members = int(member.sum())
    ppv = tuple(
        value for point in points if point.supported for value in predictive_values(point, members, PRIORS, confidence)
    )
    return Calibrated(len(judged), target.references.n_models, points, ppv, posterior, scores)


def _matched(evidence: Evidence, rng: np.random.Generator) -> tuple[Comparison, NDArray[np.int64]]:
    """The target beside as many reference models as a played one has, and the records for which there are enough."""
    references = evidence.references
    rows = np.flatnonzero((references.n_in > 0) & (references.n_out > 0))
    if references.n_models > MATCHED and len(rows) == references.n_records:
        return Comparison.of(evidence), rows
    if len(rows) < references.n_records:
        references = references.take(rows)
    some_in = (rng.random(len(rows)) * references.n_in).astype(np.int64)
    some_out = references.n_in + (rng.random(len(rows)) * references.n_out).astype(np.int64)
    logits, labels = evidence.logits[:, rows], evidence.labels[rows]

    def phi_at(temperature: float) -> NDArray[np.float64]:
        return logit_scaled_confidence(logits, labels, temperature)

    return Comparison(phi_at, references.without(np.stack([some_in, some_out], axis=1))), rows
