"""How fast is `fit`, and does speed cost accuracy? Prints a table against the loop that every textbook shows.

Each trains the same SimpleCNN on the same CIFAR-10 records with SGD (momentum 0.9), epoch by epoch in turn: both
see the machine in the same state. The textbook loop: `DataLoader` of one process, batch 64, learning rate 0.01,
float32, default memory layout, each image converted and normalised in the dataset's `__getitem__`. `fit`: its default
recipe. Its epochs are timed with the evaluation of 5,000 members that `fit` makes after each, the textbook's without.
The fraction of peak is of the machine's best matrix product (`torch.mm`, 2048x2048), measured here. Allow four minutes
on two cores. Without CIFAR-10 files the images are synthetic: the speed is the same, the accuracy means nothing.

Usage: python benchmarks/training.py [--epochs 10] [--members 25000] [--seed 0] [--device cpu] [--data-dir DIR]
       python benchmarks/training.py --precisions    (bf16 against fp32 by image size: why small images are fp32)
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from memberscope.data_loader import load
from memberscope.environment import describe
from memberscope.errors import DataError
from memberscope.training.hardware import resolve_device
from memberscope.training.models import SimpleCNN
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

# Multiplications and additions of one training step for an image: forward and the gradient of the weights of all
# layers, the gradient of the inputs of all but the first.
CONV1, CONV2, DENSE = 2 * 32 * 32 * 27 * 32, 2 * 16 * 16 * 288 * 64, 2 * (4096 * 128 + 128 * 10)
FLOP_PER_IMAGE = 2 * CONV1 + 3 * (CONV2 + DENSE)
TRAINING, POOL = 50_000, 60_000


class Images(Dataset):
    """The textbook's dataset: one image at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.mean = torch.tensor((x / np.float32(255)).mean((0, 2, 3))).view(-1, 1, 1)
        self.std = torch.tensor((x / np.float32(255)).std((0, 2, 3))).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.x[index].float() / 255 - self.mean) / self.std, self.y[index]


class PlainCNN(SimpleCNN):
    """The same layers, written as everyone writes them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 10]."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class Textbook:
    """The textbook loop, an epoch at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = PlainCNN(x.shape[1:], 10).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        self.images, self.device = Images(x, y), device
        self.loader = DataLoader(
            self.images, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed)
        )
        self.seconds: list[float] = []

    def epoch(self) -> None:
        """Train and time one epoch."""
        self.net.train()
        start = time.perf_counter()
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
        loss.item()  # on a GPU: wait for it
        self.seconds.append(time.perf_counter() - start)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of right answers."""
        self.net.eval()
        right = 0
        with torch.no_grad():
            for start in range(0, len(x), 500):
                raw = torch.from_numpy(x[start : start + 500]).float() / 255
                answers = self.net(((raw - self.images.mean) / self.images.std).to(self.device)).argmax(1).cpu()
                right += int((answers.numpy() == y[start : start + 500]).sum())
        return right / len(x)


def textbook_process(orders: Connection, x: np.ndarray, y: np.ndarray, test: slice, seed: int, device: str) -> None:
    """Train in a process of its own, as `fit` sets the C library's memory for a whole process; answer with seconds."""
    member = np.zeros(len(x), bool)
    member[orders.recv()] = True
    textbook = Textbook(x[member], y[member], seed, resolve_device(device))
    while orders.recv() == "epoch":
        textbook.epoch()
        orders.send(textbook.seconds[-1])
    orders.send(textbook.accuracy(x[test], y[test]))


