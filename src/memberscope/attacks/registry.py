"""The attacks by name; third parties add theirs by the entry point group ``memberscope.attacks``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points

from memberscope.attacks.base import Attack
from memberscope.attacks.base_score import BaseOfflineT2
from memberscope.attacks.bayes_lira import LiraOfflineBayes, LiraOnlineBayes
from memberscope.attacks.calibration import AttackR, DifficultyCalibration, DifficultyMidpoint, DifficultyMidpointPhi
from memberscope.attacks.class_calibrated import ClassCalibratedModifiedEntropy
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.ensemble import Ensemble, TaughtFusion
from memberscope.attacks.federated_registry import FIXED
from memberscope.attacks.federated_registry import named as federated_attacks
from memberscope.attacks.four_features import BoostedTreesFourFeatures, LogisticRegressionFourFeatures
from memberscope.attacks.fusion import RankFusion
from memberscope.attacks.imitation import DistillationTrajectory, Imia
from memberscope.attacks.label_only import AugmentationRobustness, BoundaryDistance, NoiseRobustness
from memberscope.attacks.label_only_taught import TaughtAugmentationRobustness, TunedNoiseRobustness
from memberscope.attacks.lira import (
    LiraOfflineOneSided,
    LiraOfflineOneSidedPerRecord,
    LiraOfflineTwoSided,
    LiraOnlinePerRecord,
    LiraOnlinePooled,
)
from memberscope.attacks.population import AttackP
from memberscope.attacks.quantile_regression import QuantileRegression
from memberscope.attacks.rapid import Rapid
from memberscope.attacks.rmia import RmiaOffline, RmiaOfflinePopulation, RmiaOfflineT2, RmiaOnline, RmiaOnlineT2
from memberscope.attacks.shokri import ShadowClassifier
from memberscope.attacks.threshold import (
    Confidence,
    CorrectnessGap,
    Entropy,
    Hinge,
    LogitScaledConfidence,
    Loss,
    ModifiedEntropy,
)
from memberscope.attacks.white_box import InputGradientNorm, WeightGradientNorm, WhiteBoxClassifier
from memberscope.entry_points import class_of
from memberscope.errors import ConfigError

ENTRY_POINT_GROUP = "memberscope.attacks"

HEADLINE = TaughtFusion.name
"""The attack that an audit with reference models answers by, fixed here and not by what does best on its records."""

HEADLINES = (HEADLINE, *FIXED)
"""The attacks fixed in advance, from the weakest adversary to the strongest, which is the server of a federation."""

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        LogisticRegressionFourFeatures,
        BoostedTreesFourFeatures,
        CorrectnessGap,
        NoiseRobustness,
        AugmentationRobustness,
        BoundaryDistance,
        Loss,
        LogitScaledConfidence,
        Hinge,
        Confidence,
        Entropy,
        ModifiedEntropy,
        AttackP,
        QuantileRegression,
        ClassCalibratedModifiedEntropy,
        ShadowClassifier,
        DifficultyCalibration,
        AttackR,
        LiraOfflineOneSided,
        LiraOfflineOneSidedPerRecord,
        LiraOfflineTwoSided,
        LiraOfflineBayes,
        RmiaOffline,
        RmiaOfflineT2,
        RmiaOfflinePopulation,
        BaseOfflineT2,
        Rapid,
        DifficultyMidpoint,
        DifficultyMidpointPhi,
        LiraOnlinePooled,
        LiraOnlinePerRecord,
        LiraOnlineBayes,
        EbLira,
        RmiaOnline,
        RmiaOnlineT2,
        RankFusion,
        Ensemble,
        TaughtFusion,
        TunedNoiseRobustness,
        TaughtAugmentationRobustness,
        Imia,
        DistillationTrajectory,
        WeightGradientNorm,
        InputGradientNorm,
        WhiteBoxClassifier,
    )
}
ATTACKS |= federated_attacks()


@cache
def all_attacks() -> dict[str, type[Attack]]:
    """Our attacks and those that installed packages add, by name.

    Raises
    ------
    ConfigError
        An entry point that cannot be loaded, is not a complete attack, or takes a name that is in use.
    """
    found = dict(ATTACKS)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        attack: type[Attack] = class_of(point, Attack, ("name", "title", "needs", "card"))
        if attack.name in found:
            raise ConfigError(
                f"entry point {point.name!r} takes the attack name {attack.name!r}, which is in use", "rename it"
            )
        found[attack.name] = attack
    return found


def get_attack(name: str) -> type[Attack]:
    """The attack of this name.

    Raises
    ------
    ConfigError
        No such attack; the nearest names are given.
    """
    attacks = all_attacks()
    if name in attacks:
        return attacks[name]
    near = difflib.get_close_matches(name, attacks, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`memberscope list attacks` shows them all"
    raise ConfigError(f"unknown attack {name!r}", hint)
