"""What is documented is there, and what is there is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memberscope
from memberscope.attacks.base import Attack
from memberscope.attacks.cards import page, paragraph
from memberscope.attacks.registry import ATTACKS
from memberscope.checks import CHECKS
from memberscope.cli import app
from memberscope.evidence import ADVERSARIES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"memberscope {command}" in README


def test_the_page_of_attacks_is_written_from_their_cards() -> None:
    written = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m memberscope.attacks.cards > docs/attacks.md"
    assert re.findall(r"^### (.+)$", written, re.MULTILINE) == [
        attack.name
        for name in dict.fromkeys(a.adversary().name for a in by_strength())
        for attack in ATTACKS.values()
        if attack.adversary().name == name
    ]


def by_strength() -> list[type[Attack]]:
    names = [adversary.name for adversary in ADVERSARIES]
    known = [a for a in ATTACKS.values() if a.adversary().name in names]
    return sorted(known, key=lambda a: names.index(a.adversary().name)) + [
        a for a in ATTACKS.values() if a.adversary().name not in names
    ]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda a: a.name)
def test_a_card_is_one_paragraph_that_says_it_all(attack: type[Attack]) -> None:
    card = paragraph(attack)
    assert "\n" not in card
    for part in ("Paper: ", "Score: ", "Needs ", "Adversary: ", "Cost: "):
        assert part in card, part
    assert ".." not in card.replace("...", "")
    assert card.endswith(".")


def test_every_check_has_its_page() -> None:
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (MIA\d+)$", page, re.MULTILINE) == list(CHECKS)


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_public_names_are_sorted_and_exist() -> None:
    assert memberscope.__all__ == sorted(memberscope.__all__)
    for name in memberscope.__all__:
        assert callable(getattr(memberscope, name))
    assert callable(memberscope.audit), "the function, not the module of the same name"
    assert callable(memberscope.score)
