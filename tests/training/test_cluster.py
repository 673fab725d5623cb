"""A bank on a cluster: the same models as alone, whatever is lost on the way; and what is refused before it begins."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memberscope.data_loader import Dataset
from memberscope.errors import ConfigError, MemberscopeError, ModelError
from memberscope.training import bank_cluster, bank_plan
from memberscope.training.bank_files import claim, model_path
from memberscope.training.bank_progress import BankProgress
from memberscope.training.layout import Layout
from memberscope.training.model_bank import ModelBank
from memberscope.training.ray_cluster import Cluster, Share
from memberscope.training.recipe import Recipe
from memberscope.training.scheduler import InProcess, is_cluster

HAS_RAY = importlib.util.find_spec("ray") is not None
with_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed (extra cluster)")
N, CLASSES = 240, 3


def dataset() -> Dataset:
    rng = np.random.default_rng(5)
    y = rng.integers(0, CLASSES, N)
    y[:CLASSES] = range(CLASSES)
    x = rng.normal(size=(N, 8)).astype(np.float32) + y[:, None].astype(np.float32)
    return Dataset("toy", x, y, tuple("abc"), np.ones(N, bool), "made up", True)


def open_bank(folder: Path, epochs: int = 2, **changes) -> ModelBank:
    recipe = Recipe(model="mlp", epochs=epochs, batch_size=16)
    return ModelBank.open(folder, recipe=recipe, dataset=dataset(), pool=np.arange(N) % 6 != 0, seed=3, **changes)


def grown(folder: Path, k: int = 4, **changes) -> ModelBank:
    bank = open_bank(folder, **changes)
    bank.grow(k, workers=1, device="cpu")
    return bank


def assert_same(bank: ModelBank, other: ModelBank) -> None:
    assert bank.size == other.size
    for k in range(bank.size):
        ours, theirs = bank.about(k), other.about(k)
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}, k
    np.testing.assert_array_equal(np.asarray(bank.logits()), np.asarray(other.logits()))
    np.testing.assert_array_equal(bank.membership, other.membership)


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "bank.json" and p.suffix != ".safetensors")


class Heard(BankProgress):
    def __init__(self) -> None:
        self.layouts: list[str] = []
        self.done: list[int] = []
        self.notes: list[str] = []

    def on_layout(self, text):
        self.layouts.append(text)

    def on_model(self, done, total, seconds_left):
        self.done.append(done)

    def on_note(self, text):
        self.notes.append(text)


# ------------------------------------------------------------------------------------ without a cluster: the parts


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> ModelBank:
    return grown(tmp_path_factory.mktemp("banks") / "reference")


class Nodes(InProcess):
    """A cluster's workers, played by this process."""

    def __init__(self, arrays, cluster, share, *, noun):
        super().__init__(arrays)


