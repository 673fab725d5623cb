"""Coded doubts about the audit itself: each check asks whether its figures may be read as they stand.

A check answers *problem* (the figures mislead), *caution* (read them with the stated reserve), *passed*, or *not
applicable* with the reason. Muted checks stay listed as muted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import InformedAttack
from memberscope.attacks.runner import AttackResult, interval_level
from memberscope.errors import ConfigError
from memberscope.statistics.areas import auc_estimate
from memberscope.statistics.blind import BlindResult, DuplicateResult
from memberscope.statistics.bound import Comparison
from memberscope.statistics.curves import rank
from memberscope.statistics.intervals import Estimate, z_of
from memberscope.statistics.over_targets import excess_variance

Status = Literal["problem", "caution", "passed", "not applicable", "muted"]

Answer = tuple[Status, str, dict[str, Any]]
"""What a check says: its status, a sentence or two, and the numbers behind it."""

FLOOR = ("gap", "loss", "phi", "hinge", "confidence", "entropy", "modified-entropy")
"""Attacks by one global threshold, which any attack that knows or learns more should beat."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    code: str
    title: str
    status: Status
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "code": self.code,
            "title": self.title,
            "status": self.status,
            "text": self.text,
            "docs": f"docs/checks.md#{self.code.lower()}",
            "numbers": self.numbers,
        }


@dataclass(frozen=True)
class Context:
    """What the checks look at. `None` stands for what this audit does not have, with no check pretending otherwise."""

    results: Sequence[AttackResult]
    member: NDArray[np.bool_]
    class_mix_difference: float
    label_p_value: float
    blind: BlindResult | None
    duplicates: DuplicateResult | None
    no_records: str = ""
    verified: bool | None = None
    source: str = ""
    randomised: bool = True
    requested_fprs: tuple[float, ...] = (0.01, 0.001)
    reference_counts: NDArray[np.int64] | None = None
    reference_accuracy: tuple[float, float] | None = None
    target_accuracies: tuple[float, ...] = ()
    target_aucs: tuple[Estimate, ...] = ()
    confidence: float = 0.95
    claim: Comparison | None = None
    no_claim: str = "No accountant claims anything of this training, or no coins were thrown."
    canary_clients: tuple[int, int] | None = None
    """Canary clients, and clients that learn."""
    recording: Answer | None = None
    """Of a federation: whether recording and records fit each other (`federated.plausibility`)."""


def _blind(c: Context) -> Answer:
    if c.blind is None:
        return "not applicable", c.no_records, {}
    b = c.blind
    numbers = {"auc": b.auc, "p_value": b.p_value, "null_95": b.null_95, "permutations": b.permutations}
    told = f"AUC {b.auc:.3f}, permutation p = {b.p_value:.3g}, {b.records:,} records, {b.features} features"
    if b.p_value <= 0.01 and b.auc > 0.52:
        return (
            "problem",
            f"A classifier that never saw the model tells members from non-members ({told}). The two groups were not "
            "drawn alike, so the membership figures below are inflated by that difference. Draw both groups from one "
            "distribution (protocol random-half).",
            numbers,
        )
    if b.p_value <= 0.05:
        return "caution", f"Members and non-members may differ in themselves ({told}).", numbers
    return "passed", f"Without the model, members and non-members cannot be told apart ({told}).", numbers


def _duplicates(c: Context) -> Answer:
    if c.duplicates is None:
        return "not applicable", c.no_records, {}
    d = c.duplicates
    numbers = {"members": d.member_records, "nonmembers": d.nonmember_records}
    if d.first_pair is None:
        return "passed", "No record occurs among both members and non-members.", numbers
    text = (
        f"{d.member_records:,} members and {d.nonmember_records:,} non-members have exactly equal content "
        f"(first pair: records {d.first_pair[0]} and {d.first_pair[1]}). To the model such a non-member is a member."
    )
    share = d.nonmember_records / max(1, int((~c.member).sum()))
    return ("problem" if share > 0.01 else "caution"), text, numbers


