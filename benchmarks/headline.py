"""Which attack is the headline? Trains targets and reference models, and prints the tables of docs/headline.md.

Every scenario is a pool of records, T targets, and K = 64 reference models in complementary pairs. A target's members
are drawn record by record with probability 1/2, independently of the reference models and of the other targets. With
fewer than 64 models each target takes other ones of the bank, so that the figures at K = 2 are not those of one pair.

Attacks are compared by their paired differences, target by target and record by record (benchmarks/paired.py): AUC, and
TPR at 1 % FPR with the threshold on the target's own ROC.

    python benchmarks/headline.py train location30 FOLDER --path location30.npz
    python benchmarks/headline.py train cifar10 FOLDER --data-dir DATA
    python benchmarks/headline.py judge FOLDER [FOLDER ...]

`train` may be killed at any moment and goes on where it was; `judge` takes what is there. One core, one thread:
location30 takes minutes, cifar10 about an hour. Needs no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from memberscope import data_loader
from memberscope.data_loader import Dataset
from memberscope.files import replacing
from memberscope.training.model_bank import ModelBank
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

MODELS = 64
SEED = 20_26


@dataclass(frozen=True)
class Scenario:
    """What is trained.

    Parameters
    ----------
    dataset
        Name for `data_loader.load`; ``npz`` takes the path given.
    records
        Size of the pool, drawn from the dataset without its official split.
    targets
        How many models play the target.
    recipe
        How every model is trained.
    """

    dataset: str
    records: int
    targets: int
    recipe: Recipe


SCENARIOS = {
    "location30": Scenario("npz", 5_010, 10, Recipe(model="mlp", epochs=50, batch_size=64)),
    "cifar10": Scenario("cifar10", 4_000, 5, Recipe(model="simplecnn", epochs=20, batch_size=64)),
    "digits": Scenario("digits", 1_797, 10, Recipe(model="mlp", epochs=40, batch_size=32)),
}


def pool_of(scenario: Scenario, path: Path | None, data_dir: Path | None, unverified: bool) -> Dataset:
    """The records of a scenario: a random sample, always the same."""
    name = f"npz:{path}" if scenario.dataset == "npz" else scenario.dataset
    whole = data_loader.load(name, data_dir, unverified=unverified or None)
    rows = np.sort(np.random.default_rng(SEED).permutation(whole.n)[: scenario.records])
    return replace(whole, x=whole.x[rows], y=whole.y[rows], is_train=np.ones(len(rows), bool))


def train(name: str, folder: Path, dataset: Dataset, note: Callable[[str], None]) -> None:
    """Train what is missing: the targets, then the bank, in steps of which each can be judged."""
    scenario = SCENARIOS[name]
    everyone = np.ones(dataset.n, bool)
    for t in range(scenario.targets):
        place = folder / f"target{t}.npz"
        if place.is_file():
            continue
        member = np.random.default_rng([SEED, t]).random(dataset.n) < 0.5
        model = fit(
            scenario.recipe, dataset.x, dataset.y, member, n_classes=dataset.n_classes, seed=SEED + 1000 + t,
            device="cpu", threads=1, checkpoint=folder / f"target{t}.checkpoint", resume=True,
        )  # fmt: skip
        logits = model.query(dataset.x)
        with replacing(place) as temporary, temporary.open("wb") as file:
            np.savez(file, logits=logits, member=member, labels=dataset.y)
        right = logits[0].argmax(axis=1) == dataset.y
        (folder / f"target{t}.checkpoint").unlink(missing_ok=True)
        note(f"target {t}: accuracy {right[member].mean():.3f} on members, {right[~member].mean():.3f} on others")
    bank = ModelBank.open(
        folder / "bank", recipe=scenario.recipe, dataset=dataset, pool=everyone, seed=SEED, keep_weights=False
    )
    for k in (2, 4, 8, 16, 32, MODELS):
        bank.grow(k, workers=1, threads=1, device="cpu")
        with replacing(folder / "references.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, logits=np.asarray(bank.logits()[:]), membership=bank.membership)
        note(f"{k} reference models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    training = parts.add_parser("train")
    training.add_argument("scenario", choices=SCENARIOS)
    training.add_argument("folder", type=Path)
    training.add_argument("--path", type=Path, help="of location30.npz")
    training.add_argument("--data-dir", type=Path)
    training.add_argument("--unverified-data", action="store_true")
    judging = parts.add_parser("judge")
    judging.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    if given.part == "train":
        dataset = pool_of(SCENARIOS[given.scenario], given.path, given.data_dir, given.unverified_data)
        train(given.scenario, given.folder, dataset, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
