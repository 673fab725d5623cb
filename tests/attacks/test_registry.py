"""The attacks by name: ours are complete, and what other packages add is checked before it is trusted."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from memberscope.attacks import registry
from memberscope.attacks.base import Attack, Card
from memberscope.attacks.threshold import Loss
from memberscope.errors import ConfigError
from memberscope.evidence import Knowledge


class Own(Loss):
    """An attack of another package."""

    name, title = "own", "Own"


class Nameless(Attack):
    """Forgot to say what it is."""

    needs = frozenset({Knowledge.LABELS})


NOT_AN_ATTACK = 3


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def adding(value: str) -> None:
        point = EntryPoint("point0", value, registry.ENTRY_POINT_GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        registry.all_attacks.cache_clear()

    yield adding
    registry.all_attacks.cache_clear()


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_our_attacks_are_complete(name: str) -> None:
    attack = registry.ATTACKS[name]
    assert attack.name == name
    assert not inspect.isabstract(attack)
    assert attack.title
    assert attack.needs
    assert isinstance(attack.card, Card)
    assert attack.card.paper
    assert attack.card.formula
    assert attack.card.cost
    assert attack.__doc__
    assert attack.adversary().name != "everything"
    assert registry.get_attack(name) is attack


def test_the_attack_of_another_package_is_found(add: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "their_attacks", SimpleNamespace(Own=Own))
    add("their_attacks:Own")
    assert registry.get_attack("own") is Own
    assert list(registry.all_attacks())[-1] == "own"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            "no_such_package:X",
            "entry point 'point0' (no_such_package:X) cannot be loaded: ModuleNotFoundError: No module",
        ),
        ("their_attacks:Missing", "entry point 'point0' (their_attacks:Missing) cannot be loaded: AttributeError: "),
        (
            "their_attacks:NOT_AN_ATTACK",
            "entry point 'point0' (their_attacks:NOT_AN_ATTACK) is not a subclass of Attack",
        ),
        ("their_attacks:Nameless", "entry point 'point0' (their_attacks:Nameless) lacks name, title, card, score"),
        ("memberscope.attacks.threshold:Loss", "entry point 'point0' takes the attack name 'loss', which is in use"),
    ],
)
def test_an_entry_point_that_is_no_attack_is_refused_by_name(
    add: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, value: str, told: str
) -> None:
    theirs = SimpleNamespace(Own=Own, Nameless=Nameless, NOT_AN_ATTACK=NOT_AN_ATTACK)
    monkeypatch.setitem(sys.modules, "their_attacks", theirs)
    add(value)
    with pytest.raises(ConfigError) as refusal:
        registry.all_attacks()
    assert refusal.value.problem.startswith(told)
    assert refusal.value.hint
