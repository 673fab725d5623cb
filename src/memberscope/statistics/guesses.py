"""Which canaries are guessed in a one-run audit: how many on either side, fixed in advance or chosen and paid for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError

_SHARES_BOTH = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
# Calling low scores "out" is no use where only some canaries are memorised: a low score is then anybody's.
_SHARES_IN_ONLY = (1 / 32, 1 / 16, 1 / 8, 1 / 4)


@dataclass(frozen=True)
class Guesses:
    """The `into` highest scores are called in, the `out` lowest out; on the others the auditor abstains."""

    into: int
    out: int

    @property
    def total(self) -> int:
        """Number of guesses."""
        return self.into + self.out

    def __str__(self) -> str:
        return f"{self.total:,} guesses ({self.into:,} in, {self.out:,} out)"


def both_sides(total: int) -> Guesses:
    """`total` guesses, half of them on either side."""
    return Guesses(total - total // 2, total // 2)


def default_guesses(m: int) -> Guesses:
    """A tenth of the canaries, but no fewer than 100 or half of them: fewer right guesses could not show much.

    Both sides in equal parts. Depends on m alone, so it is fixed in advance.
    """
    return both_sides(max(1, round(max(m / 10, min(m / 2, 100)))))


def given_guesses(guesses: int | tuple[int, int], m: int) -> Guesses:
    """The user's number of guesses, or numbers (in, out).

    Raises
    ------
    ConfigError
        None at all, or more than there are canaries.
    """
    into, out = guesses if isinstance(guesses, tuple) else (guesses - guesses // 2, guesses // 2)
    if into < 0 or out < 0 or not 1 <= into + out <= m:
        raise ConfigError(
            f"{into} guesses 'in' and {out} 'out' for {m} canaries", f"give between 1 and {m} guesses altogether"
        )
    return Guesses(into, out)


def candidate_guesses(m: int, alpha: float) -> list[Guesses]:
    """The choices that a search goes through; they depend on m alone. Those too few to refute anything are left out."""
    fewest = math.ceil(math.log2(1 / alpha))
    found = [both_sides(round(share * m)) for share in _SHARES_BOTH]
    found += [Guesses(round(share * m), 0) for share in _SHARES_IN_ONLY]
    kept = [guesses for guesses in dict.fromkeys(found) if guesses.total >= fewest]
    return kept or [both_sides(m)]


def right_guesses(ranked_member: NDArray[np.bool_], guesses: Guesses) -> int:
    """Number of right guesses, given membership in ascending order of score (`rank`)."""
    into = int(np.count_nonzero(ranked_member[len(ranked_member) - guesses.into :]))
    return into + guesses.out - int(np.count_nonzero(ranked_member[: guesses.out]))


def rank(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [m]: canaries in ascending order of score, ties at random.

    A tie broken by position would read the membership off a file that lists members first.
    """
    shuffled = rng.permutation(len(scores))
    return shuffled[np.argsort(scores[shuffled], kind="stable")]
