"""The attacks on the rounds of a federation, by seat."""

from __future__ import annotations

from memberscope.attacks.base import Attack
from memberscope.attacks.federated import FederatedAttack, raw
from memberscope.attacks.federated_fedmia import FedMiaCosine, FedMiaLoss
from memberscope.attacks.federated_filter import GlobalFilter, ServerFilter, SumFilter, UpdateFilter
from memberscope.attacks.federated_global import GlobalGradientNorm, GlobalLoss, GlobalLossDrop, GlobalTrajectory
from memberscope.attacks.federated_learned import GlobalSeries, LocalSeries, Nasr, Stacked, StackedTrees
from memberscope.attacks.federated_references import ReferenceSeries
from memberscope.attacks.federated_scores import ZCosine, ZLoss
from memberscope.attacks.federated_sums import SumCosine, SumDot
from memberscope.attacks.federated_updates import (
    Cosine,
    Dot,
    DotOverLength,
    GradientDifference,
    LocalLoss,
    LocalTrajectory,
    LossDrop,
)

FEDERATED: tuple[type[FederatedAttack], ...] = (
    GlobalLoss,
    GlobalTrajectory,
    GlobalLossDrop,
    GlobalGradientNorm,
    GlobalFilter,
    GlobalSeries,
    SumCosine,
    SumDot,
    SumFilter,
    LocalLoss,
    LocalTrajectory,
    LossDrop,
    Cosine,
    Dot,
    DotOverLength,
    GradientDifference,
    FedMiaLoss,
    FedMiaCosine,
    ZCosine,
    ZLoss,
    UpdateFilter,
    ServerFilter,
    LocalSeries,
    Stacked,
    Nasr,
    StackedTrees,
    ReferenceSeries,
)
"""Attacks on the rounds of a federation, from the weakest seat to the strongest."""

FIXED = (GlobalFilter.name, SumFilter.name, ServerFilter.name)
"""Of each seat the attack fixed in advance, from the weakest seat to the strongest."""


def named() -> dict[str, type[Attack]]:
    """All of them by name, the raw ones too."""
    return {attack.name: attack for attack in (*FEDERATED, *(raw(attack) for attack in FEDERATED))}
