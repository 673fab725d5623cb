"""Thresholds that an adversary could set: chosen on reference models only, with what they then achieve on the target.

A figure read off the target's own ROC assumes a threshold that nobody outside knows. Here the threshold for a nominal
false-positive rate is the quantile of non-members' scores under reference models that play the target (Jebreel et al.
2026); the realised rates on the target stand beside the nominal one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Attack, Scores
from memberscope.attacks.comparison import ReferenceAttack, played_targets
from memberscope.evidence import Evidence
from memberscope.statistics.intervals import Estimate, clopper_pearson

PRIORS = (0.5, 0.1, 0.01)


@dataclass(frozen=True)
class CalibratedPoint:
    """A threshold set without the target, and what it achieves on it.

    Parameters
    ----------
    fpr
        Nominal false-positive rate.
    threshold
        A record is called a member iff its score >= this.
    realised_fpr, tpr
        On the target, with exact intervals: the threshold was fixed on other data.
    ppv
        Prior -> share of members among those called members, at that share of members in the population.
    """

    fpr: float
    threshold: float
    realised_fpr: Estimate
    tpr: Estimate
    ppv: dict[str, float]


def calibrated_points(
    attack: type[Attack],
    evidence: Evidence,
    scores: Scores,
    member: NDArray[np.bool_],
    *,
    fprs: Sequence[float],
    confidence: float,
    rng: np.random.Generator,
) -> list[CalibratedPoint]:
    """Set the attack's thresholds on reference models that play the target, and apply them to the target.

    Returns nothing for an attack that does not compare with reference models, where no model can play the target, or
    for a rate at which fewer than ten of the played non-members would be accused.
    """
    if not issubclass(attack, ReferenceAttack) or evidence.reference_membership is None:
        return []
    played = played_targets(evidence.references, rng)
    if not played:
        return []
    scorer = attack(rng=rng.spawn(1)[0])
    scorer.fit(lambda: played)
    outside = np.concatenate([scorer.compare(one.comparison)[~one.member] for one in played])
    return [_apply(f, outside, scores, member, confidence) for f in fprs if f * len(outside) >= 10]


def _apply(
    fpr: float, outside: Scores, scores: Scores, member: NDArray[np.bool_], confidence: float
) -> CalibratedPoint:
    allowed = int(fpr * len(outside))
    threshold = float(np.nextafter(np.partition(outside, -allowed - 1)[-allowed - 1], np.inf))
    called = scores >= threshold
    n_in, n_out = int(member.sum()), int((~member).sum())
    true, false = int((called & member).sum()), int((called & ~member).sum())
    tpr, realised = true / n_in, false / n_out
    ppv = {f"{p:g}": p * tpr / (p * tpr + (1 - p) * realised) if true or false else float("nan") for p in PRIORS}
    rates = (_exact(false, n_out, confidence), _exact(true, n_in, confidence))
    return CalibratedPoint(fpr, threshold, *rates, ppv)


def _exact(k: int, n: int, confidence: float) -> Estimate:
    return Estimate(k / n, *clopper_pearson(k, n, confidence), "Clopper-Pearson", k, n)
