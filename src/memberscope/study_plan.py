"""What a study will take here: how many trainings, and how long, from a measurement of seconds for each recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope.study_config import Cell, StudyConfig

if TYPE_CHECKING:
    from memberscope.config import AuditConfig
    from memberscope.data_loader import Dataset
    from memberscope.membership import Split


@dataclass(frozen=True)
class PlannedCell:
    """What one audit will take.

    Parameters
    ----------
    cell
        The audit.
    done
        Whether it is there.
    trainings
        Models that it trains: targets and reference models.
    seconds
        Estimate of their trainings on this machine; None where nothing was measured (another device than the CPU).
    """

    cell: Cell
    done: bool
    trainings: int
    seconds: float | None


def plan(config: StudyConfig, folder: Path, where: Mapping[str, Any]) -> list[PlannedCell]:
    """What each audit of a study will take. Nothing is trained but for some seconds of measuring, nothing is written.

    Recipes that differ in their length alone are measured once. The estimate is for trainings; attacks and reports take
    seconds to minutes more for each audit. Models that an interrupted audit left behind are not counted off.
    """
    from memberscope.audit import load_records

    where = {key: value for key, value in where.items() if key != "out"}
    datasets: dict[Any, Dataset] = {}
    rates: dict[Any, float | None] = {}
    planned = []
    for cell in config.cells():
        done = (folder / "cells" / cell.key / "results.json").is_file()
        audit = cell.config(where)
        trainings = _trainings(audit)
        if done:
            planned.append(PlannedCell(cell, True, 0, 0.0))
            continue
        drawn = (audit.dataset, audit.subset, audit.seed if audit.subset else None)
        if drawn not in datasets:
            datasets[drawn] = load_records(audit)
        planned.append(PlannedCell(cell, False, trainings, _seconds(audit, datasets[drawn], trainings, rates)))
    return planned


def describe(planned: list[PlannedCell]) -> list[str]:
    """The plan as lines for people, the total last."""
    from memberscope.report.wording import duration
    from memberscope.summary import aligned

    def time(seconds: float | None) -> str:
        return (
            "not measured on this device" if seconds is None else duration(seconds).replace("\N{NO-BREAK SPACE}", " ")
        )

    rows = [["audit", "trainings", "about"]]
    rows += [
        [str(p.cell), "done" if p.done else f"{p.trainings:,}", "" if p.done else time(p.seconds)] for p in planned
    ]
    missing = [p for p in planned if not p.done]
    known = [p.seconds for p in missing if p.seconds is not None]
    total = sum(known) if len(known) == len(missing) else None
    return [
        *aligned(rows),
        f"{len(planned) - len(missing)} of {len(planned)} audits are done. The others train "
        f"{sum(p.trainings for p in missing):,} models, about {time(total)} here; attacks and reports come to that.",
    ]


def _trainings(audit: AuditConfig) -> int:
    shadows = audit.n_shadows
    return audit.targets + shadows + shadows % 2


def _seconds(audit: AuditConfig, dataset: Dataset, trainings: int, rates: dict[Any, float | None]) -> float | None:
    from memberscope.audit import draw_membership
    from memberscope.training import bank_plan
    from memberscope.training.layout import usable_cores

    split = draw_membership(audit, dataset)
    members = int(split.member.sum())
    # Lengths do not change the speed of a step.
    kind = (audit.dataset, replace(audit.recipe, epochs=1, warmup_epochs=0, early_stopping=0).digest, audit.device)
    if kind not in rates:
        rates[kind] = _rate(audit, dataset, split)
    rate = rates[kind]
    if rate is None:
        return None
    one = bank_plan.records_computed(audit.recipe, members, dataset.n) / rate
    references = trainings - audit.targets
    at_once = min(audit.threads or usable_cores(), max(1, references))
    return (audit.targets + -(-references // at_once)) * one


def _rate(audit: AuditConfig, dataset: Dataset, split: Split) -> float | None:
    """Records a second of one training with one thread; None where it does not run on the CPU."""
    from memberscope.training.hardware import resolve_device
    from memberscope.training.layout import Trial, speed_here

    if resolve_device(audit.device).type != "cpu":
        return None
    arrays: dict[str, np.ndarray[Any, Any]] = {"x": dataset.x, "y": dataset.y, "pool": split.member}
    return speed_here(Trial(audit.recipe, dataset.n_classes, 1), arrays)
