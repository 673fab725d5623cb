"""What does a defense cost in training? A table of CPU seconds an epoch, and memory, against an undefended training.

Each row is a process of its own with one thread: SimpleCNN on 32x32 colour images, batch 128, by `fit`; the quicker one
of two epochs after a first that warms up. Seconds are CPU seconds of the process, so that other work on the machine
hardly shows. Memory is what the process holds at most, beyond what it held before training. For DP-SGD also what the
same step takes with Opacus' hooks and optimiser, and with `torch.func.vmap`. The images are synthetic: the speed is the
same. SELENA and DMP are so many undefended trainings (`memberscope list defenses`), and not in the table.

Usage: python benchmarks/defenses.py [--members 4096] [--only DP-SGD ...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

BATCH = 128
FP32: dict[str, Any] = {"precision": "fp32"}
ROWS: dict[str, dict[str, Any]] = {
    "undefended": {},
    "undefended, fp32": FP32,
    "augmentation (flip, crop)": {"augmentation": ("flip", "crop")},
    "mixup": {"mixup": 0.2},
    "CutMix": {"cutmix": 1.0},
    "RelaxLoss": {"relaxloss": 1.0},
    "HAMP": {"hamp": 0.95},
    "adversarial regularisation": {"adversarial": 6.0},
    "DP-SGD (by layer)": {"dp_noise": 1.0},
}
LOOPS = ("DP-SGD (torch.func.vmap)", "DP-SGD (Opacus)")


def images(members: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Synthetic images, their classes, who is a member, who is a validation record."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(members + 1000, 3, 32, 32), dtype=np.uint8)
    member = np.arange(len(x)) < members
    return x, rng.integers(10, size=len(x)), member, ~member


def by_fit(settings: dict[str, Any], members: int) -> tuple[float, int]:
    """CPU seconds of an epoch, and bytes of memory."""
    from memberscope.training.recipe import Recipe
    from memberscope.training.train_target import fit

    class Watch:
        """Notes when epochs end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
            if step == steps:
                self.times.append(time.process_time())

        def on_epoch(self, record: Any, epochs: int, seconds_left: float) -> None:
            self.times.append(time.process_time())

    x, y, member, validation = images(members)
    watch = Watch()
    before = _held()
    recipe = Recipe(**{"epochs": 3, "batch_size": BATCH, **settings})
    fit(
        recipe, x, y, member, validation=validation, n_classes=10, seed=0, device="cpu", threads=1, progress=watch
    )  # the ends of steps and of epochs alternate: the steps of an epoch lie between
    return min(end - start for start, end in zip(watch.times[1::2], watch.times[2::2], strict=False)), _held() - before


def by_loop(name: str, members: int) -> tuple[float, int]:
    """The same for a loop over the batches of an epoch, by vmap or by Opacus."""
    import torch
    from torch import nn

    from memberscope.defenses.per_record import ClippedSum
    from memberscope.training.hardware import keep_freed_memory
    from memberscope.training.models import build

    torch.set_num_threads(1)
    keep_freed_memory()
    x, y, _, _ = images(members)
    inputs = torch.from_numpy(x[:members]).float().div_(127.5).sub_(1)
    inputs, labels = inputs.contiguous(memory_format=torch.channels_last), torch.from_numpy(y[:members])
    module = build("simplecnn", (3, 32, 32), 10).to(memory_format=torch.channels_last).train()
    before = _held()

    def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    if name == LOOPS[0]:
        clipped = ClippedSum(module, BATCH)
        clipped.by_layer = False
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)

        def step(part: slice) -> None:
            total, _ = clipped.sum(inputs[part], labels[part], losses, 1.0)
            for key, parameter in module.named_parameters():
                parameter.grad = (total[key] + torch.randn_like(parameter)) / BATCH
            optimizer.step()
    else:
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        hooked = GradSampleModule(module)
        plain = torch.optim.SGD(hooked.parameters(), lr=0.02, momentum=0.9)
        private = DPOptimizer(plain, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=BATCH)

        def step(part: slice) -> None:
            private.zero_grad()
            losses(hooked(inputs[part]), labels[part]).mean().backward()
            private.step()

    step(slice(0, BATCH))
    start = time.process_time()
    for first in range(0, members, BATCH):
        step(slice(first, first + BATCH))
    return time.process_time() - start, _held() - before


def _held() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(name: str, members: int, out: Connection) -> None:
    out.send(by_loop(name, members) if name in LOOPS else by_fit(ROWS[name], members))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=4096)
    parser.add_argument("--only", nargs="*", default=None, help="rows whose names contain one of these")
    arguments = parser.parse_args()
    print(f"| training ({arguments.members:,} members) | CPU s/epoch | times undefended, fp32 | memory, MB |")
    print("| --- | --- | --- | --- |")
    reference, base = "undefended, fp32", dict[str, float]()
    for name in [*ROWS, *LOOPS]:
        wanted = arguments.only is None or any(text in name for text in arguments.only)
        if not wanted and name != reference:
            continue
        for row in [reference, name] if reference not in base else [name]:
            receive, send = multiprocessing.get_context("spawn").Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(target=_measure, args=(row, arguments.members, send))
            process.start()
            seconds, memory = receive.recv()
            process.join()
            base.setdefault(row, seconds)
            if row == name:
                print(f"| {name} | {seconds:.2f} | {seconds / base[reference]:.2f} | {memory / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
