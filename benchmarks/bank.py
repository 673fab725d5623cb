"""How many reference models an hour? Prints the table of the model bank by layout, and against a textbook loop.

SimpleCNN on 32x32 colour images, batches of 64, every model on its own half of the pool, its answers on the whole pool
kept. The textbook loop trains the same models one after the other: float32 tensors in a DataLoader with shuffling, two
threads or as many as torch takes, no bank. Layouts and loop take turns; medians over the rounds. Times run from the
first finished models to the last, so that starting the workers (told beside) is not counted: it is paid once a growth.

Random images: speed does not depend on what is on them. About three minutes on two cores.
Usage: python benchmarks/bank.py [--members 4000] [--epochs 2] [--models 6] [--rounds 2]
       python benchmarks/bank.py --ray [--models 16]    (a Ray of this machine against as many local processes)
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from memberscope.data_loader import Dataset
from memberscope.training import bank_plan
from memberscope.training.bank_progress import BankProgress
from memberscope.training.bank_training import membership_row, training_seed
from memberscope.training.layout import machine, usable_cores
from memberscope.training.model_bank import ModelBank
from memberscope.training.models import build
from memberscope.training.recipe import Recipe

BATCH = 64


class Clock(BankProgress):
    """Notes when each model was there."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.layout = ""

    def on_layout(self, text: str) -> None:
        """The training begins."""
        self.layout = text

    def on_model(self, done: int, total: int, seconds_left: float | None) -> None:
        """Note the time when there is one more."""
        if done > len(self.times):
            self.times.append(time.perf_counter())


def images(n: int) -> Dataset:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n)
    x = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return Dataset("random-images", x, y, tuple("0123456789"), np.ones(n, bool), "drawn at random", True)


def bank_speed(dataset: Dataset, recipe: Recipe, models: int, **layout) -> tuple[float, float, str]:
    """Models an hour, seconds of a model by then, and the layout in words."""
    folder = Path(tempfile.mkdtemp())
    try:
        bank = ModelBank.open(folder / "bank", recipe=recipe, dataset=dataset, pool=np.ones(dataset.n, bool), seed=0)
        clock = Clock()
        asked = time.perf_counter()
        bank.grow(models, device="cpu", progress=clock, **layout)
    finally:
        shutil.rmtree(folder)
    at_once = int(clock.layout.split(" models at once")[0]) if "models at once" in clock.layout else 1
    # The first models of each worker carry its start; the last round may leave workers idle, so whole rounds count.
    rate = (models - at_once) / (clock.times[-1] - clock.times[at_once - 1])
    before = clock.times[at_once - 1] - asked - at_once / rate
    return 3600 * rate, before, clock.layout


def textbook_speed(dataset: Dataset, recipe: Recipe, models: int) -> float:
    """Models an hour of the loop that tutorials teach."""
    times = []
    for k in range(models):
        started = time.perf_counter()
        member = membership_row(np.ones(dataset.n, bool), k, 0)
        torch.manual_seed(training_seed(0, k))
        x = torch.from_numpy(dataset.x).float() / 255
        mean, std = x[member].mean((0, 2, 3), keepdim=True), x[member].std((0, 2, 3), keepdim=True)
        x, y = (x - mean) / std, torch.from_numpy(dataset.y)
        loader = DataLoader(TensorDataset(x[member], y[member]), batch_size=BATCH, shuffle=True)
        model = build(recipe.model, dataset.input_shape, dataset.n_classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=recipe.momentum)
        for _ in range(recipe.epochs):
            model.train()
            for batch, labels in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch), labels)
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            answers = torch.cat([model(batch) for (batch,) in DataLoader(TensorDataset(x), batch_size=256)])
        assert bool(torch.isfinite(answers).all())
        times.append(time.perf_counter() - started)
    return 3600 / statistics.median(times)


def against_ray(dataset: Dataset, recipe: Recipe, models: int, rounds: int) -> None:
    """Print what the same bank takes in local processes and on a Ray of this machine: all of it, starts included."""
    cores = usable_cores()
    whole: dict[str, list[float]] = {f"{cores} local processes": [], "Ray": []}
    rates: dict[str, list[float]] = {name: [] for name in whole}
    for turn in range(rounds):
        names = list(whole) if turn % 2 == 0 else list(whole)[::-1]
        for name in names:
            started = time.perf_counter()
            rate, _, text = bank_speed(dataset, recipe, models, workers="ray" if name == "Ray" else cores, threads=1)
            whole[name].append(time.perf_counter() - started)
            rates[name].append(rate)
            print(f"{name}: {whole[name][-1]:.1f} s ({text})", flush=True)
    print(f"\n{machine()}, {models} models of {recipe.epochs} epochs\n")
    print("| where | seconds, all | by rounds | models an hour once it runs |\n| --- | ---: | --- | ---: |")
    for name, values in whole.items():
        by_rounds = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {statistics.median(values):.1f} | {by_rounds} | {statistics.median(rates[name]):,.0f} |")
    ratios = [ray / local for local, ray in zip(*whole.values(), strict=True)]
    running = [local / ray for local, ray in zip(*rates.values(), strict=True)]
    spread = f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    print(f"\nRay costs {statistics.median(ratios) - 1:+.1%} of the time ({spread}),")
    print(f"once it runs {statistics.median(running) - 1:+.1%} ({min(running) - 1:+.1%} to {max(running) - 1:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    bank_plan.SMALL_SECONDS = 0.0  # real banks take long enough to be spread; this one stands for them
    dataset = images(2 * given.members)
    recipe = Recipe(model="simplecnn", epochs=given.epochs, batch_size=BATCH)
    if given.ray:
        against_ray(dataset, recipe, given.models, given.rounds)
        return
    cores = usable_cores()
    layouts = {"1 x " + str(cores): {"workers": 1, "threads": cores}, f"{cores} x 1": {"workers": cores, "threads": 1}}
    layouts["picked"] = {"workers": "auto"}
    rates: dict[str, list[float]] = {"textbook loop": []}
    starts: dict[str, list[float]] = {}
    picked = []
    for _ in range(given.rounds):
        rates["textbook loop"].append(textbook_speed(dataset, recipe, 2))
        for name, layout in layouts.items():
            rate, before, text = bank_speed(dataset, recipe, given.models, **layout)
            rates.setdefault(name, []).append(rate)
            starts.setdefault(name, []).append(before)
            if name == "picked":
                picked.append(text)
    print(f"{machine()}\n{given.members:,} members, {given.epochs} epochs, batches of {BATCH}; picked: {picked[-1]}\n")
    print("| workers x threads | models an hour | by rounds | of the textbook loop | seconds before |")
    print("| --- | ---: | --- | ---: | ---: |")
    base = statistics.median(rates["textbook loop"])
    for name, values in rates.items():
        by_rounds = ", ".join(f"{value:,.0f}" for value in values)
        start = f"{statistics.median(starts[name]):.1f}" if name in starts else "0"
        ratio = statistics.median(values) / base
        print(f"| {name} | {statistics.median(values):,.0f} | {by_rounds} | {ratio:.2f} | {start} |")
    best = max(statistics.median(rates[name]) for name in layouts if name != "picked")
    print(f"\npicked / best layout: {statistics.median(rates['picked']) / best:.2f}")


if __name__ == "__main__":
    main()
