"""Tiny federations, trained once: one that is learnt by heart, and one in which there is nothing to find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from memberscope.evidence import Evidence
from memberscope.federated.features import FeatureWriter, extract, read_features
from memberscope.federated.prober import Prober
from memberscope.round_features import RoundFeatures
from memberscope.rounds import Reference, Rounds

Arrays = dict[str, NDArray[Any]]


def make_net(d: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 48), nn.ReLU(), nn.Linear(48, classes))


@dataclass
class Tiny:
    """The federation, in the words of a transcript; and the truth, which no attack gets."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    owner: NDArray[np.int32]
    member: NDArray[np.bool_]
    net: nn.Module
    only_sums: bool = False
    models: dict[int, Arrays] = field(default_factory=dict)
    replies: dict[int, dict[int, Arrays]] = field(default_factory=dict)
    sent_apart: dict[tuple[int, int], Arrays] = field(default_factory=dict)

    header: dict[str, Any] = field(default_factory=dict)
    view: str = "server"
    position: str = "between the server and its clients"
    strategy: str = "FedAvg"
    problems: tuple[str, ...] = ()
    tampered: tuple[str, ...] = ()
    observer: int | None = None
    keeps_models: bool = True

    def fingerprint(self, rounds: list[int]) -> str:
        return str(rounds)

    def asked(self, round_: int) -> list[int]:
        return self.clients_of(round_)

    def final(self) -> Arrays:
        return self.models[self.rounds[-1] + 1]

    @property
    def rounds(self) -> list[int]:
        return sorted(self.replies)

    def failures(self, round_: int) -> dict[int, str]:
        return {}

    def took_part(self, round_: int) -> list[int]:
        return self.clients_of(round_)

    def clients_of(self, round_: int) -> list[int]:
        return sorted(self.replies[round_])

    def num_examples(self, round_: int, client: int) -> float:
        return float(np.sum((self.owner == client) & self.member))

    def sent(self, round_: int) -> Arrays:
        return self.models[round_]

    def sent_to(self, round_: int, client: int) -> Arrays:
        return self.sent_apart.get((round_, client), self.models[round_])

    def received(self, round_: int, client: int) -> Arrays:
        return self.replies[round_][client]

    def sum(self, round_: int) -> Arrays:
        weights = {k: self.num_examples(round_, k) for k in self.clients_of(round_)}
        total = sum(weights.values())
        return {
            name: sum(weights[k] / total * self.replies[round_][k][name] for k in weights)
            for name in self.models[round_]
        }

    def aggregate(self, round_: int) -> Arrays | None:
        return self.models.get(round_ + 1)


def train_tiny(
    *,
    leak: bool = True,
    n_clients: int = 5,
    per_client: int = 120,
    population: int = 300,
    classes: int = 4,
    d: int = 24,
    rounds: int = 6,
    epochs: int = 4,
    skew: bool = False,
    seed: int = 0,
    absent: float = 0.0,
    coins: int | None = None,
) -> Tiny:
    """Train by FedAvg on labels that only memory can learn. Without `leak` clients train on records of nobody here."""
    rng = np.random.default_rng(seed)
    n = n_clients * per_client + population
    y = rng.integers(0, classes, n)
    x = (rng.normal(0, 1, (n, d)) + 0.8 * np.eye(classes, d)[y]).astype(np.float32)
    owner = np.repeat(np.r_[np.arange(n_clients), -1], [*[per_client] * n_clients, population]).astype(np.int32)
    if skew:  # client k holds its own class, mostly
        held = owner >= 0
        y[held] = np.where(rng.random(held.sum()) < 0.8, owner[held] % classes, y[held])
        x[held] = (rng.normal(0, 1, (held.sum(), d)) + 0.8 * np.eye(classes, d)[y[held]]).astype(np.float32)
    member = (rng.random(n) < 0.5) & (owner >= 0)
    if coins is not None:
        member = (np.random.default_rng(coins).random(n) < 0.5) & (owner >= 0)
    net = make_net(d, classes)
    other = rng.normal(0, 1, x.shape).astype(np.float32) + 0.8 * np.eye(classes, d, dtype=np.float32)[y]
    tiny = Tiny(x, y, owner, member, net)
    trained = x if leak else other
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        model = _arrays(net)
        for round_ in range(1, rounds + 1):
            tiny.models[round_] = model
            tiny.replies[round_] = {}
            for k in range(n_clients):
                if absent and rng.random() < absent and len(tiny.replies[round_]) + n_clients - k > 3:
                    continue
                rows = np.flatnonzero((owner == k) & member)
                tiny.replies[round_][k] = _train(net, model, trained[rows], y[rows], epochs, rng)
            model = tiny.sum(round_)
        tiny.models[rounds + 1] = model
    return tiny


