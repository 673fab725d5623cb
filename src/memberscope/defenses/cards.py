"""Cards: a paragraph about each defense, for `memberscope list defenses NAME` and for docs/defenses.md.

The page's list is written from the classes: ``python -m memberscope.defenses.cards docs/defenses.md``.
"""

from __future__ import annotations

import sys
import textwrap
from itertools import combinations
from pathlib import Path

from memberscope.defenses.base import Defense
from memberscope.defenses.registry import DEFENSES, all_defenses, clash
from memberscope.errors import ConfigError

_BEGIN, _END = "<!-- cards: written by python -m memberscope.defenses.cards -->", "<!-- end of the cards -->"


def flag(defense: type[Defense]) -> str:
    """What switches a defense on, on the command line."""
    return f"--{defense.settings[0].replace('_', '-')}" if defense.settings else f"--defenses {defense.name}"


def line(defense: type[Defense]) -> str:
    """Flag, what it does, where it acts, what it costs, and where it comes from, for a list."""
    card = defense.card
    where = " and ".join(defense.acts)
    return f"{flag(defense)}. {_ended(defense.title)} Acts on: {where}. Cost: {_ended(card.cost)} Paper: {card.paper}"


def paragraph(defense: type[Defense]) -> str:
    """Flag and settings, where it acts, formula, paper, cost, traps, and what it does not go with."""
    card = defense.card
    parts = [f"{_ended(defense.title)} Flag: {flag(defense)}."]
    if len(defense.settings) > 1:
        parts.append(f"Settings: {', '.join(defense.settings)}.")
    parts += [f"Acts on: {' and '.join(defense.acts)}.", f"Formula: {_ended(card.formula)}"]
    parts += [f"Paper: {_ended(card.paper)}", f"Cost: {_ended(card.cost)}", f"Traps: {_ended(card.traps)}"]
    if defense.needs_validation:
        parts.append("Needs validation records, which then are no population for attacks.")
    if against := [name for name, other in DEFENSES.items() if other is not defense and clash(defense, other)]:
        parts.append(f"Does not go with: {', '.join(against)}.")
    return " ".join(parts)


def wrapped(name: str, width: int = 100) -> str:
    """Name and paragraph for a terminal.

    Raises
    ------
    ConfigError
        No defense has this name.
    """
    import difflib

    known = all_defenses()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"unknown defense {name!r}",
            f"did you mean {near[0]!r}?" if near else "`memberscope list defenses` shows them all",
        )
    return f"{name}\n{textwrap.fill(paragraph(known[name]), width, initial_indent='  ', subsequent_indent='  ')}"


def section() -> str:
    """All cards as Markdown, a heading each, and what does not go together, with the reasons."""
    lines = []
    for defense in DEFENSES.values():
        lines += [f"### {defense.name}\n", textwrap.fill(_plain(paragraph(defense)), 120), ""]
    lines += ["## What does not go together\n", "| these two | because |", "| --- | --- |"]
    for one, other in combinations(DEFENSES.values(), 2):
        if reason := clash(one, other):
            lines.append(f"| `{one.name}`, `{other.name}` | {_plain(reason)} |")
    return "\n".join(lines) + "\n"


def with_section(page: str) -> str:
    """A page with the cards between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{section()}\n{_END}{after}"


def _ended(text: str) -> str:
    return f"{text.rstrip('. ')}."


def _plain(text: str) -> str:
    """Markdown takes none of it for markup."""
    for mark in "\\`*_|<":
        text = text.replace(mark, f"\\{mark}")
    return text


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_section(file.read_text(encoding="utf-8")), encoding="utf-8")