@pytest.fixture
def played(monkeypatch):
    """`workers="ray"` without Ray: everything but the transport."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("memberscope.training.scheduler_ray.RayWorkers", Nodes)


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_that_share_storage_and_nodes_that_do_not_give_the_same_bank(
    tmp_path, reference, played, monkeypatch, shared
):
    used = []
    original = bank_cluster.OnNode.__call__

    def watched(self, arrays, k, tell):
        sent = original(self, arrays, k, tell)
        used.append(sent is None)
        return sent

    monkeypatch.setattr(bank_cluster.OnNode, "__call__", watched)
    if not shared:
        monkeypatch.setattr(bank_cluster.OnNode, "_shared", lambda self, path: False)
    heard, bank = Heard(), open_bank(tmp_path / "bank")
    bank.grow(4, workers="ray", progress=heard)
    assert used == [shared] * 4
    assert_same(bank, reference)
    assert left_over(bank.folder) == []
    assert heard.done[-1] == 4
    assert heard.notes == []
    assert "Ray, 1 node" in heard.layouts[0]


def test_a_model_whose_node_was_lost_just_after_it_was_written_is_not_trained_again(tmp_path, played, monkeypatch):
    bank = grown(tmp_path / "bank", 2)
    monkeypatch.setattr("memberscope.training.train_target.fit", None)
    monkeypatch.setattr(bank_cluster.OnNode, "_shared", lambda self, path: True)
    plan, _ = bank._plan(2, 1, None, "cpu", None)
    task = bank_cluster.TrainModel(
        bank.folder, bank._digest, plan.recipe, CLASSES, bank.queries, bank.seed, "float32", False, "cpu", 1
    )
    assert bank_cluster.OnNode(task, "token")(bank._arrays(), 1, lambda fraction: None) is None


def test_a_token_of_another_process_is_not_taken_for_shared_storage(tmp_path):
    task = bank_cluster.OnNode(task=None, token="mine")
    path = model_path(tmp_path, 0)
    assert not task._shared(path)
    with claim(path):
        assert not task._shared(path)
        path.with_suffix(".lock").write_text("another")
        assert not task._shared(path)
        path.with_suffix(".lock").write_text("mine")
        assert task._shared(path)
    assert not task._shared(path)


def test_models_that_are_there_or_held_elsewhere_are_not_handed_out(tmp_path, reference, played, monkeypatch):
    bank = grown(tmp_path / "bank", 2)
    handed = []
    monkeypatch.setattr(bank_cluster.OnNode, "__call__", lambda self, arrays, k, tell: handed.append(k) or b"")
    plan, _ = bank._plan(6, 1, None, "cpu", None)
    assert plan.missing == (2, 3, 4, 5)
    task = bank_cluster.TrainModel(
        bank.folder, bank._digest, plan.recipe, CLASSES, bank.queries, bank.seed, "float32", False, "cpu", 1
    )
    with claim(model_path(bank.folder, 3)):
        outcomes = dict(
            bank_cluster.train_on(Nodes(bank._arrays(), None, None, noun=""), task, bank._arrays(), [0, 1, 3], None)
        )
    assert outcomes == {0: "there", 1: "there", 3: "busy"}
    assert handed == []
    assert left_over(bank.folder) == []


def test_a_file_that_does_not_arrive_is_told(tmp_path, played, monkeypatch):
    monkeypatch.setattr(bank_cluster, "_SHOWS_WITHIN_SECONDS", 0.0)
    monkeypatch.setattr(bank_cluster.OnNode, "__call__", lambda self, arrays, k, tell: None)
    bank = open_bank(tmp_path / "bank")
    with pytest.raises(ModelError, match=r"model-00000.safetensors does not show") as caught:
        bank.grow(2, workers="ray")
    assert "storage" in caught.value.hint
    assert left_over(bank.folder) == []  # the claims are given up


def test_a_file_that_is_damaged_on_the_way_is_not_believed(tmp_path, played, monkeypatch):
    monkeypatch.setattr(bank_cluster, "_SHOWS_WITHIN_SECONDS", 0.0)
    original = bank_cluster.OnNode.__call__
    monkeypatch.setattr(bank_cluster.OnNode, "_shared", lambda self, path: False)
    monkeypatch.setattr(
        bank_cluster.OnNode, "__call__", lambda self, arrays, k, tell: original(self, arrays, k, tell)[:-1] + b"?"
    )
    with pytest.raises(ModelError, match="does not show"):
        open_bank(tmp_path / "bank").grow(2, workers="ray")


@pytest.mark.parametrize(
    ("workers", "cluster"),
    [("ray", True), ("ray://head:10001", True), ("head:6379", True), ("auto", False), (2, False), ("rays", False)],
)
def test_what_means_a_cluster(workers, cluster):
    assert is_cluster(workers) == cluster


def test_other_words_for_workers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'rays'") as caught:
        open_bank(tmp_path / "bank").grow(2, workers="rays", device="cpu")
    assert "ray, or the address of a cluster" in caught.value.hint


@with_ray
@pytest.mark.parametrize(
    ("workers", "error", "text"),
    [
        ("ray://nowhere", ConfigError, "is no address of a Ray cluster"),
        ("127.0.0.1:9", MemberscopeError, "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:9", MemberscopeError, "no Ray cluster answers at ray://127.0.0.1:9"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, workers, error, text):
    bank = open_bank(tmp_path / "bank")
    with pytest.raises(error, match=text) as caught:
        bank.grow(2, workers=workers)
    assert caught.value.hint


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="need Ray") as caught:
        open_bank(tmp_path / "bank").grow(2, workers="ray")
    assert caught.value.hint == "pip install 'memberscope[cluster]'"


def test_how_many_tasks_fit_on_a_node():
    assert Share(1).fits({"CPU": 4.0}) == 4
    assert Share(2).fits({"CPU": 5.0}) == 2
    assert Share(1, memory=3_000).fits({"CPU": 4.0, "memory": 7_000.0}) == 2
    assert Share(1, gpus=1 / 3).fits({"CPU": 8.0, "GPU": 2.0}) == 6
    assert Share(1, gpus=1.0).fits({"CPU": 8.0}) == 0


def test_memory_is_part_of_a_share():
    recipe = Recipe(model="simplecnn", epochs=1)
    small = bank_cluster.share_of(recipe, (3, 32, 32), 10, 1_000, 2, None)
    large = bank_cluster.share_of(recipe, (3, 32, 32), 10, 1_000_000, 2, None)
    assert (small.cpus, small.gpus) == (2, 0.0)
    assert large.memory - small.memory == 2 * 999_000 * 3 * 32 * 32
    gpu = bank_cluster.share_of(recipe, (3, 32, 32), 10, 25_000, 2, 140 * 10**9)
    assert 1 / 8 <= gpu.gpus <= 1
    assert bank_cluster.share_of(recipe, (3, 32, 32), 10, 25_000, 2, 10**6).gpus == 1.0


@with_ray
def test_a_node_too_small_is_told(monkeypatch):
    cluster = Cluster("ray")
    monkeypatch.setattr(Cluster, "nodes", lambda self: [{"CPU": 1.0, "memory": 1e9}, {"CPU": 0.0}])
    assert cluster.slots(Share(1)) == 1
    with pytest.raises(ConfigError, match=r"no node of the Ray cluster has 2 cores and 0.5 GB"):
        cluster.slots(Share(2, memory=5 * 10**8))


@with_ray
def test_devices_of_a_cluster(monkeypatch):
    recipe, asked = Recipe(model="mlp", epochs=1), []
    cluster = Cluster("ray")
    monkeypatch.setattr(Cluster, "nodes", lambda self: [{"CPU": 4.0}])
    assert bank_cluster.on_gpus(cluster, recipe, 3, (8,), "auto", None) is None
    with pytest.raises(ConfigError, match="no node of the Ray cluster has a GPU"):
        bank_cluster.on_gpus(cluster, recipe, 3, (8,), "cuda", None)
    with pytest.raises(ConfigError, match="'mps' on a cluster"):
        bank_cluster.on_gpus(cluster, recipe, 3, (8,), "mps", None)
    monkeypatch.setattr(Cluster, "nodes", lambda self: [{"CPU": 4.0, "GPU": 2.0, "memory": 64e9}])
    monkeypatch.setattr(Cluster, "ask", lambda self, *given, gpus: asked.append(gpus) or ("bf16", 10**10))
    chosen = bank_cluster.choose(
        cluster, recipe, classes=3, shape=(8,), members=100, models=16, threads=1, device="auto", precision=None
    )
    device, resolved, choice, share = chosen
    assert (device, resolved, asked) == ("cuda", replace(recipe, precision="bf16"), [1])
    assert share.gpus == 1 / 8
    assert choice.layout == Layout(4, 1)  # four cores feed them
    plan = bank_plan.Plan((), resolved, device, choice.layout, None, 0, choice.reason, share)
    assert plan.describe() == "4 models at once, 0.12 of a GPU each (Ray, 1 node)"


# ------------------------------------------------------------------------------------ with clusters of real processes


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import test_cluster as t

def until_killed(folder, cluster, nodes):
    class Kill(t.Heard):
        def on_model(self, done, total, seconds_left):
            super().on_model(done, total, seconds_left)
            if done == 2 and nodes:
                kept.update({p.name: p.stat().st_ino for p in Path(folder).glob("model-*.safetensors")})
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                cluster.add_node(num_cpus=1)
    return Kill()

kept = {}
"""

