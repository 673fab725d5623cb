"""Cards: a paragraph about each attack, for `memberscope list attacks NAME` and for docs/attacks.md.

The page is written from the classes: ``python -m memberscope.attacks.cards > docs/attacks.md``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from memberscope.attacks.base import Attack, InformedAttack
from memberscope.attacks.registry import ATTACKS
from memberscope.evidence import ADVERSARIES, Knowledge

_HEAD = """\
# Attacks

Written from the attacks' cards by `python -m memberscope.attacks.cards`; a test holds the two together. What is on a
card here is also shown by `memberscope list attacks NAME`, and printed in every report.

A score is higher the more likely a record is a member. An attack belongs to the weakest adversary who could run it, and
is run by `auto` wherever the evidence holds the knowledge that it needs; those marked *on request* take minutes or
more, or repeat another attack without its normalisation, and are run when named (`--attacks auto
white-box-classifier`). Notation: z logits, p softmax, y the true class, phi = log(p_y / (1 - p_y)); IN and OUT models
are reference models trained with and without the record. In a federation w^t is the global model of round t, w_k^t what
client k made of it, g_x the gradient of record x at w^t.
"""


def knowledge_of(attack: type[Attack]) -> str:
    """What an attack needs, in words: a sentence without its end."""
    *first, last = (k.value for k in Knowledge if k in attack.needs)
    return f"{'; '.join(first)}; and {last}" if first else last


def paragraph(attack: type[Attack]) -> str:
    """One paragraph: paper, formula, knowledge, cost, known traps."""
    card = attack.card
    parts = [
        f"{attack.title}. Paper: {_ended(card.paper)}",
        f"Score: {_ended(card.formula)}",
        f"Needs {_ended(knowledge_of(attack))} Adversary: {attack.adversary().name}.",
        f"Cost: {_ended(card.cost)}",
    ]
    if issubclass(attack, InformedAttack):
        parts.append("Cross-fitted: it never learns from a record that it scores.")
    if attack.costly:
        parts.append("Run on request only.")
    if card.traps:
        parts.append(f"Traps: {_ended(card.traps)}")
    return " ".join(parts)


def wrapped(attack: type[Attack], width: int = 100) -> str:
    """Name and paragraph for a terminal."""
    return f"{attack.name}\n{textwrap.fill(paragraph(attack), width, initial_indent='  ', subsequent_indent='  ')}"


def page(attacks: Iterable[type[Attack]] = tuple(ATTACKS.values())) -> str:
    """All cards as a page of Markdown: a table of contents by adversary, then a paragraph each."""
    known = list(attacks)
    names = [adversary.name for adversary in ADVERSARIES]
    others = [a.adversary().name for a in known if a.adversary().name not in names]
    lines = [_HEAD]
    for name in [*names, *dict.fromkeys(others)]:
        own = [attack for attack in known if attack.adversary().name == name]
        if own:
            lines += [f"## {name[0].upper()}{name[1:]}\n"]
            lines += [f"- [`{a.name}`](#{_anchor(a)}) {a.title}{' (on request)' if a.costly else ''}" for a in own]
            lines.append("")
            lines += [f"### {a.name}\n\n{textwrap.fill(_escaped(paragraph(a)), 120)}\n" for a in own]
    return "\n".join(lines)


def _ended(text: str) -> str:
    return f"{text.rstrip('. ')}."


def _escaped(text: str) -> str:
    """Markdown takes none of it for markup."""
    return text.replace("*", r"\*").replace("<", r"\<").replace("_", r"\_")


def _anchor(attack: type[Attack]) -> str:
    return "".join(c for c in attack.name.lower() if c.isalnum() or c in "-_ ")


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
