"""What can be named on the command line, as text."""

from __future__ import annotations

from typing import Literal

from memberscope.errors import ConfigError

What = Literal["datasets", "models", "attacks", "defenses", "partitions", "strategies"]


def listing(what: What, names: tuple[str, ...] = ()) -> str:
    """A line a name: what it is, and what an attack needs; or the cards of the attacks or defenses named.

    Raises
    ------
    ConfigError
        No such attack or defense, or names of what has no cards.
    """
    if names:
        if what == "defenses":
            from memberscope.defenses.cards import wrapped as card_of

            return "\n\n".join(card_of(name) for name in names)
        if what != "attacks":
            raise ConfigError(f"list {what} takes no further word", f"`memberscope list {what}` shows them all")
        from memberscope.attacks.cards import wrapped
        from memberscope.attacks.registry import get_attack

        return "\n\n".join(wrapped(get_attack(name)) for name in names)
    rows = {
        "datasets": _datasets,
        "models": _models,
        "attacks": _attacks,
        "defenses": _defenses,
        "partitions": _partitions,
        "strategies": _strategies,
    }[what]()
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows)


def _datasets() -> list[tuple[str, str]]:
    from memberscope.data_loader import available

    named = ((f"{name}:PATH" if entry.takes_path else name, entry) for name, entry in available().items())
    return [(name, entry.description) for name, entry in named]


def _models() -> list[tuple[str, str]]:
    from memberscope.training.models import available

    rows = [(name, entry.description) for name, entry in available().items()]
    return [*rows, ("package.module:factory", "any torch.nn.Module, made by your own function")]


def _attacks() -> list[tuple[str, str]]:
    from memberscope.attacks.registry import all_attacks

    return [(a.name, f"{a.title}. Adversary: {a.adversary().name}. {a.card.paper}") for a in all_attacks().values()]


def _defenses() -> list[tuple[str, str]]:
    from memberscope.defenses.cards import line
    from memberscope.defenses.registry import all_defenses

    return [(name, line(defense)) for name, defense in all_defenses().items()]


def _partitions() -> list[tuple[str, str]]:
    from memberscope.federated.sharing import SCHEMES

    rows = [
        (f"{name}:{scheme.default:g}" if scheme.takes else name, f"{scheme.description}. {scheme.takes}".rstrip(". "))
        for name, scheme in SCHEMES.items()
    ]
    return [*rows, ("natural:FILE.npy", "an id for each record of the pool: equal ids, one client")]


def _strategies() -> list[tuple[str, str]]:
    from memberscope.federated.strategies import available, options_of

    return [
        (name, f"Flower's {kind.__name__}. Options: {', '.join(options_of(kind)) or 'none'}")
        for name, kind in available().items()
    ]
