"""Does an audit of a million records fit, and does it grow linearly? Prints time and peak memory by records and models.

Synthetic answers, half-precision, one memory-mapped file [K, 1, N, 10]: records of unequal difficulty, every model
trained on a random half. Each case runs in a process of its own: the models' answers are reduced, five attacks are run,
each is evaluated with intervals and tried on permuted membership (`run_attacks`, as every audit does). Seconds are of
one core (CPU time of one thread), which other work on the machine disturbs less than the clock's. Memory is what
the process holds for itself (RssAnon, sampled, less what it held after its imports): pages of the mapped files can be
dropped at any time and are not counted; the temporary file is what the reduction leaves on the disk.

The slope is that of log(time or memory) against log(size) between the two largest cases: 1 is linear growth. Above 1.15
the script fails. About ten minutes on two cores and 3 GB on the disk; --full adds 1,000,000 x 256 and needs 15 GB.

Usage: python benchmarks/scale.py [--records 10000,100000,1000000] [--models 16,64,256] [--full] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CLASSES = 10
ATTACKS = ("loss", "lira-offline-onesided", "lira-online-eb", "rmia-online(T=2)", "rank-fusion")
_LIMIT = 1.15
_SMALL_SECONDS = 1.0
"""Slopes of cases that take less say nothing."""


def write_answers(folder: Path, records: int, models: int) -> None:
    """Write the answers of `models` reference models and a target, a block of records at a time."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((records, models))
    labels = rng.integers(0, CLASSES, records)
    membership = np.empty((models, records), bool)
    member = rng.random(records) < 0.5
    shape = (models, 1, records, CLASSES)
    answers = np.lib.format.open_memmap(folder / "answers.npy", mode="w+", dtype=np.float16, shape=shape)
    target = np.empty((1, records, CLASSES), np.float32)
    for start in range(0, records, 20_000):
        rows = slice(start, min(start + 20_000, records))
        n = rows.stop - start
        easy = rng.normal(4, 2, n)
        inside = np.argsort(rng.random((models, n)), axis=0) < models // 2
        membership[:, rows] = inside
        block = rng.standard_normal((models + 1, n, CLASSES), dtype=np.float32)
        gain = np.vstack([inside, member[None, rows]]) * 0.7
        block[:, np.arange(n), labels[rows]] += (easy + gain).astype(np.float32)
        answers[:, 0, rows] = block[:-1]
        target[0, rows] = block[-1]
    answers.flush()
    for name, array in {"labels": labels, "membership": membership, "member": member, "target": target}.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "done").touch()


class Memory:
    """Watches what this process holds for itself."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()
        self._before = _anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, _anonymous() - self._before)

    def take(self) -> int:
        """The peak since it was taken last, in bytes."""
        peak, self.peak = max(self.peak, _anonymous() - self._before), 0
        return peak


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not tell the memory of a process (no RssAnon in /proc/self/status)")


def case(folder: Path) -> None:
    """Audit the answers of a folder and print seconds and bytes as JSON."""
    from memberscope.attacks.registry import ATTACKS as KNOWN
    from memberscope.attacks.runner import run_attacks
    from memberscope.evidence import Evidence

    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("target", "labels", "member", "membership")
    }
    answers = np.load(folder / "answers.npy", mmap_mode="r")
    memory = Memory()
    told: dict[str, float] = {}
    started = time.process_time()
    evidence = Evidence(
        arrays["target"], arrays["labels"], reference_logits=answers, reference_membership=arrays["membership"]
    )
    for temperature in (1.0, 2.0):
        evidence.references.phi(temperature)
    told["reduce"] = time.process_time() - started
    told["reduce bytes"] = memory.take()
    results = run_attacks(
        [KNOWN[name] for name in ATTACKS],
        evidence,
        np.asarray(arrays["member"]),
        class_names=[str(c) for c in range(CLASSES)],
    )
    failed = [f"{r.attack.name}: {r.reason}" for r in results if r.status != "run"]
    assert not failed, failed
    told["seconds"] = time.process_time() - started
    told["bytes"] = max(told["reduce bytes"], memory.take())
    told["auc"] = next(r.evaluation.auc.value for r in results if r.attack.name == "rank-fusion")
    print(json.dumps(told))


def slope(sizes: list[int], values: list[float]) -> float:
    """Of the last two points, on logarithmic axes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def measure(folder: Path, records: int, models: int) -> dict[str, float]:
    """One case, in a process of its own."""
    where = folder / f"{records}x{models}"
    write_answers(where, records, models)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr)
    told: dict[str, float] = json.loads(done.stdout)
    print(
        f"| {records:>9,} | {models:>3} | {told['reduce']:7.1f} | {told['seconds'] - told['reduce']:7.1f} "
        f"| {told['bytes'] / 1e6:9,.0f} | {told['auc']:.4f} |",
        flush=True,
    )
    for file in where.iterdir():
        file.unlink()
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000,1000000")
    parser.add_argument("--models", default="16,64,256")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case(given.case)
        return 0
    records, models = ([int(v) for v in text.split(",")] for text in (given.records, given.models))
    print("|   records | models | reduction s | attacks and figures s | MB held | AUC of fusion |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    slopes = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        by_records = [measure(folder, n, models[0]) for n in records]
        middle = records[-2] if len(records) > 1 else records[0]
        by_models = [measure(folder, middle, k) for k in models]
        if given.full:
            measure(folder, records[-1], models[-1])
    for what, sizes, found in (("records", records, by_records), ("models", models, by_models)):
        for key in ("seconds", "bytes"):
            if len(sizes) > 1 and found[-2]["seconds"] > _SMALL_SECONDS:
                slopes[f"{key} by {what}"] = slope(sizes, [told[key] for told in found])
    print("\nslopes (1: linear): " + ", ".join(f"{name} {value:.2f}" for name, value in slopes.items()))
    steep = [name for name, value in slopes.items() if value > _LIMIT]
    if steep:
        print(f"grows faster than its size: {', '.join(steep)}", file=sys.stderr)
    return int(bool(steep))


if __name__ == "__main__":
    sys.exit(main())
