"""Running many attacks on one evidence: each is scored, evaluated and held against a null of itself."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.base import HOW_TO_GET, Attack, InformedAttack, Scores, missing_knowledge, score_records
from memberscope.attacks.registry import all_attacks, get_attack
from memberscope.errors import MemberscopeError
from memberscope.evidence import Evidence
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.curves import rank
from memberscope.statistics.evaluation import Estimate, Evaluation, evaluate

Status = Literal["run", "skipped", "failed"]


@dataclass(frozen=True)
class Null:
    """The attack run again with membership permuted: there is nothing to find, so its AUC must be 0.5.

    `auc` is the figure with an interval at `confidence`, wide enough that all attacks of an audit pass together with
    probability 99 % when none of them cheats.
    """

    auc: Estimate
    confidence: float

    @property
    def passed(self) -> bool:
        """Whether chance lies inside the interval."""
        return self.auc.low <= 0.5 <= self.auc.high

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"auc": asdict(self.auc), "confidence": self.confidence, "passed": self.passed}


@dataclass(frozen=True)
class AttackResult:
    """What became of one attack that was asked for."""

    attack: type[Attack]
    status: Status
    reason: str = ""
    seconds: float = 0.0
    scores: Scores | None = None
    evaluation: Evaluation | None = None
    null: Null | None = None

    @property
    def name(self) -> str:
        """Name of the attack."""
        return self.attack.name

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the scores stay in scores.csv.gz."""
        card = self.attack.card
        return {
            "name": self.name,
            "title": self.attack.title,
            "status": self.status,
            "reason": self.reason,
            "adversary": self.attack.adversary().name,
            "needs": sorted(k.name.lower().replace("_", " ") for k in self.attack.needs),
            "card": {"paper": card.paper, "formula": card.formula, "cost": card.cost, "traps": card.traps},
            "seconds": round(self.seconds, 3),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            "null": None if self.null is None else self.null.to_dict(),
        }


def select(names: Sequence[str], evidence: Evidence) -> list[type[Attack]]:
    """The attacks of these names; ``auto`` stands for every attack that the evidence allows and that is not costly.

    Raises
    ------
    ConfigError
        A name that no attack has.
    """
    chosen: dict[str, type[Attack]] = {}
    for name in names:
        if name == "auto":
            cheap = (attack for attack in all_attacks().values() if not attack.costly)
            possible = (attack for attack in cheap if not missing_knowledge(attack, evidence))
            chosen.update((attack.name, attack) for attack in possible)
        else:
            chosen[name] = get_attack(name)
    return list(chosen.values())


def run_attacks(
    attacks: Sequence[type[Attack]],
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    class_names: Sequence[str],
    seed: int = 0,
    folds: int = 5,
    confidence: float = 0.95,
    groups: NDArray[np.int64] | None = None,
    on_start: Callable[[str, int, int], None] | None = None,
) -> list[AttackResult]:
    """Run, evaluate and null-test each attack; one that cannot run or fails is reported, never left out.

    Parameters
    ----------
    attacks
        In the order of the results.
    evidence
        About N records.
    member
        bool [N].
    class_names
        C names, for the figures per class.
    seed
        Each attack draws from its own stream of it, so that results do not depend on which others run.
    folds, confidence, groups
        As in `score_records` and `evaluate`.
    on_start
        Called with name, position (from 0) and number of attacks before each.
    """
    null_confidence = 1 - 0.01 / max(1, len(attacks))
    results = []
    for position, attack in enumerate(attacks):
        if on_start is not None:
            on_start(attack.name, position, len(attacks))
        missing = missing_knowledge(attack, evidence)
        if missing:
            what = "needs " + " and ".join(k.value for k in missing)
            results.append(AttackResult(attack, "skipped", f"{what}. {' '.join(HOW_TO_GET[k] for k in missing)}"))
            continue
        started = time.perf_counter()
        try:
            scores = score_records(
                attack, evidence, member, rng=seeds.generator(seed, "attacks", attack.name), folds=folds, groups=groups
            )
            evaluation = evaluate(
                scores,
                member,
                name=attack.name,
                label=evidence.labels,
                class_names=class_names,
                probability=attack.probability,
                confidence=confidence,
                rng=seeds.generator(seed, "evaluation", attack.name),
            )
            null = _null(attack, evidence, member, scores, seed, folds, null_confidence, groups)
        except MemberscopeError as error:
            results.append(AttackResult(attack, "failed", str(error), time.perf_counter() - started))
        except Exception as error:  # an attack may be anybody's code: its bug is reported, and the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            results.append(AttackResult(attack, "failed", reason, time.perf_counter() - started))
        else:
            seconds = time.perf_counter() - started
            results.append(AttackResult(attack, "run", "", seconds, scores, evaluation, null))
    return results


def _null(
    attack: type[Attack],
    evidence: Evidence,
    member: NDArray[np.bool_],
    scores: Scores,
    seed: int,
    folds: int,
    confidence: float,
    groups: NDArray[np.int64] | None,
) -> Null:
    rng = seeds.generator(seed, "nulls", attack.name)
    permuted = rng.permutation(member)
    if issubclass(attack, InformedAttack):  # it learns from membership, so it must learn from the permuted one
        scores = score_records(attack, evidence, permuted, rng=rng, folds=folds, groups=groups)
    return Null(auc_estimate(rank(scores, permuted), confidence), confidence)
