"""Lower bounds on epsilon from scores: what can be proven about the leakage of a training, and under which conditions.

Every search, of thresholds, numbers of guesses or attacks, is paid for: fixed in advance, split, or Bonferroni.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memberscope.errors import ConfigError, DataError
from memberscope.statistics.bound import HOLDS, Bound, Comparison, compare_with_accountant
from memberscope.statistics.bound_search import OneRun, SeveralRuns

__all__ = ["DESIGNS", "METHODS", "Bound", "Comparison", "bound", "bound_each", "compare_with_accountant"]

Method = Literal["one-run", "one-run-gdp", "several-runs", "several-runs-gdp"]
Design = Literal["coin-flips", "independent-runs", "fixed-half", "observational"]

METHODS: dict[str, str] = {
    "one-run": "one model, canaries in by coin flips (Steinke, Nasr, Jagielski 2023)",
    "one-run-gdp": "the same, under the hypothesis of a Gaussian mechanism (Mahloujifar, Melis, Chaudhuri 2025)",
    "several-runs": "independent runs with and without a canary (Jagielski et al. 2020, Clopper-Pearson)",
    "several-runs-gdp": "the same, under the hypothesis of a Gaussian mechanism (Nasr et al. 2023)",
}
DESIGNS: dict[str, str] = {
    "coin-flips": "one model; each record was put in by its own fair coin, independently of all else",
    "independent-runs": "each score comes from a training of its own, with or without the canary",
    "fixed-half": "one model; exactly half of the records, drawn at random, were put in",
    "observational": "one model whose members nobody drew by lot",
}
_ADMISSIBLE: dict[str, str] = {
    "one-run": "coin-flips",
    "one-run-gdp": "coin-flips",
    "several-runs": "independent-runs",
    "several-runs-gdp": "independent-runs",
}
_WHY_NOT: dict[str, str] = {
    "coin-flips": "the records share one training, and this method needs a training for each score",
    "independent-runs": "the runs need not have been decided by fair coins, which this method rests on",
    "fixed-half": "exactly half of the records were members, so their membership is not independent",
    "observational": "the records were not put in by coin flips, so members and non-members may differ in other ways",
}
_DP_ONLY = "nothing is assumed about the mechanism beyond the claim under test"
_GAUSSIAN = (
    "the trade-off curve of the mechanism is a Gaussian one (full-batch Gaussian noise; subsampled DP-SGD only nearly)"
)
_ONE_RUN_ASSUMPTIONS = (
    "each canary was put in by its own fair coin, and all of them went into one training",
    "scores were computed without sight of the coins, from what training gave out and data independent of the coins",
)
_SEVERAL_RUNS_ASSUMPTIONS = (
    "each score comes from an independent training, with fresh randomness",
    "apart from the canary, all trainings saw the same data",
)
# Fair coins stray further than six standard deviations from half once in 500 million audits.
_FAIR_COIN_SDS = 6.0


def bound(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    method: Method | str = "one-run",
    design: Design | str = "observational",
    delta: float = 1e-5,
    confidence: float = 0.95,
    guesses: int | tuple[int, int] | Literal["split", "bonferroni"] | None = None,
    threshold: float | Sequence[float] | Literal["split"] | None = None,
    searched: int = 1,
    rng: np.random.Generator | None = None,
) -> Bound:
    """Lower bound on the epsilon of a training, from scores and the truth about membership.

    Parameters
    ----------
    scores
        float [m], higher = more likely a member: of m canaries of one model, or of m runs.
    member
        bool [m]: which canaries were in the training data, or which runs had the canary.
    method
        One of `METHODS`.
    design
        One of `DESIGNS`: how it was decided which records are members. Where it does not admit the method, the result
        carries a status that begins with ``not a bound``; so it does unless the design is stated.
    delta
        In [0, 1); above 0 for the Gaussian methods.
    confidence
        In [0.5, 1).
    guesses
        For one run. A number (half on either side) or a pair (in, out) fixed in advance; None: fixed by the number of
        canaries (`default_guesses`); ``bonferroni``: the best of a fixed list, each at its share of the error
        probability; ``split``: chosen on a random half of the canaries, bounded on the other (not for
        ``one-run-gdp``, whose theorem needs a fixed number).
    threshold
        For several runs: score from which a run is called positive, fixed in advance; several of them are paid for by
        Bonferroni; ``split``: chosen on a random half of the runs, bounded on the other.
    searched
        Number of attacks among which this score was, or will be, picked by its result (see `bound_each`).
    rng
        Breaks ties and draws halves.

    Raises
    ------
    ConfigError
        An unknown method or design, a setting out of range, or one that belongs to the other kind of method.
    DataError
        Scores and membership that do not fit together, NaN scores, or membership that no fair coins would give.
    """
    values, truth = _checked(scores, member)
    _check_settings(method, design, delta, confidence, searched)
    alpha = (1 - confidence) / searched
    gaussian = method.endswith("gdp")
    generator = rng if rng is not None else np.random.default_rng(0)
    if method.startswith("one-run"):
        if threshold is not None:
            raise ConfigError(f"a threshold was given, and {method} goes by guesses", "give guesses instead")
        if design == "coin-flips":
            _check_fair_coins(truth)
        found = OneRun(gaussian, delta, alpha).search(values, truth, guesses, generator)
        assumptions = _ONE_RUN_ASSUMPTIONS
    else:
        if guesses is not None:
            raise ConfigError(f"guesses were given, and {method} goes by a threshold", "give threshold instead")
        found = SeveralRuns(gaussian, delta, alpha).search(values, truth, threshold, generator)
        assumptions = _SEVERAL_RUNS_ASSUMPTIONS
    status = HOLDS if _ADMISSIBLE[method] == design else f"not a bound: {_WHY_NOT[design]}"
    shared = f"; one of {searched} attacks, each at its share of the error probability" if searched > 1 else ""
    return Bound(
        method=method,
        design=design,
        epsilon=found.epsilon,
        delta=delta,
        confidence=confidence,
        m=found.m,
        guesses=found.guesses,
        correct=found.correct,
        ceiling=found.ceiling,
        selection=found.selection + shared,
        assumptions=(*assumptions, _GAUSSIAN if gaussian else _DP_ONLY),
        status=status,
        mu=found.mu,
        searched=searched,
        counts=found.counts,
    )


def bound_each(scores: Mapping[str, ArrayLike], member: ArrayLike, **settings: Any) -> dict[str, Bound]:
    """`bound` for several attacks on the same records, so that all hold at once and the best may be quoted.

    Parameters
    ----------
    scores
        Attack name -> float [m].
    member, settings
        As for `bound`; `searched` is set here.

    Returns
    -------
    Attack name -> Bound, the largest epsilon first.
    """
    found = {name: bound(one, member, searched=len(scores), **settings) for name, one in scores.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].epsilon))


def _checked(scores: ArrayLike, member: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(member)
    if values.ndim != 1 or truth.shape != values.shape or not len(values):
        raise DataError(
            f"scores have shape {values.shape} and membership {truth.shape}; expected two equally long vectors",
            "give one score and one membership for each canary (or run)",
        )
    if np.isnan(values).any():
        missing = np.flatnonzero(np.isnan(values))
        raise DataError(
            f"{len(missing)} of {len(values)} scores are NaN, the first at index {missing[0]}",
            "a record without a score cannot be ranked: find out why it has none",
        )
    if truth.dtype != bool and not np.isin(truth, (0, 1)).all():
        raise DataError(f"membership holds {truth[~np.isin(truth, (0, 1))][0]}", "1 means in, 0 means out")
    return values, truth.astype(bool)


def _check_settings(method: str, design: str, delta: float, confidence: float, searched: int) -> None:
    for name, known, what in ((method, METHODS, "method"), (design, DESIGNS, "design")):
        if name not in known:
            raise ConfigError(f"unknown {what} of a privacy bound: {name!r}", f"known: {', '.join(known)}")
    if not 0 <= delta < 1 or (delta == 0 and method.endswith("gdp")):
        allowed = "(0, 1)" if method.endswith("gdp") else "[0, 1)"
        raise ConfigError(f"delta is {delta}; {method} needs it in {allowed}", "1e-5 is the default")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence is {confidence}; expected it in [0.5, 1)", "0.95 is the default")
    if searched < 1:
        raise ConfigError(
            f"searched is {searched}; expected the number of attacks, at least 1", "1 where there was one"
        )


def _check_fair_coins(member: NDArray[np.bool_]) -> None:
    m, members = len(member), int(member.sum())
    if abs(members - m / 2) > _FAIR_COIN_SDS * np.sqrt(m) / 2:
        raise DataError(
            f"{members:,} of {m:,} records are members, which {m:,} fair coins do not give (design 'coin-flips')",
            "leave no record out by its membership; if it was not drawn by fair coins, state the design as it was",
        )
