"""The bank: balanced halves, the same models however they come about, nothing trained twice, nothing wrong believed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memberscope import locks
from memberscope.data_loader import Dataset
from memberscope.errors import ConfigError, DataError, MemberscopeError, ModelError
from memberscope.evidence import from_logits
from memberscope.training import bank_files, bank_training, layout
from memberscope.training.bank_files import ModelFile, claim, model_path
from memberscope.training.bank_progress import BankProgress, Tracker, rounds_left
from memberscope.training.bank_training import as_stored, membership_row, training_seed
from memberscope.training.layout import Layout, candidates, pick
from memberscope.training.model_bank import ModelBank
from memberscope.training.recipe import Recipe

N, CLASSES = 120, 3
RECIPE = Recipe(model="mlp", epochs=2, batch_size=16)


def make_dataset(n: int = N, images: bool = False) -> Dataset:
    rng = np.random.default_rng(5)
    y = rng.integers(0, CLASSES, n)
    y[:CLASSES] = range(CLASSES)
    x = rng.normal(size=(n, 8)).astype(np.float32) + y[:, None].astype(np.float32)
    if images:
        x = (rng.integers(0, 100, (n, 1, 8, 8)) + 50 * y[:, None, None, None]).astype(np.uint8)
    return Dataset("toy", x, y, tuple("abc"), np.ones(n, bool), "made up", True)


DATASET = make_dataset()
POOL = np.arange(N) % 6 != 0


def open_bank(folder: Path, **changes) -> ModelBank:
    given = {"recipe": RECIPE, "dataset": DATASET, "pool": POOL, "seed": 3} | changes
    return ModelBank.open(folder, **given)


def grown(folder: Path, k: int = 4, *, workers=1, progress=None, **changes) -> ModelBank:
    bank = open_bank(folder, **changes)
    bank.grow(k, workers=workers, device="cpu", progress=progress)
    return bank


def hashes(bank: ModelBank) -> list[str]:
    return [bank.about(k)["weights_sha256"] for k in range(bank.size)]


class Heard(BankProgress):
    def __init__(self) -> None:
        self.layouts: list[str] = []
        self.models: list[tuple[int, int, float | None]] = []
        self.notes: list[str] = []

    def on_layout(self, text):
        self.layouts.append(text)

    def on_model(self, done, total, seconds_left):
        self.models.append((done, total, seconds_left))

    def on_note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> ModelBank:
    """Four models, trained one after the other in this process."""
    return grown(tmp_path_factory.mktemp("banks") / "reference")


# ---------------------------------------------------------------------------------------------- membership


@given(n=st.integers(2, 60), seed=st.integers(0, 2**63), pairs=st.integers(1, 8), data=st.data())
@settings(deadline=None, max_examples=60)
def test_pairs_are_complements_so_any_even_number_is_balanced(n, seed, pairs, data):
    pool = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    pool[:2] = True
    rows = np.array([membership_row(pool, k, seed) for k in range(2 * pairs)])
    np.testing.assert_array_equal(rows.sum(axis=0), np.where(pool, pairs, 0))
    halves = rows.sum(axis=1)
    assert set(halves) <= {pool.sum() // 2, -(-pool.sum() // 2)}
    np.testing.assert_array_equal(rows[0], membership_row(pool, 0, seed))


def test_pairs_are_independent_of_each_other():
    pool = np.ones(20_000, bool)
    rows = [membership_row(pool, k, 1) for k in range(0, 12, 2)]
    for i in range(6):
        for j in range(i):
            assert abs((rows[i] & rows[j]).mean() - 0.25) < 0.01  # 3 standard errors
    assert not np.array_equal(rows[0], membership_row(pool, 0, 2))


def test_each_model_has_a_seed_of_its_own():
    found = {training_seed(seed, k) for seed in (0, 1) for k in range(100)}
    assert len(found) == 200
    assert all(0 <= s < 2**63 for s in found)


# ---------------------------------------------------------------------------------------------- what a bank holds


def test_what_a_bank_holds_is_what_the_trainer_gives(reference):
    from memberscope.training.train_target import fit

    assert (reference.size, len(reference)) == (4, 4)
    membership = reference.membership
    assert membership.dtype == np.bool_
    assert membership.shape == (4, N)
    np.testing.assert_array_equal(membership[2], membership_row(POOL, 2, 3))
    expected = fit(
        RECIPE,
        DATASET.x,
        DATASET.y,
        membership[2],
        n_classes=CLASSES,
        seed=training_seed(3, 2),
        device="cpu",
        threads=1,
    )
    answers = expected.query(DATASET.x)
    logits = reference.logits()
    assert logits.shape == (4, 1, N, CLASSES)
    np.testing.assert_array_equal(np.asarray(logits)[2], answers)
    assert hashes(reference)[2] == expected.weights_sha256
    right = answers[0].argmax(1) == DATASET.y
    expected_accuracy = [right[membership[2]].mean(), right[POOL & ~membership[2]].mean()]
    np.testing.assert_allclose(reference.accuracies[2], expected_accuracy)
    rows = np.array([100, 3, 7])
    np.testing.assert_array_equal(np.asarray(reference.logits(rows))[1], np.asarray(logits)[1][:, rows])


def test_scoring_reads_a_bank_without_copying_it(reference):
    index = np.flatnonzero(POOL)
    evidence = from_logits(
        np.asarray(reference.logits(index)[0]),
        DATASET.y[index],
        reference_logits=reference.logits(index),
        reference_membership=reference.membership[:, index],
    )
    phi = evidence.references.phi()
    assert phi.residuals.shape == (1, len(index), 4)
    assert phi.balanced


def test_the_files_are_plain_safetensors(reference):
    from safetensors.numpy import load_file

    arrays = load_file(model_path(reference.folder, 1))
    assert sorted(arrays) == ["logits", "membership"]
    np.testing.assert_array_equal(arrays["logits"], np.asarray(reference.logits()[1]))


def test_an_empty_bank_says_so(tmp_path):
    bank = open_bank(tmp_path / "bank")
    assert bank.size == 0
    assert bank.membership.shape == (0, N)
    assert bank.accuracies.shape == (0, 2)
    with pytest.raises(ModelError, match="no whole pair") as caught:
        bank.logits()
    assert caught.value.hint == "grow it first"


def test_weights_are_kept_on_request_and_answer_as_before(tmp_path):
    bank = grown(tmp_path / "bank", 2, keep_weights=True, dataset=make_dataset(images=True), recipe=_images())
    model = bank.model(1, device="cpu", threads=1)
    assert model.weights_sha256 == bank.about(1)["weights_sha256"]
    np.testing.assert_allclose(model.query(bank.dataset.x), np.asarray(bank.logits()[1]), atol=1e-5)
    # Nobody needs them: the same bank serves.
    without = open_bank(bank.folder, dataset=bank.dataset, recipe=_images())
    assert without.size == 2
    plain = grown(tmp_path / "plain", 2)
    with pytest.raises(ModelError, match="keeps no weights"):
        plain.model(0)
    with pytest.raises(ModelError, match=r"another choice of keeping weights \(False there, True here\)"):
        open_bank(plain.folder, keep_weights=True)


def _images() -> Recipe:
    return Recipe(model="simplecnn", epochs=1, batch_size=32, augmentation=("flip",))


def test_every_query_is_asked(tmp_path):
    dataset = make_dataset(images=True)
    bank = grown(tmp_path / "bank", 2, dataset=dataset, recipe=_images(), queries=("none", "flip"))
    answers = np.asarray(bank.logits())
    assert answers.shape == (2, 2, N, CLASSES)
    assert not np.array_equal(answers[:, 0], answers[:, 1])


def test_float16_keeps_the_differences_between_logits(tmp_path, reference):
    half = grown(tmp_path / "half", 2, precision="float16")
    kept = half.logits()
    assert kept.dtype == np.float16
    whole = np.asarray(reference.logits()[:2])
    np.testing.assert_allclose(np.asarray(kept), whole - whole.max(axis=3, keepdims=True), rtol=2e-3, atol=1e-3)
    wild = np.array([[[3e38, -3e38, 0.0]]], np.float32)
    np.testing.assert_array_equal(as_stored(wild / 2, "float16"), [[[0, -65504, -65504]]])


def test_recipes_that_stop_early_watch_the_validation_records(tmp_path):
    validation = ~POOL
    stopping = Recipe(model="mlp", epochs=40, batch_size=16, early_stopping=1, learning_rate=0.2)
    bank = grown(tmp_path / "bank", 2, recipe=stopping, validation=validation)
    assert all(bank.about(k)["epochs"][0] < 40 for k in range(2))
    with pytest.raises(ConfigError, match="early_stopping needs validation"):
        open_bank(tmp_path / "other", recipe=stopping)
    other = validation.copy()
    other[0] = False
    with pytest.raises(ModelError, match="another validation records"):
        open_bank(bank.folder, recipe=stopping, validation=other)


# ---------------------------------------------------------------------------------------------- growing


def test_growth_keeps_what_is_there(tmp_path, reference):
    folder = tmp_path / "bank"
    grown(folder, 2)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("model-*")}
    heard = Heard()
    bank = grown(folder, 4, progress=heard)
    assert hashes(bank) == hashes(reference)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert heard.models[0][:2] == (2, 4)
    assert heard.models[-1] == (4, 4, 0.0)
    assert sorted(path.name for path in folder.iterdir()) == [
        "bank.json",
        *(f"model-{k:05}.safetensors" for k in range(4)),
    ]
    # A larger bank serves a smaller demand with its first models.
    heard = Heard()
    smaller = grown(folder, 2, progress=heard)
    assert hashes(smaller) == hashes(reference)[:2]
    assert heard.models == heard.layouts == []
    assert open_bank(folder).size == 4


def test_odd_numbers_are_raised_to_whole_pairs_and_said(tmp_path):
    heard = Heard()
    bank = grown(tmp_path / "bank", 1, progress=heard)
    assert bank.size == 2
    assert heard.notes == ["1 reference models were asked for, 2 are trained: they come in pairs"]
    for nonsense in (0, -2, True, 2.0):
        with pytest.raises(ConfigError, match="a whole number from 1"):
            bank.grow(nonsense)


def test_any_number_of_workers_gives_the_same_models(tmp_path, reference):
    heard = Heard()
    bank = grown(tmp_path / "bank", 4, workers=2, progress=heard)
    assert hashes(bank) == hashes(reference)
    np.testing.assert_array_equal(np.asarray(bank.logits()), np.asarray(reference.logits()))
    assert heard.layouts == ["2 models at once, 1 thread each (as asked)"]
    assert [done for done, _, _ in heard.models] == sorted(done for done, _, _ in heard.models)
    assert heard.models[-1] == (4, 4, 0.0)


def test_threads_are_settled_once(tmp_path, reference):
    folder = tmp_path / "bank"
    bank = open_bank(folder)
    bank.grow(2, workers=1, threads=2, device="cpu")
    assert bank.about(0)["threads"] == 2
    with pytest.raises(ModelError, match="trained with 2 threads each, not 1"):
        open_bank(folder).grow(4, threads=1, device="cpu")
    bank.grow(4, workers=1, device="cpu")
    assert bank.about(3)["threads"] == 2
    with pytest.raises(ConfigError, match="threads = 0"):
        bank.grow(6, threads=0, device="cpu")
    with pytest.raises(ConfigError, match="workers = 0"):
        open_bank(tmp_path / "other").grow(2, workers=0, device="cpu")


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from memberscope.data_loader import Dataset
from memberscope.training.model_bank import ModelBank
from memberscope.training.recipe import Recipe
given = np.load(sys.argv[2])
x, y = given["x"], given["y"]
data = Dataset("toy", x, y, tuple("abc"), np.ones(len(y), bool), "made up", True)
recipe = Recipe(model="mlp", epochs=25, batch_size=4)
bank = ModelBank.open(Path(sys.argv[1]), recipe=recipe, dataset=data, pool=given["pool"], seed=3)
bank.grow(6, workers=int(sys.argv[3]), device="cpu")
print("grown")
"""


