"""Flower apps that know nothing of memberscope are run and taped as they are, and their records are found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from sklearn.datasets import load_digits

from memberscope.errors import ConfigError, DataError, MemberscopeError
from memberscope.federated import tamper
from memberscope.federated.foreign import inside, read_app, run_app, seeded
from memberscope.federated.foreign_records import check_repeatable, load_records
from memberscope.federated.taping import Taping

APPS = Path(__file__).parent / "apps"
FEW = "num-server-rounds=2 local-epochs=1"


@pytest.fixture
def app_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "app"
    shutil.copytree(APPS / getattr(request, "param", "message_api"), folder)
    (folder / "data").mkdir()
    x, y = load_digits(return_X_y=True)
    np.savez(folder / "data" / "digits.npz", x=x[:200].astype(np.uint8), y=y[:200])
    return folder


both = pytest.mark.parametrize("app_dir", ["message_api", "legacy"], indirect=True)


@both
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_unmodified_app_is_taped_to_its_last_model(app_dir: Path, tmp_path: Path, capfd: Any) -> None:
    here, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    app = read_app(app_dir, FEW)
    assert app.n_clients == 4
    assert app.config["local-epochs"] == 1
    assert app.config["learning-rate"] == 0.1
    transcripts = [run_app(app, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert (Path.cwd(), sys.path) == (here, path)
    assert not [name for name in set(sys.modules) - modules if name.startswith("digits_")]
    t = transcripts[0]
    assert t.problems == ()
    assert t.rounds == [1, 2]
    assert t.clients == [0, 1, 2, 3]
    assert t.clients_of(2) == [0, 1, 2, 3]
    assert t.num_examples(2, 1) == 25
    names = list(t.sent(1))
    named = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert names == (named if app.name == "digits-app" else list("0123"))
    mean = np.mean([t.received(2, k)[names[0]] for k in t.clients], axis=0)
    np.testing.assert_allclose(t.final()[names[0]], mean, atol=1e-6)
    same, other = (u.final()[names[0]] for u in transcripts[1:])
    np.testing.assert_array_equal(same, t.final()[names[0]])  # the app seeds nothing: the audit does
    assert np.abs(other - same).max() > 1e-3
    assert "final model" not in capfd.readouterr().out


def test_rounds_seats_and_malice_can_be_chosen(app_dir: Path, tmp_path: Path) -> None:
    app = read_app(app_dir, FEW)
    sums = run_app(app, tmp_path / "sums", taping=Taping(sums_only=True), n_clients=3)
    assert sums.view == "server behind secure aggregation"
    assert sums.clients == [0, 1, 2]
    bad = run_app(app, tmp_path / "bad", malice=lambda grid: tamper.attach_grid(grid, tamper.Isolate(2)))
    assert bad.tampered[0].startswith("isolate:2")
    np.testing.assert_array_equal(bad.sent_to(2, 2)["fc1.bias"], bad.received(1, 2)["fc1.bias"])
    others = np.mean([bad.received(1, k)["fc1.bias"] for k in (0, 1, 3)], axis=0)
    np.testing.assert_allclose(bad.sent_to(2, 0)["fc1.bias"], others, atol=1e-6)
    every = run_app(read_app(app_dir, "num-server-rounds=3 local-epochs=1"), tmp_path / "e", taping=Taping(every=2))
    assert every.rounds == [2]
    whole = run_app(read_app(app_dir, "num-server-rounds=3 local-epochs=1"), tmp_path / "w")
    np.testing.assert_array_equal(every.final()["fc1.bias"], whole.final()["fc1.bias"])  # the last model is always kept


def test_what_is_wrong_with_an_app_is_told(app_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pyproject.toml is missing"):
        read_app(tmp_path)
    with pytest.raises(ConfigError, match="the app has no setting 'rounds'"):
        read_app(app_dir, "rounds=3")
    with pytest.raises(ConfigError, match="is no key=value"):
        read_app(app_dir, "rounds")
    project = app_dir / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace("options.num-supernodes = 4", ""))
    with pytest.raises(ConfigError, match="--clients"):
        run_app(read_app(app_dir), tmp_path / "t")
    project.write_text(text.replace("server_app:app", "task:Net"))
    with pytest.raises(ConfigError, match="expected a Flower ServerApp"):
        run_app(read_app(app_dir), tmp_path / "t")
    project.write_text(text.replace("digits_app.server_app:app", "digits_app.nothing:app"))
    with pytest.raises(ConfigError, match=r"No module named 'digits_app.nothing'"):
        run_app(read_app(app_dir), tmp_path / "t")
    project.write_text(text.replace('serverapp = "', 'server = "'))
    with pytest.raises(ConfigError, match=r"has no \[tool.flwr.app.components\] serverapp"):
        read_app(app_dir)
    project.write_text(text)
    (app_dir / "data" / "digits.npz").unlink()
    with pytest.raises(MemberscopeError, match=r"no client of digits-app ever answered with a model: .*digits.npz"):
        run_app(read_app(app_dir, FEW), tmp_path / "t")
    (app_dir / "digits_app" / "server_app.py").write_text(
        (app_dir / "digits_app" / "server_app.py").read_text().replace("strategy.start", "strategy.begin")
    )
    with pytest.raises(MemberscopeError, match=r"has no attribute 'begin' \(digits_app/server_app.py, line 17\)"):
        run_app(read_app(app_dir, FEW), tmp_path / "t2")


# Records --------------------------------------------------------------------------------------------------------------


def test_records_come_from_the_apps_own_load_data(app_dir: Path) -> None:
    with inside(app_dir):
        records = load_records("digits_app.task:load_data", [0, 1, 2, 3], {"batch-size": 8, "data-dir": "data"})
    assert records.x.shape == (200, 64)
    assert records.x.dtype == np.float32
    assert records.n_classes == 10
    x, y = load_digits(return_X_y=True)
    rows = [int(np.flatnonzero((x[:200] / 16 == row).all(1))[0]) for row in records.x]
    assert sorted(rows) == list(range(200))
    np.testing.assert_array_equal(records.owner, np.array(rows) % 4)
    np.testing.assert_array_equal(records.y, y[rows])
    assert records.member.sum() == 100
    assert "100 trained on by 4 clients, 100 held by them and not trained on, 0 of nobody" in repr(records)


def _module(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text("import numpy as np\n" + body)
    return "mine:f"


def test_a_common_test_set_is_nobodys_and_what_is_trained_on_is_no_test_record(tmp_path: Path) -> None:
    source = _module(
        tmp_path,
        "def f(partition_id, num_partitions):\n"
        "    pool = [(np.full(2, i, np.float32), i % 3) for i in range(20)]\n"
        "    mine = pool[partition_id * 3:partition_id * 3 + 3] + [pool[3]]\n"  # 3 is trained on by two
        "    return mine + mine[:1], pool[9:15] + pool[4:5] + pool[15 + partition_id:16 + partition_id]\n",
    )
    with inside(tmp_path):
        r = load_records(source, [0, 1])
    value = r.x[:, 0].astype(int)
    assert sorted(value[r.member]) == [0, 1, 2, 4, 5]
    assert dict(zip(value, r.owner, strict=True)) == {
        0: 0, 1: 0, 2: 0, 4: 1, 5: 1, **dict.fromkeys(range(9, 15), -1), 15: 0, 16: 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def f(a, b): return [(np.random.rand(2), 1)], [(np.zeros(2), 0)]", "other records each time"),
        ("def f(a, b, c): return [], []", "wants 'c', which is no setting"),
        ("def f(a, b): return 5", "gives int for client 0"),
        ("def f(a, b): return iter([]), []", "neither a DataLoader nor a dataset"),
        ("def f(a, b): return [{'text': 1, 'label': 2}], []", "has the keys text, label"),
        ("def f(a, b): 1 / 0", r"f\(a=0, b=2\) failed: ZeroDivisionError"),
        ("def f(): return np.zeros((3, 2)), [0, 1, 0]", "without x, y and owner"),
        ("def f(): return np.zeros((3, 2)), [0, 1, 0], [0, 0, 0]", "no record that is no member"),
        ("def f(): return np.zeros((3, 2)), [0, 1, 0], [0.5, 0, 0]", "owner is float64"),
        ("def f(): return np.full((2, 2), np.nan), [0, 1], [0, -1]", "NaN"),
        ("def f(): return np.zeros((2, 2)), [0, 1], [0, -1], [1, 1]", "nobody holds it"),
        ("f = 3", "expected a function"),
    ],
)
def test_records_that_cannot_be_used_are_refused(body: str, told: str, tmp_path: Path) -> None:
    with inside(tmp_path), pytest.raises(DataError, match=told):
        load_records(_module(tmp_path, body), [0, 1])


def test_records_can_be_given_whole(tmp_path: Path) -> None:
    arrays = {"x": np.ones((4, 1, 2, 2)), "y": np.array([0, 1, 1, 0]), "owner": np.array([0, 1, -1, 1])}
    np.savez(tmp_path / "r.npz", **arrays)
    r = load_records(str(tmp_path / "r.npz"), [0, 1])
    assert r.member.tolist() == [True, True, False, True]
    np.savez(tmp_path / "r.npz", member=np.array([0, 1, 0, 0]), **arrays)
    assert load_records(str(tmp_path / "r.npz"), [0, 1]).member.tolist() == [False, True, False, False]
    with inside(tmp_path):
        source = _module(tmp_path, "def f(): return np.zeros((2, 3)), [0, 1], [1, -1]")
        assert load_records(source, [0, 1]).owner.tolist() == [1, -1]
    for bad, told in ((str(tmp_path / "none.npz"), "cannot read the records"), ("task.load", "neither package")):
        with pytest.raises(DataError, match=told):
            load_records(bad, [0])


LOADER = """
import torch
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