def _reference_accuracy(c: Context) -> Answer:
    if c.reference_accuracy is None:
        return "not applicable", "No reference model was asked about records that it had not learnt.", {}
    target, reference = c.reference_accuracy
    numbers = {"target": target, "references": reference}
    text = f"Test accuracy: target {target:.1%}, reference models {reference:.1%} on average."
    return ("caution" if abs(target - reference) > 0.05 else "passed"), text, numbers


def _reference_counts(c: Context) -> Answer:
    if c.reference_counts is None:
        return "not applicable", "No reference models were used.", {}
    fewest = int(c.reference_counts.min())
    if not c.reference_counts.any():
        return (
            "caution",
            "Reference models were trained on none of the audited records, or on all: only attacks of one side ran.",
            {"fewest": 0},
        )
    text = f"Each record has at least {fewest} reference models trained with it and as many without."
    if fewest == 0:
        return (
            "problem",
            "Some records have no reference model on one side; reference attacks fall back on the others.",
            {},
        )
    return ("caution" if fewest < 4 else "passed"), text, {"fewest": fewest}


def _reproducible(c: Context) -> Answer:
    if len(c.target_accuracies) < 2:
        text = "One model was audited; no second training of the same recipe was compared with it."
        return "not applicable", text, {}
    low, high = min(c.target_accuracies), max(c.target_accuracies)
    text = f"Test accuracy of {len(c.target_accuracies)} trainings of the recipe: {low:.1%} to {high:.1%}."
    return ("caution" if high - low > 0.05 else "passed"), text, {"lowest": low, "highest": high}


def _sample_size(c: Context) -> Answer:
    n = int((~c.member).sum())
    too_low = [f for f in c.requested_fprs if f * n < 10 * (1 - 1e-9)]
    if not too_low:
        return "passed", f"{n:,} non-members support every false-positive rate that is reported.", {"nonmembers": n}
    needs = ", ".join(f"{f:.4g} needs {10 / f:,.0f}" for f in too_low)
    return (
        "caution",
        f"{n:,} non-members are too few for some false-positive rates ({needs}); those figures are not printed.",
        {"nonmembers": n},
    )


def _beaten_by_floor(c: Context) -> Answer:
    aucs = {r.name: r.evaluation.auc for r in c.results if r.evaluation is not None}
    floors = {name: auc for name, auc in aucs.items() if name in FLOOR}
    others = {name: auc for name, auc in aucs.items() if name not in FLOOR}
    if not floors or not others:
        return "not applicable", "Needs a threshold attack and another attack.", {}
    best = max(floors, key=lambda name: floors[name].value)
    beaten = [name for name, auc in others.items() if auc.high < floors[best].low]
    if beaten:
        return (
            "caution",
            f"{', '.join(beaten)} did worse than the single threshold {best!r} (AUC {floors[best].value:.3f}): "
            "what else they use or learn gained nothing here.",
            {"floor": best, "beaten": beaten},
        )
    return (
        "passed",
        f"No attack did significantly worse in AUC than the best single threshold ({best!r}).",
        {"floor": best},
    )


def _null(c: Context) -> Answer:
    nulls = {r.name: r.null for r in c.results if r.null is not None}
    if not nulls:
        return "not applicable", "No attack was run.", {}
    failed = {name: null for name, null in nulls.items() if not null.passed}
    if failed:
        told = "; ".join(f"{n}: AUC {f.auc.value:.3f} [{f.auc.low:.3f}, {f.auc.high:.3f}]" for n, f in failed.items())
        return (
            "problem",
            f"With membership permuted there is nothing to find, yet: {told}. The figure of such an attack contains an "
            "artefact; do not use it.",
            {"failed": sorted(failed)},
        )
    return "passed", f"All {len(nulls)} attacks sit at chance when membership is permuted.", {"attacks": len(nulls)}


