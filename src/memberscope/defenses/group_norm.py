"""Group normalisation in place of batch normalisation."""

from __future__ import annotations

import math

from torch import nn

_GROUPS = 32


def without_batch_norm(module: nn.Module) -> nn.Module:
    """Replace each batch normalisation by a group normalisation of as many channels, in place.

    32 groups, or the largest divisor of the channels below (Wu & He 2018; as Opacus' ModuleValidator does, which takes
    the greatest common divisor). Running statistics fall away with it.
    """
    for name, part in module.named_children():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            channels = part.num_features
            norm = nn.GroupNorm(math.gcd(_GROUPS, channels), channels, eps=part.eps, affine=part.affine)
            setattr(module, name, norm)
        else:
            without_batch_norm(part)
    return module
