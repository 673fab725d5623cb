"""Every dataset from its files to its pool; names, options, plug-ins; and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from memberscope.data_loader import DATASETS, Dataset, DatasetEntry, available, load
from memberscope.errors import DataError
from memberscope.records import official as official_module
from memberscope.records.pool import check_records
from memberscope.records.sources import OFFICIAL, FileSet, OfficialFile

RNG = np.random.default_rng(9)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("MEMBERSCOPE_DATA_DIR", raising=False)
    monkeypatch.delenv("MEMBERSCOPE_UNVERIFIED_DATA", raising=False)


def batch(n, key=b"labels", n_classes=10):
    return {b"data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8), key: [i % n_classes for i in range(n)]}


CIFAR10 = {name: batch(20) for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
CIFAR100 = {name: batch(100, b"fine_labels", 100) for name in ("train", "test")}


def write_batches(folder, batches):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        (folder / name).write_bytes(pickle.dumps(content, 2))


def write_archive(path, folder, batches):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(batches.items()):  # another order than that of the pool
            data = pickle.dumps(content, 2)
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def load_vouched(name, data_dir, **options):
    return load(name, data_dir, unverified=True, download=False, **options)


def expect_cifar(dataset, batches, n_train):
    stacked = np.concatenate([content[b"data"] for content in batches.values()]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(dataset.x, stacked)
    assert dataset.is_train.sum() == n_train
    assert dataset.is_train[:n_train].all()
    sizes = [len(content[b"data"]) for content in batches.values()]
    assert dataset.y.tolist() == [i % dataset.n_classes for size in sizes for i in range(size)]


@pytest.mark.parametrize("layout", ["folder", "inside", "archive"])
@pytest.mark.parametrize(
    ("name", "batches", "folder", "archive", "n_train"),
    [
        ("cifar10", CIFAR10, "cifar-10-batches-py", "cifar-10-python.tar.gz", 100),
        ("cifar100", CIFAR100, "cifar-100-python", "cifar-100-python.tar.gz", 100),
    ],
)
def test_cifar_from_folder_from_inside_it_and_from_its_archive(
    tmp_path, layout, name, batches, folder, archive, n_train
):
    if layout == "archive":
        write_archive(tmp_path / archive, folder, batches)
    else:
        write_batches(tmp_path / folder if layout == "folder" else tmp_path, batches)
    dataset = load_vouched(name, tmp_path)
    expect_cifar(dataset, batches, n_train)
    assert (dataset.name, dataset.verified, dataset.input_shape) == (name, False, (3, 32, 32))
    assert "vouched for by the user" in dataset.source
    assert dataset.classes[0] == {"cifar10": "airplane", "cifar100": "apple"}[name]


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, pack, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, n in (("train", 30), ("t10k", 20)):
        arrays[part] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(arrays[part])))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx((np.arange(n) % 10).astype(np.uint8))))
    return arrays


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bytes, "")])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("mnist", "")]
)
def test_the_mnist_family_packed_and_plain(tmp_path, name, folder, pack, suffix):
    arrays = write_idx(tmp_path / folder, pack, suffix)
    dataset = load_vouched(name, tmp_path)
    np.testing.assert_array_equal(dataset.x, np.concatenate([arrays["train"], arrays["t10k"]])[:, None])
    assert dataset.y.tolist() == [*(i % 10 for i in range(30)), *(i % 10 for i in range(20))]
    assert dataset.is_train.tolist() == [True] * 30 + [False] * 20
    assert dataset.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def write_svhn(folder):
    pixels = {}
    for part, n in (("train", 20), ("test", 10)):
        pixels[part] = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": pixels[part], "y": (np.arange(n) % 10 + 1)[:, None]})
    return pixels


def test_svhn_has_its_digits_and_channels_in_place(tmp_path):
    pixels = write_svhn(tmp_path)
    dataset = load_vouched("svhn", tmp_path)
    assert dataset.y.tolist() == [*range(1, 10), 0] * 3
    np.testing.assert_array_equal(dataset.x[23, 2, 4, 6], pixels["test"][4, 6, 2, 3])
    assert dataset.is_train.sum() == 20


def official(path):
    return OfficialFile(path.name, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


@pytest.fixture
def svhn_official(tmp_path, monkeypatch):
    """SVHN files whose checksums are, for this test, the official ones."""
    write_svhn(tmp_path)
    files = tuple(official(tmp_path / f"{part}_32x32.mat") for part in ("train", "test"))
    monkeypatch.setitem(OFFICIAL, "svhn", (FileSet("", files),))
    return tmp_path


def test_official_checksums_make_a_pool_verified(svhn_official):
    dataset = load("svhn", svhn_official)
    assert dataset.verified
    assert dataset.source == "train_32x32.mat, test_32x32.mat: each with the official checksum"


def test_other_checksums_are_refused_unless_the_user_vouches(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    with pytest.raises(DataError) as caught:
        load("svhn", tmp_path)
    path = tmp_path / "train_32x32.mat"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = OFFICIAL["svhn"][0].files[0].checksum
    assert f"{path}: expected {expected}, found sha256:{found} (" in caught.value.problem
    assert "--unverified-data" in caught.value.hint
    assert "MEMBERSCOPE_UNVERIFIED_DATA=1" in caught.value.hint
    monkeypatch.setenv("MEMBERSCOPE_UNVERIFIED_DATA", "1")
    monkeypatch.setenv("MEMBERSCOPE_DATA_DIR", str(tmp_path))
    assert not load("svhn").verified
    with pytest.raises(DataError, match="differ from the official ones"):
        load("svhn", unverified=False)  # the cache of vouched files does not get them in
    monkeypatch.setenv("MEMBERSCOPE_UNVERIFIED_DATA", "yes")
    with pytest.raises(DataError, match="differ from the official ones"):
        load("svhn")


def refuse_to_read(path):
    raise AssertionError(f"{path} is decoded although the cache holds it")


def test_the_second_load_decodes_and_hashes_nothing(svhn_official, monkeypatch):
    first = load("svhn", svhn_official)
    monkeypatch.setattr(official_module, "read_svhn", refuse_to_read)
    monkeypatch.setattr(official_module, "verify", refuse_to_read)
    second = load("svhn", svhn_official)
    np.testing.assert_array_equal(second.x, first.x)
    assert (repr(second), second.source, second.fingerprint) == (repr(first), first.source, first.fingerprint)


def test_a_changed_source_file_is_noticed(svhn_official):
    load("svhn", svhn_official)
    content = (svhn_official / "train_32x32.mat").read_bytes()
    (svhn_official / "train_32x32.mat").write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match="1 of 2 files of svhn differ"):
        load("svhn", svhn_official)


def test_a_broken_cache_is_built_anew(svhn_official, monkeypatch):
    first = load("svhn", svhn_official)
    cache = svhn_official / ".memberscope-cache" / "svhn.safetensors"
    cache.write_bytes(cache.read_bytes()[:-100])
    np.testing.assert_array_equal(load("svhn", svhn_official).x, first.x)
    monkeypatch.setattr(official_module, "read_svhn", refuse_to_read)
    np.testing.assert_array_equal(load("svhn", svhn_official).x, first.x)


def test_a_hostile_batch_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    write_batches(tmp_path, CIFAR10 | {"data_batch_3": {b"data": Hostile(), b"labels": [0]}})
    with pytest.raises(
        DataError, match=r"data_batch_3 is not a plain file of arrays: its pickle asks for posix\.system"
    ):
        load_vouched("cifar10", tmp_path)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / ".memberscope-cache").exists()


def test_a_truncated_batch_is_named(tmp_path):
    write_batches(tmp_path, CIFAR10)
    path = tmp_path / "data_batch_2"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cannot read .*data_batch_2: expected a pickled batch .* found"):
        load_vouched("cifar10", tmp_path)


def test_a_missing_batch_is_named(tmp_path):
    write_batches(tmp_path / "cifar-10-batches-py", CIFAR10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"cifar10 is incomplete in .*cifar-10-batches-py: data_batch_4 missing"):
        load_vouched("cifar10", tmp_path)


def test_a_class_without_records_is_named(tmp_path):
    write_batches(tmp_path, {name: {b"data": c[b"data"], b"labels": [0, 1] * 10} for name, c in CIFAR10.items()})
    with pytest.raises(DataError, match=r"cifar10: too few records .* class 2 \(bird\): 0, 3 \(cat\): 0"):
        load_vouched("cifar10", tmp_path)


def test_digits_are_split_in_halves_with_the_same_classes():
    dataset = load("digits")
    assert (dataset.n, dataset.input_shape, dataset.verified) == (1797, (1, 8, 8), True)
    assert dataset.is_train.tolist() == [True] * 899 + [False] * 898
    train, test = (np.bincount(dataset.y[part], minlength=10) for part in (dataset.is_train, ~dataset.is_train))
    assert np.abs(train - test).max() <= 1
    assert (dataset.x.min(), dataset.x.max()) == (0, 255)
    assert len(np.unique(dataset.x)) == 17
    check_records(dataset, 80, by_part=True)
    # The split is documented as fixed: the same pool on every machine, today and next year.
    assert dataset.fingerprint.startswith("1b24909bb70d")


def test_an_npz_file_of_the_user(tmp_path):
    np.savez(tmp_path / "My data (2).npz", x=RNG.random((8, 3)), y=np.arange(8) % 2)
    dataset = load(f"npz:{tmp_path / 'My data (2).npz'}")
    assert dataset.name == "npz-My-data-2"
    assert dataset.source == "the user's file My data (2).npz"
    assert not dataset.verified
    np.savez(tmp_path / "….npz", x=RNG.random((8, 3)), y=np.arange(8) % 2)
    assert load(f"npz:{tmp_path / '….npz'}").name == "npz-unnamed"


def test_a_folder_of_pictures_of_the_user(tmp_path, monkeypatch):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "val/a/1.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path / "pets")
    dataset = load("imagefolder:.")
    assert dataset.name == "imagefolder-pets"
    assert dataset.source == "the user's folder pets (not read: val)"
    assert (dataset.n, dataset.input_shape, dataset.is_train.sum()) == (4, (3, 5, 4), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "unknown dataset 'cifar'; did you mean cifar10?"),
        ("fashion_mnits", "unknown dataset 'fashion_mnits'; did you mean fashion-mnist?"),
        ("imagenet22k-extra", "unknown dataset 'imagenet22k-extra'"),
        ("", "unknown dataset ''"),
        ("npz", "dataset 'npz': expected npz:PATH"),
        ("npz:", "dataset 'npz:': expected npz:PATH"),
        ("digits:x", "dataset 'digits:x': expected digits alone"),
        ("digits:", "dataset 'digits:': expected digits alone"),
    ],
)
def test_names_that_name_nothing(name, message):
    with pytest.raises(DataError) as caught:
        load(name)
    assert caught.value.problem.startswith(message)
    if message.startswith("unknown"):
        assert caught.value.hint == (
            "known: cifar10, cifar100, svhn, mnist, fashion-mnist, digits, npz:PATH, imagefolder:PATH"
        )


def test_names_may_be_written_in_other_ways(tmp_path):
    write_idx(tmp_path, bytes, "")
    assert load_vouched("Fashion_MNIST", tmp_path).name == "fashion-mnist"


def test_the_registry_tells_what_a_list_shows():
    assert {name: (entry.records, entry.download_bytes) for name, entry in DATASETS.items()} == {
        "cifar10": (60_000, 170_498_071),
        "cifar100": (60_000, 169_001_437),
        "svhn": (99_289, 246_316_178),
        "mnist": (70_000, 11_594_722),
        "fashion-mnist": (70_000, 30_878_645),
        "digits": (1_797, 0),
        "npz": (None, 0),
        "imagefolder": (None, 0),
    }
    assert [name for name, entry in DATASETS.items() if entry.takes_path] == ["npz", "imagefolder"]
    assert all(entry.title and entry.description for entry in DATASETS.values())


def toy(request):
    y = np.arange(6) % 2
    return Dataset("toy", np.ones((6, 2), np.float32), y, ("a", "b"), y > -1, f"of {request.path}", verified=True)


TOY = DatasetEntry(toy, "Toy", "rows of ones", 6, takes_path=True)
NO_ENTRY = toy


@pytest.fixture
def plugins(monkeypatch):
    def install(**points):
        found = [importlib.metadata.EntryPoint(name, value, "memberscope.datasets") for name, value in points.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
        monkeypatch.setitem(sys.modules, "toy_datasets", sys.modules[__name__])

    return install


def test_other_packages_add_datasets(plugins):
    plugins(toy="toy_datasets:TOY")
    assert load("toy:here").source == "of here"
    assert list(available())[-1] == "toy"
    with pytest.raises(DataError, match="did you mean toy"):
        load("tou")


def test_a_broken_plug_in_fails_alone_and_says_why(plugins):
    plugins(absent="no_such_module:ENTRY", odd="toy_datasets:NO_ENTRY")
    assert load("digits").n == 1797
    assert available()["absent"].description == (
        "cannot be used: ModuleNotFoundError: No module named 'no_such_module'"
    )  # fmt: skip
    with pytest.raises(DataError, match="'absent' of another package cannot be used: ModuleNotFoundError"):
        load("absent")
    with pytest.raises(DataError, match="'odd' of another package cannot be used: toy_datasets:NO_ENTRY is no"):
        load("odd")


def test_a_plug_in_cannot_take_the_name_of_another_dataset(plugins):
    plugins(cifar10="toy_datasets:TOY")
    with pytest.raises(DataError, match="'cifar10' of toy_datasets:TOY has the name of another one"):
        available()


def test_heavy_libraries_wait_until_they_are_needed():
    heavy = ("torch", "sklearn", "scipy", "PIL")
    code = f"import sys, memberscope.data_loader; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "shape", "n", "n_train", "n_classes"),
    [
        ("svhn_rgb_subset", (3, 32, 32), 1_083, 862, 10),
        ("svhn_grey_from_test", (1, 32, 32), 23_124, 18_031, 10),
        ("location30", (446,), 5_010, 5_010, 30),
    ],
)
def test_real_records_of_the_shared_folder(shared_dir, name, shape, n, n_train, n_classes):
    dataset = load(f"npz:{shared_dir / 'data' / name / name}.npz")
    assert (dataset.input_shape, dataset.n, dataset.is_train.sum()) == (shape, n, n_train)
    assert dataset.n_classes == n_classes
    check_records(dataset, 10)


@pytest.mark.shared
@pytest.mark.slow
def test_the_real_images_in_the_layout_of_the_official_files(shared_dir, tmp_path):
    subprocess.run([sys.executable, shared_dir / "data" / "make_official_layout.py", tmp_path], check=True)
    with pytest.raises(DataError, match="6 of 6 files of cifar10 differ"):
        load("cifar10", tmp_path)
    first = load_vouched("cifar10", tmp_path)
    assert np.bincount(first.y[first.is_train]).tolist() == [5000] * 10
    assert np.bincount(first.y[~first.is_train]).tolist() == [1000] * 10
    again = load_vouched("cifar10", tmp_path)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.x, first.x)
    svhn = load_vouched("svhn", tmp_path)
    grey = load(f"npz:{shared_dir / 'data' / 'svhn_grey_from_test' / 'svhn_grey_from_test.npz'}")
    np.testing.assert_array_equal(svhn.x, np.repeat(grey.x, 3, axis=1))
    np.testing.assert_array_equal(svhn.y, grey.y)
