"""The arrays that every tool is given: synthetic answers, and a target and a bank trained on a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RECORDS, CLASSES, MODELS = 24_000, 10, 64


def synthetic(path: Path) -> None:
    """Answers of 64 models and a target on 24,000 records of unequal difficulty, gain and spread."""
    rng = np.random.default_rng(64)
    labels = rng.integers(0, CLASSES, RECORDS)
    inside = np.argsort(rng.random((MODELS, RECORDS)), axis=0) < MODELS // 2
    member = rng.random(RECORDS) < 0.5
    easy, gain, spread = rng.normal(4, 2, RECORDS), rng.exponential(0.7, RECORDS), rng.uniform(0.6, 1.6, RECORDS)
    z = rng.normal(0, 1, (MODELS + 1, RECORDS, CLASSES))
    own = easy + gain * np.vstack([inside, member]) + spread * rng.normal(0, 1, (MODELS + 1, RECORDS))
    z[:, np.arange(RECORDS), labels] = own
    _write(path, z[-1], labels, member, z[:-1], inside)


def trained(path: Path, name: str, folder: Path, *, models: int, epochs: int) -> None:
    """A target and a bank of multilayer perceptrons on a data set, each trained on a random half."""
    from memberscope import seeds
    from memberscope.data_loader import load
    from memberscope.training.model_bank import ModelBank
    from memberscope.training.recipe import Recipe
    from memberscope.training.train_target import fit

    data = load(name, download=False)
    recipe = Recipe(model="mlp", epochs=epochs)
    pool = np.ones(data.n, bool)
    bank = ModelBank.open(folder, recipe=recipe, dataset=data, pool=pool, seed=1)
    bank.grow(models, device="cpu", threads=1)
    member = seeds.generator(0, "membership").random(data.n) < 0.5
    target = fit(recipe, data.x, data.y, member, n_classes=data.n_classes, seed=0, device="cpu", threads=1)
    answers = target.query(data.x)[0]
    _write(path, answers, data.y, member, np.asarray(bank.logits())[:, 0], bank.membership)


def _write(path: Path, logits, labels, member, reference_logits, reference_membership) -> None:
    np.savez(
        path,
        logits=logits.astype(np.float32),
        labels=labels.astype(np.int64),
        member=member,
        reference_logits=reference_logits.astype(np.float32),
        reference_membership=reference_membership,
    )
