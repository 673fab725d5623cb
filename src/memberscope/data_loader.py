"""Records: one function a dataset, and the registry that names them.

Adding a dataset is one function from `Request` to `Dataset` and one line in `DATASETS`; in another package, an entry
point of the group ``memberscope.datasets`` that leads to a `DatasetEntry`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memberscope.errors import DataError
from memberscope.records import sources
from memberscope.records.files import Request, data_folder
from memberscope.records.images import LAYOUT, read_image_folder, unread_folders
from memberscope.records.npz import KEYS, read_npz
from memberscope.records.official import load_official, read_cifar10, read_cifar100, read_idx_files, read_svhn_files
from memberscope.records.pool import Dataset, check_records

__all__ = ["DATASETS", "Dataset", "DatasetEntry", "Request", "available", "check_records", "load", "provided"]

ENTRY_POINTS = "memberscope.datasets"
_DIGITS_SPLIT_SEED = 20


@dataclass(frozen=True)
class DatasetEntry:
    """A dataset that can be named.

    Parameters
    ----------
    load
        Gives the pool.
    title
        Its full name.
    description
        One line for ``memberscope list datasets``.
    records
        Number of records; None where the user's file decides.
    download_bytes
        What a first use downloads; 0 for nothing.
    takes_path
        Named as ``name:PATH``.
    """

    load: Callable[[Request], Dataset]
    title: str
    description: str
    records: int | None = None
    download_bytes: int = 0
    takes_path: bool = False


_provided: dict[str, Dataset] = {}


@contextlib.contextmanager
def provided(datasets: Mapping[str, Dataset]) -> Iterator[None]:
    """Inside the block `load` gives these by name: records that came with the work, where their files need not be."""
    before = dict(_provided)
    _provided.update(datasets)
    try:
        yield
    finally:
        _provided.clear()
        _provided.update(before)


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    unverified: bool | None = None,
    progress: bool = True,
    download: bool = True,
) -> Dataset:
    """Load all records of a dataset as one pool.

    Parameters
    ----------
    name
        A name in `available`, with ``:PATH`` where the entry takes one.
    data_dir
        Where official files are or go: our layout or a torchvision download folder. None: the environment variable
        ``MEMBERSCOPE_DATA_DIR``, else ``./data``.
    unverified
        Use files whose checksums differ from the official ones. None: whether ``MEMBERSCOPE_UNVERIFIED_DATA`` is 1.
    progress
        Show progress on standard error, where that is a terminal.
    download
        Download files that are not there.

    Raises
    ------
    DataError
        An unknown name; files that are missing, damaged, not the official ones, or hostile; records that
        `check_records` refuses.
    """
    if name in _provided:
        return _provided[name]
    kind, colon, path = name.partition(":")
    entry = _entry(kind)
    if entry.takes_path != bool(path) or bool(path) != bool(colon):
        expected = f"{kind}:PATH" if entry.takes_path else f"{kind} alone"
        raise DataError(f"dataset {name!r}: expected {expected}", entry.description)
    if unverified is None:
        unverified = os.environ.get("MEMBERSCOPE_UNVERIFIED_DATA") == "1"
    own = Path(path).expanduser() if colon else None
    dataset = entry.load(Request(own, data_folder(data_dir), unverified, progress, download))
    check_records(dataset)
    return dataset


def available() -> dict[str, DatasetEntry]:
    """Give the built-in datasets and those that installed packages add; a broken one says so when it is loaded.

    Raises
    ------
    DataError
        A package adds a name that exists already.
    """
    from importlib.metadata import entry_points

    entries = dict(DATASETS)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in entries:
            raise DataError(
                f"the dataset {point.name!r} of {point.value} has the name of another one", "rename or uninstall it"
            )
        try:
            entry = point.load()
        except Exception as error:  # a stranger's module may fail in any way
            entry = _broken(point.name, f"{type(error).__name__}: {error}")
        entries[point.name] = (
            entry if isinstance(entry, DatasetEntry) else _broken(point.name, f"{point.value} is no DatasetEntry")
        )
    return entries


def cifar10(request: Request) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009)."""
    return load_official("cifar10", sources.CIFAR10_CLASSES, read_cifar10, request)


