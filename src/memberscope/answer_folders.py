"""Folders of many models that other tools leave: one of the models plays the target, the others are its references.

Two layouts are read as those tools write them, without running anything that lies in them:

- the LiRA code of Carlini et al. (github.com/tensorflow/privacy, research/mi_lira_2021): ``y_train.npy`` and
  ``experiment-*/`` with ``keep.npy``, ``logits/EPOCH.npy`` [N, 1, A, C] and perhaps ``scores/EPOCH.npy`` [N, A];
- ML Privacy Meter (github.com/privacytrustlab/ml_privacy_meter, version 2): ``models/memberships.npy`` [M, N] and
  ``signals/*_signals.npy`` [N, M], the probability of the true class, with ``*_signals_pop.npy`` of a population.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.answer_files import read_npy
from memberscope.answers import Answers, as_member
from memberscope.balance import Others, others
from memberscope.errors import EvidenceError
from memberscope.evidence import Evidence
from memberscope.reference_signals import space
from memberscope.training.bank_answers import BankAnswers

LAYOUTS = (
    "experiment-*/ with keep.npy and logits/ (the LiRA code of Carlini et al.), or models/memberships.npy with "
    "signals/*_signals.npy (ML Privacy Meter)"
)
_TWO_COLUMNS = ("another class", "the true class")

Source = Callable[[], NDArray[np.floating]]
"""Gives a model's answers, float [A, N, C]."""


@dataclass(frozen=True, eq=False)
class _Saved:
    """What a folder holds about M models.

    `population` gives float [A, Z, C] of each model, or is empty. `target` is the model that plays the target where
    the user names none.
    """

    tool: str
    models: Sequence[str]
    answers: Sequence[Source]
    membership: NDArray[np.bool_]
    labels: NDArray[np.int64]
    target: int
    queries: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    population: Sequence[Source] = ()
    notes: list[str] = field(default_factory=list)


def read_folder(path: Path, target: int | None = None) -> Answers:
    """Read the folder of another tool.

    Parameters
    ----------
    path
        The folder.
    target
        Which model plays the target, from 0 in the tool's order; None: the last experiment of the LiRA code (as its
        plot.py has it), the first model of Privacy Meter.

    Raises
    ------
    EvidenceError
        No such layout, files that are missing, damaged or hold Python objects, shapes that do not fit together.
    """
    path = Path(path)
    experiments = _experiments(path)
    if experiments:
        saved = _lira(path, experiments)
    elif (path / "models" / "memberships.npy").is_file():
        saved = _privacy_meter(path)
    else:
        inside = sorted(p.name for p in path.iterdir() if p.is_dir() and _experiments(p))
        where = f"; {path.name}/{inside[0]} does" if inside else ""
        raise EvidenceError(f"the folder {path} holds no answers that can be read{where}", f"expected {LAYOUTS}")
    return _answers(saved, path, target)


def _answers(saved: _Saved, path: Path, target: int | None) -> Answers:
    count = len(saved.models)
    chosen = saved.target if target is None else target
    if not 0 <= chosen < count:
        raise EvidenceError(f"{path} holds {count} models, and no number {chosen}", f"--target takes 0 to {count - 1}")
    references = others(saved.membership, chosen)
    more: dict[str, Any] = {}
    if references.count:
        answers = _held_beside(saved.answers, references)
        more = {"reference_logits": answers, "reference_membership": references.membership}
    if saved.population:
        population = np.array(saved.population[chosen]())
        more |= {
            "population_logits": population,
            "population_labels": np.ones(population.shape[1], np.int64),
        }
        if references.count and references.models.ndim == 1:
            sources = [saved.population[int(m)] for m in references.models]
            more["population_reference_logits"] = BankAnswers(sources)
    try:
        evidence = Evidence(
            np.array(saved.answers[chosen]()),
            saved.labels,
            queries=saved.queries,
            has_logits=saved.class_names is None,
            **more,
        )
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error.problem}", error.hint) from None
    names = saved.class_names or tuple(map(str, range(evidence.n_classes)))
    member = as_member(saved.membership[chosen], evidence.n_records, str(path))
    notes = (
        f"{path.name}: {count} models of {saved.tool}; {saved.models[chosen]} plays the target, "
        f"{references.count} are held beside it",
        *([references.note] if references.note else []),
        *saved.notes,
    )
    return Answers(evidence, member, str(path), names, notes)


