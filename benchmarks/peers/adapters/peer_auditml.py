"""auditml: threshold on the loss, and a classifier of answers that it teaches with shadow models.

It asks models itself: here a record is its own logits, and every model hands them through. Of the reference models the
shadow attack is given four, as many as it trains by default: it passes 50 times over all of their answers. Its loader
of data sets imports torchvision, which stored answers do not need: empty modules stand in for it.
"""

# ruff: noqa: E402 (the stand-ins come before the import that asks for them)

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main, stand_in

stand_in("torchvision", "torchvision.datasets", "torchvision.transforms")

from auditml.attacks.mia_shadow import ShadowMIA
from auditml.attacks.mia_threshold import ThresholdMIA
from torch.utils.data import DataLoader, TensorDataset

SHADOWS = 4


def _loaders(logits: np.ndarray, labels: np.ndarray, member: np.ndarray) -> list[DataLoader]:
    """Of members and of non-members."""
    return [
        DataLoader(TensorDataset(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows])), batch_size=256)
        for rows in (member, ~member)
    ]


def _scores(case: Case, attack: ThresholdMIA | ShadowMIA) -> np.ndarray:
    result = attack.run(*_loaders(case.logits, case.labels, case.member))
    scores = np.empty(len(case.labels))
    scores[case.member], scores[~case.member] = np.split(result.confidence_scores, [int(case.member.sum())])
    return scores


def _shadow(case: Case) -> np.ndarray:
    torch.manual_seed(0)
    answers = zip(case.reference_logits[:SHADOWS], case.reference_membership[:SHADOWS], strict=True)
    models = [(torch.nn.Identity(), *_loaders(logits, case.labels, inside)) for logits, inside in answers]
    attack = ShadowMIA(torch.nn.Identity(), shadow_models=models, num_classes=case.logits.shape[1])
    return _scores(case, attack)


if __name__ == "__main__":
    main(
        {
            "threshold (loss)": lambda case: _scores(case, ThresholdMIA(torch.nn.Identity(), metric="loss")),
            f"shadow classifier, {SHADOWS} models": _shadow,
        },
        version("auditml"),
    )
