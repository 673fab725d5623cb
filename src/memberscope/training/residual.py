"""Residual networks for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, sections 4.1 and 4.2) as is usual for 32x32 images: 3x3 stem, no first pooling.

    Parameters
    ----------
    channels
        Of the images.
    n_classes
        Number of classes.
    dropout
        Share of the 512 pooled activations zeroed in training.
    """

    def __init__(self, channels: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        widths, blocks = (64, 64, 128, 256, 512), []
        for i in range(4):
            stride = 1 if i == 0 else 2
            blocks += [_Basic(widths[i], widths[i + 1], stride), _Basic(widths[i + 1], widths[i + 1], 1)]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, n_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x [B, C, H, W]."""
        x = self.blocks(torch.relu(self.norm(self.conv(x))))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016, table 1): pre-activation blocks in three groups.

    Parameters
    ----------
    channels
        Of the images.
    n_classes
        Number of classes.
    dropout
        Share of the pooled activations zeroed in training.
    depth
        6n + 4: n blocks a group.
    widen
        The groups are 16, 32 and 64 times this wide.
    """

    def __init__(self, channels: int, n_classes: int, dropout: float = 0.0, *, depth: int, widen: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        widths, blocks = (16, 16 * widen, 32 * widen, 64 * widen), []
        for i in range(3):
            stride = 1 if i == 0 else 2
            blocks.append(_PreActivation(widths[i], widths[i + 1], stride))
            blocks += [_PreActivation(widths[i + 1], widths[i + 1], 1) for _ in range((depth - 4) // 6 - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], n_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images x [B, C, H, W]."""
        x = torch.relu(self.norm(self.blocks(self.conv(x))))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


class _Basic(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            projection = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _PreActivation(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        projected = stride != 1 or inside != outside
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        y: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
