"""What an adversary with a machine of its own can do: look into the models it trained, and train models on answers.

Attacks know only these protocols. What stands behind them trains (`memberscope.training.workshop`), and is given to the
evidence by whoever runs the audit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class ReferenceWhiteBox(Protocol):
    """Features that need the weights of reference models, computed on demand."""

    def __call__(self, model: int, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what reference model `model` says about some of the N records.

        Parameters
        ----------
        model
            Which one, 0..K-1.
        name
            Of the feature, as for `Evidence.white_box`.
        rows
            int64 [M]: which records.

        Returns
        -------
        float64 [M], or [M, F] for a feature with several parts.
        """


@dataclass(frozen=True, eq=False)
class Imitation:
    """How a model is trained to imitate another's answers.

    Parameters
    ----------
    on
        ``records``: of the N under audit; ``population``: of the Z known non-members.
    rows
        bool [N] or [Z]: which of them it is trained on.
    teacher
        float [N, C] or [Z, C]: the logits to imitate; those of other rows are not looked at.
    seed
        Of this training: every training of an attack has its own.
    weight
        Of the imitation in the loss, in [0, 1]; the rest is the cross-entropy with the true classes.
    begins
        Share of the epochs that pass before the imitation begins, with the true classes alone.
    distance
        What is made small: ``logits`` (their mean squared difference, each less its mean over the classes, which says
        nothing) or ``probabilities`` (the cross-entropy with the teacher's probabilities).
    snapshots
        After how many epochs, spread evenly up to the last, the model answers.
    """

    on: Literal["records", "population"]
    rows: NDArray[np.bool_]
    teacher: NDArray[np.floating]
    seed: int
    weight: float = 1.0
    begins: float = 0.0
    distance: Literal["logits", "probabilities"] = "probabilities"
    snapshots: int = 1


class Workshop(Protocol):
    """Trains models by the target's recipe to imitate answers."""

    def train(self, imitation: Imitation) -> NDArray[np.floating]:
        """Train one model and return its answers on the N records, float [S, A, N, C], one for each snapshot."""

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Workshop:
        """The workshop for some of the records."""
