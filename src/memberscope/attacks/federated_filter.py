"""A matched filter over rounds and layers, weighted without knowing a single member.

1. Every observation of a pair (a round, a layer) is predicted from what it would be for any non-member: the other
   clients' observations of the record, its confidence and gradient norm under the global model, its class. The
   coefficients come from records known to be nobody's, client by client. What is left over is the residual.
2. Rounds and layers are not equally telling, and their residuals are correlated. The best linear weights for a shift d
   in noise of covariance S are the matched filter's, d / S. S is that of the known non-members. d is how far the
   candidates lie from them on average: members are among the candidates, so d points where members are, whatever their
   share, and nobody has to be told who they are. Observations are turned so that members score higher; as far as d is
   noise it is drawn towards one positive value for all of them, and it is never negative. A client that missed rounds
   gets weights for those that it took part in.

Each seat observes what a client does, and more. docs/federated_attacks.md says what it was chosen on, and how it
does elsewhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memberscope.attacks.base import Card, Scores
from memberscope.attacks.federated import GLOBAL, SUMS, UPDATES, FederatedAttack
from memberscope.errors import EvidenceError
from memberscope.knowledge import Knowledge
from memberscope.round_features import Floats
from memberscope.rounds import Rounds

SHRINKAGE = 0.1
"""Of the covariance towards a multiple of the identity: there may be as many observations as known non-members."""

_RIDGE_OF_CLASSES = 1.0

Observation = tuple[Floats, tuple[Floats, ...]]
"""A figure of every pair, float64 [M] (NaN: the client took no part), and what predicts it, float64 [M] each."""

_HOW = "weights = S^-1 d: S covariance of known non-members' residuals, d shift of the candidates' mean from theirs"
_TRAP = (
    "needs records known to be nobody's and drawn like the candidates: a difference between the two is taken for the "
    "mark of members"
)


class Filter(FederatedAttack):
    """A matched filter; a subclass lists its observations."""

    @abstractmethod
    def observations(self, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
        """One after the other, in the same order for every set of pairs.

        `phi` and `norm` are confidence and log gradient norm under the global model that each round began with, `after`
        the confidence under the one that came out of it, float64 [T, M].
        """

    def both(self, rounds: Rounds, population: Rounds) -> tuple[Scores, Scores]:
        """Residuals of both, weighted."""
        if not population.n_pairs:
            raise EvidenceError("no records are known to be nobody's", "set some aside as a population")
        of_each = (
            self.observations(some, some.sent_phi(), some.log_gradient_norm(), some.next_phi())
            for some in (rounds, population)
        )
        pairs = zip(*of_each, strict=True)
        found = [_residuals(mine, rounds, theirs, population) for mine, theirs in pairs]
        residual, known = (np.stack(part) for part in zip(*found, strict=True))
        shift, covariance = signal_and_noise(residual, known, noise=1 / rounds.n_pairs + 1 / len(rounds.population))
        mine, theirs = np.zeros(rounds.n_pairs), np.zeros(population.n_pairs)
        for client in np.unique(rounds.client):
            here, there = rounds.client == client, population.client == client
            seen = ~np.isnan(residual[:, here]).all(axis=1)  # a client has no observations in rounds that it missed
            weights = filter_weights(shift[seen], covariance[np.ix_(seen, seen)])
            mine[here] = weights @ np.nan_to_num(residual[np.ix_(seen, here)])
            theirs[there] = weights @ np.nan_to_num(known[np.ix_(seen, there)])
        return mine, theirs


class GlobalFilter(Filter):
    """On the series of global models."""

    name, title = "fl-global-matched-filter", "Matched filter over the global models"
    needs = GLOBAL | {Knowledge.POPULATION}
    about_clients = False
    card = Card(
        "this project; the series of CS-MIA (Gu, Bai, Xu 2022) calibrated by an early global model",
        f"phi and log gradient norm of each round less their prediction from the first; {_HOW}",
        "one forward and one backward pass a record and round",
        _TRAP,
    )

    def observations(self, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
        """Confidence after each round, and the gradient norm before it, given those at the start."""
        return _of_global_models(rounds, phi, norm, after)


class SumFilter(Filter):
    """On the sums of updates."""

    name, title = "fl-sum-matched-filter", "Matched filter over rounds and layers, from sums"
    needs = SUMS | {Knowledge.POPULATION}
    about_clients = False
    card = Card(
        "this project; the gradient-update cosine of Li, Li, Ribeiro, ICLR 2023, by layer, on sums",
        "each layer's part of the cosine less its prediction from the global model, and what "
        f"`{GlobalFilter.name}` observes; {_HOW}",
        "one gradient a record and round",
        _TRAP,
    )

    def observations(self, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
        """Each layer's part of the cosine, given confidence and gradient norm there; and the global models."""
        for part in rounds.sum_parts():
            for t in range(rounds.n_rounds):
                yield part[t], (phi[t], norm[t])
        yield from _of_global_models(rounds, phi, norm, after)


