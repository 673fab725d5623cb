"""How many reference models an hour on one device: one by one, stacked, compiled? Prints a table against the textbook.

SGD (momentum 0.9) on 32x32 colour images, random ones: speed does not depend on what is on them. Each way trains the
same models in turn; medians over the rounds, after one that is not counted (kernels are chosen, steps are compiled; its
seconds are told). The textbook loop is that of `benchmarks/training.py` (float32, a `DataLoader`), one model at a time.
The share of the peak is of the machine's best bfloat16 matrix product, by the operations that `FlopCounterMode` counts
in one step of the model.

For GPUs; on a CPU it shows why nothing is stacked or compiled there: about a minute with --members 512 --rounds 1.
Usage: python benchmarks/stacked.py [--model simplecnn] [--members 25000] [--batch-size 128] [--epochs 50]
                                    [--at-once 64] [--rounds 3] [--device auto] [--ways "one by one" stacked ...]
`--epochs` is of the models whose number an hour is told; two epochs of each are trained.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from memberscope.environment import describe
from memberscope.training.hardware import resolve_device, resolve_precision
from memberscope.training.models import build_for
from memberscope.training.recipe import Recipe
from memberscope.training.stacked import fit_stacked, obstacle
from memberscope.training.train_target import fit
from training import Textbook, peak

TIMED = 2
"""Epochs of each training: the first and one more."""


def operations(recipe: Recipe) -> float:
    """Multiplications and additions of a training step for one image."""
    module = build_for(recipe, (3, 32, 32), 10)
    with FlopCounterMode(display=False) as counted:
        torch.nn.functional.cross_entropy(module(torch.zeros(2, 3, 32, 32)), torch.zeros(2).long()).backward()
    return counted.get_total_flops() / 2


class Ways:
    """Ways to train models of one recipe; each gives the seconds of an epoch of one model."""

    def __init__(self, recipe: Recipe, members: int, at_once: int, device: torch.device) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.integers(0, 256, (2 * members, 3, 32, 32), dtype=np.uint8)
        self.y = rng.integers(0, 10, 2 * members)
        self.rows = np.array([rng.permutation(2 * members) < members for _ in range(at_once)])
        self.recipe, self.device = recipe, device
        self.reason = obstacle(recipe, build_for(recipe, (3, 32, 32), 10))

    def all(self) -> dict[str, Callable[[], float]]:
        """By name."""
        ways = {
            "textbook": self.textbook,
            "one by one": lambda: self.alone(compiled=False),
            "one by one, compiled": lambda: self.alone(compiled=True),
        }
        if self.reason is None:
            ways["stacked"] = lambda: self.stacked(compiled=False)
            ways["stacked, compiled"] = lambda: self.stacked(compiled=True)
        return ways

    def textbook(self) -> float:
        """The loop of every textbook."""
        loop = Textbook(self.x[self.rows[0]], self.y[self.rows[0]], 0, self.device)
        if self.recipe.model != "simplecnn":
            loop.net = build_for(self.recipe, (3, 32, 32), 10).to(self.device)
            loop.optimizer = torch.optim.SGD(loop.net.parameters(), lr=0.01, momentum=0.9)
        loop.epoch()
        return loop.seconds[-1]

    def alone(self, *, compiled: bool) -> float:
        """`fit`, with the evaluation that it makes after each epoch."""
        trained = fit(
            *(self.recipe, self.x, self.y, self.rows[0]),
            n_classes=10, seed=0, device=str(self.device), compiled=compiled,
        )  # fmt: skip
        return trained.history[-1]["seconds"]

    def stacked(self, *, compiled: bool) -> float:
        """`fit_stacked`, likewise."""
        seeds = list(range(len(self.rows)))
        trained = fit_stacked(
            *(self.recipe, self.x, self.y, self.rows),
            n_classes=10, seeds=seeds, device=str(self.device), compiled=compiled,
        )  # fmt: skip
        return trained[0].history[-1]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="simplecnn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ways", nargs="*")
    numbers = {"members": 25_000, "batch-size": 128, "epochs": 50, "at-once": 64, "rounds": 3, "threads": 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = resolve_device(given.device)
    asked = Recipe(model=given.model, epochs=TIMED, batch_size=given.batch_size)
    recipe = resolve_precision(asked, build_for(asked, (3, 32, 32), 10), (3, 32, 32), device)
    ways = Ways(recipe, given.members, given.at_once, device)
    chosen = {name: way for name, way in ways.all().items() if not given.ways or name in given.ways}
    first: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(given.rounds + 1):
        for name in list(chosen) if turn % 2 else list(chosen)[::-1]:
            started = time.perf_counter()
            epoch = chosen[name]()
            if turn:
                seconds[name].append(epoch)
            else:
                first[name] = time.perf_counter() - started
            print(f"{name}: {epoch:.3f} s an epoch of a model", flush=True)
    about, best = describe(str(device)), peak(torch.bfloat16, device)
    print(f"\n{about['processor']}, {device}, torch {about['packages']['torch']}; {recipe.precision}")
    print(f"{given.model}, {given.members:,} members, batches of {given.batch_size}, {given.at_once} models stacked")
    if ways.reason is not None:
        print(f"not stacked: {ways.reason}")
    print(f"bfloat16 matrix products: {best / 1e12:.2f} TFLOP/s\n")
    print(f"| way | models of {given.epochs} epochs an hour | by rounds | of the textbook | of the peak | first, s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    an_hour = {name: [3600 / (given.epochs * s) for s in values] for name, values in seconds.items()}
    base = statistics.median(an_hour["textbook"]) if "textbook" in an_hour else None
    work = operations(recipe) * given.members
    for name, values in an_hour.items():
        rate = statistics.median(values)
        ratio = "" if base is None else f"{rate / base:.2f}"
        share = work / statistics.median(seconds[name]) / best
        rounds = ", ".join(f"{value:,.0f}" for value in values)
        print(f"| {name} | {rate:,.0f} | {rounds} | {ratio} | {share:.0%} | {first[name]:.0f} |")


if __name__ == "__main__":
    main()
