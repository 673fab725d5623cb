"""Toy evidence on which every attack can be tried: made up, so that what is in it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from memberscope.evidence import Evidence

N, Z, K, C = 600, 400, 8, 4


@dataclass(frozen=True)
class Toy:
    """Evidence, and the truth that it must not tell when nothing leaks."""

    evidence: Evidence
    member: NDArray[np.bool_]


def _answers(
    confidence: NDArray[np.float64], labels: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Logits [..., N, C] whose phi is `confidence` [..., N], with the rest spread over the other classes at random."""
    others = rng.normal(0, 1, (*confidence.shape, C))
    np.put_along_axis(others, np.broadcast_to(labels[:, None], (*confidence.shape, 1)), -np.inf, axis=-1)
    logits = others - np.log(np.exp(others).sum(axis=-1, keepdims=True))
    np.put_along_axis(logits, np.broadcast_to(labels[:, None], (*confidence.shape, 1)), confidence[..., None], axis=-1)
    return logits


def _membership(k: int, n: int, design: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    if design == "balanced":
        return np.argsort(rng.random((k, n)), axis=0) < k // 2
    return rng.random((k, n)) < 0.5


def make_toy(
    *, leak: float = 0.0, design: str = "balanced", seed: int = 0, k: int = K, n: int = N, queries: int = 1
) -> Toy:
    """Records of unlike difficulty; training on one raises its confidence by `leak` standard deviations."""
    rng = np.random.default_rng(seed)
    labels, z_labels = rng.integers(0, C, n), rng.integers(0, C, Z)
    features, z_features = rng.normal(0, 1, (n, 3)), rng.normal(0, 1, (Z, 3))
    difficulty, z_difficulty = 2 + 1.5 * features[:, 0], 2 + 1.5 * z_features[:, 0]
    member, inside = rng.random(n) < 0.5, _membership(k, n, design, rng)
    everyone = np.concatenate([member[None], inside])[:, None]
    phi = difficulty + leak * everyone + rng.normal(0, 1, (k + 1, queries, n))
    z_phi = z_difficulty + rng.normal(0, 1, (k + 1, queries, Z))
    logits = _answers(phi, labels, rng).astype(np.float32)
    z_logits = _answers(z_phi, z_labels, rng).astype(np.float32)
    evidence = Evidence(
        logits[0],
        labels,
        queries=("none", "flip")[:queries],
        reference_logits=logits[1:],
        reference_membership=inside,
        population_logits=z_logits[0],
        population_labels=z_labels,
        population_reference_logits=z_logits[1:],
        record_features=features,
        population_features=z_features,
    )
    return Toy(evidence, member)


@pytest.fixture(scope="session")
def toy() -> Callable[..., Toy]:
    """Makes toys."""
    return make_toy


@pytest.fixture(scope="session")
def leaky() -> Toy:
    """A toy in which members are two standard deviations more confident."""
    return make_toy(leak=2.0)
