"""Asking a model about altered copies of records: `memberscope.probes.Oracle` on a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memberscope.probes import Noise, Probe, Shift
from memberscope.training.hardware import cpu_threads, exact_fp32
from memberscope.training.trained_model import TrainedModel, evaluating

_CHUNK = 2048


class ModelOracle:
    """Hard labels of altered copies of records, a chunk at a time; nothing is kept.

    Parameters
    ----------
    model
        The model.
    x
        The pool, uint8 [N, C, H, W] or float32 [N, d].
    rows
        int64 [n]: which records may be asked about.
    """

    def __init__(self, model: TrainedModel, x: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self._model, self._x, self._rows = model, x, rows
        # Noise is stated as a share of the range: of a pixel's 255, of a feature's spread over the records.
        self._unit = np.float32(255.0) if self.images else np.maximum(x[rows].std(axis=0), 1e-12).astype(np.float32)

    @property
    def images(self) -> bool:
        """Whether the records are images."""
        return self._x.ndim == 4

    def labels(self, probe: Probe) -> NDArray[np.int64]:
        """int64 [n]: the class that the model predicts for each altered record."""
        out = np.empty(len(self._rows), np.int64)
        for start in range(0, len(self._rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = self._rows[part]
            if isinstance(probe, Noise):
                strength = probe.strength if np.isscalar(probe.strength) else np.asarray(probe.strength)[part]
                altered = self._noisy(rows, strength, probe.seed)
            else:
                altered = _moved(self._x[rows], probe).astype(np.float32)
            out[part] = self._predict(altered)
        return out

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> ModelOracle:
        """The oracle for some of the records."""
        return ModelOracle(self._model, self._x, self._rows[rows])

    def _predict(self, altered: NDArray[np.float32]) -> NDArray[np.int64]:
        model = self._model
        mean, std = model.mean, model.std
        if self.images:  # the altered pixels are no bytes any more, so they are normalised here
            mean, std = 255 * mean[:, None, None], 255 * std[:, None, None]
        batch = torch.from_numpy((altered - mean) / std).to(model.device)
        if model.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with cpu_threads(model.threads), exact_fp32(), evaluating(model.module):
            return np.asarray(model.module(batch).argmax(dim=1).cpu().numpy())

    def _noisy(self, rows: NDArray[np.int64], strength: Any, seed: int) -> NDArray[np.float32]:
        x = self._x[rows].astype(np.float32)
        # One stream a record: which records share a chunk, or are asked about at all, must not change the noise.
        noise = np.empty_like(x)
        for i, row in enumerate(rows):
            noise[i] = np.random.Generator(np.random.SFC64([seed, int(row)])).standard_normal(x.shape[1:], np.float32)
        scale = np.asarray(strength, np.float32).reshape(-1, *([1] * (x.ndim - 1)))
        return np.asarray(x + noise * scale * self._unit)


def _moved(x: NDArray[Any], shift: Shift) -> NDArray[Any]:
    """Images [n, C, H, W] moved down and right, the edge repeated."""
    height, width = x.shape[2:]
    rows = np.clip(np.arange(height) - shift.down, 0, height - 1)
    columns = np.clip(np.arange(width) - shift.right, 0, width - 1)
    if shift.mirrored:
        columns = columns[::-1]
    return x[:, :, rows][:, :, :, columns]
