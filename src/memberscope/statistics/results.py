"""An evaluation as plain values: to JSON and back, to a data frame, to the screen. Nothing is computed here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope.errors import MemberscopeError
from memberscope.statistics.curves import PrCurve, RocCurve, thin_pr, thin_roc
from memberscope.statistics.intervals import Estimate
from memberscope.statistics.points import (
    ClassResult,
    OperatingPoint,
    PredictiveValue,
    RejectionPoint,
    percent,
    with_estimates,
)

if TYPE_CHECKING:
    import pandas

ConfusionMatrix = tuple[tuple[int, int], tuple[int, int]]
"""((true negatives, false positives), (false negatives, true positives)), as scikit-learn lays it out."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A score held against the truth.

    Attributes
    ----------
    name
        Whose score this is.
    confidence
        Of every interval, two-sided unless its method says otherwise.
    auc, average_precision
        Areas under the two curves.
    accuracy, accuracy_confusion
        Share of records judged rightly by "member iff score >= 0.5", and its confusion matrix; None unless the score
        is a probability.
    accuracy_youden, balanced_accuracy, advantage, confusion_matrix
        Of thresholds chosen by Youden's J on other folds, the folds' counts pooled. Advantage is TPR - FPR.
    optimal_threshold
        Youden's threshold on *all* records: what the figures above would be optimistic about if they used it.
    operating_points, tpr_at_zero_fp, tnr_at_fnr
        True-positive rates at low FPR, true-negative rates at low FNR.
    ppv
        Precision of the supported operating points at several priors.
    per_class
        One entry a class; empty if no labels were given.
    roc, pr
        The exact curves (after a round trip through `to_dict`: thinned).
    """

    name: str
    n_members: int
    n_nonmembers: int
    confidence: float
    auc: Estimate
    average_precision: Estimate
    accuracy: Estimate | None
    accuracy_confusion: ConfusionMatrix | None
    accuracy_youden: Estimate
    balanced_accuracy: Estimate
    advantage: Estimate
    confusion_matrix: ConfusionMatrix | None
    optimal_threshold: float
    operating_points: tuple[OperatingPoint, ...]
    tpr_at_zero_fp: OperatingPoint
    tnr_at_fnr: tuple[RejectionPoint, ...]
    ppv: tuple[PredictiveValue, ...]
    per_class: tuple[ClassResult, ...]
    roc: RocCurve
    pr: PrCurve

    def tpr_at(self, fpr: float) -> OperatingPoint:
        """The operating point at the nominal rate `fpr`, one of those evaluated."""
        for point in self.operating_points:
            if math.isclose(point.fpr, fpr, rel_tol=1e-9):
                return point
        raise KeyError(f"no operating point at FPR {fpr}; there are {[p.fpr for p in self.operating_points]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes null, infinities become strings, curves have at most 400 points each."""
        rates = tuple(point.fpr for point in self.operating_points)
        thinned = {"roc": thin_roc(self.roc, keep=rates), "pr": thin_pr(self.pr)}
        return {field.name: _plain(thinned.get(field.name, getattr(self, field.name))) for field in fields(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Evaluation:
        """Read back what `to_dict` wrote, also after a passage through JSON."""
        estimates = [field.name for field in fields(cls) if "Estimate" in str(field.type)]
        read = with_estimates(content, *estimates, numbers=("optimal_threshold",))
        for name in ("accuracy_confusion", "confusion_matrix"):
            read[name] = None if content[name] is None else tuple(tuple(row) for row in content[name])
        read["tpr_at_zero_fp"] = OperatingPoint.from_dict(content["tpr_at_zero_fp"])
        read["operating_points"] = tuple(OperatingPoint.from_dict(item) for item in content["operating_points"])
        read["tnr_at_fnr"] = tuple(RejectionPoint.from_dict(item) for item in content["tnr_at_fnr"])
        read["ppv"] = tuple(PredictiveValue.from_dict(item) for item in content["ppv"])
        read["per_class"] = tuple(ClassResult.from_dict(item) for item in content["per_class"])
        read["roc"] = RocCurve(**{name: np.array(values) for name, values in content["roc"].items()})
        read["pr"] = PrCurve(**{name: np.array(values) for name, values in content["pr"].items()})
        return cls(**read)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every figure as one row: figure, class, fpr (or fnr), prior, value, low, high, k, n, method, note."""
        for field in fields(self):
            figure = getattr(self, field.name)
            if isinstance(figure, Estimate):
                yield _row(field.name, figure)
        for point in (*self.operating_points, self.tpr_at_zero_fp):
            yield _row("tpr", point.tpr, fpr=point.fpr, note="" if point.supported else str(point))
        for rejection in self.tnr_at_fnr:
            yield _row("tnr", rejection.tnr, fnr=rejection.fnr, note="" if rejection.supported else str(rejection))
        for item in self.ppv:
            yield _row("ppv", item.ppv, fpr=item.fpr, prior=item.prior)
        for result in self.per_class:
            yield _row("auc", result.auc, class_name=result.name)
            point = result.operating_point
            yield _row("tpr", point.tpr, class_name=result.name, fpr=point.fpr, note="" if point.tpr else str(point))

    def to_frame(self) -> pandas.DataFrame:
        """Every figure as one row of a pandas data frame, columns as in `rows`.

        Raises
        ------
        MemberscopeError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MemberscopeError(
                "to_frame() needs pandas, which is not installed", "pip install pandas, or use rows() without it"
            ) from error
        return pandas.DataFrame(list(self.rows()))

    def __repr__(self) -> str:
        lines = list(self._summary())
        width = max(len(name) for name, _ in lines) + 2
        return "\n".join([self._title(), *(f"  {name:<{width}}{text}" for name, text in lines)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._summary()
        )
        return f"<table><caption>{html.escape(self._title())}</caption>{rows}</table>"

    def _title(self) -> str:
        groups = f"{self.n_members:,} members, {self.n_nonmembers:,} non-members"
        return f"Evaluation of {self.name or 'a score'}: {groups}, {percent(self.confidence)} intervals"

    def _summary(self) -> Iterator[tuple[str, str]]:
        yield "AUC", str(self.auc)
        yield "average precision", str(self.average_precision)
        if self.accuracy:
            yield "accuracy at 0.5", str(self.accuracy)
        yield "accuracy, threshold of other folds", str(self.accuracy_youden)
        yield "balanced accuracy, same threshold", str(self.balanced_accuracy)
        yield "advantage (TPR - FPR)", str(self.advantage)
        for point in (*self.operating_points, self.tpr_at_zero_fp, *self.tnr_at_fnr):
            name, _, text = str(point).partition(": ")
            yield name, text
        if self.per_class:
            p_values = [r.p_adjusted for r in self.per_class if not math.isnan(r.p_adjusted)]
            found = sum(p < 1 - self.confidence for p in p_values)
            yield "classes with AUC other than 1/2", f"{found} of {len(p_values)} that can be judged (Holm)"


def _plain(item: Any) -> Any:
    if is_dataclass(item):
        return {field.name: _plain(getattr(item, field.name)) for field in fields(item)}
    if isinstance(item, tuple | list):
        return [_plain(part) for part in item]
    if isinstance(item, np.ndarray):
        return item.tolist()
    if isinstance(item, float) and math.isnan(item):
        return None
    return str(item) if isinstance(item, float) and math.isinf(item) else item


def _row(
    figure: str,
    estimate: Estimate | None,
    *,
    class_name: str | None = None,
    fpr: float | None = None,
    fnr: float | None = None,
    prior: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    shown = estimate or Estimate.undefined("", note)
    return {
        "figure": figure,
        "class": class_name,
        "fpr": fpr,
        "fnr": fnr,
        "prior": prior,
        "value": shown.value,
        "low": shown.low,
        "high": shown.high,
        "k": shown.k,
        "n": shown.n,
        "method": shown.method,
        "note": shown.note,
    }
