"""Batches without per-record work: the records lie on the device as bytes, a batch is a few operations on all of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 4096
_WIDEST_FIRST = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The shift and scale of inputs: (value - mean) / std, where the value of a pixel byte is byte / 255.

    Parameters
    ----------
    mean, std
        float32 [C] of images, [d] of feature rows.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def measure(x: NDArray[Any], chosen: NDArray[np.bool_]) -> Normalisation:
    """Mean and standard deviation of each channel or feature over the chosen records; constant ones keep std 1.

    Parameters
    ----------
    x
        uint8 [N, C, H, W] or float32 [N, d].
    chosen
        bool [N]: the members, so that nothing of other records enters the model.
    """
    index = np.flatnonzero(chosen)
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    scale = 255.0 if x.ndim == 4 else 1.0
    count = len(index) * (int(np.prod(x.shape[2:])) if x.ndim == 4 else 1)
    total = np.zeros(x.shape[1])
    for start in range(0, len(index), _CHUNK):
        total += x[index[start : start + _CHUNK]].sum(axis=axes, dtype=np.float64)
    mean = total / count
    squares = np.zeros(x.shape[1])
    centre = mean.astype(np.float32).reshape(-1, 1, 1) if x.ndim == 4 else mean.astype(np.float32)
    for start in range(0, len(index), _CHUNK):
        off = x[index[start : start + _CHUNK]] - centre
        squares += np.square(off, out=off).sum(axis=axes, dtype=np.float64)
    std = np.sqrt(squares / count)
    std[std < 1e-7 * np.maximum(1.0, np.abs(mean))] = scale
    return Normalisation((mean / scale).astype(np.float32), (std / scale).astype(np.float32))


def fixed(x: NDArray[Any]) -> Normalisation:
    """A normalisation that no record enters: images to -1..1, feature rows as they are.

    Parameters
    ----------
    x
        uint8 [N, C, H, W] or float32 [N, d]; only its shape is used.
    """
    mean, std = (0.5, 0.5) if x.ndim == 4 else (0.0, 1.0)
    return Normalisation(np.full(x.shape[1], mean, np.float32), np.full(x.shape[1], std, np.float32))


@dataclass(frozen=True, eq=False)
class Draws:
    """One epoch's random choices: the order of the records, and the augmentation of each.

    Parameters
    ----------
    batches
        int64 positions, an array a step.
    flip
        bool [n] or None.
    offset
        int64 [n, 2] or None: top and left edge of each crop, 0 .. 2 * padding.
    """

    batches: list[NDArray[np.int64]]
    flip: NDArray[np.bool_] | None
    offset: NDArray[np.int64] | None

    def on(self, device: torch.device) -> Iterator[Chosen]:
        """The batches on a device, for `Records.batch`."""
        for each in upload([self], device):
            flip, offset = (None if part is None else part[0] for part in (each.flip, each.offset))
            yield Chosen(each.positions[0], flip, offset)


class Chosen(NamedTuple):
    """The records of a batch and the augmentation of each, on the device; of K models at once with a first axis K.

    Parameters
    ----------
    positions
        int64 [B].
    flip
        bool [B]: which are mirrored; or None.
    offset
        int64 [B, 2] edges of each crop (see `Draws`); or None.
    """

    positions: Tensor
    flip: Tensor | None = None
    offset: Tensor | None = None


def upload(draws: Sequence[Draws], device: torch.device) -> Iterator[Chosen]:
    """Give the batches of K models' epochs, a batch of all at a time; their sizes are those of the first one.

    An epoch is uploaded at once: an upload waits until the device has done all before it, and would so in each step.
    """
    orders = [np.concatenate(one.batches) for one in draws]
    flips = [one.flip[order] for one, order in zip(draws, orders, strict=True) if one.flip is not None]
    offsets = [one.offset[order] for one, order in zip(draws, orders, strict=True) if one.offset is not None]
    sizes = [len(batch) for batch in draws[0].batches]

    def split(arrays: list[NDArray[Any]]) -> Sequence[Tensor]:
        return torch.split(torch.from_numpy(np.stack(arrays)).to(device), sizes, 1)

    none = [None] * len(sizes)
    return map(Chosen, split(orders), split(flips) if flips else none, split(offsets) if offsets else none)


def draw(
    n: int,
    batch_size: int,
    augmentation: tuple[str, ...],
    padding: int,
    batching: np.random.Generator,
    augmenting: np.random.Generator,
    *,
    poisson: bool = False,
) -> Draws:
    """Draw an epoch over n records: ceil(n / batch_size) batches whose sizes differ by one at most.

    With `poisson` each record is in each batch with the probability 1 / batches, independently of all others: the
    sampling that accountants of differential privacy assume. Batches then differ in size, and may be empty.
    """
    steps = -(-n // batch_size)
    if poisson:
        # A binomial number of records without replacement: the same distribution as a coin for each, in less time.
        sizes = batching.binomial(n, 1 / steps, size=steps)
        batches = [np.sort(batching.choice(n, size, replace=False, shuffle=False)) for size in sizes]
    else:
        batches = np.array_split(batching.permutation(n), steps)
    flip = augmenting.random(n) < 0.5
    offset = augmenting.integers(0, 2 * padding + 1, size=(n, 2))
    return Draws(batches, flip if "flip" in augmentation else None, offset if "crop" in augmentation else None)


class Records:
    """Records on a device, kept as they came (bytes of images channels last), normalised a batch at a time.

    Parameters
    ----------
    x
        uint8 [n, C, H, W] or float32 [n, d].
    normalisation
        Of the inputs.
    device
        Where the records lie and batches are made.
    """

    def __init__(self, x: NDArray[Any], normalisation: Normalisation, device: torch.device) -> None:
        self.shape = x.shape[1:]
        self.device = device
        self._rows: Tensor | None = None
        if x.ndim == 4:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        flat = torch.from_numpy(np.ascontiguousarray(x).reshape(len(x), -1))
        self._flat = flat.to(device)
        self._normalise(normalisation)

    def __len__(self) -> int:
        return len(self._flat) if self._rows is None else len(self._rows)

    @property
    def padding(self) -> int:
        """Pixels that a crop may move an image: an eighth of its height, 4 at 32x32 as is usual."""
        return max(1, self.shape[1] // 8) if len(self.shape) == 3 else 0

    def part(self, index: NDArray[np.int64]) -> Records:
        """Some of the records, as records of their own, without a second normalisation or layout."""
        part = copy.copy(self)
        part._flat, part._rows = self._flat.index_select(0, self._places(index)), None
        return part

    def chosen(self, rows: NDArray[np.int64], normalisation: Normalisation) -> Records:
        """Some of the records as another model sees them: nothing is copied, their places are looked up in each batch.

        Parameters
        ----------
        rows
            int64 [n]: which.
        normalisation
            Of that model.
        """
        chosen = copy.copy(self)
        chosen._rows = self._places(rows)
        chosen._normalise(normalisation)
        return chosen

    def batch(
        self,
        index: Tensor | slice,
        flip: Tensor | None = None,
        offset: Tensor | None = None,
        *,
        flipped: bool = False,
    ) -> Tensor:
        """Give the normalised records of an index as float32 [B, C, H, W] (channels last in memory) or [B, d].

        Parameters
        ----------
        index, flip, offset
            As in `Chosen`; the index may be a slice.
        flipped
            Mirror all of them left to right.
        """
        if self._rows is not None:
            raw = self._flat.index_select(0, self._rows[index])
        else:
            raw = self._flat[index] if isinstance(index, slice) else self._flat.index_select(0, index)
        raw = self._augmented(raw, flip, offset)
        x = torch.addcmul(self._shift, raw.float(), self._scale)
        if len(self.shape) == 1:
            return x
        channels, height, width = self.shape
        x = x.view(len(x), height, width, channels)
        return (x.flip(2) if flipped else x).permute(0, 3, 1, 2)

    def _places(self, index: NDArray[np.int64]) -> Tensor:
        places = torch.from_numpy(index).to(self.device)
        return places if self._rows is None else self._rows[places]

    def _augmented(self, raw: Tensor, flip: Tensor | None, offset: Tensor | None) -> Tensor:
        if flip is None and offset is None:
            return raw
        channels, height, width = self.shape
        images = raw.view(len(raw), height, width, channels)
        if offset is not None:
            images = self._cropped(images, offset)
        if flip is None:
            return images.flatten(1)
        # Both are made and one is taken: to list those to be mirrored would wait for the device. Taken in the largest
        # pieces that an image is a whole number of: on a CPU single bytes take three times as long.
        size = height * width * channels
        wide = next(kind for kind in _WIDEST_FIRST if size % kind.itemsize == 0)
        plain, mirrored = (rows.flatten(1).view(wide) for rows in (images, images.flip(2)))
        return torch.where(flip[:, None], mirrored, plain).view(raw.dtype)

    def _cropped(self, images: Tensor, offset: Tensor) -> Tensor:
        count, height, width, channels = images.shape
        high, wide, places = height + 2 * self.padding, width + 2 * self.padding, 2 * self.padding + 1
        padded = images.new_zeros(count, high, wide, channels)  # black, as is usual
        padded[:, self.padding : self.padding + height, self.padding : self.padding + width] = images
        # Every window of every image as a view; indexing one window an image then copies whole rows.
        row, image = wide * channels, high * wide * channels
        windows = padded.as_strided((count, places, places, height, width * channels), (image, row, channels, row, 1))
        chosen = windows[torch.arange(count, device=self.device), offset[:, 0], offset[:, 1]]
        return chosen.view(count, height, width, channels)

    def _normalise(self, normalisation: Normalisation) -> None:
        mean, std = normalisation.mean.astype(np.float64), normalisation.std.astype(np.float64)
        repeats, unit = (int(np.prod(self.shape[1:])), 255.0) if len(self.shape) == 3 else (1, 1.0)
        # One row as long as a record: the channels' few numbers, broadcast inside a pixel, would not be vectorised.
        self._scale = self._row(1 / (unit * std), repeats)
        self._shift = self._row(-mean / std, repeats)

    def _row(self, values: NDArray[np.float64], repeats: int) -> Tensor:
        row = np.tile(values, repeats).astype(np.float32)
        return torch.from_numpy(row).to(self.device)[None]


class StackedRecords:
    """The records of K models, chosen from the same ones: batches of all models at once, equal to each one's own.

    Parameters
    ----------
    records
        Of each model, as many of each, all `Records.chosen` from the same.
    """

    def __init__(self, records: Sequence[Records]) -> None:
        self._first = records[0]
        rows = [part._rows for part in records if part._rows is not None and part._flat is self._first._flat]
        if len(rows) < len(records):
            raise ValueError("records that were not chosen from the same")
        self._rows = torch.stack(rows)
        self._scale = torch.stack([part._scale for part in records])
        self._shift = torch.stack([part._shift for part in records])

    def batch(self, index: Tensor, flip: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        """Give the normalised records as float32 [K, B, C, H, W] (channels last in memory) or [K, B, d].

        Parameters
        ----------
        index, flip, offset
            As in `Chosen`, for K models: positions among each model's records.
        """
        models, count = index.shape
        raw = self._first._flat.index_select(0, self._rows.gather(1, index).flatten())
        raw = self._first._augmented(
            raw, None if flip is None else flip.flatten(), None if offset is None else offset.flatten(0, 1)
        )
        x = torch.addcmul(self._shift, raw.view(models, count, -1).float(), self._scale)
        if len(self._first.shape) == 1:
            return x
        channels, height, width = self._first.shape
        return x.view(models, count, height, width, channels).permute(0, 1, 4, 2, 3)
