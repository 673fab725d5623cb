"""Defenses of the answers: what is seen, what the adversary is refused, and what stays the same."""

import dataclasses
import json

import numpy as np
import pytest

import memberscope
from memberscope.defenses.registry import outputs
from memberscope.errors import ConfigError
from memberscope.evidence import Knowledge, from_logits
from memberscope.training.defended import probabilities_of
from memberscope.training.model_files import load, save
from memberscope.training.recipe import Recipe


@pytest.fixture(scope="module")
def trained(pool):
    return pool.train(epochs=6)


def answered(model, pool, **settings):
    """Probabilities that a model with these defenses of its answers gives."""
    asked = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, **settings), drawn={})
    return probabilities_of(asked.query(pool.x)[0])


def test_rounding(trained, pool):
    raw = probabilities_of(trained.query(pool.x)[0])
    seen = answered(trained, pool, round_answers=1)
    expected = np.round(raw, 1)
    np.testing.assert_allclose(seen, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert len(np.unique(seen.max(axis=1))) < len(np.unique(raw.max(axis=1)))


def test_the_likeliest_classes(trained, pool):
    raw = probabilities_of(trained.query(pool.x)[0])
    seen = answered(trained, pool, top_answers=2)
    order = np.argsort(-raw, axis=1)
    for row in range(len(raw)):
        first, second, *others = order[row]
        assert seen[row, first] == pytest.approx(raw[row, first], abs=1e-5)
        assert seen[row, second] == pytest.approx(raw[row, second], abs=1e-5)
        assert seen[row, others] == pytest.approx(np.full(2, raw[row, others].sum() / 2), abs=1e-5)
    np.testing.assert_allclose(answered(trained, pool, top_answers=9), raw, atol=1e-6)


def test_the_label_alone(trained, pool):
    raw = trained.query(pool.x)[0]
    seen = answered(trained, pool, label_only=True)
    assert (seen.argmax(axis=1) == raw.argmax(axis=1)).all()
    np.testing.assert_allclose(seen.max(axis=1), 1)


def test_rounding_comes_before_the_choice_of_classes(trained, pool):
    seen = answered(trained, pool, top_answers=1, round_answers=1)
    top = seen.max(axis=1)
    assert np.isclose(top[:, None], np.arange(11) / 10, atol=1e-6).any(axis=1).all()


def test_who_holds_the_weights_passes_by(trained, pool):
    asked = dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, label_only=True))
    np.testing.assert_array_equal(asked.query(pool.x, raw=True), trained.query(pool.x))


@pytest.fixture(scope="module")
def unsure(pool):
    return pool.train(epochs=6, hamp=0.9)


def test_hamp_answers_scores_of_random_inputs_in_the_true_order(unsure, pool):
    raw, seen = unsure.query(pool.x, raw=True)[0], unsure.query(pool.x)[0]
    np.testing.assert_array_equal(np.argsort(seen, axis=1, kind="stable"), np.argsort(raw, axis=1, kind="stable"))
    noise = np.random.default_rng([unsure.seed, *b"hamp"]).integers(0, 256, size=(1024, 3, 8, 8), dtype=np.uint8)
    table = np.sort(probabilities_of(unsure.query(noise, raw=True)[0]), axis=1)
    for row in np.sort(probabilities_of(seen), axis=1):
        assert np.abs(table - row).max(axis=1).min() < 1e-6
    assert len(np.unique(seen.round(5), axis=0)) > 20, "records get different ones"


def test_hamp_gives_a_record_the_same_answer_each_time_and_in_any_company(unsure, pool):
    whole = unsure.query(pool.x, augmentations=("none", "flip"))
    np.testing.assert_array_equal(unsure.query(pool.x[40:60])[0], whole[0, 40:60])
    mirrored = np.ascontiguousarray(pool.x[40:60][..., ::-1])
    np.testing.assert_allclose(unsure.query(mirrored)[0], whole[1, 40:60], atol=1e-5)
    fresh = dataclasses.replace(unsure, drawn={})
    np.testing.assert_array_equal(fresh.query(pool.x), whole[:1])


def test_hamp_can_be_audited_without_its_output_path(unsure, pool):
    recipe = dataclasses.replace(unsure.recipe, hamp_output=False)
    assert outputs(unsure.recipe)
    assert not outputs(recipe)
    assert recipe.digest == unsure.recipe.digest, "the same training"
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("settings", [{"round_answers": 2}, {"top_answers": 3}, {"label_only": True}])
def test_answers_change_no_training_and_the_same_model_is_loaded(settings, trained, pool, tmp_path):
    recipe = dataclasses.replace(trained.recipe, **settings)
    assert recipe.digest == trained.recipe.digest
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe != trained.recipe
    save(trained, tmp_path, membership=pool.member, dataset_name="d", dataset_fingerprint="f")
    loaded = load(tmp_path, recipe=recipe, device="cpu")
    assert loaded.recipe == recipe
    np.testing.assert_allclose(probabilities_of(loaded.query(pool.x)[0]), answered(trained, pool, **settings))


def test_evidence_without_probabilities_says_so(trained, pool):
    logits = trained.query(pool.x)
    assert Knowledge.PROBABILITIES in from_logits(logits, pool.y).knowledge
    assert Knowledge.PROBABILITIES not in from_logits(logits, pool.y, has_probabilities=False).knowledge


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_only": True, "round_answers": 2}, "a class has no probability to round"),
        ({"label_only": True, "top_answers": 2}, "a class alone is answered"),
        ({"round_answers": 17}, "round_answers = 17 is out of range"),
        ({"label_only": "yes"}, "label_only = 'yes' is neither true nor false"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**settings)


def test_attacks_see_what_is_answered_and_references_answer_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMBERSCOPE_MODELS_DIR", str(tmp_path))
    options = {"dataset": "digits", "epochs": 1, "protocol": "random-half", "threads": 1, "shadows": 2}
    labels = memberscope.audit(**options, attacks=("gap", "phi", "lira-online-pooled"), label_only=True)
    told = {a["name"]: a for a in labels.document["attacks"]}
    assert told["gap"]["status"] == "run"
    assert told["phi"]["status"] == told["lira-online-pooled"]["status"] == "skipped"
    assert "needs the probability vector" in told["phi"]["reason"]
    rounded = memberscope.audit(**options, attacks=("confidence",), round_answers=1, load=True)
    assert len(np.unique(np.round(rounded.scores["confidence"], 6))) <= 11
    assert rounded.document["target"]["weights_sha256"] == labels.document["target"]["weights_sha256"], "loaded"
    assert rounded.document["target"]["defenses"] == ["round_answers"]
