"""What a privacy bound says, and whether it agrees with the accountant of a differentially private training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from memberscope.errors import ConfigError

Verdict = Literal["within", "contradiction", "not comparable"]
HOLDS = "bound"


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon, with all that a reader needs to judge it.

    Parameters
    ----------
    method
        One of `memberscope.statistics.privacy_bounds.METHODS`.
    design
        One of `memberscope.statistics.privacy_bounds.DESIGNS`: how it was decided which records are members.
    epsilon
        The lower bound at `delta`, >= 0. Only a bound if `valid`.
    delta
        Of the (epsilon, delta)-DP that the bound refutes for every smaller epsilon.
    confidence
        Probability, at least, that the bound lies below the truth; search has been paid for.
    m
        Canaries (one run) or runs (several runs) that the bound rests on; under ``split`` those of the second half.
    guesses, correct
        How many of them were guessed, and rightly so.
    ceiling
        The epsilon that the same design would have shown had every guess been right.
    selection
        In words: what was fixed in advance, and what was chosen and paid for.
    assumptions
        In words: what must hold for the bound to hold.
    status
        ``bound``, or ``not a bound: `` and the reason.
    mu
        For the Gaussian methods: the lower bound on mu of which `epsilon` is the translation.
    searched
        Attacks among which the best was taken; each had its share of the error probability.
    counts
        Detail by method: guesses called in and out, or runs and errors by kind.
    """

    method: str
    design: str
    epsilon: float
    delta: float
    confidence: float
    m: int
    guesses: int
    correct: int
    ceiling: float
    selection: str
    assumptions: tuple[str, ...]
    status: str = HOLDS
    mu: float | None = None
    searched: int = 1
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether the design allows to call this a bound."""
        return self.status == HOLDS

    @property
    def hypothesis(self) -> str:
        """The hypothesis beyond differential privacy itself that the number rests on; empty for most methods."""
        return "" if self.mu is None else "if the mechanism is a Gaussian one"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, with `valid` and the sentence of ``str()`` under ``text``."""
        return dataclasses.asdict(self) | {
            "assumptions": list(self.assumptions),
            "valid": self.valid,
            "text": str(self),
        }

    def __str__(self) -> str:
        basis = f"{self.method}: {self.correct:,} of {self.guesses:,} guesses right, {self.m:,} {self._unit}"
        if not self.valid:
            return f"{self.status}. The formula gives {_down(self.epsilon)} at δ = {self.delta:g} ({basis})"
        claim = f"ε ≥ {_down(self.epsilon)} at δ = {self.delta:g} with {100 * self.confidence:g} % confidence"
        if self.mu is not None:
            claim += f", {self.hypothesis} (µ ≥ {_down(self.mu)})"
        return f"{claim} ({basis}; all right would show {_down(self.ceiling)})"

    @property
    def _unit(self) -> str:
        return "runs" if self.design == "independent-runs" else "records"


@dataclass(frozen=True)
class Comparison:
    """A lower bound held against the accountant's upper bound.

    Parameters
    ----------
    verdict
        ``within``, ``contradiction`` or ``not comparable``.
    text
        For the reader; a contradiction is told loudly, with what to look for.
    lower
        The bound.
    upper, upper_delta
        The accountant's claim, for a canary of as many copies as were given.
    """

    verdict: Verdict
    text: str
    lower: Bound
    upper: float
    upper_delta: float

    def __str__(self) -> str:
        return self.text


def compare_with_accountant(lower: Bound, epsilon: float, delta: float, *, copies: int = 1) -> Comparison:
    """Hold a lower bound against the (epsilon, delta) that an accountant computed for the training.

    Parameters
    ----------
    lower
        From `memberscope.statistics.privacy_bounds.bound`.
    epsilon, delta
        The accountant's claim, under adding or removing one record (a canary is in or out, not exchanged).
    copies
        How often each canary was in the training data. The claim is about one record; for a group of k it is weakened
        to k epsilon and delta (e^(k epsilon) - 1) / (e^epsilon - 1) (Vadhan 2017, Lemma 2.2) before it is compared.

    Returns
    -------
    ``contradiction`` if the lower bound lies above the claim; ``not comparable`` if `lower` is no bound, or speaks of a
    smaller delta than the claim (a larger epsilon is then allowed).

    Raises
    ------
    ConfigError
        A negative epsilon, a delta outside [0, 1), or fewer than one copy.
    """
    if not epsilon >= 0 or not 0 <= delta < 1:
        raise ConfigError(
            f"the accountant's claim is ε = {epsilon}, δ = {delta}; expected ε >= 0 and δ in [0, 1)",
            "give what the accountant printed",
        )
    if copies < 1:
        raise ConfigError(f"{copies} copies of a canary; expected at least 1", "1 where each canary is put in once")
    upper, upper_delta = _group_privacy(epsilon, delta, copies)
    verdict, text = _judge(lower, upper, upper_delta)
    return Comparison(verdict, text, lower, upper, upper_delta)


def _judge(lower: Bound, upper: float, upper_delta: float) -> tuple[Verdict, str]:
    claim = f"ε ≤ {_up(upper)} at δ = {upper_delta:g} (accountant)"
    if not lower.valid:
        return "not comparable", f"{lower.status}; it says nothing for or against {claim}"
    if lower.delta < upper_delta:
        return "not comparable", (
            f"the lower bound is for δ = {lower.delta:g}, the claim is {claim}: a smaller δ allows a larger ε. "
            f"Compute the bound at δ = {upper_delta:g}"
        )
    if lower.epsilon <= upper:
        text = f"{_down(lower.epsilon)} ≤ true ε ≤ {_up(upper)} (lower bound: {lower}; {claim})"
        if lower.ceiling <= upper:
            text += (
                f". This audit could not have shown more than {_down(lower.ceiling)}, so it could not have "
                "contradicted the claim; more canaries or more guesses could"
            )
        return "within", text
    text = (
        f"BROKEN DP CLAIM: measured {lower}, which lies above {claim}. The training leaks more than was accounted for. "
        "Look for: gradients not clipped for each record, noise not added or scaled wrongly, batches not drawn as the "
        "accountant assumes, more steps than were counted, statistics shared between records (BatchNorm), canaries put "
        "in more often than stated. A sound claim is accused wrongly with probability at most "
        f"{1 - lower.confidence:.3g}."
    )
    if lower.hypothesis:
        text += (
            " This bound assumes a Gaussian mechanism, which the accountant's claim does not: confirm with a method "
            "without that hypothesis before accusing anybody."
        )
    return "contradiction", text


def _group_privacy(epsilon: float, delta: float, copies: int) -> tuple[float, float]:
    if copies == 1:
        return epsilon, delta
    if delta == 0 or copies * epsilon > 700:
        return copies * epsilon, 0.0 if delta == 0 else 1.0
    growth = copies if epsilon == 0 else math.expm1(copies * epsilon) / math.expm1(epsilon)
    return copies * epsilon, min(1.0, delta * growth)


def _down(value: float) -> str:
    """Two decimals, rounded so that a lower bound is not overstated."""
    return f"{math.floor(100 * value) / 100:.2f}"


def _up(value: float) -> str:
    """Two decimals, rounded so that an upper bound is not understated."""
    return f"{math.ceil(100 * value) / 100:.2f}" if math.isfinite(value) else "∞"
