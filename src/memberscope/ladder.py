"""The exposure ladder: a row for each adversary, its best attack, and what that achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.registry import HEADLINES
from memberscope.attacks.runner import AttackResult, evaluate_scores
from memberscope.evidence import ADVERSARIES, OF_ROUNDS, Adversary, adversary_for
from memberscope.statistics.evaluation import FPRS
from memberscope.statistics.operating import nonmembers_needed

MALICIOUS = ("malicious client / server", "as above, and may send what it likes")
"""The last row: what it achieves is measured in federations of its own, where somebody tampers."""


def lowest_supported_fpr(n_nonmembers: int) -> float | None:
    """The lowest of the rates that are evaluated at which at least ten false positives are expected, or None."""
    return min((fpr for fpr in FPRS if n_nonmembers >= nonmembers_needed(fpr)), default=None)


def strongest(results: Sequence[AttackResult], fpr: float | None) -> AttackResult | None:
    """The attack with the highest TPR at `fpr` (AUC where `fpr` is None); AUC breaks ties."""
    run = [r for r in results if r.evaluation is not None]
    return max(run, key=lambda r: power(r, fpr), default=None)


def headline(results: Sequence[AttackResult], fpr: float | None) -> AttackResult | None:
    """The attack that the answer is given for: one fixed in advance where it ran, else the strongest on these data.

    The first needs no correction for choice. Without reference models no attack is known to lead beforehand: which one
    does depends on how the model was trained.
    """
    fixed = [r for r in results if r.name in HEADLINES and r.evaluation is not None]
    return max(fixed, key=lambda r: HEADLINES.index(r.name), default=None) or strongest(results, fpr)


def ladder(
    results: Sequence[AttackResult],
    member: NDArray[np.bool_],
    *,
    confidence: float,
    rng: np.random.Generator,
    no_rounds: str | None,
    unseen: Mapping[str, str] | None = None,
    malicious: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the exposure ladder, weakest adversary first.

    An adversary may use every attack whose needs its knowledge covers. Picking the best of A attacks on the records
    that it is judged on flatters it, so the intervals of a row are at 1 - (1 - confidence) / A (Bonferroni). Where an
    attack fixed in advance ran, the weakest adversary who can run it stands with that one alone, uncorrected, and
    stronger ones choose between it and what only they can run. Where an adversary who sees less comes out higher,
    `more` names it: its attack is open to this one too, and is not put in its place, which would be another choice.
    `no_rounds` is the reason why the adversaries of a federation were not measured, None where they were; `unseen` that
    why some were not, by name. `malicious` fills the last row, with figures of federations in which somebody tampered.
    """
    fpr = lowest_supported_fpr(int((~member).sum()))
    rows: list[dict[str, Any]] = []
    measured: list[Adversary] = []
    for adversary in ADVERSARIES:
        row: dict[str, Any] = {"adversary": adversary.name, "sees": adversary.sees}
        if no_rounds is not None and adversary.knowledge & OF_ROUNDS:
            rows.append(row | {"status": "not measured", "reason": no_rounds})
            continue
        open_to = [r for r in results if r.evaluation is not None and r.attack.needs <= adversary.knowledge]
        own = [r for r in open_to if adversary_for(r.attack.needs).name == adversary.name]
        fixed = headline([r for r in open_to if r.name in HEADLINES], fpr)
        if fixed is not None:
            open_to = [fixed] if fixed in own else [fixed, *own]
        best = strongest(open_to, fpr)
        if best is None or not own:
            why = (unseen or {}).get(adversary.name) or _why_not(adversary, results, measured)
            row |= {"status": "not measured", "reason": why}
            rows.append(row)
            continue
        by_auc = strongest(open_to, None)
        assert by_auc is not None
        adjusted = 1 - (1 - confidence) / len(open_to)
        figures = {r.name: _at(r, member, adjusted, rng) for r in {best.name: best, by_auc.name: by_auc}.values()}
        row |= {
            "status": "measured",
            "attack": best.name,
            "tpr": None if fpr is None else {"fpr": fpr, "estimate": _tpr(figures[best.name], fpr)},
            "rates": [{"fpr": f, "estimate": e} for f in FPRS if (e := _tpr(figures[best.name], f)) is not None],
            "auc_attack": by_auc.name,
            "auc": asdict(figures[by_auc.name].auc),
            "fixed": [r.name for r in open_to] == [fixed.name] if fixed is not None else False,
            "corrected_for": len(open_to),
            "confidence": adjusted,
        }
        weaker = [r for a, r in zip(measured, _measured(rows), strict=True) if a.knowledge <= adversary.knowledge]
        row["more"] = _that_achieve_more(row, weaker)
        measured.append(adversary)
        rows.append(row)
    name, sees = MALICIOUS
    untried = {"status": "not measured", "reason": no_rounds or "no federation with a malicious party was audited"}
    rows.append({"adversary": name, "sees": sees, **(untried if malicious is None else malicious)})
    return rows


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["status"] == "measured"]


def _that_achieve_more(row: Mapping[str, Any], weaker: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the adversaries who see less the one with the highest AUC, if that or its rate is above this one's."""
    best = max(weaker, key=lambda w: float(w["auc"]["value"]), default=None)
    if best is None:
        return None
    rates = [(r["tpr"] or {}).get("estimate") for r in (row, best)]
    higher = best["auc"]["value"] > row["auc"]["value"]
    if all(rates):
        higher = higher or rates[1]["value"] > rates[0]["value"]  # type: ignore[index]
    return str(best["adversary"]) if higher else None


def power(result: AttackResult, fpr: float | None) -> tuple[float, float]:
    """What attacks are ranked by: TPR at `fpr`, then AUC; AUC alone where `fpr` is None."""
    evaluation = result.evaluation
    assert evaluation is not None
    auc = evaluation.auc.value
    if fpr is None:
        return auc, 0.0
    tpr = _tpr(evaluation, fpr)
    return (tpr["value"] if tpr else 0.0), auc


def _tpr(evaluation: Any, fpr: float) -> dict[str, Any] | None:
    for point in evaluation.operating_points:
        if point.supported and abs(point.fpr - fpr) < 1e-12 and point.tpr is not None:
            return asdict(point.tpr)
    return None


def _at(result: AttackResult, member: NDArray[np.bool_], confidence: float, rng: np.random.Generator) -> Any:
    assert result.scores is not None
    return evaluate_scores(result.attack, result.scores, member, confidence=confidence, rng=rng)


def _why_not(adversary: Adversary, results: Sequence[AttackResult], measured: Sequence[Adversary]) -> str:
    """Why no attack of this adversary has figures, and whose achievements are the least that it can do."""
    own = [r for r in results if adversary_for(r.attack.needs).name == adversary.name]
    why = f"{own[0].name} {own[0].status}: {own[0].reason}" if own else "no attack of this adversary was asked for"
    if len(own) > 1:
        why += f" ({len(own) - 1} more likewise)"
    weaker = [a.name for a in measured if a.knowledge <= adversary.knowledge]
    return f"at least what the {weaker[-1]} achieves; {why}" if weaker else why