def data(k):
    x = torch.arange(40.0).reshape(20, 2) + 100 * k
    return TensorDataset(x, torch.arange(20) % 3)

def halves(partition_id, num_partitions):
    d = data(partition_id)
    one, two = SubsetRandomSampler(range(10)), SubsetRandomSampler(range(10, 20))
    return DataLoader(d, batch_size=4, sampler=one), DataLoader(d, batch_size=4, sampler=two)

def weighted(partition_id, num_partitions):
    d = data(partition_id)
    return DataLoader(d, sampler=WeightedRandomSampler(torch.ones(20), 20)), DataLoader(d)

def replaced(partition_id, num_partitions):
    d = data(partition_id)
    return DataLoader(d, sampler=RandomSampler(d, replacement=True)), DataLoader(d)

def scaled(items):
    return torch.stack([x / 10 for x, _ in items]), torch.tensor([int(y) for _, y in items])

def collated(partition_id=0, num_partitions=2):
    d = data(partition_id)
    a, b = torch.utils.data.Subset(d, range(10)), torch.utils.data.Subset(d, range(10, 20))
    return DataLoader(a, batch_size=4, shuffle=True, collate_fn=scaled), DataLoader(b, collate_fn=scaled)

def broken(partition_id, num_partitions):
    class Broken(torch.utils.data.Dataset):
        def __len__(self): return 3
        def __getitem__(self, i): raise OSError(f"no image {i}")
    return DataLoader(Broken()), DataLoader(Broken())