def cifar100(request: Request) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009) with its fine labels."""
    return load_official("cifar100", sources.CIFAR100_CLASSES, read_cifar100, request)


def svhn(request: Request) -> Dataset:
    """SVHN, cropped digits (Netzer et al. 2011); the label 10 of the files is the digit 0."""
    return load_official("svhn", sources.DIGITS, read_svhn_files, request)


def mnist(request: Request) -> Dataset:
    """MNIST, handwritten digits (LeCun et al. 1998)."""
    return load_official("mnist", sources.DIGITS, read_idx_files, request)


def fashion_mnist(request: Request) -> Dataset:
    """Fashion-MNIST, pictures of clothes (Xiao et al. 2017)."""
    return load_official("fashion-mnist", sources.FASHION_CLASSES, read_idx_files, request)


def digits(request: Request) -> Dataset:
    """Handwritten digits 8x8 that come with scikit-learn: 899 training and 898 test records.

    scikit-learn has no official split of its 1,797 records, so there is a fixed one, stratified by class: half of each
    class, drawn from ``SeedSequence(20)``, is the training part. Grey levels 0..16 become 0..255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    y = np.asarray(bunch.target, np.int64)
    is_train = np.zeros(len(y), np.bool_)
    rng = np.random.default_rng(np.random.SeedSequence(_DIGITS_SPLIT_SEED))
    odd = 0
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(y == label))
        # The odd record out goes to the training part and to the test part in turn.
        half = (len(rows) + 1 - odd % 2) // 2
        odd += len(rows) % 2
        is_train[rows[:half]] = True
    order = np.argsort(~is_train, kind="stable")
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    source = "the handwritten digits that come with scikit-learn, in a fixed stratified split into halves"
    return Dataset("digits", x[order], y[order], sources.DIGITS, is_train[order], source, verified=True)


def npz(request: Request) -> Dataset:
    """Records in an .npz file of the user."""
    assert request.path is not None
    x, y, is_train, classes = read_npz(request.path)
    source = f"the user's file {request.path.name}"
    return Dataset(_safe("npz", request.path.stem), x, y, classes, is_train, source, verified=False)


def imagefolder(request: Request) -> Dataset:
    """Pictures in folders of the user, one folder a class."""
    assert request.path is not None
    x, y, is_train, classes = read_image_folder(request.path, progress=request.progress)
    unread = unread_folders(request.path)
    folder = request.path.resolve().name
    source = f"the user's folder {folder}" + (f" (not read: {', '.join(unread)})" if unread else "")
    return Dataset(_safe("imagefolder", folder), x, y, classes, is_train, source, verified=False)


def _entry(kind: str) -> DatasetEntry:
    plain = kind.lower().replace("_", "-")
    if plain in DATASETS:
        return DATASETS[plain]
    entries = available()
    if kind in entries:
        return entries[kind]
    near = difflib.get_close_matches(plain, list(entries), n=1, cutoff=0.5)
    names = [f"{name}:PATH" if entry.takes_path else name for name, entry in entries.items()]
    raise DataError(
        f"unknown dataset {kind!r}" + (f"; did you mean {near[0]}?" if near else ""), f"known: {', '.join(names)}"
    )


def _broken(name: str, reason: str) -> DatasetEntry:
    def refuse(request: Request) -> Dataset:
        raise DataError(f"the dataset {name!r} of another package cannot be used: {reason}", "mend or uninstall it")

    return DatasetEntry(refuse, name, f"cannot be used: {reason}")


def _safe(kind: str, stem: str) -> str:
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)[:60].strip('-.') or 'unnamed'}"


def _download_bytes(name: str) -> int:
    group = next(group for group in sources.OFFICIAL[name] if all(file.urls for file in group.files))
    return sum(file.size for file in group.files)


DATASETS: dict[str, DatasetEntry] = {
    "cifar10": DatasetEntry(
        cifar10,
        "CIFAR-10",
        "colour images 32x32, 10 classes of animals and vehicles",
        60_000,
        _download_bytes("cifar10"),
    ),
    "cifar100": DatasetEntry(
        cifar100, "CIFAR-100", "colour images 32x32, 100 classes", 60_000, _download_bytes("cifar100")
    ),
    "svhn": DatasetEntry(
        svhn, "SVHN", "colour images 32x32 of house-number digits, non-commercial use", 99_289, _download_bytes("svhn")
    ),
    "mnist": DatasetEntry(mnist, "MNIST", "grey images 28x28 of handwritten digits", 70_000, _download_bytes("mnist")),
    "fashion-mnist": DatasetEntry(
        fashion_mnist,
        "Fashion-MNIST",
        "grey images 28x28, 10 classes of clothes",
        70_000,
        _download_bytes("fashion-mnist"),
    ),
    "digits": DatasetEntry(
        digits, "digits", "grey images 8x8 of handwritten digits, installed with scikit-learn", 1_797
    ),
    "npz": DatasetEntry(npz, "your .npz file", f"keys {KEYS}", takes_path=True),
    "imagefolder": DatasetEntry(imagefolder, "your folder of pictures", LAYOUT, takes_path=True),
}
