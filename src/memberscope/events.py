"""What a long work tells whoever watches: library code emits events, the command line draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memberscope.training.bank_progress import BankProgress


class Events:
    """Listens and says nothing; subclass it to watch (`memberscope.console.Console` draws on a terminal)."""

    def stage(self, title: str) -> None:
        """A new part of the work begins."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def detail(self, text: str) -> None:
        """Something about the work that lies ahead, such as what it will cost."""

    def attack(self, name: str, position: int, total: int) -> None:
        """Attack number `position` (from 0) of `total` begins."""

    def training(self, *, model: str, records: int, epochs: int) -> Any:
        """A training begins; returns what listens to its steps and epochs, or None."""
        del model, records, epochs
        return None

    def trained(self) -> None:
        """The training that was announced last has ended."""

    def federation(self, *, model: str, clients: int, records: int, rounds: int) -> None:
        """A federation begins, or goes on."""

    def federation_client(self, client: int, done: int, expected: int) -> None:
        """In this round `done` of `expected` clients have answered, `client` the last of them."""

    def federation_round(self, record: Mapping[str, Any], rounds: int, seconds_left: float) -> None:
        """A round ended: its record in the history, and the seconds left if rounds go on taking as long."""

    def references(self, *, models: int, there: int) -> BankProgress | None:
        """Reference models are about to be trained, so many of which are there; returns what listens, or None."""
        del models, there
        return None

    def references_trained(self) -> None:
        """The training of reference models has ended."""