def _held_beside(answers: Sequence[Source], references: Others) -> Any:
    """Answers [K, A, N, C] of the references, on disk where each is one model."""
    models = references.models
    if models.ndim == 1:
        return BankAnswers([answers[int(model)] for model in models])
    first = answers[0]()
    whole = space((len(models), *first.shape), dtype=first.dtype)
    for model, source in enumerate(answers):
        found = source()
        for k, rows in enumerate(models == model):
            if rows.any():
                whole[k][:, rows] = found[:, rows]
    return whole


def _experiments(path: Path) -> list[Path]:
    """Experiment folders in the order of their numbers."""
    found = [p for p in path.glob("experiment*") if (p / "keep.npy").is_file()]
    return sorted(found, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def _lira(path: Path, experiments: list[Path]) -> _Saved:
    kind = "logits" if any(_last(e / "logits") for e in experiments) else "scores"
    files = {e: _last(e / kind) for e in experiments}
    used = [e for e in experiments if files[e] is not None]
    if not used:
        raise EvidenceError(
            f"none of the {len(experiments)} experiments in {path} holds logits or scores",
            "run inference.py of the LiRA code first",
        )
    notes = []
    if len(used) < len(experiments):
        notes.append(f"{len(experiments) - len(used)} of {len(experiments)} experiments hold no {kind}: left out")
    places = [place for e in used if (place := files[e]) is not None]
    first = read_npy(places[0])
    n = len(first) if first.ndim else 0
    shape = _shape_of_answers(first, kind, places[0])
    keep = [read_npy(e / "keep.npy") for e in used]
    for experiment, row in zip(used, keep, strict=True):
        if row.ndim != 1 or len(row) < n or row.dtype.kind not in "biu":
            raise EvidenceError(
                f"{experiment / 'keep.npy'} is {row.dtype} {list(row.shape)}, expected bool [N] with N at least {n}",
                "every experiment of one folder keeps records of one dataset",
            )
    membership = np.stack([row[:n].astype(bool) for row in keep])
    sources: list[Source] = [_lira_source(place, kind, shape) for place in places]
    if kind == "scores":
        notes.append("scores alone were saved: attacks see how confident a model is of the true class, and no more")
        labels, names = np.ones(n, np.int64), _TWO_COLUMNS
    else:
        labels, names = _lira_labels(path, n), None
    queries = {1: ("none",), 2: ("none", "flip")}.get(shape[0], tuple(f"query{a}" for a in range(shape[0])))
    tool = f"the LiRA code{_architecture(used[-1])}"
    return _Saved(tool, [e.name for e in used], sources, membership, labels, len(used) - 1, queries, names, notes=notes)


def _last(folder: Path) -> Path | None:
    """The file of the last epoch."""
    return max(folder.glob("*.npy"), key=lambda p: p.name, default=None)


def _shape_of_answers(array: NDArray[Any], kind: str, place: Path) -> tuple[int, ...]:
    """What `_lira_source` gives: (A, N, C)."""
    if kind == "scores" and array.ndim == 2:
        return (array.shape[1], array.shape[0], 2)
    if kind == "logits" and array.ndim == 4 and array.shape[1] == 1:
        return (array.shape[2], array.shape[0], array.shape[3])
    expected = "[N, 1, A, C]" if kind == "logits" else "[N, A]"
    raise EvidenceError(f"{place} has shape {list(array.shape)}, expected {expected}", "as the LiRA code writes it")


def _lira_source(place: Path, kind: str, expected: tuple[int, ...]) -> Source:
    def answers() -> NDArray[np.floating]:
        array = read_npy(place)
        if _shape_of_answers(array, kind, place) != expected:
            raise EvidenceError(
                f"{place} has shape {list(array.shape)}, unlike that of the first experiment",
                "all experiments answer the same queries about the same records",
            )
        return np.moveaxis(array[:, 0], 1, 0) if kind == "logits" else _two_columns(array.T)

    return answers


def _lira_labels(path: Path, n: int) -> NDArray[np.int64]:
    place = path / "y_train.npy"
    if not place.is_file():
        raise EvidenceError(f"no file {place}", "train.py of the LiRA code writes the labels beside the experiments")
    labels = read_npy(place)
    if labels.ndim != 1 or len(labels) < n or labels.dtype.kind not in "iu":
        raise EvidenceError(
            f"{place} is {labels.dtype} {list(labels.shape)}, expected whole numbers [N] with N at least {n}",
            "one class for each record that the models answered about",
        )
    return labels[:n].astype(np.int64)


def _architecture(experiment: Path) -> str:
    try:
        named = json.loads((experiment / "hparams.json").read_text(encoding="utf-8"))["arch"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" ({named})"


def _privacy_meter(path: Path) -> _Saved:
    membership = read_npy(path / "models" / "memberships.npy")
    if membership.ndim != 2 or membership.dtype.kind not in "biu":
        raise EvidenceError(
            f"{path}/models/memberships.npy is {membership.dtype} {list(membership.shape)}, expected bool [M, N]",
            "one row a model",
        )
    found = sorted(p for p in path.glob("signals/*_signals.npy") if not p.name.endswith("_ramia_signals.npy"))
    if not found:
        raise EvidenceError(
            f"no file {path}/signals/*_signals.npy", "audit once with Privacy Meter, which saves them (not for RaMIA)"
        )
    place = max(found, key=lambda p: p.name == "rmia_signals.npy")
    signals = _probabilities(place)
    models, records = membership.shape
    if signals.shape != (records, models):
        raise EvidenceError(
            f"{place} has shape {list(signals.shape)}, expected {[records, models]} as models/memberships.npy has it",
            "with audit.data_size Privacy Meter draws records and does not save which: audit all of them once",
        )
    notes = [
        "Privacy Meter saves the probability of the true class alone: attacks see how confident a model is of it, "
        "and no more"
    ]
    certain = int((signals == 1).any(axis=1).sum())
    if certain:
        notes.append(f"{certain:,} of {records:,} records have a probability that was rounded to 1, where scores tie")
    other = place.with_name(place.name.replace("_signals.npy", "_signals_pop.npy"))
    population = _probabilities(other) if other.is_file() else np.empty((0, 0))
    if len(population) and population.shape[1] != models:
        raise EvidenceError(f"{other} has {population.shape[1]} columns, expected one for each of {models} models")
    return _Saved(
        "ML Privacy Meter",
        [f"model {m}" for m in range(models)],
        [_column(signals, m) for m in range(models)],
        membership.astype(bool),
        np.ones(records, np.int64),
        0,
        ("none",),
        _TWO_COLUMNS,
        [_column(population, m) for m in range(models)] if len(population) else (),
        notes,
    )


def _column(probabilities: NDArray[np.floating], model: int) -> Source:
    return lambda: _two_columns(_log_odds(probabilities[:, model])[None])


def _probabilities(place: Path) -> NDArray[np.floating]:
    array = read_npy(place)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise EvidenceError(f"{place} is {array.dtype} {list(array.shape)}, expected floating point [records, models]")
    broken = ~((array >= 0) & (array <= 1)).all(axis=1)
    if broken.any():
        raise EvidenceError(
            f"{place}: record {int(broken.argmax())} has values outside 0..1",
            "expected probabilities of the true class",
        )
    return array


def _log_odds(p: NDArray[np.floating]) -> NDArray[np.float64]:
    """``log(p / (1 - p))``, finite where the probability was rounded to 0 or 1."""
    smallest = float(np.finfo(p.dtype).smallest_subnormal)
    least = 0.5 * float(np.finfo(p.dtype).epsneg)  # half of the last step below 1
    exact = p.astype(np.float64)
    return np.asarray(np.log(np.maximum(exact, smallest)) - np.log(np.maximum(1 - exact, least)))


def _two_columns(phi: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits [A, N, 2] whose phi of the second class is `phi` [A, N]."""
    half = 0.5 * phi.astype(np.float64)
    return np.stack([-half, half], axis=-1)
