"""Attacking canaries apart from ordinary records: figures of each kind, and the scores that a bound rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.attacks.base import Attack, InformedAttack
from memberscope.attacks.runner import AttackResult, evaluate_scores, run_attacks
from memberscope.canaries import COPIES, KINDS, Canaries, insert
from memberscope.errors import MemberscopeError
from memberscope.ladder import headline, lowest_supported_fpr, power

if TYPE_CHECKING:
    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.evidence import Evidence
    from memberscope.membership import Split
    from memberscope.statistics.evaluation import Evaluation

_FEWEST = 10
"""Canaries in, and canaries out, below which a kind has no figures."""


@dataclass(frozen=True, eq=False)
class CanaryAudit:
    """What attacks found of the canaries.

    Parameters
    ----------
    canaries
        Which they are.
    member
        bool [M]: their coins.
    label
        int64 [M]: the labels that they were trained with.
    results
        Of every attack that learns from nobody's membership: a bound must not rest on coins that an attack saw.
    judged_by
        Name of the attack that they are judged by, chosen without them; None where it did not run.
    confidence, seed
        As of the audit.
    """

    canaries: Canaries
    member: NDArray[np.bool_]
    label: NDArray[np.int64]
    results: tuple[AttackResult, ...]
    judged_by: str | None
    confidence: float
    seed: int

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Attack -> float64 [M], higher = more likely a member."""
        return {r.name: r.scores for r in self.results if r.scores is not None}

    @property
    def copies(self) -> NDArray[np.int64]:
        """int64 [M]: how often each is in the training data, if it is."""
        return np.bincount(self.canaries.owner, minlength=len(self.member))

    def to_dict(self) -> dict[str, Any]:
        """For ``results.json``: figures of each kind and each attack, with intervals."""
        return {
            "records": len(self.member),
            "members": int(self.member.sum()),
            "attack": self.judged_by,
            "most_copies": self.canaries.most_copies,
            "kinds": [self._kind(kind) for kind in self.canaries.kinds],
        }

    def columns(self) -> dict[str, Sequence[Any]]:
        """For ``canaries.csv.gz``: a row for each canary."""
        return {
            "index": self.canaries.index.tolist(),
            "kind": list(self.canaries.kind),
            "copies": self.copies.tolist(),
            "class": self.label.tolist(),
            "member": self.member.astype(int).tolist(),
            **{name: scores.tolist() for name, scores in self.scores.items()},
        }

    def _kind(self, kind: str) -> dict[str, Any]:
        mine = self.canaries.of(kind)
        members = int(self.member[mine].sum())
        outside = int(mine.sum()) - members
        entry: dict[str, Any] = {
            "kind": kind,
            "text": KINDS[kind].text,
            "copies": COPIES if kind == "duplicated" else 1,
            "members": members,
            "nonmembers": outside,
            "reason": "",
            "attacks": [],
            "auc": None,
            "tpr": None,
        }
        if min(members, outside) < _FEWEST:
            entry["reason"] = f"{members} in and {outside} out: at least {_FEWEST} of each are needed for figures"
            return entry
        fpr = lowest_supported_fpr(outside)
        for result in self.results:
            evaluation = self._evaluation(result, mine)
            entry["attacks"].append(_short(result, evaluation))
            if result.name == self.judged_by and evaluation is not None:
                entry["auc"] = asdict(evaluation.auc)
                points = [p for p in evaluation.operating_points if p.supported and p.tpr and p.fpr == fpr]
                entry["tpr"] = {"fpr": fpr, "estimate": asdict(points[0].tpr)} if points and points[0].tpr else None
        return entry

    def _evaluation(self, result: AttackResult, mine: NDArray[np.bool_]) -> Evaluation | None:
        if result.scores is None:
            return None
        rng = seeds.generator(self.seed, "evaluation", "canaries")
        try:
            return evaluate_scores(
                result.attack, result.scores[mine], self.member[mine], confidence=self.confidence, rng=rng
            )
        except MemberscopeError:
            return None


def put_in(config: AuditConfig, dataset: Dataset, split: Split) -> tuple[Dataset, Split, Canaries | None]:
    """The pool and the split with the canaries that the settings ask for, and which they are; None for none.

    Places are drawn among the audited records, under ``holdout`` among those of the official training part.
    """
    if not config.n_canaries:
        return dataset, split, None
    allowed = split.audited & dataset.is_train if config.protocol == "holdout" else split.audited
    rng = seeds.generator(config.seed, "canaries")
    changed, canaries = insert(dataset, allowed, config.kind, config.n_canaries, rng)
    return changed, canaries.admit(split, canaries.coins(seeds.generator(config.seed, "canaries", "coins"))), canaries


def attack_canaries(
    config: AuditConfig,
    attacks: Sequence[type[Attack]],
    evidence: Evidence,
    canaries: Canaries,
    split: Split,
    ordinary: Sequence[AttackResult],
    *,
    class_names: Sequence[str],
) -> CanaryAudit:
    """Run the attacks on canaries alone, so that ordinary records neither help nor hide them.

    Parameters
    ----------
    config
        Of the audit.
    attacks
        Of the audit; those that learn from known members are left out.
    evidence
        About the M canaries.
    canaries, split
        Which they are, and who is in.
    ordinary
        What became of the attacks on ordinary records: canaries are judged by the attack that was fixed beforehand, or
        else by the strongest there, so that no choice was made on the canaries themselves.
    class_names
        C names.
    """
    confidence, seed = config.confidence, config.seed
    member = split.member[canaries.index]
    chosen = [attack for attack in attacks if not issubclass(attack, InformedAttack)]
    open_to = [r for r in ordinary if r.attack in chosen]
    fpr = lowest_supported_fpr(int((split.audited & ~split.member).sum()))
    ranking = sorted((r for r in open_to if r.evaluation is not None), key=lambda r: power(r, fpr), reverse=True)
    best = headline(open_to, fpr)
    judged_by = [r.name for r in ([best] if best else []) + ranking]
    results = run_attacks(chosen, evidence, member, class_names=class_names, seed=seed, folds=2, confidence=confidence)
    ran = [r.name for r in results if r.scores is not None]
    judge = next((name for name in judged_by if name in ran), None)
    return CanaryAudit(canaries, member, np.asarray(evidence.labels), tuple(results), judge, confidence, seed)


def _short(result: AttackResult, evaluation: Evaluation | None) -> dict[str, Any]:
    """An attack on one kind as the report needs it, without its curves."""
    told = {
        "name": result.name,
        "title": result.attack.title,
        "adversary": result.attack.adversary().name,
        "status": result.status,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "evaluation": None,
    }
    if evaluation is not None:
        content = evaluation.to_dict()
        kept = ("auc", "operating_points", "tpr_at_zero_fp", "n_members", "n_nonmembers", "confidence")
        told["evaluation"] = {name: content[name] for name in kept}
    return told
