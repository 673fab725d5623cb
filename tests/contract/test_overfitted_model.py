"""Every attack on a model that knows its members by heart, through the whole audit: none points the wrong way."""

from __future__ import annotations

import numpy as np
import pytest

import memberscope
from memberscope.attacks.registry import ATTACKS
from memberscope.evidence import OF_ROUNDS

CENTRAL = [name for name, attack in ATTACKS.items() if not attack.needs & OF_ROUNDS]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> memberscope.Audit:
    folder = tmp_path_factory.mktemp("overfitted")
    rng = np.random.default_rng(0)
    n = 400
    y = rng.integers(0, 4, n)
    shown = np.where(rng.random(n) < 0.5, y, rng.integers(0, 4, n))  # half of the labels can only be learnt by heart
    x = np.clip(rng.normal(110 + 30 * np.eye(4)[shown].repeat(16, axis=1).reshape(n, 1, 8, 8), 40), 0, 255)
    np.savez(folder / "images.npz", x=x.astype(np.uint8), y=y)
    return memberscope.audit(
        dataset=f"npz:{folder / 'images.npz'}",
        model="mlp",
        epochs=20,
        batch_size=20,
        protocol="random-half",
        shadows=6,
        attacks=tuple(CENTRAL),
        models_dir=folder / "models",
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize("name", CENTRAL)
def test_no_attack_points_the_wrong_way(name: str, audited: memberscope.Audit) -> None:
    (found,) = [attack for attack in audited.document["attacks"] if attack["name"] == name]
    assert found["status"] == "run", found["reason"]
    assert found["evaluation"]["auc"]["value"] >= 0.5
