"""What installed packages add by entry points: anybody's code, checked before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

from memberscope.errors import ConfigError


def object_of(point: EntryPoint) -> Any:
    """What an entry point names.

    Raises
    ------
    ConfigError
        It cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # it may fail in any way
        raise ConfigError(
            f"{name_of(point)} cannot be loaded: {type(error).__name__}: {error}",
            "mend or uninstall the package that adds it",
        ) from error


def class_of(point: EntryPoint, base: type, needed: Sequence[str]) -> Any:
    """The class that an entry point names.

    Parameters
    ----------
    point
        The entry point.
    base
        What it has to be a subclass of.
    needed
        Attributes that it has to have.

    Raises
    ------
    ConfigError
        It cannot be imported, is of another kind, or lacks attributes or methods.
    """
    found = object_of(point)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name_of(point)} is not a subclass of {base.__name__}", "see CONTRIBUTING.md")
    lacking = [name for name in needed if not hasattr(found, name)]
    lacking += sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise ConfigError(f"{name_of(point)} lacks {', '.join(lacking)}", "see CONTRIBUTING.md")
    return found


def name_of(point: EntryPoint) -> str:
    """An entry point as messages name it."""
    return f"entry point {point.name!r} ({point.value})"