SPLIT = torch.randperm(20).tolist()

def at_import(partition_id, num_partitions):
    d = data(partition_id)
    return torch.utils.data.Subset(d, SPLIT[:10]), torch.utils.data.Subset(d, SPLIT[10:])
"""


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    (tmp_path / "loaders.py").write_text(LOADER)
    return tmp_path


def test_of_a_loader_what_its_sampler_draws_and_as_it_collates(loaders: Path) -> None:
    with inside(loaders):
        found = load_records("loaders:halves", [0, 1])
        assert found.member.sum() == (~found.member).sum() == 20
        assert found.x[found.member & (found.owner == 0)].max() < 20
        collated = load_records(
            "loaders:collated", [0, 1]
        )  # both arguments have defaults: asked by client none the less
        np.testing.assert_array_equal(collated.x, found.x / 10)
        for name, told in (("weighted", "WeightedRandomSampler draws"), ("replaced", "RandomSampler draws")):
            with pytest.raises(DataError, match=told):
                load_records(f"loaders:{name}", [0, 1])
        with pytest.raises(DataError, match="client 0: a record cannot be read: OSError: no image 0"):
            load_records("loaders:broken", [0, 1])


def test_a_split_that_is_drawn_at_import_is_found_when_imported_anew(loaders: Path) -> None:
    with inside(loaders), seeded(0):
        found = load_records("loaders:at_import", [0, 1])
        check_repeatable(found, "loaders:at_import", [0, 1])  # the same import
    with inside(loaders), seeded(1), pytest.raises(DataError, match="other records each time"):
        check_repeatable(found, "loaders:at_import", [0, 1])


def test_an_app_that_waits_for_clients_that_never_come_is_told_so(app_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MemberscopeError, match="waits for more clients than the 1"):
        run_app(read_app(app_dir, FEW), tmp_path / "alone", n_clients=1)


def test_an_app_that_exits_is_a_failure_with_a_name(app_dir: Path, tmp_path: Path) -> None:
    (app_dir / "digits_app" / "server_app.py").write_text(
        "from flwr.serverapp import ServerApp\nimport sys\napp = ServerApp()\n\n@app.main()\n"
        "def main(grid, context):\n    sys.exit(2)\n"
    )
    with pytest.raises(MemberscopeError, match=r"failed: SystemExit: 2 \(digits_app/server_app.py, line 7\)"):
        run_app(read_app(app_dir, FEW), tmp_path / "exits")


def test_a_strategy_that_is_started_twice_goes_on_counting(app_dir: Path, tmp_path: Path) -> None:
    path = app_dir / "digits_app" / "server_app.py"
    text = path.read_text()
    assert text.count("strategy.start(") == 1
    lines = text.splitlines()
    (number,) = (i for i, line in enumerate(lines) if "strategy.start(" in line)
    end = next(i for i in range(number, len(lines)) if lines[i].rstrip().endswith(")"))
    path.write_text("\n".join([*lines[: end + 1], *lines[number:]]) + "\n")
    t = run_app(read_app(app_dir, FEW), tmp_path / "twice")
    assert t.rounds == [1, 2, 3, 4]
    assert t.problems == ()
