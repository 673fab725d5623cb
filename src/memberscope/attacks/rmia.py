"""RMIA: how much likelier is a record under the target than under models that might or might not have seen it.

Zarifzadeh et al. 2024 (ICML), "Low-cost high-power membership inference attacks". Its score counts the population
records z whose ratio is beaten; for one target that is a step function of the record's own ratio ``p(x) / pbar(x)``, so
the attacks here score the logarithm of the ratio. The population then cannot add ties, costs nothing, and is left to
what it is good for: an absolute threshold (`rmia-offline-population`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.comparison import OFFLINE, ONLINE, Comparison, Played, ReferenceAttack, best_setting
from memberscope.attacks.population import above_population
from memberscope.errors import MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge
from memberscope.reference_signals import log_probability
from memberscope.signals import Floats

GRID = tuple(round(0.1 * i, 1) for i in range(11))
"""The values of `a` that are tried."""

DEFAULT_A = 0.3
"""Where too few reference models are there to tune on: the paper's value for CIFAR-10."""


def mean_probabilities(comparison: Comparison, temperature: float) -> tuple[Floats, Floats]:
    """Mean ``p_y`` of the IN and of the OUT models of every record, float64 [A, N] each.

    A record without IN models is given ``1 - r (1 - p_out)``, the paper's affine form with r from the other records;
    one without OUT models ``p_in`` times the ratio of the two mean probabilities. Where no record has an IN model, the
    first array is NaN.
    """
    p_in, p_out = comparison.references.mean_probability(temperature)
    has_in, has_out = comparison.references.n_in > 0, comparison.references.n_out > 0
    if not has_in.any() or (has_in & has_out).all():
        return p_in, p_out
    some_in, some_out = (has_in & has_out,) * 2 if (has_in & has_out).any() else (has_in, has_out)
    typical_in = p_in[:, some_in].mean(axis=1, keepdims=True)
    typical_out = p_out[:, some_out].mean(axis=1, keepdims=True)
    rest = np.minimum((1 - typical_in) / np.maximum(1 - typical_out, np.finfo(np.float64).eps), 1.0)
    guessed_in, guessed_out = 1 - rest * (1 - p_out), p_in * np.minimum(typical_out / typical_in, 1.0)
    return np.where(has_in, p_in, guessed_in), np.where(has_out, p_out, guessed_out)


def online_ratio(comparison: Comparison, temperature: float = 1.0) -> Floats:
    """``log p - log pbar`` with ``pbar = (mean IN + mean OUT) / 2``, float64 [A, N] (equation 2 of the paper).

    Where IN and OUT models are equally many, that is the mean over all of them. Where they are not, weighing the worlds
    instead of the models keeps a record's counts from moving its score.
    """
    p_in, p_out = mean_probabilities(comparison, temperature)
    return np.asarray(log_probability(comparison.phi(temperature)) - np.log(0.5 * (p_in + p_out)))


def offline_ratio(comparison: Comparison, a: float, temperature: float = 1.0) -> Floats:
    """``log p - log((1 + a) / 2 * mean OUT + (1 - a) / 2)``, float64 [A, N] (appendix B.2.2 of the paper)."""
    _, p_out = mean_probabilities(comparison, temperature)
    pbar = 0.5 * ((1 + a) * p_out + (1 - a))
    return np.asarray(log_probability(comparison.phi(temperature)) - np.log(pbar))


def pairwise_score(log_ratio_x: Floats, log_ratio_z: Floats, gamma: float = 1.0) -> Floats:
    """The published score: the share of the population with ``ratio(x) / ratio(z) > gamma``, float64 [N].

    Sorted once and searched, not N x Z pairs: the same numbers.
    """
    ordered = np.sort(log_ratio_z) + np.log(gamma)
    return np.searchsorted(ordered, log_ratio_x, side="left") / len(ordered)


_PAPER = "Zarifzadeh et al. 2024 (ICML)"
_COST = "from one reference model on; one query a record"
_TRAPS = (
    "the published score counts beaten population records, which for one target ranks as this ratio does but ties at "
    "the top (568 values for 2,000 records)"
)


