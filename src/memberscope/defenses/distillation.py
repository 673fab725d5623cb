"""Defenses that teach a model by others: SELENA by models that left a record out, DMP by answers to other records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.defenses.base import Card, Lesson, Procedure
from memberscope.errors import ConfigError

if TYPE_CHECKING:
    from memberscope.training.recipe import Recipe
    from memberscope.training.stages import Stages


class Selena(Procedure):
    """Split-AI, then self-distillation (Tang et al. 2022)."""

    name = "selena"
    title = "teach each member by the mean answer of sub-models that were not trained on it; this many sub-models"
    settings = ("selena", "selena_left_out")
    untimed: ClassVar[Mapping[str, Any]] = {"selena": 0}
    card = Card(
        "Tang et al. 2022 (USENIX Security), algorithms 1 and 2",
        "K sub-models, each record left out by L of them; the model that is kept is trained on (x, mean of the L)",
        "K - L + 1 trainings for one: 16 with the paper's K = 25 and L = 10",
        "near-duplicates of a record in the sub-models that left it out give it away: 52.7 % of such canaries at 0.1 % "
        "FPR (Aerni, Zhang & Tramer 2024)",
    )

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Each record must be left out by some sub-models and not by all."""
        if not 1 <= recipe.selena_left_out < recipe.selena:
            raise ConfigError(
                f"selena_left_out = {recipe.selena_left_out} of selena = {recipe.selena} sub-models",
                "at least 1, and fewer than there are: 10 of 25 in the paper",
            )

    @classmethod
    def trainings(cls, recipe: Recipe) -> int:
        """The sub-models and the model that is kept."""
        return recipe.selena + 1

    @classmethod
    def work(cls, recipe: Recipe) -> float:
        """A sub-model is trained on the records that it does not leave out."""
        return recipe.selena - recipe.selena_left_out + 1

    def lesson(self, stages: Stages) -> Lesson:
        """Algorithm 1 (Split-AI); the lesson is algorithm 2's."""
        count, left_out = self.recipe.selena, self.recipe.selena_left_out
        members = np.flatnonzero(stages.member)
        ranks = stages.generator("selena").random((len(members), count)).argsort(axis=1).argsort(axis=1)
        outside = ranks < left_out  # [n, K]: each record is left out by as many sub-models
        targets = np.zeros((len(stages.y), stages.n_classes), np.float32)
        plain = replace(self.recipe, selena=0)
        for k in range(count):
            records = stages.member.copy()
            records[members[outside[:, k]]] = False
            model = stages.train(k, plain, records)
            rows = members[outside[:, k]]
            targets[rows] += _softmax(model.query(stages.x[rows], raw=True)[0]) / left_out
        return Lesson(stages.member, targets)


class Dmp(Procedure):
    """Distillation for membership privacy: knowledge distilled on non-members (Shejwalkar & Houmansadr 2021)."""

    name = "dmp"
    title = "train a teacher on members, and the model on its answers to validation records, softened by this number"
    settings = ("dmp",)
    untimed: ClassVar[Mapping[str, Any]] = {"dmp": 0.0}
    needs_validation = True
    clashes: ClassVar[Mapping[str, str]] = {
        "early_stopping": "the validation records are what the model is trained on, and cannot tell it when to stop"
    }
    card = Card(
        "Shejwalkar & Houmansadr 2021 (AAAI), section 4; the softening of Hinton et al. 2015",
        "the model learns softmax(teacher / T) on reference records, and never sees a member",
        "two trainings for one; needs many validation records (--validation-fraction): they are all it learns from",
        "the teacher's answers to records near a member still depend on it; the validation records become the training "
        "records, and are not audited",
    )

    @classmethod
    def trainings(cls, recipe: Recipe) -> int:
        """Teacher and student."""
        del recipe
        return 2

    @classmethod
    def work(cls, recipe: Recipe) -> float:
        """At most: the student is trained on as many records as the teacher, or fewer."""
        del recipe
        return 2.0

    def lesson(self, stages: Stages) -> Lesson:
        """The teacher's answers to the validation records."""
        assert stages.validation is not None
        teacher = stages.train(0, replace(self.recipe, dmp=0.0), stages.member)
        rows = np.flatnonzero(stages.validation)
        targets = np.zeros((len(stages.y), stages.n_classes), np.float32)
        targets[rows] = _softmax(teacher.query(stages.x[rows], raw=True)[0] / np.float32(self.recipe.dmp))
        return Lesson(stages.validation, targets, temperature=self.recipe.dmp)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    z = logits.astype(np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True), np.float32)
