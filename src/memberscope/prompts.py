"""The original project's way in: three questions (dataset, epochs, train or load), then the audit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memberscope.errors import MemberscopeError

DATASETS = ("cifar10", "svhn")
EPOCHS = (20, 50, 100)
MODES = ("train", "load")


@dataclass(frozen=True)
class Wishes:
    """What the user answered."""

    dataset: str
    epochs: int
    mode: str


def ask(read: Callable[[str], str] = input, write: Callable[[str], object] = print) -> Wishes:
    """Ask the three questions; an answer that cannot be used is explained and asked again.

    Raises
    ------
    EOFError
        The input ended before the last answer.
    """
    from memberscope.data_loader import DATASETS as KNOWN

    write("Who could tell that an image was in a model's training set? Three questions.")
    names = [*DATASETS, *(name for name in KNOWN if name not in DATASETS and name not in ("npz", "imagefolder"))]
    dataset = _choose(f"Dataset ({'/'.join(DATASETS)}) [cifar10]: ", names, "cifar10", read, write)
    epochs = _number(f"Epochs ({'/'.join(map(str, EPOCHS))}) [50]: ", 50, read, write)
    mode = _choose("Train a new model or load one trained earlier (train/load) [train]: ", MODES, "train", read, write)
    return Wishes(dataset, epochs, mode)


def interact(root: Path | None = None) -> int:
    """Ask, run the audit as asked, write the run folder; returns the exit code.

    Parameters
    ----------
    root
        Folder that data/, models/ and outputs/ are taken in where no environment variable says otherwise; default: the
        current folder.
    """
    from memberscope.console import run_audit
    from memberscope.policy import EXIT_FAILED

    try:
        wishes = ask()
    except (EOFError, KeyboardInterrupt):
        sys.stderr.write(
            "\nNo audit was run: the questions were not answered. `memberscope audit --help` takes flags.\n"
        )
        return EXIT_FAILED
    try:
        settings = {"dataset": wishes.dataset, "epochs": wishes.epochs, "load": wishes.mode == "load", "resume": True}
        return run_audit({**settings, **_folders(root)})
    except MemberscopeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILED


def _folders(root: Path | None) -> dict[str, Path]:
    import os

    if root is None:
        return {}
    places = (
        ("data_dir", "MEMBERSCOPE_DATA_DIR", "data"),
        ("out", "MEMBERSCOPE_OUTPUT_DIR", "outputs"),
        ("models_dir", "MEMBERSCOPE_MODELS_DIR", "models"),
    )
    return {key: root / name for key, variable, name in places if not os.environ.get(variable)}


def _choose(
    question: str, allowed: Sequence[str], default: str, read: Callable[[str], str], write: Callable[[str], object]
) -> str:
    while True:
        answer = read(question).strip().lower() or default
        matches = [name for name in allowed if name == answer] or [name for name in allowed if name.startswith(answer)]
        if len(matches) == 1 or (matches and matches[0] == answer):
            return matches[0]
        write(f"  {answer!r} is none of {', '.join(allowed)}.")


def _number(question: str, default: int, read: Callable[[str], str], write: Callable[[str], object]) -> int:
    while True:
        answer = read(question).strip() or str(default)
        if answer.isdecimal() and 1 <= int(answer) <= 10_000:
            return int(answer)
        write(f"  {answer!r} is not a number of epochs: type a whole number from 1, such as {EPOCHS[0]}.")