def slow() -> Recipe:
    return Recipe(model="mlp", epochs=25, batch_size=4)


def start(folder: Path, workers: int) -> subprocess.Popen:
    records = folder.parent / "records.npz"
    np.savez(records, x=DATASET.x, y=DATASET.y, pool=POOL)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(records), str(workers)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )


def hears_ctrl_c() -> None:
    """In a new process: background jobs are born deaf to SIGINT, and these tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[str]:
    return hashes(grown(tmp_path_factory.mktemp("banks") / "uninterrupted", 6, recipe=slow()))


@pytest.mark.parametrize(("workers", "signal_number"), [(2, signal.SIGKILL), (1, signal.SIGINT)])
def test_killed_in_the_middle_it_goes_on_to_the_same_models(tmp_path, uninterrupted, workers, signal_number):
    folder = tmp_path / "bank"
    process = start(folder, workers)
    end = time.monotonic() + 60
    while not list(folder.glob("model-*.safetensors")):
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.kill(process.pid, signal_number)
    said = process.communicate(timeout=30)[1]
    if signal_number == signal.SIGINT:
        assert "of 6 reference models are trained and kept; the same command goes on from there" in said
    before = sorted(folder.glob("model-*.safetensors"))
    assert 1 <= len(before) < 6
    bank = grown(folder, 6, recipe=slow())
    assert hashes(bank) == uninterrupted
    assert [p.name for p in folder.iterdir() if p.suffix in (".lock", ".part", ".checkpoint")] == []


def test_two_processes_at_once_train_each_model_once(tmp_path, uninterrupted):
    folder = tmp_path / "bank"
    processes = [start(folder, 1) for _ in range(2)]
    for process in processes:
        said, complained = process.communicate(timeout=90)
        assert said == "grown\n", complained
    bank = open_bank(folder, recipe=slow())
    assert bank.size == 6
    assert hashes(bank) == uninterrupted


def test_a_model_that_another_process_holds_is_left_to_it(tmp_path, monkeypatch):
    folder = tmp_path / "bank"
    bank = open_bank(folder)
    heard = Heard()
    held = claim(model_path(folder, 1))
    assert held.__enter__()
    polls = []

    def poll(seconds):
        polls.append(sorted(path.name for path in folder.glob("model-*.safetensors")))
        held.__exit__(None, None, None)  # the other process dies

    monkeypatch.setattr(bank_training.time, "sleep", poll)
    bank.grow(4, workers=1, device="cpu", progress=heard)
    assert polls == [[f"model-{k:05}.safetensors" for k in (0, 2, 3)]]
    assert heard.notes == ["waiting for another process that trains reference models 1"]
    assert bank.size == 4


def test_a_model_trained_meanwhile_is_not_trained_again(tmp_path, reference, monkeypatch):
    """Between looking what is missing and claiming it, another process may have finished."""
    folder = tmp_path / "bank"
    bank = open_bank(folder)
    plan = bank._plan(2, 1, None, "cpu")
    grown(folder, 2)
    monkeypatch.setattr("memberscope.training.train_target.fit", None)
    monkeypatch.setattr(ModelBank, "_missing", lambda self, k: [0, 1])
    monkeypatch.setattr(ModelBank, "_plan", lambda self, *args: plan)
    heard = Heard()
    bank.grow(2, device="cpu", progress=heard)
    assert heard.models[-1][:2] == (2, 2)


def test_claims_exclude_and_end(tmp_path):
    path = tmp_path / "model-00000.safetensors"
    stale = [tmp_path / f".model-00000.{kind}.x1.part" for kind in ("safetensors", "checkpoint")]
    other = tmp_path / ".model-000001.safetensors.x1.part"
    for left_behind in (*stale, other):
        left_behind.touch()
    with claim(path) as first:
        assert first
        assert not any(left_behind.exists() for left_behind in stale)
        with claim(path) as second:
            assert not second
        assert path.with_suffix(".lock").exists()
    assert list(tmp_path.iterdir()) == [other]
    with claim(path) as again:
        assert again


def test_a_claim_on_a_removed_name_is_not_believed(tmp_path, monkeypatch):
    """Opened, then removed by its holder before it was locked: the lock of a file without a name excludes nobody."""
    path = tmp_path / "model-00000.safetensors"
    lock = path.with_suffix(".lock")
    flock, calls = locks.fcntl.flock, []

    def racing(descriptor, operation):
        flock(descriptor, operation)
        calls.append(descriptor)
        if len(calls) == 1:
            lock.unlink()

    monkeypatch.setattr(locks.fcntl, "flock", racing)
    with claim(path) as ours:
        assert ours
        assert lock.exists()
        assert len(calls) == 2


# ---------------------------------------------------------------------------------------------- refusals and repairs


def test_another_bank_is_refused_by_what_differs(reference):
    def refusal(**changes) -> str:
        with pytest.raises(ModelError) as caught:
            open_bank(reference.folder, **changes)
        assert "choose another folder" in caught.value.hint
        return caught.value.problem

    other = Recipe(model="mlp", epochs=3, batch_size=16, learning_rate=0.5)
    assert refusal(recipe=other).endswith("another recipe (epochs 2 there, 3 here, learning_rate 0.02 there, 0.5 here)")
    changed = make_dataset()
    changed.x[7, 0] += 1
    assert refusal(dataset=changed).endswith("another dataset ('toy' there, 'toy' here)")
    pool = POOL.copy()
    pool[0] = True
    assert refusal(pool=pool).endswith("models may be trained on (100 records there, 101 here)")
    assert refusal(seed=4).endswith("another seed (3 there, 4 here)")
    assert refusal(queries=("none", "flip"), precision="float16").endswith(
        "another queries (['none'] there, ['none', 'flip'] here), "
        "another precision of the answers ('float32' there, 'float16' here)"
    )
    # The learning rate in force is what counts.
    assert (
        open_bank(reference.folder, recipe=Recipe(model="mlp", epochs=2, batch_size=16, learning_rate=0.02)).size == 4
    )


def test_pools_that_cannot_be_used_are_refused(tmp_path):
    for pool, message in (
        (np.ones(3, bool), r"pool is bool \[3\], expected bool \[120\]"),
        (np.ones(N, int), r"pool is int64 \[120\]"),
        (np.arange(N) == 0, "1 records to train reference models on, at least 2"),
    ):
        with pytest.raises(DataError, match=message):
            open_bank(tmp_path / "bank", pool=pool)
    with pytest.raises(DataError, match="100 records are of the pool and of validation"):
        open_bank(tmp_path / "bank", validation=POOL)
    with pytest.raises(ConfigError, match="precision = 'float64'"):
        open_bank(tmp_path / "bank", precision="float64")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    "damage", ["cut", "flipped bit", "flipped header", "no places", "empty", "foreign", "of another model"]
)
def test_a_damaged_model_is_noticed_and_trained_again(tmp_path, reference, damage):
    folder = tmp_path / "bank"
    grown(folder, 4)
    path = model_path(folder, 2)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-7]
    elif damage == "flipped bit":
        content[-200] ^= 1
    elif damage == "flipped header":
        place = content.index(b"accuracy") + 13
        content[place] ^= 1
    elif damage == "no places":
        content = re.sub(rb"(?<=\[)\d+, ?\d+(?=\])", lambda found: b" " * len(found[0]), bytes(content))
    elif damage == "empty":
        content = b""
    elif damage == "foreign":
        from safetensors.numpy import save

        content = save({"logits": np.zeros((1, N, CLASSES), np.float32)})
    else:
        content = model_path(folder, 3).read_bytes()
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged|another bank"):
        open_bank(folder).logits()
    heard = Heard()
    bank = grown(folder, 4, progress=heard)
    assert heard.notes == ["damaged files of reference models 2: trained again"]
    assert heard.models[0][:2] == (3, 4)
    assert hashes(bank) == hashes(reference)


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_no_single_bit_can_turn_unnoticed(reference, position, bit):
    path = model_path(reference.folder, 0)
    content = bytearray(path.read_bytes())
    place = position % len(content)
    content[place] ^= 1 << bit
    copy = path.parent / "copy.bin"
    copy.write_bytes(content)
    row = membership_row(POOL, 0, 3)
    found, before = (bank_training.sound(file, reference._digest, 0, row) for file in (copy, path))
    # JSON allows other white space where the header is padded, and another last digit may mean the same number.
    assert found is None or (found.about, found.places) == (before.about, before.places)
    copy.unlink()


def test_folders_and_manifests_that_are_no_bank_are_refused(tmp_path):
    folder = tmp_path / "bank"
    grown(folder, 2)
    manifest = folder / "bank.json"
    content = json.loads(manifest.read_text())
    for text, message in (("{", "cannot be read"), ("[]", "is no model bank"), ('{"format": "x"}', "is no model bank")):
        manifest.write_text(text)
        with pytest.raises(ModelError, match=message):
            open_bank(folder)
    manifest.write_text(json.dumps(content | {"identity": 3}))
    with pytest.raises(ModelError, match=r"manifest of the bank .* is damaged"):
        open_bank(folder)
    manifest.unlink()
    with pytest.raises(ModelError, match="holds models without the manifest"):
        open_bank(folder)


def test_too_little_room_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1000))
    monkeypatch.setattr("memberscope.training.train_target.fit", None)
    with pytest.raises(
        MemberscopeError, match=r"4 reference models take 0.0 MB in .*, where 0.0 MB are free"
    ) as caught:
        grown(tmp_path / "bank", 4)
    assert "float16" in caught.value.hint


def test_a_disk_that_fills_up_is_said_and_the_bank_goes_on_later(tmp_path, monkeypatch, reference):
    folder = tmp_path / "bank"
    write, full = bank_training.write_model, []

    def filling(path, arrays, about):
        if path.name.startswith("model-00002"):
            full.append(path)
            monkeypatch.setattr("os.fsync", _no_space)
        write(path, arrays, about)

    with monkeypatch.context() as patch:
        patch.setattr(bank_training, "write_model", filling)
        with pytest.raises(MemberscopeError, match=r"disk full while writing .*model-00002"):
            grown(folder, 4)
    monkeypatch.undo()
    assert sorted(p.name for p in folder.glob("*")) == [
        "bank.json",
        "model-00000.safetensors",
        "model-00001.safetensors",
    ]
    assert hashes(grown(folder, 4)) == hashes(reference)


def _no_space(descriptor):
    raise OSError(28, "No space left on device")


def test_a_training_that_diverges_ends_the_growth_with_its_reason(tmp_path):
    wild = Recipe(model="mlp", epochs=3, batch_size=16, learning_rate=1e30)
    with pytest.raises(ModelError, match="diverged"):
        grown(tmp_path / "bank", 2, recipe=wild)


def test_a_useless_checkpoint_does_not_stand_in_the_way(tmp_path, reference):
    folder = tmp_path / "bank"
    open_bank(folder)
    (folder / "model-00001.checkpoint").write_bytes(b"nonsense")
    assert hashes(grown(folder, 2)) == hashes(reference)[:2]
    assert not (folder / "model-00001.checkpoint").exists()


# ---------------------------------------------------------------------------------------------- layout and time


def test_a_small_bank_is_not_spread(tmp_path):
    heard = Heard()
    bank = open_bank(tmp_path / "bank")
    bank.grow(2, device="cpu", progress=heard)
    assert heard.layouts[0].startswith("one model at a time, 1 thread each (")
    assert bank.about(0)["threads"] == 1
    noted = json.loads((bank.folder / "bank.json").read_text())
    assert noted["models"] == {"precision": "fp32", "threads": 1}
    assert list(noted["layouts"]) == [layout.machine()]


def test_a_large_bank_takes_the_measured_layout_and_keeps_its_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "usable_cores", lambda: 2)
    monkeypatch.setattr(layout, "speed_here", lambda trial, arrays: 1.0)
    measured = {Layout(1, 2): 110.0, Layout(2, 1): 100.0}
    monkeypatch.setattr(layout, "measure", lambda trial, layouts, place: {c: measured[c] for c in layouts})
    bank = open_bank(tmp_path / "bank")
    plan = bank.plan(4, device="cpu")
    assert plan.layout == Layout(1, 2)
    assert plan.describe() == (
        "one model at a time, 2 threads each (measured; records a second by workers x threads 1 x 2: 110, 2 x 1: 100)"
    )
    # 2 epochs of 50 members and as many evaluated at a third, and 120 answers at a third, in 4 rounds
    assert plan.seconds == pytest.approx(4 * (2 * 50 * 4 / 3 + 120 / 3) / 110)
    assert plan.missing == (0, 1, 2, 3)
    assert open_bank(bank.folder).plan(4, device="cpu").layout == Layout(1, 2)  # the threads are settled
    close = {Layout(1, 2): 103.0, Layout(2, 1): 100.0}
    monkeypatch.setattr(layout, "measure", lambda trial, layouts, place: {c: close[c] for c in layouts})
    assert open_bank(tmp_path / "other").plan(4, device="cpu").layout == Layout(2, 1)


def test_the_real_measurement_measures_every_candidate(tmp_path):
    from memberscope.training.scheduler import LocalWorkers

    arrays = {"x": DATASET.x, "y": DATASET.y, "pool": POOL}
    trial = layout.Trial(RECIPE, CLASSES, 1, seconds=0.05)
    with LocalWorkers(arrays, 2, tmp_path) as place:
        rates = layout.measure(trial, candidates(2, 2), place)
    assert set(rates) == {Layout(1, 2), Layout(2, 1)}
    assert all(rate > 0 for rate in rates.values())


def test_candidates_use_all_cores_and_respect_the_limit():
    assert candidates(1, 9) == [Layout(1, 1)]
    assert candidates(2, 9) == [Layout(1, 2), Layout(2, 1)]
    assert candidates(6, 16) == [Layout(1, 6), Layout(2, 3), Layout(4, 1), Layout(6, 1)]
    assert candidates(64, 16) == [Layout(1, 64), Layout(2, 32), Layout(4, 16), Layout(8, 8), Layout(16, 4)]
    assert candidates(8, 3) == [Layout(1, 8), Layout(2, 4), Layout(3, 2)]


def test_the_pick_is_within_a_twentieth_of_the_best():
    assert pick({Layout(1, 2): 100.0, Layout(2, 1): 96.5}) == Layout(2, 1)
    assert pick({Layout(1, 2): 100.0, Layout(2, 1): 95.0}) == Layout(1, 2)
    assert pick({Layout(1, 2): 90.0, Layout(2, 1): 100.0}) == Layout(2, 1)
    assert pick({Layout(4, 1): 99.0, Layout(6, 1): 100.0}) == Layout(6, 1)


@given(unfinished=st.lists(st.floats(0, 1), max_size=5), more=st.integers(0, 20), workers=st.integers(1, 5))
def test_the_time_left_lies_between_its_bounds(unfinished, more, workers):
    unfinished = unfinished[:workers]
    left = rounds_left(unfinished, len(unfinished) + more, workers)
    work = sum(unfinished) + more
    assert left >= work / workers - 1e-9
    assert left >= max([*unfinished, 1.0 if more else 0.0])
    assert left <= work / workers + 1 + 1e-9


def test_the_time_left_is_honest(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("memberscope.training.bank_progress.time.monotonic", lambda: clock[0])
    heard = Heard()
    tracker = Tracker(heard, 2, range(2, 8), 2, 90.0)
    assert heard.models == [(2, 8, 90.0)]
    clock[0] = 3.0
    tracker.on_fraction(2, 0.01)
    assert heard.models[-1] == (2, 8, 87.0)  # too early to know better
    clock[0] = 15.0
    tracker.on_fraction(3, 0.5)
    tracker.on_fraction(2, 0.5)
    assert tracker.seconds_left() == pytest.approx(15 + 60)  # half of this round, and two more of 30 s
    clock[0] = 30.0
    tracker.there(2, trained_here=True)
    tracker.there(3, trained_here=True)
    assert tracker.seconds_left() == pytest.approx(60)
    tracker.there(4, trained_here=False)  # by another process: says nothing of our speed
    assert tracker.seconds_left() == pytest.approx(60)
    for k in (5, 6, 7):
        tracker.there(k, trained_here=True)
    assert heard.models[-1] == (8, 8, 0.0)
    quiet = Tracker(Heard(), 0, [0], 1, None)
    assert quiet.seconds_left() is None


def test_a_dead_worker_is_reported(monkeypatch):
    heard = Heard()
    Tracker(heard, 0, [0, 1], 2, None).on_death(1, "SIGKILL (out of memory?)")
    assert heard.notes == [
        "a worker died while it trained reference model 1, trying once more (SIGKILL (out of memory?))"
    ]


def test_memory_limits_the_workers(monkeypatch):
    monkeypatch.setattr(layout, "available_memory", lambda: 4_000_000_000)
    assert layout.most_workers(16, 100_000_000) == 3
    assert layout.most_workers(2, 100_000_000) == 2
    assert layout.most_workers(16, 10**10) == 1
    monkeypatch.setattr(layout, "available_memory", lambda: None)
    assert layout.most_workers(16, 10**10) == 16


def test_weights_of_every_dtype_survive(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.linspace(0, 1, 5, dtype=np.float16),
        "c": np.empty((0, 3), np.float32),
        "d": np.array(True),
    }
    path = tmp_path / "model-00000.safetensors"
    bank_files.write_model(path, arrays, {"note": "ü", "x": [1.5]})
    file = ModelFile.read(path)
    file.verify()
    assert file.about == {"note": "ü", "x": [1.5]}
    for name, array in arrays.items():
        found = file.map(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
    with pytest.raises(ModelError, match="c has dtype complex64"):
        bank_files.write_model(path, {"c": np.zeros(2, np.complex64)}, {})


def copies(n: int = N) -> np.ndarray:
    """Records 1, 2 and 3 are one, and so are 7 and 8; record 6 is not of the pool."""
    tied = np.arange(n)
    tied[[2, 3]], tied[8] = 1, 7
    return tied


@given(k=st.integers(0, 9), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_tied_records_are_in_together_and_halves_stay_complements(k, seed):
    row, other = (membership_row(POOL, one, seed, copies()) for one in (k, k ^ 1))
    assert (row ^ other == POOL).all()
    assert row[1] == row[2] == row[3]
    assert row[7] == row[8]
    assert abs(int(row.sum()) - int(other.sum())) <= 6, "one of each size of group, at most"


def test_untied_records_are_halved_as_ever():
    everyone = np.arange(N)
    for k in range(4):
        np.testing.assert_array_equal(membership_row(POOL, k, 3, everyone), membership_row(POOL, k, 3))


def test_a_bank_with_tied_records_keeps_them_together_and_is_no_other_bank(tmp_path):
    bank = grown(tmp_path / "tied", 2, tied=copies())
    assert (bank.membership[:, 1] == bank.membership[:, 3]).all()
    assert len(open_bank(tmp_path / "tied", tied=copies())) == 2
    grown(tmp_path / "plain", 2)
    for folder, tied in (("tied", None), ("plain", copies())):
        with pytest.raises(ModelError, match="records that share their membership"):
            open_bank(tmp_path / folder, tied=tied)


@pytest.mark.parametrize(
    ("tied", "told"),
    [
        (np.arange(N - 1), "expected int64"),
        (np.full(N, N), "expected int64"),
        (np.roll(np.arange(N), 1), "itself tied"),
    ],
)
def test_ties_that_make_no_sense_are_refused(tmp_path, tied, told):
    with pytest.raises(DataError, match=told):
        open_bank(tmp_path, tied=tied)
