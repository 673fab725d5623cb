"""What is reported at one threshold, at one prior, for one class: plain values with their wording, nothing computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from memberscope.statistics.intervals import Estimate


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold achieves that lets at most a share `fpr` of the non-members through.

    Attributes
    ----------
    fpr
        The nominal rate, as a fraction; 0 for the threshold just above the highest non-member.
    supported
        Whether the sample can show this rate; if not, all fields from `tpr` on are None or NaN.
    needs, available
        Non-members that the rate needs, and those at hand.
    tpr
        True-positive rate at a population FPR of `fpr` (at `fpr` = 0: of this very threshold).
    true_fpr
        Attained false-positive rate, and the band in which this threshold's rate on unseen non-members lies.
    threshold
        A record is called a member iff its score >= this. NaN if every threshold lets too many non-members through.
    false_positives, true_positives
        Counts at the threshold.
    """

    fpr: float
    supported: bool
    needs: int
    available: int
    tpr: Estimate | None = None
    true_fpr: Estimate | None = None
    threshold: float = math.nan
    false_positives: int | None = None
    true_positives: int | None = None

    def __str__(self) -> str:
        if self.tpr is None or self.true_fpr is None:
            return f"TPR at {percent(self.fpr)} FPR: {_too_few(self.needs, self.available, 'non-members')}"
        if self.fpr == 0:
            return f"TPR at no false positive (FPR < {percent(self.true_fpr.high)}): {_percent_of(self.tpr)}"
        return f"TPR at {percent(self.fpr)} FPR: {_percent_of(self.tpr)}"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> OperatingPoint:
        """Read back what `Evaluation.to_dict` wrote."""
        return cls(**with_estimates(content, "tpr", "true_fpr", numbers=("threshold",)))


@dataclass(frozen=True)
class RejectionPoint:
    """What a threshold achieves that loses at most a share `fnr` of the members. Mirrors `OperatingPoint`.

    Attributes
    ----------
    threshold
        A record is called a non-member iff its score < this.
    needs, available
        *Members* that the rate needs, and those at hand.
    """

    fnr: float
    supported: bool
    needs: int
    available: int
    tnr: Estimate | None = None
    true_fnr: Estimate | None = None
    threshold: float = math.nan
    false_negatives: int | None = None
    true_negatives: int | None = None

    def __str__(self) -> str:
        head = f"TNR at {percent(self.fnr)} FNR: "
        return head + (_percent_of(self.tnr) if self.tnr else _too_few(self.needs, self.available, "members"))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RejectionPoint:
        """Read back what `Evaluation.to_dict` wrote."""
        return cls(**with_estimates(content, "tnr", "true_fnr", numbers=("threshold",)))


@dataclass(frozen=True)
class PredictiveValue:
    """If a share `prior` of the records were members: the share of those called members at `fpr` that are."""

    prior: float
    fpr: float
    ppv: Estimate

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PredictiveValue:
        """Read back what `Evaluation.to_dict` wrote."""
        return cls(**with_estimates(content, "ppv"))


@dataclass(frozen=True)
class ClassResult:
    """The figures of one class, with what it takes to look at many classes.

    Attributes
    ----------
    auc, auc_adjusted
        The AUC with its own interval, and with one that holds for all classes together (Bonferroni).
    tpr_at_1pct, tpr_at_10pct
        True-positive rates at 1 % and 10 % FPR, where this class has non-members enough.
    tpr_adjusted
        The TPR of `operating_point` with an interval that holds for all classes together; None if unsupported.
    p_adjusted
        p-value of "the AUC of this class is 1/2", adjusted for the number of classes (Holm); NaN if undefined.
    """

    label: int
    name: str
    n_members: int
    n_nonmembers: int
    auc: Estimate
    auc_adjusted: Estimate
    tpr_at_1pct: OperatingPoint
    tpr_at_10pct: OperatingPoint
    tpr_adjusted: Estimate | None
    p_adjusted: float

    @property
    def operating_point(self) -> OperatingPoint:
        """The point at 1 % FPR where the class supports it, else the one at 10 %."""
        return self.tpr_at_1pct if self.tpr_at_1pct.supported else self.tpr_at_10pct

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ClassResult:
        """Read back what `Evaluation.to_dict` wrote."""
        read = with_estimates(content, "auc", "auc_adjusted", "tpr_adjusted", numbers=("p_adjusted",))
        points = {name: OperatingPoint.from_dict(content[name]) for name in ("tpr_at_1pct", "tpr_at_10pct")}
        return cls(**{**read, **points})


def with_estimates(content: dict[str, Any], *names: str, numbers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Copy of `content` with the named entries read as estimates, and as numbers where null is NaN."""
    read = dict(content)
    read.update({name: Estimate.from_dict(content[name]) if content[name] else None for name in names})
    read.update({name: math.nan if content[name] is None else float(content[name]) for name in numbers})
    return read


def percent(rate: float) -> str:
    """`rate`, a fraction, as text in percent with three significant digits."""
    return f"{100 * rate:.3g} %"


def _percent_of(estimate: Estimate) -> str:
    counts = f" ({estimate.k:,} of {estimate.n:,})" if estimate.k is not None and estimate.n is not None else ""
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]{counts}"


def _too_few(needs: int, available: int, group: str) -> str:
    if available >= needs:
        return "no record of the other group"
    return f"not shown, it needs {needs:,} {group} and there are {available:,}"
