"""Attacks that learn from known members: a server that knows what some clients trained on, and asks about the others.

They are cross-fitted over clients: what is said of a client's records was learnt from other clients alone. Each feature
is normalised by client and class first, so that what was learnt of one client means the same with the next.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Card, InformedAttack, Scores
from memberscope.attacks.federated import GLOBAL, UPDATES, FederatedAttack, PairAttack, by_client_and_class, rounds_of
from memberscope.attacks.federated_filter import ServerFilter
from memberscope.attacks.federated_global import GlobalLoss, GlobalLossDrop
from memberscope.attacks.federated_scores import ZCosine, ZLoss
from memberscope.attacks.federated_updates import Cosine, Dot, LocalLoss, LocalTrajectory, LossDrop
from memberscope.evidence import Evidence
from memberscope.knowledge import Knowledge
from memberscope.round_features import Floats
from memberscope.rounds import Rounds

FEW_ROUNDS = 5
"""Rounds that the features of Nasr et al. are taken from, spread over those that were seen."""


class Learned(FederatedAttack, InformedAttack):
    """Fits a classifier on features of pairs; a subclass lists the features."""

    _classifier: Any = None

    @abstractmethod
    def features(self, rounds: Rounds) -> list[Floats]:
        """Float64 [M] each; NaN where the client took no part in a round."""

    def fit(self, evidence: Evidence, member: NDArray[np.bool_]) -> None:
        """Learn from pairs of known membership."""
        rounds = rounds_of(evidence)
        rounds = rounds if self.about_clients else rounds.whoever()
        self._classifier = self.learn(self._columns(rounds, rounds.of_population())[0], rounds.labels, member)

    def both(self, rounds: Rounds, population: Rounds) -> tuple[Scores, Scores]:
        """Log-odds of both."""
        mine, theirs = self._columns(rounds, population)
        known = self.judge(theirs, population.labels) if len(theirs) else np.empty(0)
        return self.judge(mine, rounds.labels), known

    def learn(self, columns: Floats, labels: NDArray[np.int64], member: NDArray[np.bool_]) -> Any:
        """Fit on features [M, F]."""
        del labels
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        made = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-6))
        return made.fit(columns, member)

    def judge(self, columns: Floats, labels: NDArray[np.int64]) -> Scores:
        """Log-odds of features [M, F]."""
        del labels
        return np.asarray(self._classifier.decision_function(columns))

    def _columns(self, rounds: Rounds, population: Rounds) -> tuple[Floats, Floats]:
        mine = self.features(rounds)
        theirs = self.features(population) if population.n_pairs else [np.empty(0)] * len(mine)
        pairs = [
            _normal(a, rounds, b, population) if self.normalised else (a, b) for a, b in zip(mine, theirs, strict=True)
        ]
        both = [np.nan_to_num(np.column_stack(side)) for side in zip(*pairs, strict=True)]
        return both[0], both[1]


def _normal(values: Floats, rounds: Rounds, known: Floats, population: Rounds) -> tuple[Floats, Floats]:
    """A feature of candidates and of known non-members by client and class; rounds that a client missed stay NaN."""
    here, there = ~np.isnan(values), ~np.isnan(known)
    normal, level = np.full_like(values, np.nan), np.full_like(known, np.nan)
    asked, others = rounds.take(here), population.take(there)
    normal[here] = by_client_and_class(values[here], asked, known[there], others)
    if there.any():
        level[there] = by_client_and_class(known[there], others, known[there], others)
    return normal, level


class GlobalSeries(Learned):
    """Logistic regression on the series of global models."""

    name, title, needs = "fl-global-series-lr", "Learned from the series of global models", GLOBAL
    about_clients = False
    card = Card(
        "Gu, Bai, Xu, CS-MIA, 2022, supervised form; Zari, Xu, Neglia, 2021 (who fit a small network)",
        "logistic regression on phi under the global model of each round; cross-fitted over clients",
        "one forward pass a record and round, and the membership of other clients' records",
        "a global model tells that somebody trained on the record, never who",
    )

    def features(self, rounds: Rounds) -> list[Floats]:
        """Confidence before the first round and after each."""
        return [rounds.sent_phi()[0], *rounds.next_phi()]


class LocalSeries(Learned):
    """Logistic regression on the series of the client's models."""

    name, title, needs = "fl-local-series-lr", "Learned from the series of the client's models", UPDATES
    card = Card(
        "Zari, Xu, Neglia, Efficient passive membership inference attack in federated learning, 2021",
        "logistic regression on phi under the client's model of each round; cross-fitted over clients",
        "one forward pass a record, client and round, and the membership of other clients' records",
    )

    def features(self, rounds: Rounds) -> list[Floats]:
        """Confidence under the client's models."""
        return list(rounds.own("phi"))


