"""How much an audit spends on reference models, and what may be claimed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["quick", "standard", "thorough", "forensic"]


@dataclass(frozen=True)
class Preset:
    """A budget under one name.

    Parameters
    ----------
    shadows
        Reference models.
    canaries
        Records inserted to be found; 0: none.
    """

    shadows: int
    canaries: int = 0


PRESETS: dict[str, Preset] = {
    "quick": Preset(0),
    "standard": Preset(16),
    "thorough": Preset(64),
    "forensic": Preset(256, canaries=500),
}


def claim(shadows: int) -> str:
    """Say what an audit with so many reference models supports: from fewest to most, each says more than the last.

    The steps follow where published attacks stop gaining (Carlini et al. 2022, figure 9: a variance of its own for each
    record pays from about 64 models on).
    """
    if shadows == 0:
        return (
            "a screening: what attacks without reference models find. Attacks with reference models find more, so a "
            "low figure is no reassurance"
        )
    if shadows < 8:
        return (
            "how well an insider ranks members above non-members (AUC). For true-positive rates at low false-positive "
            "rates a record has too few models; 16 or more are better"
        )
    if shadows < 64:
        return (
            "what an insider finds, at false-positive rates down to what the non-members support, with a variance that "
            "records share; comparisons between recipes. Single records are told only where they stand out far"
        )
    if shadows < 256:
        return "figures of the strength that papers report: more models hardly raise them"
    return (
        "statements about single records too: how far each lies apart with and without it in training, with an interval"
    )
