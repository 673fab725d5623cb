"""The answers of many models, left on disk: looks like an array [K, A, n, C], reads only what is indexed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Source = Callable[[], NDArray[np.floating]]
Rows = NDArray[np.int64] | NDArray[np.bool_] | slice


class ModelAnswers:
    """One model's answers [A, n, C] on some records of the pool. ``answers[:, rows]`` reads those rows.

    Each read maps the file anew: what was read before does not stay in memory for it.

    Parameters
    ----------
    source
        Maps float [A, N, C] on all records of the pool from its file.
    shape
        (A, n, C).
    dtype
        Of the answers.
    index
        int64 [n]: the records, or None for all of them.
    """

    def __init__(
        self, source: Source, shape: tuple[int, int, int], dtype: np.dtype[Any], index: NDArray[np.int64] | None
    ) -> None:
        self._source, self._index = source, index
        self.shape, self.dtype, self.ndim = shape, dtype, 3

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.floating]:
        query, rows, *rest = (*(key if isinstance(key, tuple) else (key,)), slice(None), slice(None))[:3]
        basic = all(isinstance(k, (int, np.integer, slice)) for k in (query, *rest))
        if self._index is None or not basic or rows is Ellipsis:
            return np.asarray(np.asarray(self)[key])
        # The wanted rows are read first, in one go; what else there is in the key then applies to few of them.
        read = self._source()[query][..., self._index[rows], :]
        return np.asarray(read[..., rest[0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy
        mapped = np.asarray(self._source())
        return np.asarray(mapped if self._index is None else mapped[:, self._index], dtype)


class BankAnswers:
    """The answers of K models [K, A, n, C].

    ``answers[k]`` is model k's, ``answers[:, :, rows]`` the same models on fewer records: both read nothing yet. Any
    other index, and `numpy.asarray`, reads.

    Parameters
    ----------
    models
        Each maps a model's answers, float [A, N, C] of one shape and dtype, from its file.
    index
        int64 [n]: records of the pool, or None for all of them.
    """

    def __init__(self, models: Sequence[Source], index: NDArray[np.int64] | None = None) -> None:
        self._models, self._index = list(models), index
        first = models[0]()
        queries, records, classes = first.shape
        self.shape = (len(models), queries, records if index is None else len(index), classes)
        self.dtype, self.ndim = first.dtype, 4

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[ModelAnswers]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)):
            return ModelAnswers(self._models[key], self.shape[1:], self.dtype, self._index)
        if isinstance(key, slice):
            return BankAnswers(self._models[key], self._index)
        if isinstance(key, tuple) and len(key) == 3 and key[0] == key[1] == slice(None):
            return self.take(key[2])
        if isinstance(key, tuple) and isinstance(key[0], (int, np.integer)):
            return self[key[0]][key[1:]]
        return np.asarray(self)[key]

    def take(self, rows: Rows) -> BankAnswers:
        """The same models on some of the records, in the order of `rows`."""
        index = np.arange(self.shape[2]) if self._index is None else self._index
        return BankAnswers(self._models, index[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy
        whole = np.empty(self.shape, dtype or self.dtype)
        for k, answers in enumerate(self):
            whole[k] = answers
        return whole

    def __repr__(self) -> str:
        return f"BankAnswers({' x '.join(map(str, self.shape))} {self.dtype}, on disk)"
