"""The records that an attack ranks highest, as pictures: made only when the user asks for them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from memberscope.data_loader import Dataset
    from memberscope.risk import RecordRisk


def most_exposed(
    dataset: Dataset,
    index: NDArray[np.int64],
    member: NDArray[np.bool_],
    scores: NDArray[np.float64],
    risk: RecordRisk,
    at_most: int,
) -> list[dict[str, Any]]:
    """Index, class, score, truth, risk and picture of the records with the highest scores, highest first; JSON-able."""
    order = np.argsort(-scores, kind="stable")[:at_most]
    return [
        {
            "index": int(index[row]),
            "class": dataset.classes[dataset.y[index[row]]],
            "score": float(scores[row]),
            "member": bool(member[row]),
            "posterior": _number(risk.posterior[row]),
            "separation": [_number(d[row]) for d in (risk.separation, risk.separation_low, risk.separation_high)],
            "png_base64": _thumbnail(dataset.x[index[row]]),
        }
        for row in order
    ]


def _number(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None


def _thumbnail(record: NDArray[np.generic]) -> str | None:
    from PIL import Image

    if record.ndim != 3 or record.shape[0] not in (1, 3):
        return None
    pixels = record[0] if record.shape[0] == 1 else np.moveaxis(record, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
