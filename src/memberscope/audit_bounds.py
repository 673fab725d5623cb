"""What an audit proves: lower bounds on epsilon from its own coins, beside the upper bound of an accountant.

Everything that a bound rests on is fixed before its records are looked at: the number of guesses by the number of
records, the attack on canaries by what the ordinary records showed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.base import InformedAttack
from memberscope.statistics.privacy_bounds import Bound, Comparison, bound, bound_each, compare_with_accountant

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.canary_audit import CanaryAudit

DELTA = 1e-5
"""Of bounds where no accountant names another."""


@dataclass(frozen=True)
class AuditBounds:
    """Lower bounds of one audit, each at its confidence for itself.

    Parameters
    ----------
    population, canaries
        Of the ordinary records (where each was drawn by its own coin) and of the canaries; None where there are none.
    gaussian
        The same under the hypothesis of a Gaussian mechanism, from the canaries if there are any.
    attacks
        ``population`` or ``canaries`` -> the attack that the bound rests on.
    comparison
        The bound of the canaries, or else of the population, beside the accountant's claim.
    """

    population: Bound | None
    canaries: Bound | None
    gaussian: Bound | None
    attacks: Mapping[str, str]
    comparison: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        known = self.canaries or self.population
        compared = self.comparison
        return {
            "delta": None if known is None else known.delta,
            "confidence": None if known is None else known.confidence,
            "population": self.population and self.population.to_dict(),
            "canaries": self.canaries and self.canaries.to_dict(),
            "gaussian": self.gaussian and self.gaussian.to_dict(),
            "attacks": dict(self.attacks),
            "comparison": compared
            and {
                "verdict": compared.verdict,
                "text": compared.text,
                "upper": compared.upper,
                "upper_delta": compared.upper_delta,
            },
        }


def bounds_of_audit(
    results: Sequence[AttackResult],
    member: NDArray[np.bool_],
    *,
    coins: bool,
    fixed: str | None,
    canaries: CanaryAudit | None,
    claim: tuple[float, float] | None,
    confidence: float,
    seed: int,
) -> AuditBounds | None:
    """Bound epsilon from what an audit has; None where nothing was drawn by coins.

    Parameters
    ----------
    results, member
        Attacks on the ordinary records, and bool [N].
    coins
        Whether each ordinary record was put in by its own fair coin.
    fixed
        The attack that was fixed before any ran; None: each attack has its share of the error probability.
    canaries
        What was found of them.
    claim
        (epsilon, delta) of the accountant.
    confidence, seed
        As of the audit.
    """
    delta = DELTA if claim is None or not 0 < claim[1] < 1 else claim[1]
    settings: dict[str, Any] = {"design": "coin-flips", "delta": delta, "confidence": confidence}
    attacks: dict[str, str] = {}
    population = proven = gaussian = None
    unsighted = {r.name: r.scores for r in results if r.scores is not None and not issubclass(r.attack, InformedAttack)}
    if coins and unsighted:
        chosen = {fixed: unsighted[fixed]} if fixed in unsighted and fixed is not None else unsighted
        found = bound_each(chosen, member, rng=seeds.generator(seed, "evaluation", "bound"), **settings)
        attacks["population"], population = next(iter(found.items()))
    copies = 1
    if canaries is not None and canaries.judged_by is not None:
        attacks["canaries"] = canaries.judged_by
        mine, copies = bounded_canaries(canaries.copies)
        proven = bound(
            canaries.scores[canaries.judged_by][mine],
            canaries.member[mine],
            rng=seeds.generator(seed, "evaluation", "bound of canaries"),
            **settings,
        )
        gaussian = bound(
            canaries.scores[canaries.judged_by][mine],
            canaries.member[mine],
            method="one-run-gdp",
            rng=seeds.generator(seed, "evaluation", "bound of canaries"),
            **settings,
        )
    elif population is not None:
        gaussian = bound(
            unsighted[attacks["population"]],
            member,
            method="one-run-gdp",
            searched=population.searched,
            rng=seeds.generator(seed, "evaluation", "bound"),
            **settings,
        )
    best = proven or population
    if best is None:
        return None
    comparison = None if claim is None else compare_with_accountant(best, *claim, copies=copies)
    return AuditBounds(population, proven, gaussian, attacks, comparison)


def claim_of(target: Mapping[str, Any]) -> tuple[float, float] | None:
    """(epsilon, delta) that the accountant of a target's training claims, or None."""
    privacy = target.get("privacy") or {}
    return None if privacy.get("epsilon") is None else (float(privacy["epsilon"]), float(privacy["delta"]))


def bounded_canaries(copies: NDArray[np.int64]) -> tuple[NDArray[np.bool_], int]:
    """Which canaries a bound rests on, bool [M], and how often each of them is in the training data.

    Those that are in once, where there are any: several copies test the privacy of a group, which is a weaker claim.
    """
    once = copies == 1
    return (once, 1) if once.any() else (np.ones(len(copies), bool), int(copies.max()))
