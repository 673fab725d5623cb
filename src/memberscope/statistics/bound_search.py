"""From ranked scores to a bound: what is fixed in advance, what is searched, and what the search costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, DataError
from memberscope.statistics import one_run, several_runs
from memberscope.statistics.gaussian_dp import gdp_epsilon
from memberscope.statistics.guesses import (
    Guesses,
    candidate_guesses,
    default_guesses,
    given_guesses,
    rank,
    right_guesses,
)
from memberscope.statistics.several_runs import RunCounts

# Enough to come near the best threshold; more only costs time.
_THRESHOLDS_TRIED = 200


@dataclass(frozen=True)
class Found:
    """A bound and what it rests on; the fields are those of `memberscope.statistics.bound.Bound`."""

    epsilon: float
    ceiling: float
    mu: float | None
    m: int
    guesses: int
    correct: int
    selection: str
    counts: dict[str, int]


@dataclass(frozen=True)
class OneRun:
    """Bounds from one run.

    Parameters
    ----------
    gaussian
        Under the hypothesis of a Gaussian mechanism.
    delta, alpha
        Of the claim under test; error probability.
    """

    gaussian: bool
    delta: float
    alpha: float

    def search(
        self,
        scores: NDArray[np.float64],
        member: NDArray[np.bool_],
        guesses: int | tuple[int, int] | str | None,
        rng: np.random.Generator,
    ) -> Found:
        """Bound from m canaries; `guesses` as for `memberscope.statistics.privacy_bounds.bound`."""
        ranked = member[rank(scores, rng)]
        if guesses == "split":
            return self._split(ranked, rng)
        if guesses == "bonferroni":
            return self._bonferroni(ranked)
        if isinstance(guesses, str):
            raise ConfigError(f"guesses is {guesses!r}", "give a number, a pair (in, out), 'split' or 'bonferroni'")
        if guesses is None:
            fixed = default_guesses(len(ranked))
            return self.at(ranked, fixed, self.alpha, f"{fixed}, fixed in advance by the number of canaries")
        fixed = given_guesses(guesses, len(ranked))
        return self.at(ranked, fixed, self.alpha, f"{fixed}, fixed in advance")

    def at(
        self,
        ranked: NDArray[np.bool_],
        guesses: Guesses,
        alpha: float,
        selection: str,
        *,
        fewest_guesses: int | None = None,
    ) -> Found:
        """Bound for one choice of guesses, from membership in ascending order of score."""
        m, total = len(ranked), guesses.total
        correct = right_guesses(ranked, guesses)
        counts = {"guesses_in": guesses.into, "guesses_out": guesses.out}
        if self.gaussian:
            mu = one_run.gaussian_mu(m, total, correct, alpha)
            ceiling = one_run.gaussian_epsilon(m, total, total, self.delta, alpha)
            return Found(gdp_epsilon(mu, self.delta), ceiling, mu, m, total, correct, selection, counts)
        epsilon, ceiling = (
            one_run.steinke_epsilon(m, total, right, self.delta, alpha, fewest_guesses=fewest_guesses)
            for right in (correct, total)
        )
        return Found(epsilon, ceiling, None, m, total, correct, selection, counts)

    def _bonferroni(self, ranked: NDArray[np.bool_]) -> Found:
        choices = candidate_guesses(len(ranked), self.alpha)
        selection = f"the best of {len(choices)} choices, each at its share of the error probability (Bonferroni)"
        found = [self.at(ranked, one, self.alpha / len(choices), f"{one}, {selection}") for one in choices]
        return max(found, key=lambda one: one.epsilon)

    def _split(self, ranked: NDArray[np.bool_], rng: np.random.Generator) -> Found:
        if self.gaussian:
            raise ConfigError(
                "one-run-gdp cannot choose the number of guesses on one half: its theorem needs a fixed number",
                "take guesses='bonferroni', a number fixed in advance, or the method one-run",
            )
        if len(ranked) < 2:
            raise DataError("one canary cannot be split into two halves", "give more canaries, or fix the guesses")
        first = np.zeros(len(ranked), bool)
        first[rng.permutation(len(ranked))[: len(ranked) // 2]] = True
        choosing, bounding = ranked[first], ranked[~first]
        # The default comes first, so that it is taken where the first half shows nothing.
        choices = [default_guesses(len(choosing)), *candidate_guesses(len(choosing), self.alpha)]
        chosen = max(choices, key=lambda one: self.at(choosing, one, self.alpha, "").epsilon)
        fewest = min(one.total for one in choices)
        selection = f"{chosen}, chosen on {len(choosing):,} canaries, bounded on the other {len(bounding):,} (split)"
        return self.at(bounding, chosen, self.alpha, selection, fewest_guesses=fewest)


@dataclass(frozen=True)
class SeveralRuns:
    """Bounds from independent runs; parameters as for `OneRun`."""

    gaussian: bool
    delta: float
    alpha: float

    def search(
        self,
        scores: NDArray[np.float64],
        member: NDArray[np.bool_],
        threshold: float | Sequence[float] | str | None,
        rng: np.random.Generator,
    ) -> Found:
        """Bound from runs; `threshold` as for `memberscope.statistics.privacy_bounds.bound`."""
        if not member.any() or member.all():
            raise DataError(
                f"{int(member.sum())} of {len(member)} runs had the canary", "give runs with it and runs without it"
            )
        if threshold is None:
            raise ConfigError(
                "several runs need a threshold that was not chosen on these runs",
                "give a number fixed in advance, several numbers (paid for by Bonferroni), or 'split'",
            )
        if isinstance(threshold, str):
            if threshold != "split":
                raise ConfigError(f"threshold is {threshold!r}", "give a number, several numbers, or 'split'")
            return self._split(scores, member, rng)
        given = np.unique(np.asarray(threshold, dtype=np.float64))
        if not given.size or np.isnan(given).any():
            raise ConfigError(f"threshold is {threshold!r}", "give a number, several numbers, or 'split'")
        if given.size == 1:
            return self.at(scores, member, float(given[0]), self.alpha, f"threshold {given[0]:g}, fixed in advance")
        selection = f"the best of {given.size}, each at its share of the error probability (Bonferroni)"
        share = self.alpha / given.size
        found = [self.at(scores, member, float(one), share, f"threshold {one:g}, {selection}") for one in given]
        return max(found, key=lambda one: one.epsilon)

    def at(
        self, scores: NDArray[np.float64], member: NDArray[np.bool_], threshold: float, alpha: float, selection: str
    ) -> Found:
        """Bound at one threshold: a run with a score of at least that is called positive."""
        positive = scores >= threshold
        runs_with = int(member.sum())
        runs = RunCounts(
            runs_with=runs_with,
            runs_without=len(member) - runs_with,
            false_negatives=int(np.count_nonzero(member & ~positive)),
            false_positives=int(np.count_nonzero(~member & positive)),
        )
        perfect = RunCounts(runs.runs_with, runs.runs_without, 0, 0)
        mu = several_runs.gaussian_mu(runs, alpha) if self.gaussian else None
        return Found(
            epsilon=self._epsilon(runs, alpha),
            ceiling=self._epsilon(perfect, alpha),
            mu=mu,
            m=len(member),
            guesses=len(member),
            correct=runs.correct,
            selection=selection,
            counts=asdict(runs),
        )

    def _epsilon(self, runs: RunCounts, alpha: float) -> float:
        formula = several_runs.gaussian_epsilon if self.gaussian else several_runs.clopper_pearson_epsilon
        return formula(runs, self.delta, alpha)

    def _strength(self, runs: RunCounts) -> float:
        """Rises with the bound, and is quicker to have than an epsilon of the Gaussian form."""
        if self.gaussian:
            return several_runs.gaussian_mu(runs, self.alpha)
        return several_runs.clopper_pearson_epsilon(runs, self.delta, self.alpha)

    def _split(self, scores: NDArray[np.float64], member: NDArray[np.bool_], rng: np.random.Generator) -> Found:
        first = np.zeros(len(member), bool)
        for group in (member, ~member):
            rows = rng.permutation(np.flatnonzero(group))
            if len(rows) < 2:
                raise DataError("too few runs to split", "at least two with the canary and two without it are needed")
            first[rows[: len(rows) // 2]] = True
        distinct = np.unique(scores[first])
        candidates = distinct[np.unique(np.linspace(0, len(distinct) - 1, _THRESHOLDS_TRIED).astype(np.int64))]
        ins, outs = np.sort(scores[first & member]), np.sort(scores[first & ~member])
        missed = np.searchsorted(ins, candidates).tolist()
        false = (len(outs) - np.searchsorted(outs, candidates)).tolist()
        tried = [self._strength(RunCounts(len(ins), len(outs), *errors)) for errors in zip(missed, false, strict=True)]
        # The middle of the best: with few runs many thresholds do equally well, and those at the edge generalise worst.
        best = np.flatnonzero(np.asarray(tried) == max(tried))
        chosen = float(candidates[best[len(best) // 2]])
        n_first = int(first.sum())
        selection = (
            f"threshold {chosen:g}, chosen on {n_first:,} runs, bounded on the other {len(member) - n_first:,} (split)"
        )
        return self.at(scores[~first], member[~first], chosen, self.alpha, selection)
