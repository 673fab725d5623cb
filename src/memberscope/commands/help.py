"""What ``--help`` looks like: settings under headings, since nobody reads a flat list of ninety flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, get_type_hints

from cyclopts import Group, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel
from rich.console import Console, ConsoleOptions
from rich.text import Text

DATA = Group.create_ordered("Data")
CLIENTS = Group.create_ordered("Clients and rounds")
MODEL = Group.create_ordered("Model")
TRAINING = Group.create_ordered("Training")
REFERENCES = Group.create_ordered("Reference models and canaries")
ATTACKS = Group.create_ordered("Attacks and verdict")
SEEN = Group.create_ordered("What the server sees and keeps")
ADVERSARIES = Group.create_ordered("Malicious parties, canaries and references")
FEDERATED_DEFENSES = Group.create_ordered("Defenses of updates")
DEFENSES = Group.create_ordered("Defenses (`memberscope list defenses`)")
RUNNING = Group.create_ordered("Running")


def under_headings(settings: type, headings: Mapping[Group, str], *, otherwise: Group) -> None:
    """Put the flags of a dataclass of settings under headings.

    Parameters
    ----------
    settings
        The dataclass.
    headings
        The names of settings of each heading, with spaces between.
    otherwise
        The heading of all others.
    """
    hints = get_type_hints(settings, include_extras=True)
    place = {name: heading for heading, names in headings.items() for name in names.split()}
    for field in fields(settings):
        heading = place.pop(field.name, otherwise)
        settings.__annotations__[field.name] = Annotated[hints[field.name], Parameter(group=heading)]
    assert not place, f"{settings.__name__} has no {', '.join(place)}"


class Wrapped(DefaultFormatter):
    """Texts wrapped to the terminal: docstrings break theirs for the source."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one heading and what is under it."""
        for entry in panel.entries:
            text = getattr(entry.description, "primary_renderable", None)
            if isinstance(text, Text):
                text.plain = " ".join(text.plain.split())
        super().__call__(console, options, panel)