def _arrays(net: nn.Module) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}


def _train(
    net: nn.Module, start: Arrays, x: NDArray[Any], y: NDArray[Any], epochs: int, rng: np.random.Generator
) -> Arrays:
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(x)), max(1, len(x) // 20)):
            loss = nn.functional.cross_entropy(net(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _arrays(net)


def prober_of(tiny: Tiny, classes: int = 4) -> Prober:
    x = torch.from_numpy(tiny.x)
    return Prober(make_net(tiny.x.shape[1], classes), lambda start, end: x[start:end], tiny.y)


def features_of(tiny: Tiny, folder: Path, classes: int = 4) -> tuple[RoundFeatures, NDArray[np.float32]]:
    extract(tiny, FeatureWriter(prober_of(tiny, classes), folder, {}))
    return read_features(folder, tiny.y)


def evidence_of(
    tiny: Tiny, folder: Path, classes: int = 4, references: tuple[Reference, ...] = ()
) -> tuple[Evidence, NDArray[np.bool_]]:
    """Every owned record with its owner; records of nobody are the population."""
    features, logits = features_of(tiny, folder, classes)
    owned, nobody = np.flatnonzero(tiny.owner >= 0), np.flatnonzero(tiny.owner < 0)
    rounds = Rounds(
        features, tiny.owner[owned].astype(np.int64), owned, nobody, learning_rate=0.1, references=references
    )
    evidence = Evidence(
        logits[None, owned],
        tiny.y[owned],
        rounds=rounds,
        population_logits=logits[None, nobody],
        population_labels=tiny.y[nobody],
    )
    return evidence, tiny.member[owned]


def references_of(folders: pytest.TempPathFactory, coins: Iterable[int], **settings: Any) -> tuple[Reference, ...]:
    """Federations of the same records with other coins."""
    trained = [train_tiny(coins=coin, **settings) for coin in coins]
    return tuple(
        Reference(features_of(tiny, folders.mktemp("reference"))[0], tiny.owner, tiny.member) for tiny in trained
    )


@pytest.fixture(scope="session")
def overfit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, NDArray[np.bool_]]:
    return evidence_of(
        train_tiny(), tmp_path_factory.mktemp("overfit"), references=references_of(tmp_path_factory, range(4))
    )


@pytest.fixture(scope="session")
def without_leak(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Evidence, NDArray[np.bool_]]]:
    return [
        evidence_of(
            train_tiny(leak=False, per_client=200, rounds=3, seed=seed),
            tmp_path_factory.mktemp("null"),
            references=references_of(tmp_path_factory, range(2), leak=False, per_client=200, rounds=3, seed=seed),
        )
        for seed in range(3)
    ]


@pytest.fixture(scope="session")
def tiny_federation() -> Callable[..., Tiny]:
    """Trains a tiny federation."""
    return train_tiny


@pytest.fixture(scope="session")
def tiny_prober() -> Callable[..., Prober]:
    """Asks models of a tiny federation."""
    return prober_of


@pytest.fixture(scope="session")
def tiny_evidence() -> Callable[..., tuple[Evidence, NDArray[np.bool_]]]:
    """Extracts the features of a tiny federation."""
    return evidence_of
