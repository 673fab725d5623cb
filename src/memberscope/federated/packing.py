"""State dicts to Flower's records and back; between parties of one process without bytes in between."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor


class ResidentArray(Array):
    """An array that stays one: its bytes are made when somebody asks for them, on the wire or on a tape.

    Flower's own `Array` writes every tensor to bytes and reads it back from them. This one is equal in all that an app
    or a strategy can see of it; as there, `numpy()` gives a copy that may be written to.

    Parameters
    ----------
    values
        Any shape and type; kept, so nobody else may write to it.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        values.setflags(write=False)
        self.__dict__.update(
            {"dtype": str(values.dtype), "shape": tuple(values.shape), "stype": "numpy.ndarray", "_values": values}
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that Flower's `Array` would hold."""
        buffer = io.BytesIO()
        np.save(buffer, self.__dict__["_values"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> NDArray[Any]:
        """A copy of the values."""
        values: NDArray[Any] = self.__dict__["_values"]
        return values.copy()


def pack(state: Mapping[str, Tensor], *, resident: bool) -> ArrayRecord:
    """Copy a state dict into a record; `resident`: both parties are in this process."""
    record = ArrayRecord()
    for name, value in state.items():
        values = value.detach().cpu().contiguous().numpy()
        record[name] = ResidentArray(np.array(values)) if resident else Array(values)
    return record


def arrays_of(state: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """A state dict as arrays that share its memory."""
    return {name: value.numpy() for name, value in state.items()}


def tensors_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as a state dict that shares their memory."""
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """The state dict of a record; its tensors are the caller's own."""
    return tensors_of({name: array.numpy() for name, array in record.items()})
