"""Running many attacks on one evidence: each is scored, evaluated and held against a null of itself."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.base import (
    HOW_TO_GET,
    Attack,
    InformedAttack,
    Scores,
    crossfit_confidence,
    missing_knowledge,
    score_records,
)
from memberscope.attacks.registry import all_attacks, get_attack
from memberscope.errors import ConfigError, MemberscopeError
from memberscope.evidence import Evidence
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.curves import rank
from memberscope.statistics.evaluation import Estimate, Evaluation, evaluate

_SMALL = 20_000

Status = Literal["run", "skipped", "failed"]


@dataclass(frozen=True)
class Null:
    """The attack run again with membership permuted: there is nothing to find, so its AUC must be 0.5.

    `auc` is the figure with an interval at `confidence`, wide enough that all attacks of an audit pass together with
    probability 99 % when none of them cheats.

    An attack that learns is fitted anew on the permuted membership, and *before* it is told the true one: if it kept
    what it was told in one fold to use it in another, it then betrays itself on labels that mean nothing.
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
    """What became of one attack that was asked for; `seconds` is the time it took to score the records."""

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


def check_names(names: Sequence[str]) -> None:
    """Raise a `ConfigError` for a name that no attack has, and for no name at all."""
    if not names:
        raise ConfigError("no attack was named", "`memberscope list attacks` shows them; auto stands for all")
    for name in names:
        if name != "auto":
            get_attack(name)


def select(names: Sequence[str], evidence: Evidence) -> list[type[Attack]]:
    """The attacks of these names; ``auto`` stands for every attack that the evidence allows and that is not costly.

    Raises
    ------
    ConfigError
        A name that no attack has.
    """
    check_names(names)
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
    on_start: Callable[[str, int, int], None] | None = None,
) -> list[AttackResult]:
    """Run, evaluate and null-test each attack; one that cannot run or fails is reported, never left out.

    Parameters
    ----------
    attacks
        In the order of the results.
    evidence
        About N records. The attacks get it in random order, for in a pool the members may come first; with the answers
        of reference models, which would have to be copied for that, in the order given.
    member
        bool [N].
    class_names
        C names, for the figures per class.
    seed
        Each attack draws from its own stream of it, so that results do not depend on which others run.
    folds, confidence
        As in `score_records` and `evaluate_scores`.
    on_start
        Called with name, position (from 0) and number of attacks before each.

    Raises
    ------
    ConfigError
        Settings under which no attack could run, which is not the attacks' fault.
    """
    if folds < 2:
        raise ConfigError(f"folds = {folds} is out of range", "at least 2; 5 is the default")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence} is out of range", "between 0 and 1; 0.95 is the default")
    if len(class_names) != evidence.n_classes:
        raise ConfigError(f"{len(class_names)} class names for {evidence.n_classes} classes", "one name a class")
    order = np.arange(evidence.n_records)
    if evidence.reference_logits is None:
        order = seeds.generator(seed, "attacks", "order of records").permutation(order)
        evidence, member = evidence.take(order), member[order]
    back = np.argsort(order)
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
            with _few_threads(evidence.n_records):
                permuted, null_scores = _null_scores(attack, evidence, member, seed, folds)
                started = time.perf_counter()
                scores = score_records(
                    attack, evidence, member, rng=seeds.generator(seed, "attacks", attack.name), folds=folds
                )
                seconds = time.perf_counter() - started
            evaluation = evaluate_scores(
                attack,
                scores,
                member,
                confidence=confidence,
                rng=seeds.generator(seed, "evaluation"),  # the same folds for all: equal rankings, equal figures
                label=evidence.labels,
                class_names=class_names,
            )
            ranking = rank(scores if null_scores is None else null_scores, permuted)
            null = Null(auc_estimate(ranking, interval_level(attack, null_confidence)), null_confidence)
        except MemberscopeError as error:
            reason = ". ".join(part for part in (error.problem, error.hint) if part)
            results.append(AttackResult(attack, "failed", reason, time.perf_counter() - started))
        except Exception as error:  # an attack may be anybody's code: its bug is reported, and the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            results.append(AttackResult(attack, "failed", reason, time.perf_counter() - started))
        else:
            results.append(AttackResult(attack, "run", "", seconds, scores[back], evaluation, null))
    return results


def interval_level(attack: type[Attack], confidence: float) -> float:
    """The level at which this attack's intervals hold `confidence`: scores that were cross-fitted need a wider one."""
    return crossfit_confidence(confidence) if issubclass(attack, InformedAttack) else confidence


def evaluate_scores(
    attack: type[Attack],
    scores: Scores,
    member: NDArray[np.bool_],
    *,
    confidence: float,
    rng: np.random.Generator,
    label: NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
) -> Evaluation:
    """The figures of an attack, with intervals that hold `confidence` for cross-fitted scores too."""
    evaluation = evaluate(
        scores,
        member,
        name=attack.name,
        label=label,
        class_names=class_names,
        probability=attack.probability,
        confidence=interval_level(attack, confidence),
        rng=rng,
    )
    return replace(evaluation, confidence=confidence)


def _few_threads(n_records: int) -> AbstractContextManager[object]:
    """One OpenMP thread for small audits.

    Boosting a few thousand records gains nothing by more, and where anything else is computing, threads that wait for
    each other took ten times as long.
    """
    if n_records > _SMALL:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1, user_api="openmp")  # type: ignore[no-any-return]


def _null_scores(
    attack: type[Attack], evidence: Evidence, member: NDArray[np.bool_], seed: int, folds: int
) -> tuple[NDArray[np.bool_], Scores | None]:
    """A permuted membership, and what an attack that learns from it then answers; None for one that does not learn."""
    rng = seeds.generator(seed, "nulls", attack.name)
    permuted = rng.permutation(member)
    if not issubclass(attack, InformedAttack):
        return permuted, None
    return permuted, score_records(attack, evidence, permuted, rng=rng, folds=folds)
