"""What is written about defenses is what they say of themselves."""

from pathlib import Path

import pytest

from memberscope.defenses.cards import line, paragraph, with_section, wrapped
from memberscope.defenses.registry import DEFENSES
from memberscope.errors import ConfigError
from memberscope.listing import listing

PAGE = Path(__file__).parents[2] / "docs" / "defenses.md"


def test_the_page_of_defenses_is_written_from_their_cards():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_section(page), "run: python -m memberscope.defenses.cards docs/defenses.md"
    assert all(f"### {name}\n" in page for name in DEFENSES)


@pytest.mark.parametrize("defense", DEFENSES.values(), ids=list(DEFENSES))
def test_a_card_tells_flag_place_paper_cost_and_traps(defense):
    text = paragraph(defense)
    for part in ("Flag: --", "Acts on: ", "Formula: ", "Paper: ", "Cost: ", "Traps: "):
        assert part in text
    assert f"--{defense.settings[0].replace('_', '-')}. " in line(defense)


def test_the_list_has_a_line_each_and_a_card_by_name():
    lines = listing("defenses").splitlines()
    assert [text.split()[0] for text in lines] == list(DEFENSES)
    assert "Does not go with: clip_norm" in " ".join(listing("defenses", ("dp_sgd",)).split())
    with pytest.raises(ConfigError, match=r"unknown defense 'mixap'\n  did you mean 'mixup'\?"):
        wrapped("mixap")
