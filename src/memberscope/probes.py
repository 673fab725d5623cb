"""Probes: altered copies of records that an adversary who holds them may ask a model about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """Gaussian noise added to every record: one fixed direction a record and seed, of the strength stated.

    Parameters
    ----------
    strength
        Standard deviation of the noise, one number or float [N] (one a record), as a share of the records' range: of
        0..255 for images, of each feature's standard deviation over the records for feature rows.
    seed
        Which direction. The same seed and record give the same direction at every strength.
    """

    strength: float | NDArray[np.float64]
    seed: int


@dataclass(frozen=True)
class Shift:
    """Images moved by whole pixels, the edge repeated, and mirrored or not."""

    down: int
    right: int
    mirrored: bool = False


Probe = Noise | Shift


class Oracle(Protocol):
    """Answers hard labels, and nothing else, about altered copies of the N records."""

    @property
    def images(self) -> bool:
        """Whether the records are images."""

    def labels(self, probe: Probe) -> NDArray[np.int64]:
        """int64 [N]: the class that the model predicts for each altered record."""

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Oracle:
        """The oracle for some of the records."""
