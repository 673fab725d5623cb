"""A study as it is written down: what all audits share, the rows that are compared, the axes they are repeated over."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from memberscope.config import AuditConfig, default_output_dir, from_settings
from memberscope.errors import ConfigError

WHERE = ("data_dir", "unverified_data", "out", "models_dir", "device", "threads", "workers")
"""Settings that say where and how the work is done; they are no part of a study."""
_KEYS = ("name", "fpr", "base", "rows", "axes")
_REFUSED = ("load", "resume", "weights", "membership", "mean", "std", "bank", "policy", *WHERE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Cell:
    """One audit of a study.

    Parameters
    ----------
    row
        Name of its row.
    axes
        Its value on each axis.
    settings
        All settings that the study states for it, flat.
    key
        Name of its folder: readable, and a hash of the settings.
    """

    row: str
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]
    key: str

    def config(self, where: Mapping[str, Any]) -> AuditConfig:
        """The audit's settings; `where` holds those of `WHERE` that are given. What is half done is gone on with."""
        return from_settings({**self.settings, **where, "load": False, "resume": True})

    def check(self) -> None:
        """Refuse settings that no audit can have.

        Raises
        ------
        ConfigError
            Names the setting.
        """
        self.config({})

    def __str__(self) -> str:
        return ", ".join([self.row, *(f"{axis} {value}" for axis, value in self.axes.items())])


@dataclass(frozen=True)
class StudyConfig:
    """A grid of audits: every row at every point of the axes.

    Parameters
    ----------
    name
        Of the study and of its folder.
    base
        Settings of all audits, those of `AuditConfig` and of `Recipe` flat beside each other.
    rows
        Name -> the settings by which the row differs: a defense, a recipe, a dataset.
    axes
        Setting -> its values (``seed = [0, 1, 2]``); rows are compared at each combination, and averaged over seeds.
    fpr
        False-positive rate of the picture; where a sample does not support it, the lowest one that all support.

    Raises
    ------
    ConfigError
        A name that is no folder's, no row, a setting that is unknown, belongs elsewhere or is stated twice, or two
        audits that are the same.
    """

    name: str
    base: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    axes: Mapping[str, tuple[Any, ...]]
    fpr: float = 0.001
    kind_of_cell: ClassVar[type[Cell]] = Cell

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name = {self.name!r} names no folder", "letters, digits, points, hyphens: cifar10-defenses"
            )
        if isinstance(self.fpr, bool) or not isinstance(self.fpr, int | float) or not 0 < self.fpr < 1:
            raise ConfigError(f"fpr = {self.fpr!r}", "a rate above 0 and below 1; 0.001 is the default")
        if not self.rows:
            raise ConfigError("the study has no rows", "for example [rows.none] and [rows.dropout] with dropout = 0.5")
        for axis, values in self.axes.items():
            if not isinstance(values, tuple) or not values:
                raise ConfigError(f"axis {axis} = {values!r}", f"a list of values: {axis} = [0, 1]")
        for row, changes in self.rows.items():
            if not isinstance(changes, Mapping):
                raise ConfigError(f"row {row!r} = {changes!r} is no table of settings", f"[rows.{json.dumps(row)}]")
            both = sorted(set(changes) & set(self.axes))
            if both:
                raise ConfigError(f"row {row!r} and an axis both set {both[0]}", "leave it out of one of them")
        for key in itertools.chain(self.base, self.axes, *self.rows.values()):
            if key in _REFUSED:
                raise ConfigError(f"a study cannot set {key}", _instead(key))
        cells = self.cells()
        seen: dict[str, Cell] = {}
        for cell in cells:
            digest = cell.key.rpartition("-")[2]
            if digest in seen:
                raise ConfigError(
                    f"({seen[digest]}) and ({cell}) are the same audit", "let each row differ in a setting"
                )
            seen[digest] = cell
            try:
                cell.check()
            except ConfigError as error:
                raise ConfigError(f"audit ({cell}): {error.problem}", error.hint) from None

    def folder(self, out: Path | None = None) -> Path:
        """Where the study lies: in the folder for outputs, under its name."""
        return ((default_output_dir() if out is None else Path(out)) / self.name).resolve()

    def cells(self) -> list[Cell]:
        """All audits: every row at the first point of the axes, then every row at the next."""
        found = []
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            for row, changes in self.rows.items():
                settings = {**self.base, **changes, **point}
                found.append(self.kind_of_cell(row, point, settings, _key(row, point, settings)))
        return found


S = TypeVar("S", bound=StudyConfig)


def read_study(path: Path) -> StudyConfig:
    """Read a study from a TOML file, as `read_study_as` does."""
    return read_study_as(path, StudyConfig)


def read_study_as(path: Path, kind: type[S]) -> S:
    """Read a study from a TOML file.

    Parameters
    ----------
    path
        The file.
    kind
        `StudyConfig`, or that of another kind of study.

    Raises
    ------
    ConfigError
        No such file, no TOML, an unknown key, or what `StudyConfig` refuses; names the file.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no study {path}", "give the path of a TOML file; docs/study.md shows one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "it must be TOML; docs/study.md shows one") from None
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}; settings belong into [base]"
            raise ConfigError(f"{path}: unknown key {key!r}", hint)
    tables: dict[str, Any] = {key: content.get(key, {}) for key in ("base", "rows", "axes")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {key} is no table", f"write [{key}]")
    axes = {axis: tuple(values) if isinstance(values, list) else values for axis, values in tables["axes"].items()}
    name = content.get("name", Path(path).stem)
    try:
        return kind(name, tables["base"], tables["rows"], axes, **{k: content[k] for k in ("fpr",) if k in content})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.problem}", error.hint) from None


def _key(row: str, point: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    words = [row, *(f"{axis}{value}" for axis, value in point.items())]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:60] or "row"
    canonical = json.dumps(settings, sort_keys=True, default=str)
    return f"{readable}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


def _instead(key: str) -> str:
    if key in WHERE:
        return f"it says where the work is done: give --{key.replace('_', '-')} to `memberscope study`"
    if key in ("load", "resume"):
        return "a study always goes on where it stopped"
    return "a study trains its models itself"
