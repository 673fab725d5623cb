"""One seed, one random generator for each purpose: adding an attack changes no membership, no batch and no fold."""

from __future__ import annotations

import zlib

import numpy as np

PURPOSES = (
    "membership",
    "training",
    "attacks",
    "nulls",
    "evaluation",
    "blind",
    "references",
    "canaries",
    "partition",
    "subset",
)
"""The order is part of every result: new purposes go to the end."""


def sequence(seed: int, purpose: str, name: str = "") -> np.random.SeedSequence:
    """The seed sequence of a purpose, and within it of a named part (an attack, a client)."""
    key = (PURPOSES.index(purpose), zlib.crc32(name.encode())) if name else (PURPOSES.index(purpose),)
    return np.random.SeedSequence(seed, spawn_key=key)


def generator(seed: int, purpose: str, name: str = "") -> np.random.Generator:
    """A generator for one purpose; equal arguments give equal streams, different ones independent streams."""
    return np.random.default_rng(sequence(seed, purpose, name))
