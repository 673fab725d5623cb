"""Training one model of a bank, wherever it runs: its membership, its seed, its answers, its file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.defenses.registry import trainings
from memberscope.errors import ModelError
from memberscope.training.bank_files import CHECKPOINT, ModelFile, claim, model_path, write_model
from memberscope.training.bank_progress import Tracker, listed
from memberscope.training.recipe import Recipe
from memberscope.training.scheduler import Arrays, Listener, Tell
from memberscope.training.stages import remove

if TYPE_CHECKING:
    from memberscope.training.trained_model import TrainedModel

Outcome = Literal["trained", "there", "busy"]
"""trained now; there already, and sound; another process is at it."""
_POLL_SECONDS = 0.5
T = TypeVar("T")


def membership_row(
    pool: NDArray[np.bool_], k: int, seed: int, tied: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Who model k is trained on: a random half of the pool for an even k, and its complement for k + 1.

    Over both models of a pair every record of the pool is a member exactly once, so any whole number of pairs is
    balanced. Odd pools have halves that differ by one record.

    Parameters
    ----------
    pool
        bool [N]: records that models may be trained on; the others are members of none.
    k
        Number of the model.
    seed
        Of the bank.
    tied
        int64 [N]: the record whose membership each record shares (itself, for most). Those who stand for equally many
        are halved among themselves, so that halves stay equal in number of records.
    """
    rng = seeds.generator(seed, "references", f"pair{k // 2}")
    row = np.zeros(len(pool), np.bool_)
    if tied is None:
        index = np.flatnonzero(pool)
        row[rng.permutation(index)[: len(index) // 2]] = True
        return row if k % 2 == 0 else pool & ~row
    stands_for = np.bincount(tied[pool], minlength=len(pool))
    for size in np.unique(stands_for[stands_for > 0]):
        index = np.flatnonzero(stands_for == size)
        row[rng.permutation(index)[: len(index) // 2]] = True
    row = row[tied] & pool
    return row if k % 2 == 0 else pool & ~row


def training_seed(seed: int, k: int) -> int:
    """The seed of model k's training."""
    return int(seeds.sequence(seed, "references", f"model{k}").generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class TrainModel:
    """The task of a bank's workers: make sure that model k is there.

    Parameters
    ----------
    folder
        Of the bank.
    bank
        Digest of the bank's identity; every model carries it.
    recipe
        With its precision resolved.
    n_classes, queries, seed, stored, keep_weights
        Of the bank.
    device, threads, compiled
        Where and how models are trained (see `fit`).
    """

    folder: Path
    bank: str
    recipe: Recipe
    n_classes: int
    queries: tuple[str, ...]
    seed: int
    stored: str
    keep_weights: bool
    device: str
    threads: int | None
    compiled: bool = False

    def __call__(self, arrays: Arrays, k: int, tell: Tell, /) -> Outcome:
        """Train model k, unless it is there or another process is at it.

        Arrays: x, y, pool, perhaps validation and tied.
        """
        path = model_path(self.folder, k)
        member = self.member(arrays, k)
        with claim(path) as ours:
            if not ours:
                return "busy"
            if sound(path, self.bank, k, member) is not None:
                return "there"
            self.train(arrays, k, tell)
        return "trained"

    def member(self, arrays: Arrays, k: int) -> NDArray[np.bool_]:
        """bool [N]: who model k is trained on."""
        return membership_row(arrays["pool"], k, self.seed, arrays.get("tied"))

    def train(self, arrays: Arrays, k: int, tell: Tell) -> None:
        """Train model k, which is claimed, and write its file."""
        member = self.member(arrays, k)
        started = time.perf_counter()
        checkpoint = self._checkpoint(k)
        trained = self._fit(arrays, k, member, checkpoint, tell)
        self._keep(trained, arrays, k, member, time.perf_counter() - started)
        remove(checkpoint)

    def at_once(
        self, arrays: Arrays, models: Sequence[int], listener: Listener, note: Callable[[str], None]
    ) -> Iterator[tuple[int, Outcome]]:
        """Train models on a GPU, as many at once as fit there (`memberscope.training.stacked`).

        `note` hears what the user should know.
        """
        from memberscope.training.stacked import group_size, in_groups

        x = arrays["x"]
        size = group_size(self.recipe, x.shape[1:], self.n_classes, _free_bytes(self.device) - x.nbytes)

        def one(k: int) -> Outcome:
            return self(arrays, k, partial(listener.on_fraction, k))

        def cannot(reason: str) -> None:
            nonlocal size
            size = 1  # of the other half too
            note(f"reference models are trained one by one: {reason}")

        # Only models with as many members each can be stacked: where halves differ (of an odd pool, or by copies that
        # stay together) the even ones, and the odd ones.
        first, second = (self.member(arrays, k).sum() for k in (0, 1))
        parts = [models] if first == second else [[k for k in models if k % 2 == odd] for odd in (0, 1)]
        for part in parts:
            yield from in_groups(part, size, lambda group: self.group(arrays, group, listener), one, cannot)

    def group(self, arrays: Arrays, models: Sequence[int], listener: Listener) -> dict[int, Outcome]:
        """Train several models at once, those that are free: together if their checkpoints stand at one epoch."""
        from memberscope.training.checkpoint import epoch_of

        outcomes: dict[int, Outcome] = {}
        rows = {k: self.member(arrays, k) for k in models}
        with contextlib.ExitStack() as claims:
            for k in models:
                path = model_path(self.folder, k)
                ours = claims.enter_context(claim(path))
                there = ours and sound(path, self.bank, k, rows[k]) is not None
                outcomes[k] = "busy" if not ours else "there" if there else "trained"
            mine: dict[int, list[int]] = {}
            for k in models:
                if outcomes[k] == "trained":
                    mine.setdefault(epoch_of(self._checkpoint(k)), []).append(k)
            for epoch in sorted(mine, reverse=True):
                self._train_group(arrays, mine[epoch], rows, listener)
        return outcomes

    def _train_group(
        self, arrays: Arrays, models: Sequence[int], rows: Mapping[int, NDArray[np.bool_]], listener: Listener
    ) -> None:
        from memberscope.training.stacked import fit_stacked

        def tell(fraction: float) -> None:
            for k in models:
                listener.on_fraction(k, fraction)

        def run() -> list[TrainedModel]:
            return fit_stacked(
                self.recipe,
                arrays["x"],
                arrays["y"],
                np.stack([rows[k] for k in models]),
                n_classes=self.n_classes,
                seeds=[training_seed(self.seed, k) for k in models],
                device=self.device,
                progress=_Fraction(tell, self.recipe.epochs),
                checkpoints=checkpoints,
                resume=True,
                threads=self.threads,
                compiled=self.compiled,
            )

        started = time.perf_counter()
        checkpoints = [self._checkpoint(k) for k in models]
        trained = _anew_if_damaged(run, checkpoints)
        seconds = (time.perf_counter() - started) / len(models)
        for k, model, checkpoint in zip(models, trained, checkpoints, strict=True):
            self._keep(model, arrays, k, rows[k], seconds)
            remove(checkpoint)

    def _checkpoint(self, k: int) -> Path:
        return model_path(self.folder, k).with_suffix(CHECKPOINT)

    def _fit(self, arrays: Arrays, k: int, member: NDArray[np.bool_], checkpoint: Path, tell: Tell) -> TrainedModel:
        from memberscope.training.train_target import fit

        def run() -> TrainedModel:
            return fit(
                self.recipe,
                arrays["x"],
                arrays["y"],
                member,
                validation=arrays.get("validation"),
                n_classes=self.n_classes,
                seed=training_seed(self.seed, k),
                device=self.device,
                progress=_Fraction(tell, self.recipe.epochs * trainings(self.recipe)),
                checkpoint=checkpoint,
                resume=True,
                threads=self.threads,
                compiled=self.compiled,
            )

        return _anew_if_damaged(run, [checkpoint])

    def _keep(self, trained: TrainedModel, arrays: Arrays, k: int, member: NDArray[np.bool_], seconds: float) -> None:
        answers = trained.query(arrays["x"], augmentations=self.queries)
        if not np.isfinite(answers).all():
            raise ModelError(f"reference model {k} answers with NaN or infinite logits", "lower the learning rate")
        right = answers[0].argmax(axis=1) == arrays["y"]
        outside = arrays["pool"] & ~member
        about = {
            "model": k,
            "bank": self.bank,
            "seed": trained.seed,
            "accuracy": [float(right[member].mean()), float(right[outside].mean())],
            "mean": trained.mean.tolist(),
            "std": trained.std.tolist(),
            "epochs": [trained.stopped_epoch, trained.best_epoch],
            "weights_sha256": trained.weights_sha256,
            "precision": trained.precision,
            "device": trained.device,
            "threads": self.threads,
            "compiled": self.compiled,
            "seconds": round(seconds, 3),
        }
        arrays_kept = {"logits": as_stored(answers, self.stored), "membership": np.packbits(member)}
        if self.keep_weights:
            arrays_kept |= {f"weights/{name}": value for name, value in _weights(trained).items()}
            arrays_kept |= {f"guard/{name}": value for name, value in trained.guard.items()}
        write_model(model_path(self.folder, k), arrays_kept, about)


def _anew_if_damaged(run: Callable[[], T], checkpoints: Sequence[Path]) -> T:
    """What `run` gives; if its checkpoints are of no use, without them."""
    before = any(checkpoint.is_file() for checkpoint in checkpoints)
    try:
        return run()
    except ModelError:
        if not before:
            raise
        for checkpoint in checkpoints:
            remove(checkpoint)  # damaged, or of another version
        return run()


def until_there(
    run: Callable[[list[int]], Iterator[tuple[int, Outcome]]], missing: Iterable[int], tracker: Tracker
) -> None:
    """Train what is missing; what other processes are at, is waited for, and taken over if they die."""
    waiting, told = list(missing), False
    while waiting:
        busy = []
        for k, outcome in run(waiting):
            if outcome == "busy":
                busy.append(k)
            else:
                tracker.there(k, trained_here=outcome == "trained")
        if len(busy) == len(waiting):
            if not told:
                tracker.note(f"waiting for another process that trains reference models {listed(busy)}")
            told = True
            time.sleep(_POLL_SECONDS)
        waiting = busy


def sound(path: Path, bank: str, k: int, member: NDArray[np.bool_]) -> ModelFile | None:
    """The file of model k, if it is there, undamaged, of this bank and with this membership; else None."""
    try:
        file = ModelFile.read(path)
        file.verify()
    except ModelError:
        return None
    same = file.about.get("bank") == bank and file.about.get("model") == k
    return file if same and np.array_equal(file.map("membership"), np.packbits(member)) else None


def as_stored(answers: NDArray[np.float32], stored: str) -> NDArray[np.floating]:
    """Answers [A, N, C] in the dtype that the bank keeps.

    In float16 the largest logit of each record is made 0: no score depends on a common offset, and the small
    differences at the top keep more digits.
    """
    if stored == "float32":
        return answers
    below = answers - answers.max(axis=2, keepdims=True)
    return np.asarray(np.maximum(below, np.finfo(np.float16).min), np.float16)


def _weights(trained: TrainedModel) -> dict[str, NDArray[Any]]:
    from memberscope.training.trained_model import plain_state

    return {name: value.numpy() for name, value in plain_state(trained.module).items()}


def _free_bytes(device: str) -> int:
    import torch

    torch.cuda.empty_cache()  # what PyTorch keeps of earlier trainings is not in use, and the driver counts it as used
    return int(torch.cuda.mem_get_info(torch.device(device))[0])


class _Fraction:
    """Progress of a training as the fraction that is done."""

    def __init__(self, tell: Tell, epochs: int) -> None:
        self._tell, self._epochs = tell, epochs

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        del loss
        self._tell((epoch - 1 + step / steps) / self._epochs)

    def on_epoch(self, record: Any, epochs: int, seconds_left: float) -> None:
        """The steps have told it."""