class RmiaOnline(ReferenceAttack):
    """RMIA with IN and OUT models."""

    name = "rmia-online"
    title = "RMIA online"
    needs = ONLINE
    temperature = 1.0
    card = Card(
        f"{_PAPER}, section 3; BASE online (Lassila et al. 2025, NeurIPS) is the same number",
        "log p_y - log of the mean p_y over IN and over OUT models, each world weighing one half; averaged over "
        "queries",
        _COST,
        _TRAPS + ". Weighing models instead of worlds would let unequal counts move the score.",
    )

    def compare(self, comparison: Comparison) -> Scores:
        """Log-ratio, averaged over queries."""
        return np.asarray(online_ratio(comparison, self.temperature).mean(axis=0))


class RmiaOnlineT2(RmiaOnline):
    """RMIA with IN and OUT models at temperature 2."""

    name = "rmia-online(T=2)"
    title = "RMIA online, temperature 2"
    temperature = 2.0
    card = Card(
        f"{_PAPER}, section 3, with the softmax temperature of its CIFAR-10 experiments",
        "as rmia-online, of softmax(z / 2)",
        _COST,
        _TRAPS + ". Needs logits: a temperature acts on logarithms of probabilities just as well.",
    )


class RmiaOffline(ReferenceAttack):
    """RMIA with OUT models only."""

    name = "rmia-offline"
    title = "RMIA offline"
    temperature = 1.0
    card = Card(
        f"{_PAPER}, appendix B.2.2",
        "log p_y - log((1 + a) / 2 * mean p_y over OUT models + (1 - a) / 2), averaged over queries; a in 0, 0.1, ... "
        "1 is the one with the best AUC when reference models play the target; 0.3 where there are too few",
        _COST + "; OUT models only",
        _TRAPS + "; a = 1 is Watson's calibration of p_y and loses most of the attack; tuning a on the target's own "
        "membership, as some code does, flatters.",
    )

    def __init__(self, *, a: float | None = None, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng=rng)
        self.a = a

    def fit(self, played: Callable[[], list[Played]]) -> None:
        """Choose `a` on reference models that play the target, unless it was given."""
        if self.a is None:
            targets = played()
            self.a = best_setting(targets, GRID, self._score) if targets else DEFAULT_A

    def compare(self, comparison: Comparison) -> Scores:
        """Log-ratio, averaged over queries."""
        return self._score(comparison, DEFAULT_A if self.a is None else self.a)

    def _score(self, comparison: Comparison, a: float) -> Scores:
        return np.asarray(offline_ratio(comparison, a, self.temperature).mean(axis=0))


class RmiaOfflineT2(RmiaOffline):
    """RMIA with OUT models only, at temperature 2."""

    name = "rmia-offline(T=2)"
    title = "RMIA offline, temperature 2"
    temperature = 2.0
    card = Card(
        f"{_PAPER}, appendix B.2.2, with the softmax temperature of its CIFAR-10 experiments",
        "as rmia-offline, of softmax(z / 2)",
        _COST + "; OUT models only",
        RmiaOffline.card.traps,
    )


class RmiaOfflinePopulation(RmiaOffline):
    """RMIA with OUT models only, as the share of a population that a record beats."""

    name = "rmia-offline-population"
    title = "RMIA offline, against a population"
    needs = OFFLINE | {Knowledge.POPULATION}
    card = Card(
        f"{_PAPER}, equation 3 with gamma = 1",
        "share of known non-members with a smaller ratio; ties broken by the ratio, so it ranks as rmia-offline does. "
        "Calling records with a score of 1 - f or more members has false-positive rate f",
        _COST + "; OUT models only; a population that neither target nor reference models were trained on",
        "the population must be as the non-members are. It is compared with as many reference models as leave a record "
        "out: averaging more (or only the largest, as some code does) shifts the threshold. Released code uses the "
        "target's own non-members as population.",
    )

    def score(self, evidence: Evidence) -> Scores:
        """Compare the ratios of the records with those of the population."""
        if evidence.population_reference_logits is None or evidence.population_labels is None:
            raise MissingKnowledgeError(
                f"attack {self.name!r} needs the answers of the reference models on the population",
                "give population_reference_logits beside population_logits",
            )
        records = super().score(evidence)
        alike = max(1, int(np.median(evidence.references.n_out)))
        population = Evidence(
            np.asarray(evidence.population_logits),
            evidence.population_labels,
            queries=evidence.queries,
            reference_logits=evidence.population_reference_logits[:alike],
            reference_membership=np.zeros((alike, len(evidence.population_labels)), bool),
        )
        return above_population(records, self.compare(Comparison.of(population)))