class Stacked(Learned):
    """Logistic regression on the scores of other attacks."""

    name, title, needs = "fl-stacked-lr", "Learned combination of attacks", UPDATES
    card = Card(
        "stacking (Wolpert 1992) of the attacks listed here",
        "logistic regression on the scores of local loss and trajectory, loss drop, cosine, product, both z-scores, "
        "global loss and its fall; cross-fitted over clients",
        "as those attacks, and the membership of other clients' records",
        "needs three clients a round",
    )
    PARTS: tuple[type[PairAttack], ...] = (
        LocalLoss,
        LocalTrajectory,
        LossDrop,
        Cosine,
        Dot,
        ZCosine,
        ZLoss,
        GlobalLoss,
        GlobalLossDrop,
    )

    def features(self, rounds: Rounds) -> list[Floats]:
        """What these attacks score."""
        return [attack().compare(rounds) for attack in self.PARTS]


class Nasr(Learned):
    """Boosted trees on white-box features of a few rounds."""

    name, title, needs = "fl-nasr", "White-box features of a few rounds", UPDATES
    card = Card(
        "Nasr, Shokri, Houmansadr, IEEE S&P 2019: their features, with trees in place of their network",
        "gradient-boosted trees on loss (as phi) of global and client's model, gradient norm, each layer's part of the "
        "gradient-update cosine at five rounds, and the class; cross-fitted over clients",
        "one gradient a record and round, one forward pass a client, and the membership of other clients' records",
        "trees learn least where few members are known",
    )

    def features(self, rounds: Rounds) -> list[Floats]:
        """Per round, and of each layer."""
        chosen = np.unique(np.linspace(0, rounds.n_rounds - 1, FEW_ROUNDS).round().astype(int))
        series = [rounds.sent_phi(), rounds.own("phi"), rounds.log_gradient_norm()]
        series += [rounds.own(f"part-{part}") for part in range(rounds.features.n_parts)]
        return [values[t] for values in series for t in chosen]

    def learn(self, columns: Floats, labels: NDArray[np.int64], member: NDArray[np.bool_]) -> Any:
        """Fit trees, the class being one of the features."""
        from memberscope.attacks.trees import fit_trees

        return fit_trees(np.column_stack([columns, labels]), member, self.rng, categorical=[columns.shape[1]])

    def judge(self, columns: Floats, labels: NDArray[np.int64]) -> Scores:
        """Log-odds; ties are broken by the sum of the features."""
        from memberscope.attacks.trees import log_odds

        return log_odds(self._classifier, np.column_stack([columns, labels]), columns.sum(axis=1))


class StackedTrees(Nasr):
    """Boosted trees on the features of Nasr et al., the scores of other attacks and the matched filter."""

    name, title = "fl-stacked-trees", "White-box features and attacks, combined by trees"
    needs = UPDATES | {Knowledge.POPULATION}
    card = Card(
        "stacking (Wolpert 1992) of the attacks listed here and the features of Nasr, Shokri, Houmansadr, S&P 2019",
        f"gradient-boosted trees on what `{Nasr.name}` and `{Stacked.name}` learn from, and the score of "
        f"`{ServerFilter.name}`; cross-fitted over clients",
        "as those attacks, and the membership of other clients' records",
        "trees learn least where few members are known; needs three clients a round",
    )

    def _columns(self, rounds: Rounds, population: Rounds) -> tuple[Floats, Floats]:
        white_box, combined = super()._columns(rounds, population), Stacked()._columns(rounds, population)
        mine, theirs = ServerFilter().both(rounds, population)
        filtered = _normal(mine, rounds, theirs, population)
        first, second = (np.column_stack(parts) for parts in zip(white_box, combined, filtered, strict=True))
        return first, second
