"""Defenses that mix the records of a batch: mixup and CutMix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from memberscope.defenses.base import Card, DataDefense

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Mixup(DataDefense):
    """One share a batch, drawn from Beta(mixup, mixup); each record with another one of the batch."""

    name = "mixup"
    title = "train on weighted means of two records and of their labels; the weights are Beta(mixup, mixup)"
    settings = ("mixup",)
    clashes: ClassVar[Mapping[str, str]] = {"cutmix": "each mixes the records of a batch, and their labels, by its own"}
    card = Card(
        "Zhang et al. 2018 (ICLR), equation 2; as a defense Kaya & Dumitras 2021 (ICML)",
        "x = s x_i + (1 - s) x_j, y = s y_i + (1 - s) y_j, s ~ Beta(mixup, mixup)",
        "a few per cent of the training time; more epochs are needed for the same training accuracy",
        "pure records are never seen, but their labels are still fitted: judge it with reference models",
    )

    def alter(self, x: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Zhang et al. 2018, equation 2, with j a permutation of the batch, as in their code."""
        import torch

        share = float(rng.beta(self.recipe.mixup, self.recipe.mixup))
        other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        return torch.lerp(x[other], x, share), torch.lerp(targets[other], targets, share)


class CutMix(DataDefense):
    """One rectangle a batch, taken from another record of it; labels are weighted by area."""

    name = "cutmix"
    title = "paste a rectangle of another image, its share of the area 1 - Beta(cutmix, cutmix); labels follow the area"
    settings = ("cutmix",)
    images = True
    card = Card(
        "Yun et al. 2019 (ICCV), section 3.1 and appendix A",
        "x = M x_i + (1 - M) x_j with a rectangle 1 - M, y = s y_i + (1 - s) y_j, s the area of M",
        "a few per cent of the training time",
        "as mixup",
    )

    def alter(self, x: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The rectangle's centre is uniform over the image; what of it lies outside is cut off."""
        import torch

        keep = float(rng.beta(self.recipe.cutmix, self.recipe.cutmix))
        other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        top, bottom = _span(x.shape[2], keep, rng)
        left, right = _span(x.shape[3], keep, rng)
        x[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
        return x, torch.lerp(targets[other], targets, share)


def _span(size: int, keep: float, rng: np.random.Generator) -> tuple[int, int]:
    """First and last + 1 of the cut along one side."""
    half = int(size * (1 - keep) ** 0.5) // 2
    centre = int(rng.integers(size))
    return max(0, centre - half), min(size, centre + half)
