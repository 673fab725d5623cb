"""An example of a package that extends memberscope without touching it: a dataset, a model, a defense, two attacks."""

from __future__ import annotations

import numpy as np
import torch

from memberscope.attacks.base import Attack, Card, Scores
from memberscope.attacks.comparison import OFFLINE, Comparison, ReferenceAttack
from memberscope.data_loader import Dataset, DatasetEntry, Request
from memberscope.defenses.base import Card as DefenseCard
from memberscope.defenses.base import DataDefense
from memberscope.evidence import Evidence, Knowledge


def load_stripes(request: Request) -> Dataset:
    """Bright and dark images."""
    del request  # nothing to read
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (rng.random((400, 1, 8, 8)) * 128 + 64 * y[:, None, None, None]).astype(np.uint8)
    return Dataset(
        name="stripes",
        x=x,
        y=y,
        classes=("dark", "bright"),
        is_train=np.arange(400) < 200,
        source="made by load_stripes",
        verified=True,
    )


stripes = DatasetEntry(load_stripes, "Stripes", "bright and dark images, 400 records")


class SecondLook(Attack):
    """A record whose class leaves the runner-up far behind is called a member."""

    name = "second-look"
    title = "Margin over the runner-up class"
    needs = frozenset({Knowledge.PROBABILITIES})
    card = Card("your paper, section", "p_(1) - p_(2)", "one query a record", "known traps")

    def score(self, evidence: Evidence) -> Scores:
        """Margin, first query."""
        return evidence.signals.top_two_gap


class OddsAgainstMedian(ReferenceAttack):
    """A record that the target is surer of than most models without it is called a member."""

    name = "odds-against-median"
    title = "Log-odds against the median of OUT models"
    needs = OFFLINE
    card = Card("your paper, section", "phi - median phi over OUT models", "reference models", "known traps")

    def compare(self, comparison: Comparison) -> Scores:
        """Difference from the median, averaged over queries."""
        _, outside = comparison.references.medians()
        return np.asarray((comparison.phi() - np.nan_to_num(outside)).mean(axis=0))


class NoisyLabels(DataDefense):
    """Some of the labels of each batch are taken away, as many as ``--defenses noisy-labels=SHARE`` says."""

    name = "noisy-labels"
    title = "take this share of the labels away in each batch"
    card = DefenseCard("your paper, section", "uniform labels with probability s", "none", "known traps")
    per_record = True

    def alter(
        self, x: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a coin says so, every class is as likely."""
        drawn = torch.from_numpy(rng.random(len(x)) < self.strength).to(x.device)
        uniform = torch.full_like(targets, 1 / targets.shape[1])
        return x, torch.where(drawn[:, None], uniform, targets)


def make(n_classes: int, in_channels: int) -> torch.nn.Module:
    """A linear model, for ``--model stripes_package:make``."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * in_channels, n_classes))
