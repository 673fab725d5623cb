"""What an adapter is run by: `python adapters/NAME.py CASE.npz FOLDER LIMIT [ATTACK... | -]`. Needs NumPy alone.

Attacks run one after the other in one process, after the tool was imported and the case was read: those that are named,
all, or with `-` those whose names come line by line on the standard input. Seconds are CPU time of the attack alone;
the memory is the most that the process held during it, less what it held before. An attack that used LIMIT seconds is
stopped, and told as such.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np


@dataclass(frozen=True)
class Case:
    """The same arrays for every tool: target logits [N, C], labels and member [N], references [K, N, C] and [K, N].

    Attacks that hold records against a population take so many of the target's non-members for it.
    """

    logits: np.ndarray
    labels: np.ndarray
    member: np.ndarray
    reference_logits: np.ndarray
    reference_membership: np.ndarray
    population: int = 2500

    @classmethod
    def read(cls, path: str) -> Case:
        """From an npz file."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__ if name in arrays})

    @cached_property
    def population_rows(self) -> np.ndarray:
        """int64 [Z]: the records that are the population."""
        outside = np.flatnonzero(~self.member)
        return np.sort(np.random.default_rng(0).permutation(outside)[: int(self.population)])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 [N, C] of the target."""
        return softmax(self.logits)

    @cached_property
    def own_probability(self) -> np.ndarray:
        """float64 [N]: the target's probability of the true class."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]

    @cached_property
    def reference_probabilities(self) -> np.ndarray:
        """float64 [K, N]: the reference models' probability of the true class."""
        return np.stack([softmax(z)[np.arange(len(self.labels)), self.labels] for z in self.reference_logits])

    @cached_property
    def phi(self) -> np.ndarray:
        """float64 [N]: log p / (1 - p) of the true class, from logits."""
        return confidence(self.logits, self.labels)

    @cached_property
    def reference_phi(self) -> np.ndarray:
        """float64 [K, N]."""
        return np.stack([confidence(z, self.labels) for z in self.reference_logits])

    def prepare(self) -> None:
        """Reduce the logits beforehand: the step is the same for every tool, and not what is timed."""
        _ = self.own_probability, self.reference_probabilities, self.phi, self.reference_phi


def stand_in(*modules: str) -> None:
    """Let empty modules stand in for some that a tool imports and that stored answers do not need."""
    for name in modules:
        sys.modules[name] = MagicMock()


def softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def confidence(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    rows = np.arange(len(labels))
    true = z[rows, labels].copy()
    z[rows, labels] = -np.inf
    top = z.max(axis=-1)
    return true - top - np.log(np.exp(z - top[:, None]).sum(axis=-1))


class _Memory:
    """The most that this process holds above what it holds now."""

    def __init__(self) -> None:
        self._before, self._peak, self._done = _resident(), 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._peak = max(self._peak, _resident() - self._before)

    def stop(self) -> int:
        self._done.set()
        return max(self._peak, _resident() - self._before, 0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Late(BaseException):
    """The attack has used its time; no Exception, so that no tool catches it."""


def _limit(seconds: float) -> None:
    """Raise `_Late` after so many seconds of CPU time; 0 to call it off."""

    def stop(*_: object) -> None:
        raise _Late

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main(attacks: dict[str, Callable[[Case], np.ndarray]], version: str) -> None:
    """Run the attacks that are asked for (none: all), tell of each in a line, and write its scores.

    Scores are float [N], higher = more likely a member. An attack may give several columns [N, R], NaN where a record
    was not scored: repetitions of a random split.
    """
    case, folder, limit = Case.read(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    case.prepare()
    named = sys.argv[4:] or list(attacks)
    told_of = list(attacks) if named == ["-"] else named
    print(json.dumps({"version": version, "attacks": told_of}), flush=True)
    asked: Iterable[str] = map(str.strip, sys.stdin) if named == ["-"] else named
    for name in asked:
        told: dict[str, object] = {"attack": name}
        memory, started = _Memory(), time.process_time()
        try:
            _limit(limit)
            scores = np.asarray(attacks[name](case), np.float64)
            _limit(0)
        except _Late:
            told["failed"] = f"not done after {limit:g} s"
        except Exception as error:  # it is the tool's, and told in the table
            told["failed"] = f"{type(error).__name__}: {error}"
        else:
            file = f"{told_of.index(name)}.npy"
            told |= {"seconds": time.process_time() - started, "file": file}
            np.save(folder / file, scores)
        finally:
            _limit(0)
        told["peak"] = memory.stop()
        print(json.dumps(told), flush=True)