class UpdateFilter(Filter):
    """On every client's update alone, which tells clients apart."""

    name, title = "fl-update-matched-filter", "Matched filter over the client's updates"
    needs = UPDATES | {Knowledge.POPULATION}
    card = Card(
        "this project; the gradient-update cosine of Li, Li, Ribeiro, ICLR 2023, by layer, compared among clients as "
        "in FedMIA (Zhu et al., CVPR 2025)",
        f"each layer's part of the cosine less its prediction from the other clients and the global model; {_HOW}",
        "one gradient a record and round, for all clients together",
        _TRAP,
    )

    def observations(self, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
        """Each layer's part of the cosine, given the other clients', and confidence and gradient norm."""
        for part in range(rounds.features.n_parts):
            yield from _given_the_others(f"part-{part}", rounds, phi, norm, after)


class ServerFilter(UpdateFilter):
    """On every client's update and model, and the global models: all that a server sees."""

    name, title = "fl-matched-filter", "Matched filter over rounds and layers"
    card = Card(
        UpdateFilter.card.paper,
        f"what `{UpdateFilter.name}` and `{GlobalFilter.name}` observe, and phi under the client's model less its "
        f"prediction from the other clients' and the global models; {_HOW}",
        f"{UpdateFilter.card.cost}, and one forward pass a client",
        f"{_TRAP}; the global models do not tell whose a record is",
    )

    def observations(self, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
        """Those of both, and the confidence of the client's model, given the other clients'."""
        yield from super().observations(rounds, phi, norm, after)
        yield from _given_the_others("phi", rounds, phi, norm, after)
        yield from _of_global_models(rounds, phi, norm, after)


def _given_the_others(name: str, rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
    own, others = rounds.own(name), rounds.others(name).mean
    for t in range(rounds.n_rounds):
        yield own[t], (np.nan_to_num(others[t]), phi[t], norm[t], after[t])


def _of_global_models(rounds: Rounds, phi: Floats, norm: Floats, after: Floats) -> Iterator[Observation]:
    start = (phi[0], norm[0])
    for t in range(rounds.n_rounds):
        yield after[t], start
        if t:
            yield -norm[t], (phi[0], -norm[0])


def _residuals(mine: Observation, rounds: Rounds, theirs: Observation, population: Rounds) -> tuple[Floats, Floats]:
    """What is left of an observation of candidates [M] and of known non-members [Q], in units of the latter's spread.

    Predicted client by client, by least squares on the known non-members, with a level for each class.
    """
    (value, given), (level, known) = mine, theirs
    residual, left = np.full_like(value, np.nan), np.full_like(level, np.nan)
    classes = int(max(rounds.labels.max(), population.labels.max())) + 1
    penalty = np.diag([1e-6] * len(given) + [_RIDGE_OF_CLASSES] * classes)
    for client in np.unique(rounds.client):
        here = (rounds.client == client) & ~np.isnan(value)
        there = (population.client == client) & ~np.isnan(level)
        if not here.any():
            continue
        centre = [float(k[there].mean()) for k in known]
        scale = [max(float(k[there].std()), 1e-12) for k in known]

        def design(
            columns: tuple[Floats, ...],
            labels: NDArray[np.int64],
            rows: NDArray[np.bool_],
            centre: list[float] = centre,
            scale: list[float] = scale,
        ) -> Floats:
            numbers = [(c[rows] - m) / s for c, m, s in zip(columns, centre, scale, strict=True)]
            return np.column_stack([*numbers, np.eye(classes)[labels[rows]]])

        x = design(known, population.labels, there)
        coefficients = np.linalg.solve(x.T @ x + penalty, x.T @ level[there])
        rest = level[there] - x @ coefficients
        spread = max(float(rest.std()), 1e-12)
        left[there] = rest / spread
        residual[here] = (value[here] - design(given, rounds.labels, here) @ coefficients) / spread
    return residual, left


def signal_and_noise(residual: Floats, known: Floats, noise: float) -> tuple[Floats, Floats]:
    """How far candidates lie from known non-members, float64 [R], and the covariance of the latter, float64 [R, R].

    From residuals of candidates [R, M] and of known non-members [R, Q]. `noise` is the variance of a shift that is
    nothing but chance, residuals having variance 1.
    """
    there = ~np.isnan(known)
    filled = np.where(there, known, 0.0)
    counts = there.astype(np.float64) @ there.T
    covariance = filled @ filled.T / np.maximum(counts, 1.0)
    size = len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / size * np.eye(size)
    seen = ~np.isnan(residual)
    shift = np.where(seen, residual, 0.0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    shift -= filled.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    common = max(float(shift.mean()), noise**0.5)
    drawn = min(1.0, noise / max(float(np.mean((shift - common) ** 2)), 1e-300))
    return np.maximum(drawn * common + (1 - drawn) * shift, 0.0), covariance


def filter_weights(shift: Floats, covariance: Floats) -> Floats:
    """The matched filter, float64 [R], of a shift [R] in noise of a covariance [R, R]."""
    # Where clients miss rounds the covariance is pieced together from pairs of rounds and may not be positive.
    values, vectors = np.linalg.eigh(covariance)
    least = max(SHRINKAGE * float(values.mean()), 1e-12)  # of clients that do not learn nothing is left over
    return np.asarray(vectors @ ((vectors.T @ shift) / np.maximum(values, least)))
