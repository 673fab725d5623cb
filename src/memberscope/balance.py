"""One of many models plays the target: which others to hold beside it, so that their number does not give it away.

Where every record is in exactly as many of the models, the models besides the target hold one IN model less for its
members than for its non-members: whoever counts them knows (and averages that only shift with the number know a little;
on data without any leakage LiRA then has an AUC of 0.43 at 8 models). So one more is left out for every record, of the
other side: where the models come in complementary pairs, the target's partner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Others:
    """The models beside a target.

    Parameters
    ----------
    models
        int64 [K]: their numbers; or [K, N], where reference k is another model for each record.
    membership
        bool [K, N].
    note
        What was left out and why, or nothing.
    """

    models: NDArray[np.int64]
    membership: NDArray[np.bool_]
    note: str = ""

    @property
    def count(self) -> int:
        """K."""
        return len(self.models)


def others(membership: NDArray[np.bool_], target: int) -> Others:
    """Choose the models to be held beside one of them.

    Parameters
    ----------
    membership
        bool [M, N] of all models.
    target
        Number of the one that plays the target.
    """
    count, n = membership.shape
    rest = np.delete(np.arange(count), target)
    if np.ptp(membership.sum(axis=0)) > 0 or count < 2:
        return Others(rest, membership[rest])
    partners = np.flatnonzero((membership == ~membership[target]).all(axis=1))
    if len(partners):
        rest = rest[rest != partners[0]]
        return Others(rest, membership[rest], f"model {partners[0]}, its exact complement, would tell by its absence")
    # The next model of the other side, cyclically by number, as where reference models play the target.
    distance = np.where(membership != membership[target], (np.arange(count)[:, None] - target) % count, count)
    left = np.ones((count, n), bool)
    left[target] = False
    left[distance.argmin(axis=0), np.arange(n)] = False
    models = np.broadcast_to(np.arange(count)[:, None], (count, n)).T[left.T].reshape(n, count - 2).T
    inside = np.take_along_axis(membership, models, axis=0)
    note = "every record is in equally many models: one more of them, of the other side, is left out for each"
    return Others(np.ascontiguousarray(models), inside, note)
