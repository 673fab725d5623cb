"""What a training tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Hears of a training's steps and epochs; the command line draws them."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Step `step` (from 1) of `steps` in epoch `epoch` (from 1) was made; a few times a second at most."""

    def on_epoch(self, record: Mapping[str, Any], epochs: int, seconds_left: float) -> None:
        """An epoch ended: its record in the history, and the seconds left if epochs go on taking as long."""
