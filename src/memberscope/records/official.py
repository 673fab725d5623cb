"""From official files to a pool: found or downloaded, verified, decoded, kept decoded for the next time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memberscope.records import cache
from memberscope.records.files import Located, Request, obtain, verify
from memberscope.records.pool import Dataset
from memberscope.records.readers import Records, read_cifar_batch, read_idx_pair, read_svhn, read_tar_members
from memberscope.records.sources import OFFICIAL

Parts = tuple[list[Records], list[Records]]
"""The official training part and the official test part, each in pieces."""


def load_official(name: str, classes: tuple[str, ...], read: Callable[[Located], Parts], request: Request) -> Dataset:
    """Load a dataset from its official files.

    Parameters
    ----------
    name
        Key of `OFFICIAL`.
    classes
        Names of the classes.
    read
        Decodes the files, once they are found and verified.
    request
        Where they are, and what is allowed.

    Raises
    ------
    DataError
        The files are missing and cannot be had, differ from the official ones without anybody vouching for them, or
        cannot be decoded.
    """
    located = obtain(name, OFFICIAL[name], request)
    stamp = located.stamp
    kept = cache.cache_path(request.data_dir, name)
    cached = cache.read(kept, stamp)
    if cached is not None and (cached.verified or request.unverified):
        return cached
    doubt = verify(name, located, unverified=request.unverified)
    train, test = read(located)
    n_train = sum(len(y) for _, y in train)
    x, y = (np.concatenate([records[i] for records in (*train, *test)]) for i in (0, 1))
    vouched = f"vouched for by the user ({doubt})" if doubt else "each with the official checksum"
    source = f"{', '.join(file.name for file in located.files)}: {vouched}"
    dataset = Dataset(name, x, y, classes, np.arange(len(y)) < n_train, source, verified=doubt is None)
    cache.write(kept, dataset, stamp)
    return dataset


def read_cifar10(located: Located) -> Parts:
    """Decode CIFAR-10 from its batches or its archive."""
    return _read_cifar("cifar10", b"labels", 10, located)


def read_cifar100(located: Located) -> Parts:
    """Decode CIFAR-100, with its fine labels, from its batches or its archive."""
    return _read_cifar("cifar100", b"fine_labels", 100, located)


def read_svhn_files(located: Located) -> Parts:
    """Decode both MATLAB files of SVHN."""
    train, test = located.paths
    return [read_svhn(train)], [read_svhn(test)]


def read_idx_files(located: Located) -> Parts:
    """Decode the four files of MNIST or Fashion-MNIST."""
    train_images, train_labels, test_images, test_labels = located.paths
    return [read_idx_pair(train_images, train_labels, 10)], [read_idx_pair(test_images, test_labels, 10)]


def _read_cifar(name: str, label_key: bytes, n_classes: int, located: Located) -> Parts:
    unpacked = OFFICIAL[name][0]
    *train, test = [file.name for file in unpacked.files]
    if len(located.files) == 1:
        archive = located.paths[0]
        members = read_tar_members(archive, [f"{unpacked.folder}/{batch}" for batch in (*train, test)])
        contents = ((member.rpartition("/")[2], archive / member, content) for member, content in members)
    else:
        contents = ((path.name, path, path.read_bytes()) for path in located.paths)
    batches = {batch: read_cifar_batch(content, path, label_key, n_classes) for batch, path, content in contents}
    return [batches[batch] for batch in train], [batches[test]]