def _tuned(c: Context) -> Answer:
    run = [r for r in c.results if r.status == "run"]
    if not run:
        return "not applicable", "No attack was run.", {}
    learnt = [r for r in run if issubclass(r.attack, InformedAttack) and r.null is not None]
    told = sorted(r.name for r in learnt if r.null is not None and r.null.auc.low > 0.5)
    if told:
        return (
            "problem",
            f"{', '.join(told)} tells members from non-members even after their membership was permuted: it knows the "
            "membership of records that it scores, for example from another fold. Do not use its figures.",
            {"attacks": told},
        )
    return (
        "passed",
        "No attack saw the membership of a record that it scored: those that learn were cross-fitted, and thresholds "
        "were chosen on other folds.",
        {},
    )


def _seed_variance(c: Context) -> Answer:
    if len(c.target_aucs) < 2:
        text = "One model was audited. The intervals cover the choice of records, not the luck of one training."
        return "not applicable", text, {}
    values = [auc.value for auc in c.target_aucs]
    z = z_of(c.confidence)
    p_value = excess_variance(values, [(auc.high - auc.low) / (2 * z) for auc in c.target_aucs])
    told = f"AUC of the same attack on {len(values)} targets: {min(values):.3f} to {max(values):.3f}, p = {p_value:.3g}"
    numbers = {"lowest": min(values), "highest": max(values), "p_value": p_value}
    if p_value < 0.01:
        return (
            "caution",
            f"Trainings of the recipe differ by more than the interval of one of them says ({told}): quote the mean "
            "over targets and its interval.",
            numbers,
        )
    return "passed", f"Trainings differ no more than the interval of one of them says ({told}).", numbers


def _below_chance(c: Context) -> Answer:
    run = [r for r in c.results if r.scores is not None]
    if not run:
        return "not applicable", "No attack was run.", {}
    # Wide enough that all attacks of an audit without leakage pass together with probability 99 %.
    level = 1 - 0.02 / len(run)
    below = [r.name for r in run if _auc_high(r, c.member, level) < 0.5]
    if below:
        return (
            "problem",
            f"{', '.join(below)}: members rank below non-members, significantly. The sign of the score is inverted, or "
            "that of the member column is (1 must mean member).",
            {"attacks": below},
        )
    return "passed", "No attack ranks members significantly below non-members.", {}


def _auc_high(result: AttackResult, member: NDArray[np.bool_], confidence: float) -> float:
    assert result.scores is not None
    return auc_estimate(rank(result.scores, member), interval_level(result.attack, confidence)).high


def _class_mix(c: Context) -> Answer:
    numbers = {"difference": c.class_mix_difference, "p_value": c.label_p_value}
    told = f"total variation {c.class_mix_difference:.3f}, chi-square p = {c.label_p_value:.3g}"
    if c.label_p_value >= 0.001:
        return (
            "passed",
            f"The class mixes of members and non-members differ no more than chance allows ({told}).",
            numbers,
        )
    if c.class_mix_difference <= 0.02:
        return "passed", f"The class mixes of members and non-members differ, but by little ({told}).", numbers
    return (
        "caution",
        f"Members and non-members have different class mixes ({told}): knowing the class alone gives an adversary an "
        f"advantage of up to {c.class_mix_difference:.3f}. Read the per-class figures.",
        numbers,
    )


def _verified(c: Context) -> Answer:
    if c.verified is None:
        return "not applicable", "Answers were given; no dataset was read.", {}
    if not c.verified:
        return "caution", f"The data files are the user's own word: {c.source}", {}
    return "passed", c.source[:1].upper() + c.source[1:], {}


