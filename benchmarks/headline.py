"""Which attack is the headline? Trains targets and reference models, and prints the tables of docs/headline.md.

Every scenario is a pool of records, T targets, and K = 64 reference models in complementary pairs. A target's members
are drawn record by record with probability 1/2, independently of the reference models and of the other targets. With
fewer than 64 models each target takes other ones of the bank, so that the figures at K = 2 are not those of one pair.

Attacks are compared by their paired differences, target by target and record by record (benchmarks/paired.py): AUC, and
TPR at 1 % FPR with the threshold on the target's own ROC.

    python benchmarks/headline.py train location30 FOLDER --path location30.npz
    python benchmarks/headline.py train cifar10 FOLDER --data-dir DATA   (or svhn)
    python benchmarks/headline.py judge FOLDER [FOLDER ...]

Both may be killed at any moment and go on where they were; `judge` takes what models there are, and keeps the scores:
of an attack that has changed, delete them.
One core, one thread: location30 and digits take minutes, cifar10 and svhn half an hour. Needs no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from memberscope import data_loader
from memberscope.attacks.base import missing_knowledge
from memberscope.attacks.registry import ATTACKS, HEADLINE
from memberscope.data_loader import Dataset
from memberscope.evidence import Evidence, Knowledge
from memberscope.files import replacing
from memberscope.training.model_bank import ModelBank
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit
from paired import METRICS, differences, figures

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
    "svhn": Scenario("svhn", 4_000, 5, Recipe(model="simplecnn", epochs=20, batch_size=64)),
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


def scored(folder: Path, k: int, most: int) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Scores of every attack with reference models on the targets, beside k models of the bank; and the truth."""
    saved = np.load(folder / "references.npz")
    logits, membership = saved["logits"], saved["membership"]
    scores: dict[str, list[np.ndarray]] = {}
    members = []
    places = sorted(folder.glob("target*.npz"), key=lambda p: int(p.stem.removeprefix("target")))
    for t, place in enumerate(places[:most]):
        target = np.load(place)
        members.append(target["member"])
        kept = folder / f"scores-{k}-{t}.npz"
        found = dict(np.load(kept)) if kept.is_file() else {}
        models = (t * k + np.arange(k)) % len(logits)
        evidence = Evidence(
            target["logits"],
            target["labels"],
            reference_logits=logits[models],
            reference_membership=membership[models],
        )
        asked = [a for a in ATTACKS.values() if Knowledge.REFERENCES in a.needs and not missing_knowledge(a, evidence)]
        missing = [a for a in asked if a.name not in found]
        if missing:
            found |= {a.name: a(rng=np.random.default_rng(t)).score(evidence) for a in missing}
            with replacing(kept) as temporary, temporary.open("wb") as file:
                np.savez(file, **found)
        for attack in asked:
            scores.setdefault(attack.name, []).append(found[attack.name])
    return scores, members


def judge(folder: Path, headline: str, models: list[int], targets: int, draws: int, *, every: bool) -> None:
    """Print a table: the headline attack at each number of models, and its differences from the others."""
    with np.load(folder / "references.npz") as saved:
        there, n = saved["membership"].shape
    print(f"\n{folder.name}: {n:,} records, {min(targets, len(list(folder.glob('target*.npz'))))} targets")
    print(f"| K | metric | {headline} | best other | {headline} less best other | better / level / worse |")
    print("|--:|---|--:|---|---|---|", flush=True)
    for k in (k for k in models if k <= there):
        scores, members = scored(folder, k, targets)
        known = {name: own.mean(axis=0) for name, own in figures(scores, members).items()}
        apart = differences(scores, members, headline, draws=draws)
        for i, metric in enumerate(METRICS):
            best = max(apart, key=lambda name: known[name][i])
            better = [name for name, d in apart.items() if d[i].low > 0]
            worse = [name for name, d in apart.items() if d[i].high < 0]
            counts = f"{len(better)} / {len(apart) - len(better) - len(worse)} / {len(worse)}"
            told = f"{best} {known[best][i]:.4f}"
            print(f"| {k} | {metric} | {known[headline][i]:.4f} | {told} | {apart[best][i]} | {counts} |", flush=True)
        if every:
            for name in sorted(apart, key=lambda name: -known[name][0]):
                print(
                    f"    {name:34}" + "  ".join(f"{known[name][i]:.4f} {apart[name][i]}" for i in (0, 1)), flush=True
                )


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
    judging.add_argument("--headline", default=HEADLINE)
    judging.add_argument("--models", default="2,4,8,16,32,64")
    judging.add_argument("--targets", type=int, default=10, help="at most")
    judging.add_argument("--draws", type=int, default=400)
    judging.add_argument("--all", action="store_true", help="a row for every attack")
    given = parser.parse_args()
    if given.part == "train":
        dataset = pool_of(SCENARIOS[given.scenario], given.path, given.data_dir, given.unverified_data)
        train(given.scenario, given.folder, dataset, lambda text: print(text, flush=True))
        return
    for folder in given.folders:
        models = [int(k) for k in given.models.split(",")]
        judge(folder, given.headline, models, given.targets, given.draws, every=given.all)


if __name__ == "__main__":
    main()
