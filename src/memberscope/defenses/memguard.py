"""MemGuard: noise on the answers that makes an inference model guess, and never changes the predicted class."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.defenses.base import Asked, Card, OutputDefense

if TYPE_CHECKING:
    from torch import Tensor, nn

_HIDDEN = (256, 128, 64)
_EPOCHS = 60
_RATE = 1e-3
_BATCH = 64
_STEP = 0.1
_MOST_STEPS = 300
_LABEL_PENALTY = 10.0
_SPENDING = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Weights of the noise's size in the loss, tried in this order as long as noise is found (c3 of the released code)."""
_CLOSE = 1e-5
_TINY = 1e-300


class MemGuard(OutputDefense):
    """Jia et al. 2019."""

    name = "memguard"
    title = "perturb answers, by this much in L1 on average at most, until a guard cannot tell members from others"
    settings = ("memguard",)
    needs_validation = True
    unstackable = "MemGuard trains a guard after each"
    untimed: ClassVar[Mapping[str, Any]] = {"memguard": 0.0}
    clashes: ClassVar[Mapping[str, str]] = {
        "hamp": "its answers are those to random inputs already",
        "dmp": "the validation records that its guard needs are what the model is trained on",
    }
    card = Card(
        "Jia et al. 2019 (CCS), algorithm 1 and section 4.3",
        "noise r that brings the guard's h(s + r) to 1/2 and keeps argmax s; given with the probability "
        "min(1, memguard / |r|_1), else nothing is added",
        "training: a small guard; answering: some hundred steps of the guard for each record, once",
        "no protection from attacks that need no probabilities, or that know it: reference models answer through "
        "guards of their own (Song & Mittal 2021)",
    )

    def learn(self, members: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> dict[str, NDArray[Any]]:
        """Train the guard on sorted answers to members and to validation records, as many of each."""
        import torch
        from torch.nn import functional

        rng = np.random.default_rng([seed, *b"memguard"])
        count = min(len(members), len(others))
        rows = [p[rng.permutation(len(p))[:count]] for p in (members, others)]
        x = torch.from_numpy(np.sort(np.concatenate(rows), axis=1)).float()
        y = torch.cat([torch.ones(count), torch.zeros(count)])
        with torch.random.fork_rng([]):
            torch.manual_seed(int(rng.integers(2**63)))
            guard = _guard(x.shape[1])
        optimizer = torch.optim.Adam(guard.parameters(), lr=_RATE)
        for _ in range(_EPOCHS):
            for index in np.array_split(rng.permutation(len(x)), -(-len(x) // _BATCH)):
                optimizer.zero_grad()
                found = guard(x[index])[:, 0]
                functional.binary_cross_entropy_with_logits(found, y[index]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return {f"memguard/{name}": value.numpy() for name, value in guard.state_dict().items()}

    def answer(self, probabilities: NDArray[np.float64], asked: Asked) -> NDArray[np.float64]:
        """Noise of section 4.2, given with the probability of section 4.3: a coin that follows from the record."""
        import torch

        guard = _guard(probabilities.shape[1])
        start = f"{self.name}/"
        guard.load_state_dict(
            {k.removeprefix(start): torch.from_numpy(v) for k, v in asked.guard.items() if k.startswith(start)}
        )
        order = np.argsort(probabilities, axis=1, kind="stable")
        plain = np.take_along_axis(probabilities, order, axis=1)
        noisy = unsure(guard, plain)
        before, after = (_doubt(guard, torch.from_numpy(p).float()).numpy() for p in (plain, noisy))
        size = np.abs(noisy - plain).sum(axis=1)
        share = np.where(np.abs(before) <= np.abs(after), 0.0, np.minimum(1.0, self.recipe.memguard / (size + _TINY)))
        given = np.where((_coins(asked) < share)[:, None], noisy, plain)
        answers = np.empty_like(probabilities)
        np.put_along_axis(answers, order, given, axis=1)
        return answers


def unsure(guard: nn.Module, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phase I of Jia et al. 2019, algorithm 1: answers that the guard cannot judge, with the same predicted class.

    Parameters
    ----------
    guard
        Gives the logit of membership [n, 1] of sorted probabilities [n, classes].
    plain
        float64 [n, classes], each row sorted upwards: its last entry is the predicted class.

    Returns
    -------
    float64 [n, classes]; rows for which no noise is found are as they were.
    """
    import torch

    logits = torch.from_numpy(np.log(np.maximum(plain, np.finfo(np.float32).tiny))).float()
    scores = torch.from_numpy(plain).float()
    with torch.no_grad():
        first = guard(scores)[:, 0]
    best = scores.clone()
    trying = torch.nonzero((torch.sigmoid(first) - 0.5).abs() > _CLOSE)[:, 0]
    for weight in _SPENDING:
        if not len(trying):
            break
        found, done = _descend(guard, logits[trying], scores[trying], first[trying], weight)
        best[trying[done]] = found[done]
        trying = trying[done]
    answers = plain.copy()
    changed = (best != scores).any(1).numpy()
    answers[changed] = best.numpy()[changed]
    return answers


def _descend(guard: nn.Module, logits: Tensor, scores: Tensor, first: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Noisy scores, and for which records the guard's judgement was turned with the class kept."""
    import torch

    z = logits.clone()
    done = torch.zeros(len(z), dtype=torch.bool)
    open_ = torch.arange(len(z))
    for _ in range(_MOST_STEPS):
        current = z[open_].requires_grad_()
        with torch.enable_grad():  # answers are asked for without
            p = torch.softmax(current, 1)
            other = torch.relu(current[:, :-1].amax(1) - current[:, -1])
            size = (p - scores[open_]).abs().sum(1)
            loss = guard(p)[:, 0].abs() + _LABEL_PENALTY * other + weight * size
            (slope,) = torch.autograd.grad(loss.sum(), current)
        z[open_] = current.detach() - _STEP * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        with torch.no_grad():
            turned = guard(torch.softmax(z[open_], 1))[:, 0] * first[open_] <= 0
        kept = z[open_].argmax(1) == z.shape[1] - 1
        done[open_[turned & kept]] = True
        open_ = open_[~(turned & kept)]
        if not len(open_):
            break
    return torch.softmax(z, 1), done


def _guard(classes: int) -> nn.Module:
    from torch import nn

    widths = (classes, *_HIDDEN)
    layers = [part for a, b in zip(widths, _HIDDEN, strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(_HIDDEN[-1], 1))


def _doubt(guard: nn.Module, scores: Tensor) -> Tensor:
    """How far the guard is from guessing: h - 1/2."""
    import torch

    with torch.no_grad():
        return torch.sigmoid(guard(scores)[:, 0]) - 0.5


def _coins(asked: Asked) -> NDArray[np.float64]:
    """A number in [0, 1) a record, the same each time it is asked about."""
    rows = np.ascontiguousarray(asked.records).reshape(len(asked.records), -1)
    start = (asked.seed ^ 0x6D67) & 0xFFFFFFFF
    return np.array([zlib.crc32(row.view(np.uint8).data, start) / 2**32 for row in rows])