def _ties(c: Context) -> Answer:
    tied = []
    for r in c.results:
        if r.scores is None or r.name == "gap":
            continue
        top = np.sort(r.scores)[::-1][: max(10, len(r.scores) // 100)]
        if len(np.unique(top)) < 0.5 * len(top):
            tied.append(r.name)
    if not any(r.scores is not None for r in c.results):
        return "not applicable", "No attack was run.", {}
    if tied:
        return (
            "caution",
            f"Most of the highest scores of {', '.join(tied)} are tied (probabilities rounded by the model, or an "
            "attack with few distinct scores): what it can show at low false-positive rates is limited.",
            {"attacks": tied},
        )
    return "passed", "The highest scores are distinct.", {}


def _randomised(c: Context) -> Answer:
    if c.randomised:
        return "passed", "Membership was drawn by this audit or by the dataset's official split.", {}
    return (
        "caution",
        "Membership was stated, not drawn at random by this audit: whatever else sets the two groups apart counts as "
        "leakage too. See MIA001.",
        {},
    )


def _privacy_claim(c: Context) -> Answer:
    if c.claim is None:
        return "not applicable", c.no_claim, {}
    numbers = {"at_least": c.claim.lower.epsilon, "at_most": c.claim.upper, "delta": c.claim.upper_delta}
    if c.claim.verdict == "contradiction":
        return "problem", c.claim.text, numbers
    return ("passed" if c.claim.verdict == "within" else "not applicable"), c.claim.text, numbers


def _canary_clients(c: Context) -> Answer:
    if c.canary_clients is None:
        return "not applicable", "No canary clients took part.", {}
    canaries, learners = c.canary_clients
    numbers = {"canaries": canaries, "clients": learners}
    text = f"{canaries:,} canary clients were among {learners:,} that learn"
    if canaries > learners:
        return (
            "caution",
            f"{text}: their random directions outweigh what is learnt. The estimate of epsilon stands; judge accuracy "
            "and attacks by a federation without them.",
            numbers,
        )
    return "passed", f"{text}.", numbers


def _recording(c: Context) -> Answer:
    return c.recording or ("not applicable", "No federation was recorded.", {})


CHECKS: dict[str, tuple[str, Callable[[Context], Answer]]] = {
    "MIA001": ("Members and non-members separable without the model", _blind),
    "MIA002": ("Duplicates across the split", _duplicates),
    "MIA003": ("Reference accuracy far from the target's", _reference_accuracy),
    "MIA004": ("Too few reference models a record", _reference_counts),
    "MIA005": ("Target not reproducible", _reproducible),
    "MIA006": ("Sample too small for a false-positive rate", _sample_size),
    "MIA007": ("Attack beaten by a single threshold", _beaten_by_floor),
    "MIA008": ("Null calibration", _null),
    "MIA009": ("Attack tuned on audited records", _tuned),
    "MIA010": ("Variance between trainings", _seed_variance),
    "MIA011": ("Attack below chance", _below_chance),
    "MIA012": ("Different class mixes", _class_mix),
    "MIA013": ("Data not verified", _verified),
    "MIA014": ("Tied scores", _ties),
    "MIA015": ("Membership not randomised", _randomised),
    "MIA016": ("More leaks than the privacy accountant allows", _privacy_claim),
    "MIA017": ("Canary clients drown what is learnt", _canary_clients),
    "MIA018": ("Recording and records do not fit each other", _recording),
}


def check_codes(muted: Sequence[str]) -> None:
    """Raise a `ConfigError` for a code that no check has."""
    for code in muted:
        if code not in CHECKS:
            raise ConfigError(f"unknown check {code!r}", f"known: {', '.join(CHECKS)}")


def run_checks(context: Context, muted: Sequence[str] = ()) -> list[Finding]:
    """Every check's finding, in the order of their codes; muted ones keep their line."""
    check_codes(muted)
    findings = []
    for code, (title, check) in CHECKS.items():
        status, text, numbers = check(context)
        if code in muted and status in ("problem", "caution"):
            findings.append(Finding(code, title, "muted", f"Muted by the user. {text}", numbers))
        else:
            findings.append(Finding(code, title, status, text, numbers))
    return findings
