"""One model in memory that takes on the weights of any party, and is asked about the same records every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.errors import ModelError
from memberscope.federated.alignment import Alignment, align
from memberscope.signals import logit_scaled_confidence
from memberscope.training.batches import Normalisation, Records
from memberscope.training.hardware import cpu_threads, exact_fp32
from memberscope.training.trained_model import evaluating, place

Arrays = Mapping[str, NDArray[Any]]
"""A model as it travels: name -> array, in the order of the model."""

_CHUNK = 512


class Prober:
    """Asks models of one architecture about N records.

    Parameters
    ----------
    module
        Any instance of the architecture; its weights are overwritten.
    batches
        From start and end to the inputs of these records as the model takes them, float32 [n, ...] on its device.
    labels
        int64 [N].
    threads
        CPU threads; None: as many as torch uses.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Callable[[int, int], Tensor],
        labels: NDArray[np.int64],
        *,
        threads: int | None = None,
    ) -> None:
        self.module, self.batches, self.labels, self.threads = module, batches, labels, threads
        self.module.requires_grad_(True)
        self._trainable = {name for name, _ in module.named_parameters()}

    @classmethod
    def of_records(
        cls,
        module: nn.Module,
        x: NDArray[Any],
        y: NDArray[np.int64],
        normalisation: Normalisation,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Prober:
        """Ask about records of a pool, uint8 [N, C, H, W] or float32 [N, d]."""
        where = torch.device(device)
        channels_last = place(module, x.shape[1:], where)
        records = Records(x, normalisation, where)

        def batches(start: int, end: int) -> Tensor:
            batch = records.batch(slice(start, end))
            return batch if channels_last or batch.ndim != 4 else batch.contiguous()

        return cls(module, batches, y, threads=threads)

    @classmethod
    def of_inputs(cls, module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> Prober:
        """Ask about records as the model takes them, float32 [N, ...]."""
        inputs = torch.from_numpy(np.ascontiguousarray(x))
        return cls(module, lambda start, end: inputs[start:end], y)

    def take_on(self, arrays: Arrays) -> None:
        """Overwrite the weights, matched by name, or in order where names tell nothing (lists of arrays).

        Raises
        ------
        ModelError
            Arrays that do not fit the model; the first is named.
        """
        state = self.module.state_dict()
        named = self._named(arrays, state)
        with torch.no_grad():
            for name, target in state.items():
                value = torch.as_tensor(np.asarray(named[name]))
                if value.shape != target.shape:
                    raise ModelError(
                        f"array {name!r} has shape {list(value.shape)}, the model's is {list(target.shape)}",
                        "give the model that the federation trains",
                    )
                target.copy_(value)

    def update(self, sent: Arrays, received: Arrays) -> dict[str, Tensor]:
        """Sent minus received, of the trainable weights: the way a client went, pointing along the gradient."""
        state = self.module.state_dict()
        before, after = self._named(sent, state), self._named(received, state)
        return {
            name: torch.from_numpy(np.asarray(before[name], np.float32) - np.asarray(after[name], np.float32))
            for name in state
            if name in self._trainable
        }

    def logits(self) -> NDArray[np.float32]:
        """float32 [N, C]: answers of the weights taken on last."""
        n, found = len(self.labels), []
        with cpu_threads(self.threads), exact_fp32(), evaluating(self.module):
            for start in range(0, n, _CHUNK):
                found.append(self.module(self.batches(start, min(start + _CHUNK, n))).float().cpu().numpy())
        return np.concatenate(found)

    def phi(self) -> NDArray[np.float32]:
        """float32 [N]: logit-scaled confidence in the true class."""
        return logit_scaled_confidence(self.logits(), self.labels).astype(np.float32)

    def align(self, directions: Sequence[Mapping[str, Tensor]]) -> Alignment:
        """Hold each record's gradient, at the weights taken on last, against directions."""
        with cpu_threads(self.threads), exact_fp32():
            return align(self.module, self.batches, self.labels, directions)

    def _named(self, arrays: Arrays, state: Mapping[str, Tensor]) -> Arrays:
        if arrays.keys() >= state.keys():
            return arrays
        if len(arrays) == len(state):  # legacy apps send lists: the order is that of the model
            return dict(zip(state, arrays.values(), strict=True))
        missing = sorted(state.keys() - arrays.keys())
        raise ModelError(
            f"the recorded model has {len(arrays)} arrays and this one {len(state)}; {missing[0]!r} is missing",
            "give the model that the federation trains",
        )


def length(update: Mapping[str, Tensor]) -> float:
    """The l2 norm of an update."""
    return float(sum(part.double().square().sum() for part in update.values()) ** 0.5)


def finite(arrays: Arrays) -> bool:
    """Whether no array holds NaN or an infinity: a client may send anything."""
    return all(bool(np.isfinite(a).all()) for a in arrays.values() if np.asarray(a).dtype.kind == "f")
