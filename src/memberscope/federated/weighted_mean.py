"""The mean of many models without holding more than one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError


class RunningMean:
    """Adds models up in float64 and divides once; integer arrays are left out, as they have no mean."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.count = 0
        self._sums: dict[str, NDArray[np.float64]] = {}

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add one model with its weight.

        Raises
        ------
        DataError
            Its arrays have other names or shapes than those of the first.
        """
        floats = {name: value for name, value in arrays.items() if value.dtype.kind == "f"}
        if not self.count:
            self._sums = {name: np.zeros(value.shape) for name, value in floats.items()}
        if {k: v.shape for k, v in floats.items()} != {k: v.shape for k, v in self._sums.items()}:
            raise DataError("a model has other names or shapes than the first of its round", "leave that client out")
        for name, value in floats.items():
            self._sums[name] += weight * value.astype(np.float64)
        self.weight += weight
        self.count += 1

    def mean(self) -> dict[str, NDArray[np.float32]]:
        """The weighted mean, float32."""
        if self.weight <= 0:
            raise DataError("no model with a positive weight was added", "clients report num-examples with their reply")
        return {name: (value / self.weight).astype(np.float32) for name, value in self._sums.items()}