class InTurn:
    """Listens to `fit` and lets the textbook train an epoch after each of its own."""

    def __init__(self, orders: Connection) -> None:
        self.orders = orders
        self.seconds: list[float] = []
        self.textbook: list[float] = []

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Hear of a step."""

    def on_epoch(self, record: dict, epochs: int, seconds_left: float) -> None:
        """Let the textbook train its epoch."""
        self.orders.send("epoch")
        self.textbook.append(self.orders.recv())
        self.seconds.append(record["seconds"])
        print(
            f"epoch {record['epoch']:2}/{epochs}: fit {self.seconds[-1]:.1f} s, textbook {self.textbook[-1]:.1f} s",
            flush=True,
        )


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Best rate of a 2048x2048 matrix product, in operations a second."""
    size = 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        out[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def records(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray, str]:
    try:
        data = load("cifar10", data_dir, download=False)
    except DataError as error:
        rng = np.random.default_rng(0)
        y = rng.integers(10, size=POOL)
        x = np.repeat(np.repeat(rng.integers(40, size=(10, 3, 8, 8)), 4, axis=2), 4, axis=3)[y]
        x = (x + rng.integers(200, size=(POOL, 3, 32, 32))).astype(np.uint8)
        return x, y, f"SYNTHETIC images of CIFAR-10's shape ({error.problem.splitlines()[0]})"
    return data.x, data.y, f"CIFAR-10 ({data.source})"


def against_textbook(args: argparse.Namespace) -> None:
    x, y, source = records(args.data_dir)
    device = resolve_device(args.device)
    member = np.zeros(len(x), bool)
    member[np.random.default_rng(args.seed).permutation(TRAINING)[: args.members]] = True
    test = slice(TRAINING, len(x))
    context = multiprocessing.get_context("spawn")
    orders, theirs = context.Pipe()
    process = context.Process(target=textbook_process, args=(theirs, x, y, test, args.seed, args.device), daemon=True)
    process.start()
    orders.send(np.flatnonzero(member))
    turns = InTurn(orders)
    peaks = {"fp32": peak(torch.float32, device), "bf16": peak(torch.bfloat16, device)}
    recipe = Recipe(epochs=args.epochs)
    trained = fit(recipe, x, y, member, n_classes=10, seed=args.seed, device=args.device, progress=turns)
    orders.send("accuracy")
    plain_accuracy = orders.recv()
    process.join()
    about = describe(str(device))
    print(f"\n{source}, {args.members:,} members, {args.epochs} epochs, seed {args.seed}")
    print(f"{about['processor']}, {about['cores']} cores, {trained.device}, torch {about['packages']['torch']}")
    print("peak of matrix products: " + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in peaks.items()))
    print(f"\n{'':9} {'images/s':>9} {'(min-max)':>15} {'of fp32 peak':>13} {'of bf16 peak':>13} {'test accuracy':>14}")
    for name, seconds, accuracy in (
        ("textbook", turns.textbook, plain_accuracy),
        ("fit", turns.seconds, trained.accuracy(x[test], y[test])),
    ):
        rates = [args.members / s for s in seconds]
        rate = statistics.median(rates)
        shares = " ".join(f"{rate * FLOP_PER_IMAGE / peaks[p]:>13.0%}" for p in ("fp32", "bf16"))
        print(f"{name:9} {rate:>9,.0f} {f'({min(rates):,.0f}-{max(rates):,.0f})':>15} {shares} {accuracy:>14.4f}")
    ratios = [slow / quick for slow, quick in zip(turns.textbook, turns.seconds, strict=True)]
    print(
        f"\nratio, epoch by epoch: median {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}); "
        f"{trained.precision}; {trained.images_per_second:,.0f} images/s in the training steps alone"
    )


def precisions(args: argparse.Namespace) -> None:
    print(f"{'side':>5} {'fp32 images/s':>14} {'bf16 images/s':>14} {'ratio':>6} (min-max of {args.rounds} rounds)")
    rng = np.random.default_rng(0)
    for side in (8, 12, 16, 20, 28, 32):
        x = rng.integers(256, size=(12_000, 3, side, side)).astype(np.uint8)
        y = rng.integers(10, size=len(x))
        rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(args.rounds):
            for precision in rates:
                recipe = Recipe(epochs=1, precision=precision)
                trained = fit(recipe, x, y, np.ones(len(x), bool), n_classes=10, seed=0, device=args.device)
                rates[precision].append(trained.images_per_second)
        ratios = [b / f for f, b in zip(rates["fp32"], rates["bf16"], strict=True)]
        fp32, bf16 = (statistics.median(r) for r in rates.values())
        spread = f"{statistics.median(ratios):>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{side:>5} {fp32:>14,.0f} {bf16:>14,.0f} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--members", type=int, default=25_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--precisions", action="store_true")
    args = parser.parse_args()
    precisions(args) if args.precisions else against_textbook(args)


if __name__ == "__main__":
    main()
