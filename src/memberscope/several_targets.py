"""Several targets: the same audit of models with other members and other seeds, beside the same reference models.

One model tells what one training gave away. Whether another training by the same recipe would give away as much, and
about the same people, only other trainings can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.runner import run_attacks
from memberscope.events import Events
from memberscope.statistics.over_targets import agreement_of_targets, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from memberscope.attacks.base import Attack
    from memberscope.attacks.runner import AttackResult
    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.evidence import Evidence
    from memberscope.membership import Split
    from memberscope.statistics.intervals import Estimate
    from memberscope.target import Target

COLUMNS = ("member_in", "found_in")
"""Names of the columns of ``scores.csv.gz`` that count targets."""


@dataclass(frozen=True, eq=False)
class TargetResult:
    """What was found of one target.

    Parameters
    ----------
    folder
        Name of the folder with its weights.
    member
        bool [N], of the audited records.
    results
        What became of each attack.
    train_acc, test_acc
        Its accuracy on members and non-members.
    """

    folder: str
    member: NDArray[np.bool_]
    results: tuple[AttackResult, ...]
    train_acc: float
    test_acc: float

    @classmethod
    def of(
        cls, target: Target, member: NDArray[np.bool_], results: Sequence[AttackResult], evidence: Evidence
    ) -> TargetResult:
        """Gather what is kept of a target."""
        right = evidence.signals.correct
        accuracies = float(right[member].mean()), float(right[~member].mean())
        return cls(target.folder.name, member, tuple(results), *accuracies)

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Score of every audited record under each attack that ran, float64 [N]."""
        return {r.name: r.scores for r in self.results if r.scores is not None}

    def evaluation(self, attack: str) -> Any:
        """Figures of an attack on this target, or None."""
        return next((r.evaluation for r in self.results if r.name == attack), None)


@dataclass(frozen=True, eq=False)
class SeveralTargets:
    """Two or more targets of one audit, the first of which is the model that the report is about.

    Parameters
    ----------
    targets
        All of them.
    headline
        The attack that the answer is given for, or None.
    """

    targets: tuple[TargetResult, ...]
    headline: str | None

    def found(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float] | None:
        """Who is found in which target, who is a member of which, bool [T, N] each, and at which false-positive rate.

        By the headline attack at the threshold of the lowest rate that every target supports.
        """
        found_by = self.headline
        evaluations = [t.evaluation(found_by) for t in self.targets] if found_by is not None else []
        if found_by is None or None in evaluations:
            return None
        points = [e.operating_points for e in evaluations if e is not None]
        tables = [{p.fpr: p for p in one if p.supported and np.isfinite(p.threshold)} for one in points]
        shared = set.intersection(*map(set, tables))
        if not shared:
            return None
        fpr = min(shared)
        scores = [target.scores[found_by] for target in self.targets]
        found = np.array([s >= table[fpr].threshold for s, table in zip(scores, tables, strict=True)])
        return found, np.array([target.member for target in self.targets]), fpr

    def aucs(self) -> tuple[Estimate, ...]:
        """AUC of the headline attack on each target where it ran."""
        evaluations = [target.evaluation(self.headline) for target in self.targets] if self.headline else []
        return tuple(e.auc for e in evaluations if e is not None)

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Of how many targets each record is a member, and in how many of those it is found, int64 [N] each."""
        told = self.found()
        if told is None:
            return {}
        found, member, _ = told
        counts = member.sum(axis=0), (found & member).sum(axis=0)
        return {name: np.asarray(count, np.int64) for name, count in zip(COLUMNS, counts, strict=True)}

    def to_dict(self, confidence: float) -> dict[str, Any]:
        """All targets, every attack's mean and spread, and agreement; JSON-able but for NaN."""
        told = self.found()
        agreed = None
        if told is not None:
            found, member, fpr = told
            agreed = {"attack": self.headline, "fpr": fpr, **asdict(agreement_of_targets(found, member))}
        names = [r.name for r in self.targets[0].results if all(t.evaluation(r.name) is not None for t in self.targets)]
        return {
            "number": len(self.targets),
            "confidence": confidence,
            "targets": [
                {
                    "folder": t.folder,
                    "members": int(t.member.sum()),
                    "train_acc": t.train_acc,
                    "test_acc": t.test_acc,
                    "failed": [r.name for r in t.results if r.status == "failed"],
                }
                for t in self.targets
            ],
            "attacks": {name: self._spreads(name, confidence) for name in names},
            "agreement": agreed,
        }

    def _spreads(self, attack: str, confidence: float) -> dict[str, Any]:
        evaluations = [target.evaluation(attack) for target in self.targets]
        told: dict[str, Any] = {"auc": asdict(spread([e.auc.value for e in evaluations], confidence)), "tpr": []}
        for points in zip(*(e.operating_points for e in evaluations), strict=True):
            if all(p.supported and p.tpr is not None for p in points):
                values = [p.tpr.value for p in points]
                told["tpr"].append({"fpr": points[0].fpr, **asdict(spread(values, confidence))})
        return told


def audit_further(
    config: AuditConfig,
    dataset: Dataset,
    splits: Sequence[Split],
    attacks: Sequence[type[Attack]],
    *,
    obtain: Callable[[Split, int], Target],
    observe: Callable[[Target, Split], Evidence],
    events: Events,
) -> list[TargetResult]:
    """Audit the targets after the first.

    Parameters
    ----------
    splits
        Membership of each.
    attacks
        Those of the first.
    obtain
        Trains or loads the model of a split, told its number.
    observe
        Asks it about the audited records.
    """
    told = []
    for number, split in enumerate(splits, start=1):
        events.stage(f"Target {number + 1} of {len(splits) + 1}")
        target = obtain(split, number)
        evidence, member = observe(target, split), split.member[split.audited]
        results = run_attacks(
            attacks,
            evidence,
            member,
            class_names=dataset.classes,
            seed=config.seed,
            folds=config.folds,
            confidence=config.confidence,
        )
        told.append(TargetResult.of(target, member, results, evidence))
    return told
