"""Drawing the growth of a bank of reference models: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from memberscope.training.bank_progress import BankProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN = 60.0
_LINES = 10


class BankLines(BankProgress):
    """A line for every tenth of the models, and one a minute where they take longer.

    Parameters
    ----------
    note
        Prints what the user should know.
    detail
        Prints a line; None: be quiet.
    there
        Models that are there already.
    """

    def __init__(self, note: Callable[[str], None], detail: Callable[[str], None] | None, there: int) -> None:
        self._note, self._detail = note, detail
        self._told, self._told_at = there, time.monotonic()

    def on_layout(self, text: str) -> None:
        """Print how models are trained here."""
        if self._detail is not None:
            self._detail(text)

    def on_model(self, done: int, total: int, seconds_left: float | None) -> None:
        """Print how far it is, now and then."""
        step = max(1, total // _LINES)
        due = done >= self._told + step or (done == total and done > self._told)
        if self._detail is None or not (due or time.monotonic() - self._told_at >= _SECONDS_BETWEEN):
            return
        self._told, self._told_at = done, time.monotonic()
        self._detail(f"{done}/{total} reference models{_left(seconds_left)}")

    def on_note(self, text: str) -> None:
        """Print it."""
        self._note(text)


class BankBar(BankProgress):
    """A bar with the time left, on a terminal."""

    def __init__(
        self, note: Callable[[str], None], detail: Callable[[str], None], progress: Progress, task: TaskID
    ) -> None:
        self._note, self._detail, self._progress, self._task = note, detail, progress, task

    def on_layout(self, text: str) -> None:
        """Print how models are trained here."""
        self._detail(text)

    def on_model(self, done: int, total: int, seconds_left: float | None) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total, left=_left(seconds_left).removeprefix(", "))

    def on_note(self, text: str) -> None:
        """Print it above the bar."""
        self._note(text)


def _left(seconds: float | None) -> str:
    from memberscope.report.wording import duration

    return f", {duration(max(1, round(seconds)))} left" if seconds else ""
