"""What a growing bank tells whoever watches, and how much longer it takes."""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Sequence

_SECONDS_BETWEEN = 1.0
_ENOUGH = 0.05
"""Share of a model that must be done before the time left is taken from this run and not from the first estimate."""


class BankProgress:
    """Listens and says nothing; subclass it to watch."""

    def on_layout(self, text: str) -> None:
        """How models are trained here: so many at once, with so many threads."""

    def on_model(self, done: int, total: int, seconds_left: float | None) -> None:
        """`done` of `total` models are there; told about once a second. None: the time left is not known yet."""

    def on_note(self, text: str) -> None:
        """Something that the user should know."""


class Tracker:
    """Turns fractions of models into the progress of the bank.

    Parameters
    ----------
    progress
        Hears of it.
    there
        Models that are there already.
    missing
        Models to come.
    workers
        How many are trained at once.
    estimate
        Seconds for all, measured before; None: not measured.
    """

    def __init__(
        self, progress: BankProgress, there: int, missing: Collection[int], workers: int, estimate: float | None
    ) -> None:
        self._progress, self._workers, self._estimate = progress, workers, estimate
        self._done, self._total = there, there + len(missing)
        self._waiting, self._fractions = set(missing), dict[int, float]()
        self._trained = 0
        self._started = self._told = time.monotonic()
        self._tell()

    def on_fraction(self, item: int, fraction: float) -> None:
        """Told when this fraction of a model is done."""
        if item in self._waiting:
            self._fractions[item] = fraction
        if time.monotonic() - self._told >= _SECONDS_BETWEEN:
            self._tell()

    def on_death(self, item: int, reason: str) -> None:
        """Told when the worker with this model died; another one tries it once more."""
        self._fractions.pop(item, None)
        self._progress.on_note(f"a worker died while it trained reference model {item}, trying once more ({reason})")

    def there(self, item: int, *, trained_here: bool) -> None:
        """Model `item` is there."""
        self._waiting.discard(item)
        self._fractions.pop(item, None)
        self._trained += trained_here
        self._done += 1
        self._tell()

    def note(self, text: str) -> None:
        """Say something to the user."""
        self._progress.on_note(text)

    def seconds_left(self) -> float | None:
        """Seconds until the last model is there, if each goes on taking as long as those of this run took."""
        passed = time.monotonic() - self._started
        worked = self._trained + sum(self._fractions.values())
        if worked < _ENOUGH:
            return None if self._estimate is None else max(0.0, self._estimate - passed)
        if not self._waiting:
            return 0.0
        each = passed * min(self._workers, self._trained + len(self._fractions)) / worked
        return each * rounds_left([1 - f for f in self._fractions.values()], len(self._waiting), self._workers)

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._progress.on_model(self._done, self._total, self.seconds_left())


def rounds_left(unfinished: Collection[float], total: int, workers: int) -> float:
    """When the last of `total` models is done, in units of one model's time.

    Parameters
    ----------
    unfinished
        Shares still to do of the models that are being trained.
    total
        Models still to come, these among them.
    workers
        How many are trained at once.
    """
    ends = sorted(unfinished)[: max(workers, len(unfinished))]
    ends += [0.0] * (workers - len(ends))
    heapq.heapify(ends)
    last = max(ends, default=0.0)
    for _ in range(total - len(unfinished)):
        last = max(last, heapq.heapreplace(ends, ends[0] + 1.0) + 1.0)
    return last


def listed(models: Sequence[int]) -> str:
    """Numbers of models, the first few of many."""
    shown = ", ".join(map(str, models[:8]))
    return shown if len(models) <= 8 else f"{shown} and {len(models) - 8} more"
