"""What is documented is there, and what is there is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memberscope
from memberscope.attacks.registry import ATTACKS
from memberscope.checks import CHECKS
from memberscope.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"memberscope {command}" in README


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_in_the_methods_table_with_its_adversary(name: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    assert ATTACKS[name].adversary().name in row


def test_the_methods_table_names_no_attack_that_is_not_there() -> None:
    table = README[README.index("## Methods") : README.index("## How fast")]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == set(ATTACKS)


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
