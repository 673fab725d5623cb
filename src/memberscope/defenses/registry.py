"""The defenses by name, which of them a recipe has in force, and which do not go together.

Adding one is one class and one line here. Other packages add theirs through the entry point group
``memberscope.defenses`` (name -> class); a recipe names them in `defenses`.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING

from memberscope.defenses.adversarial import Adversarial
from memberscope.defenses.answers import LabelOnly, RoundedAnswers, TopAnswers
from memberscope.defenses.base import DataDefense, Defense, GradientDefense, LossDefense, OutputDefense, Procedure
from memberscope.defenses.distillation import Dmp, Selena
from memberscope.defenses.dp_sgd import DpSgd
from memberscope.defenses.hamp import Hamp
from memberscope.defenses.memguard import MemGuard
from memberscope.defenses.mixing import CutMix, Mixup
from memberscope.defenses.ordinary import (
    Augmentation,
    ClipNorm,
    Dropout,
    EarlyStopping,
    LabelSmoothing,
    WeightDecay,
)
from memberscope.defenses.relaxloss import RelaxLoss
from memberscope.entry_points import class_of
from memberscope.errors import ConfigError

if TYPE_CHECKING:
    from memberscope.training.recipe import Recipe

ENTRY_POINTS = "memberscope.defenses"

DEFENSES: dict[str, type[Defense]] = {
    defense.name: defense
    for defense in (
        EarlyStopping,
        WeightDecay,
        Dropout,
        LabelSmoothing,
        Augmentation,
        ClipNorm,
        Mixup,
        CutMix,
        RelaxLoss,
        Adversarial,
        DpSgd,
        Selena,
        Dmp,
        # Answers pass through these in this order.
        Hamp,
        MemGuard,
        RoundedAnswers,
        TopAnswers,
        LabelOnly,
    )
}


@cache
def all_defenses() -> dict[str, type[Defense]]:
    """The built-in defenses and those that installed packages add.

    Raises
    ------
    ConfigError
        A package adds something that cannot be loaded, is no complete defense, or takes a name that exists already.
    """
    from importlib.metadata import entry_points

    found = dict(DEFENSES)
    for point in entry_points(group=ENTRY_POINTS):
        defense: type[Defense] = class_of(point, Defense, ("name", "title", "acts", "card"))
        if defense.name in found:
            raise ConfigError(
                f"the package behind {point.value!r} adds a defense named {defense.name!r}, which exists already"
            )
        found[defense.name] = defense
    return found


def in_force(recipe: Recipe) -> list[Defense]:
    """The defenses that a recipe switches on, in the order of the registry."""
    named = recipe.added_defenses
    known = all_defenses() if named else DEFENSES
    for name, _ in named:
        if name not in known or known[name].settings:
            others = [n for n, d in known.items() if not d.settings]
            near = difflib.get_close_matches(name, others, n=1)
            if name in known:
                hint = f"it is a setting of its own: {known[name].settings[0]}"
            elif near:
                hint = f"did you mean {near[0]!r}?"
            else:
                hint = "`memberscope list defenses` shows them all"
            raise ConfigError(f"no installed package adds a defense named {name!r}", hint)
    return [defense(recipe) for defense in known.values() if defense.active(recipe)]


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose defenses contradict each other or their settings.

    Raises
    ------
    ConfigError
        Names the two, and why they do not go together.
    """
    defenses = in_force(recipe)
    for defense in defenses:
        defense.check(recipe)
    for one, other in combinations(defenses, 2):
        reason = clash(type(one), type(other))
        if reason:
            raise ConfigError(f"{one.name} and {other.name} do not go together: {reason}", "leave one of them out")


def procedure(recipe: Recipe) -> Procedure | None:
    """The defense that trains other models before, if one is on."""
    return next((d for d in in_force(recipe) if isinstance(d, Procedure)), None)


def outputs(recipe: Recipe) -> list[OutputDefense]:
    """The defenses that act on answers, in the order in which they act."""
    return [d for d in in_force(recipe) if isinstance(d, OutputDefense) and d.answers]


def labels_only(recipe: Recipe) -> bool:
    """Whether the model answers the predicted class and no probabilities."""
    return any(defense.labels_only for defense in outputs(recipe))


def needs_validation(recipe: Recipe) -> str:
    """The name of a defense that trains by validation records; empty: none does."""
    return next((d.name for d in in_force(recipe) if d.needs_validation), "")


def trainings(recipe: Recipe) -> int:
    """How many trainings of `epochs` epochs a recipe takes: 1, unless a procedure trains other models before."""
    taught = procedure(recipe)
    return 1 if taught is None else taught.trainings(recipe)


def work(recipe: Recipe) -> float:
    """Time of a training in times of the one that `timed` gives; an estimate."""
    return prod(defense.work(recipe) for defense in in_force(recipe))


def timed(recipe: Recipe) -> Recipe:
    """A recipe whose steps take as long, without what goes before them and what ends them: for measuring speed."""
    changes = {name: value for defense in in_force(recipe) for name, value in defense.untimed.items()}
    return replace(recipe, **changes)


def clash(one: type[Defense], other: type[Defense]) -> str:
    """Why two defenses do not go together; empty: they do."""
    return one.clashes.get(other.name) or other.clashes.get(one.name) or _structural(one, other)


def _structural(one: type[Defense], other: type[Defense]) -> str:
    """Why two defenses contradict each other by where they act; empty: they do not."""
    kinds = ((LossDefense, "each replaces the loss"), (Procedure, "each is a training procedure of its own"))
    for kind, what in (*kinds, (GradientDefense, "each computes the gradient")):
        if issubclass(one, kind) and issubclass(other, kind):
            return what
    return _one_sided(one, other) or _one_sided(other, one)


def _one_sided(a: type[Defense], b: type[Defense]) -> str:
    if issubclass(a, GradientDefense) and a.per_record and issubclass(b, DataDefense | LossDefense):
        if not b.per_record:
            return f"{a.name} needs the gradient of each record alone, and {b.name} mixes the records of a batch"
    elif issubclass(a, LossDefense):
        if b.name == "label_smoothing":
            return f"it softens the labels of the cross-entropy, which {a.name} replaces"
        if not a.soft_targets and issubclass(b, DataDefense | Procedure):
            return f"{b.name} gives records soft targets, and {a.name} needs one class a record"
        if issubclass(b, Procedure):
            return f"{b.name} teaches by its own loss, and {a.name} replaces it"
    return ""