KILLED_NODE = (
    SCRIPT
    + """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1, num_gpus=1)]  # a GPU that torch does not see
cluster.wait_for_nodes()
heard = until_killed(sys.argv[2], cluster, nodes)
bank = t.open_bank(Path(sys.argv[2]), epochs=int(sys.argv[3]))
bank.grow(6, workers=cluster.address, progress=heard)
same = all((Path(sys.argv[2]) / name).stat().st_ino == inode for name, inode in kept.items())
print(json.dumps({"done": heard.done, "notes": heard.notes, "layouts": heard.layouts, "kept": len(kept), "same": same}))
cluster.shutdown()
"""
)

LOCAL_INTERRUPTED = (
    SCRIPT
    + """
class Interrupt(t.Heard):
    def on_model(self, done, total, seconds_left):
        super().on_model(done, total, seconds_left)
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

bank = t.open_bank(Path(sys.argv[2]), epochs=int(sys.argv[3]))
try:
    bank.grow(6, workers="ray", progress=Interrupt())
except KeyboardInterrupt as told:
    print(json.dumps({"told": str(told), "left": t.left_over(Path(sys.argv[2]))}))
"""
)


def in_a_process(script: str, *arguments: str) -> dict:
    """Ray leaves threads, signal handlers and files open: it gets a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", script, __file__, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaint = process.communicate(timeout=900)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what Ray began in it, if anything is left
    assert process.returncode == 0, complaint
    (line,) = said.splitlines()  # and Ray prints nothing on standard output, which is --json's
    return json.loads(line)


@with_ray
@pytest.mark.slow
def test_a_node_killed_in_mid_bank_costs_nothing_but_time(tmp_path):
    alone = grown(tmp_path / "alone", 6, epochs=120)
    told = in_a_process(KILLED_NODE, str(tmp_path / "bank"), "120")
    bank = open_bank(tmp_path / "bank", epochs=120)
    assert_same(bank, alone)
    assert left_over(bank.folder) == []
    assert told["layouts"] == ["2 models at once, 1 thread each (Ray, 3 nodes)"]
    assert told["kept"] >= 2
    assert told["same"]  # what was there when the node died was not trained again
    assert told["done"] == sorted(told["done"])
    assert told["done"][-1] == 6
    assert any("died while it trained reference model" in note for note in told["notes"]), told


@with_ray
@pytest.mark.slow
def test_an_interruption_leaves_a_bank_that_goes_on(tmp_path):
    alone = grown(tmp_path / "alone", 6, epochs=120)
    told = in_a_process(LOCAL_INTERRUPTED, str(tmp_path / "bank"), "120")
    assert "interrupted: 2 of 6" in told["told"] or "interrupted: 3 of 6" in told["told"], told
    bank = open_bank(tmp_path / "bank", epochs=120)
    assert bank.size >= 2
    bank.grow(6, workers=1)
    assert_same(bank, alone)
