"""How exposed each single record is: its probability of membership, its separation, and whether it is named."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.statistics.per_record import per_record_estimate
from memberscope.statistics.posterior import reliability
from memberscope.statistics.record_risk import flag

if TYPE_CHECKING:
    from memberscope.attacks.runner import AttackResult
    from memberscope.calibrated import Calibrated
    from memberscope.evidence import Evidence

Floats = NDArray[np.float64]

FLAG_LEVEL = 0.1
"""Expected share of wrong names among the records that are flagged."""

COLUMNS = ("posterior", "separation", "separation_low", "separation_high", "p_value", "flagged")
"""Names of the columns of ``scores.csv.gz`` that are no scores of attacks."""

_BLOCK_VALUES = 4_000_000
"""Signals of reference models that are looked at together."""

_SURE = (0.9, 0.99)


@dataclass(frozen=True, eq=False)
class RecordRisk:
    """Risk of each of N records under the attack that the answer is given for.

    Parameters
    ----------
    attack
        Its name.
    prior
        Share of members among those judged.
    posterior
        float64 [N]: probability of membership at that prior; NaN where there are too few reference models.
    separation, separation_low, separation_high
        float64 [N]: distance of the record's signal with and without it in training, in standard deviations, with the
        interval of `per_record_estimate`. An estimate, not a bound; NaN where there are too few reference models.
    p_value, flagged
        float64 [N], bool [N]: conformal p-value of "not a member", and whether the record is named at `FLAG_LEVEL`.
    summary
        The same for all records together; JSON-able but for NaN.
    """

    attack: str
    prior: float
    posterior: Floats
    separation: Floats
    separation_low: Floats
    separation_high: Floats
    p_value: Floats
    flagged: NDArray[np.bool_]
    summary: dict[str, Any]

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that a table of records gains; those that hold nothing are left out."""
        held = {name: getattr(self, name) for name in COLUMNS}
        held["flagged"] = self.flagged.astype(np.int64)
        return {name: column for name, column in held.items() if not np.isnan(column).all()}


def assess(
    best: AttackResult,
    calibrated: Calibrated | None,
    evidence: Evidence,
    member: NDArray[np.bool_],
    *,
    prior: float,
    seed: int,
    confidence: float = 0.95,
) -> RecordRisk:
    """Assess every record.

    Parameters
    ----------
    best
        The attack that the answer is given for; it ran.
    calibrated
        The same with what reference models say about its scores, or None.
    evidence
        About N records.
    member
        bool [N], the truth: it decides which of the flagged are rightly flagged and holds probabilities to account, and
        half of the non-members stand for those that an adversary knows (`statistics.record_risk.flag`).
    prior
        Share of members among those judged.
    """
    assert best.scores is not None
    unknown = np.full(evidence.n_records, np.nan)
    found = flag(best.scores, member, level=FLAG_LEVEL, rng=seeds.generator(seed, "evaluation", "flagged"))
    summary: dict[str, Any] = {
        "attack": best.name,
        "flagged": {"level": FLAG_LEVEL, "records": found.true + found.false, "members": found.true},
        "posterior": None,
        "separation": None,
    }
    posterior = unknown
    if calibrated is not None:
        posterior = np.where(np.isfinite(calibrated.scores), calibrated.posterior(calibrated.scores, prior), np.nan)
        here = calibrated.posterior(calibrated.scores, float(member.mean()))
        here[np.isnan(calibrated.scores)] = np.nan
        summary["posterior"] = {
            "prior": prior,
            "sure": [{"above": p, "records": int((posterior >= p).sum())} for p in _SURE],
            "largest": float(np.nanmax(posterior)),
            "here": {
                "prior": float(member.mean()),
                "bins": [asdict(b) for b in reliability(here, member, confidence=confidence)],
            },
        }
    d, low, high = separations(evidence, confidence)
    if np.isfinite(d).any():
        shares = (0.5, 0.9, 0.99, 1.0)
        summary["separation"] = {
            "records": int(np.isfinite(d).sum()),
            "above_zero": int((low > 0).sum()),
            "confidence": confidence,
            "quantiles": [{"share": s, "d": float(np.nanquantile(d, s))} for s in shares],
        }
    return RecordRisk(best.name, prior, posterior, d, low, high, found.p_value, found.flagged, summary)


def separations(evidence: Evidence, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Separation of every record in the reference models with the ends of its interval, float64 [N] each, or NaN.

    The signal is phi under the first query. The target has no part in it: this is the risk that the record runs in a
    training by this recipe, whether or not the model under audit was trained on it.
    """
    n = evidence.n_records
    d, low, high = (np.full(n, np.nan) for _ in range(3))
    if evidence.reference_membership is None or len(evidence.reference_membership) < 3:
        return d, low, high
    references = evidence.references
    signal, k = references.phi().residuals[0], references.n_models  # what all models share of a record does not matter
    size = max(1, _BLOCK_VALUES // k)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        inside = np.arange(k)[:, None] < references.n_in[rows]
        found = per_record_estimate(np.asarray(signal[rows]).T, inside, confidence=confidence)
        d[rows], low[rows], high[rows] = found.d, found.low, found.high
    return d, low, high
