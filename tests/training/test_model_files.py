"""Models on disk: what is written comes back, and everything else is refused by name."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from memberscope.errors import ConfigError, ModelError
from memberscope.training.models import build
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit, load, load_weights, save, wrap
from memberscope.training.trained_model import plain_state

RECIPE = Recipe(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=60)
    x = (rng.integers(100, size=(60, 1, 8, 8)) + 50 * y[:, None, None, None]).astype(np.uint8)
    return x, y, np.arange(60) % 2 == 0


@pytest.fixture(scope="module")
def trained(pool):
    x, y, member = pool
    return fit(RECIPE, x, y, member, validation=~member, n_classes=3, seed=4, device="cpu")


@pytest.fixture
def folder(trained, pool, tmp_path):
    save(trained, tmp_path / "m", membership=pool[2], dataset_name="toy", dataset_fingerprint="f" * 64)
    return tmp_path / "m"


def test_a_saved_model_answers_with_the_same_bits(trained, folder, pool):
    assert sorted(p.name for p in folder.iterdir()) == ["membership.npy", "model.json", "model.safetensors"]
    again = load(folder, recipe=RECIPE, membership=pool[2], dataset_fingerprint="f" * 64, device="cpu")
    assert np.array_equal(again.query(pool[0]), trained.query(pool[0]))
    for name in ("recipe", "history", "seed", "precision", "input_shape", "n_classes", "stopped_epoch", "best_epoch"):
        assert getattr(again, name) == getattr(trained, name), name
    assert again.weights_sha256 == trained.weights_sha256
    assert repr(again) == repr(trained)
    assert np.load(folder / "membership.npy").dtype == bool
    about = json.loads((folder / "model.json").read_text())
    assert about["members"] == 30
    assert about["environment"]["packages"]["torch"] == torch.__version__


def test_loading_leaves_the_random_generator_alone(folder):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(folder, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"recipe": Recipe(epochs=3, batch_size=16)}, r"by another recipe: epochs 2 instead of 3"),
        ({"dataset_fingerprint": "0"}, r"trained on other records \(of 'toy'\)"),
        ({"membership": np.ones(60, bool)}, r"trained on other members"),
    ],
)
def test_a_model_of_another_training_is_refused(folder, asked, message):
    with pytest.raises(ModelError, match=message):
        load(folder, device="cpu", **asked)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def edit(key, value):
    def change(path):
        about = json.loads(path.read_text())
        about[key] = value
        path.write_text(json.dumps(about))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.json", lambda p: p.unlink(), r"no model in .*: model.json is missing"),
        ("model.json", truncate, r"model.json is damaged"),
        ("model.json", edit("format", "other"), r"expected format 'memberscope model 1', found 'other'"),
        ("model.json", edit("recipe", {"epochs": -1}), r"model.json is damaged: ConfigError: epochs = -1"),
        ("model.json", edit("mean", None), r"model.json is damaged: TypeError"),
        ("model.json", edit("weights_sha256", "0"), r"does not hold the weights that model.json was written with"),
        ("model.safetensors", truncate, r"model.safetensors is damaged"),
        ("model.safetensors", lambda p: p.write_bytes(b""), r"neither a safetensors file nor a PyTorch state dict"),
        ("model.safetensors", lambda p: p.unlink(), r"cannot read the weights .*: No such file"),
        ("membership.npy", truncate, r"membership.npy is missing or damaged"),
        ("membership.npy", lambda p: np.save(p, np.ones(60, bool)), r"is not the membership that model.json"),
        ("membership.npy", lambda p: np.save(p, np.ones(60)), r"membership.npy is float64, expected bool"),
    ],
)
def test_damage_is_found_and_named(folder, file, damage, message):
    damage(folder / file)
    with pytest.raises(ModelError, match=message):
        load(folder, device="cpu")


def test_an_interrupted_save_leaves_no_model_that_could_be_mistaken(trained, folder, pool, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(Exception, match="disk full while writing"):
        save(trained, folder, membership=pool[2], dataset_name="toy", dataset_fingerprint="f" * 64)
    with pytest.raises(ModelError, match=r"model.json is missing"):
        load(folder, device="cpu")


def small():
    return build("mlp", (4,), 3)


def write_state(path, state, kind):
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_of_every_common_form_are_read(tmp_path, kind, prefix):
    source, target = small(), small()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if kind == "legacy":
        torch.save(state, tmp_path / "w", _use_new_zipfile_serialization=False)
    else:
        write_state(tmp_path / "w", state, kind)
    load_weights(tmp_path / "w", target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path, key):
    source, target = small(), small()
    torch.save({"epoch": 3, key: source.state_dict()}, tmp_path / "w.pt")
    load_weights(tmp_path / "w.pt", target)
    assert torch.equal(source.fc1.weight, target.fc1.weight)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_hostile_file_is_refused_and_never_run(tmp_path, how):
    trap = tmp_path / "executed"
    content = {"fc1.weight": Hostile(trap)}
    if how == "pickle":
        (tmp_path / "w").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "w", _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ModelError, match=r"holds more than weights \(Python objects, which could run code\)"):
        load_weights(tmp_path / "w", small())
    assert not trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(4, 3), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"it was not loaded\n  save the weights alone"):
        load_weights(tmp_path / "w.pt", small())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", r"neither a safetensors file nor a PyTorch state dict"),
        (b"PK\x03\x04" + b"\0" * 50, r"is damaged, or holds more than weights"),
        ((20).to_bytes(8, "little") + b"{broken" + b"\0" * 30, r"is damaged"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_weights(tmp_path / "w", small())


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds no state dict \(names and tensors\) but list"):
        load_weights(tmp_path / "w.pt", small())


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = small().state_dict()
    del state["fc3.bias"]
    state["fc1.weight"] = torch.zeros(256, 9)
    state["head.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "w")
    message = r"missing: fc3.bias; unexpected: head.weight; fc1.weight is \[256, 9\], expected \[256, 4\]"
    with pytest.raises(ModelError, match=message):
        load_weights(tmp_path / "w", small())


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    state = small().state_dict()
    state["fc2.bias"][3] = float("nan")
    save_file(state, tmp_path / "w")
    with pytest.raises(ModelError, match=r"fc2.bias holds NaN or infinite weights"):
        load_weights(tmp_path / "w", small())


def test_a_brought_model_is_asked_with_its_own_normalisation(tmp_path, trained, pool):
    x = pool[0]
    save_file(plain_state(trained.module), tmp_path / "w")
    recipe = Recipe()
    given = {"input_shape": (1, 8, 8), "n_classes": 3, "device": "cpu"}
    same = wrap(recipe, tmp_path / "w", mean=tuple(trained.mean), std=tuple(trained.std), **given)
    assert np.array_equal(same.query(x), trained.query(x))
    plain = wrap(recipe, tmp_path / "w", **given)
    with torch.no_grad():
        want = trained.module(torch.from_numpy(x).float() / 255).numpy()
    np.testing.assert_allclose(plain.query(x)[0], want, atol=1e-5)
    assert plain.history == ()
    assert plain.seed is None
    assert "brought by the user" in repr(plain)
    with pytest.raises(ConfigError, match="mean has 3 numbers for 1 channels"):
        wrap(recipe, tmp_path / "w", mean=(0.1, 0.2, 0.3), std=(1.0,), **given)
