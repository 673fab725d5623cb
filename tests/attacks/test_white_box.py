"""White-box attacks on small models that learned their members by heart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from memberscope.attacks.base import score_records
from memberscope.attacks.white_box import WhiteBoxClassifier
from memberscope.errors import EvidenceError, MissingKnowledgeError
from memberscope.evidence import Evidence, Knowledge
from memberscope.statistics.curves import auc, rank
from memberscope.training.gradients import reference_white_box, white_box
from memberscope.training.probing import ModelOracle
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

N, C = 400, 4
INSIDE = np.random.default_rng(1).random((3, N)) < 0.5


@cache
def audited() -> tuple[Evidence, np.ndarray]:
    """A target (the first of three models) and two reference models, on records with noisy labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, C, N)
    x = (rng.normal(size=(N, 30)) + 0.7 * np.eye(C, 30)[y]).astype(np.float32)
    recipe = Recipe(model="mlp", epochs=15, batch_size=20, precision="fp32")
    models = [
        fit(recipe, x, y, member, n_classes=C, seed=seed, device="cpu", threads=1) for seed, member in enumerate(INSIDE)
    ]
    logits = np.stack([model.query(x) for model in models])
    evidence = Evidence(
        logits[0],
        y,
        reference_logits=logits[1:],
        reference_membership=INSIDE[1:],
        white_box=white_box(models[0], x, y),
        reference_white_box=reference_white_box(lambda k: models[1 + k], x, y, np.arange(N)),
        reference_oracle=lambda k: ModelOracle(models[1 + k], x, np.arange(N)),
    )
    return evidence, INSIDE[0]


def test_what_reference_models_teach_tells_members_of_the_target() -> None:
    evidence, member = audited()
    scores = score_records(WhiteBoxClassifier, evidence, member, rng=np.random.default_rng(0))
    assert auc(rank(scores, member)) > 0.8
    other = np.random.default_rng(5).permutation(member)
    again = score_records(WhiteBoxClassifier, evidence, other, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(scores, again)


def test_gradients_reach_the_classifier() -> None:
    """With answers that say nothing, what is told comes from the gradients."""
    evidence, member = audited()
    rng = np.random.default_rng(0)
    silent = replace(
        evidence,
        logits=rng.normal(size=(1, N, C)),
        reference_logits=rng.normal(size=(2, 1, N, C)),
    )
    scores = WhiteBoxClassifier(rng=rng).score(silent)
    assert auc(rank(scores, member)) > 0.75


def test_the_part_of_some_records_looks_at_these() -> None:
    evidence, _ = audited()
    rows = np.array([7, 3, 200])
    part = evidence.take(np.arange(N)[::-1]).take(N - 1 - rows)
    assert part.reference_white_box is not None
    assert evidence.reference_white_box is not None
    found = part.reference_white_box(1, "log_gradient_norm_layers", np.arange(3))
    expected = evidence.reference_white_box(1, "log_gradient_norm_layers", rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.shape[0] == 3
    assert found.shape[1] > 1


def test_it_needs_the_weights_of_reference_models_and_some_to_learn_from() -> None:
    evidence, member = audited()
    answers_alone = replace(evidence, reference_white_box=None)
    assert Knowledge.REFERENCE_WEIGHTS not in answers_alone.knowledge
    with pytest.raises(MissingKnowledgeError, match="the weights of the reference models"):
        score_records(WhiteBoxClassifier, answers_alone, member, rng=np.random.default_rng(0))
    few = INSIDE[1:] & (np.arange(N) < 20)
    with pytest.raises(EvidenceError, match="no reference model has members and non-members enough"):
        WhiteBoxClassifier().score(replace(evidence, reference_membership=few))
    assert WhiteBoxClassifier.adversary().name == "thief"
