"""Rank fusion: two attacks that err differently, averaged without labels and without training."""

from __future__ import annotations

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import ONLINE, Comparison, ReferenceAttack
from memberscope.attacks.eb_lira import EbLira
from memberscope.attacks.rmia import RmiaOnlineT2
from memberscope.signals import Floats


def rank_shares(scores: Floats) -> Floats:
    """Share of the records below each, ties counted half, float64 [N] in (0, 1)."""
    n = len(scores)
    order = np.argsort(scores)
    ordered = scores[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of each run of equal scores
    middle = 0.5 * (first + np.append(first[1:], n))
    shares = np.empty(n)
    shares[order] = np.repeat(middle / n, np.diff(np.append(first, n)))
    return shares


class RankFusion(ReferenceAttack):
    """Mean of the ranks of EB-LiRA and RMIA online."""

    name = "rank-fusion"
    title = "Rank fusion of EB-LiRA and RMIA online"
    needs = ONLINE
    card = Card(
        "this tool; no publication yet",
        "mean of the ranks of lira-online-eb and rmia-online(T=2) among the records under audit",
        "K reference models; one query a record; no fit",
        "experimental. A score depends on which other records are audited with it.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Mean rank."""
        first, second = EbLira().compare(comparison), RmiaOnlineT2().compare(comparison)
        n = comparison.references.n_records
        # Two records may share a mean rank: a tenth of a rank, by EB-LiRA, sets them apart.
        tie_break = 0.1 / n * (rank_shares(first) - 0.5)
        return np.asarray(0.5 * (rank_shares(first) + rank_shares(second)) + tie_break)
