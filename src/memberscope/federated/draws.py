"""Flower draws from the generators that all of Python shares: here they follow from the federation's seed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np

from memberscope import seeds


@contextlib.contextmanager
def global_draws(seed: int, name: str) -> Iterator[None]:
    """Inside the block `random` and NumPy's global generator, which Flower draws from, follow from the seed."""
    before, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    state = seeds.sequence(seed, "training", name).generate_state(2, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)  # noqa: NPY002
