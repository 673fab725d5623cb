"""Taps record exactly what passes, under every strategy and in every kind of app, and change nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies

from memberscope.errors import ConfigError, RunFolderError
from memberscope.federated import tap
from memberscope.federated.engine import run_in_process
from memberscope.federated.transcript import Transcript

K, ROUNDS = 4, 3
START = {"z": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, np.float32)}


def step(client: int, round_: int, shape: tuple[int, ...]) -> np.ndarray:
    """What a client adds to an array: known, so that a recording can be checked against it."""
    return np.full(shape, 0.1 * (client + 1) + 0.01 * round_, np.float32)


def client_app(mods: list[Any] | None = None, broken: int | None = None) -> ClientApp:
    app = ClientApp(mods=mods or [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        round_ = int(message.content["config"].get("server-round", 0))
        if client == broken:
            raise ValueError("no disk")
        arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
        moved = {k: Array(v + step(client, round_, v.shape)) for k, v in arrays.items()}
        metrics = MetricRecord({"num-examples": client + 1, "train_loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}), reply_to=message)

    return app


def start() -> ArrayRecord:
    return ArrayRecord({k: Array(v) for k, v in START.items()})


def server_app(strategy: Any, rounds: int = ROUNDS) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(grid=grid, initial_arrays=start(), num_rounds=rounds)
        context.state["arrays"] = result.arrays

    return app


def run(strategy: Any, rounds: int = ROUNDS, **more: Any) -> dict[str, np.ndarray]:
    np.random.seed(0)  # noqa: NPY002 -- Flower's DP wrappers draw their noise from NumPy's global generator
    context = run_in_process(server_app(strategy, rounds), client_app(**more), n_clients=K, seed=0)
    return {k: v.numpy() for k, v in context.state["arrays"].items()}


def fedavg(cls: str = "FedAvg", **more: Any) -> Any:
    return getattr(strategies, cls)(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=K, **more)


def exact(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


STRATEGIES: dict[str, Callable[[], Any]] = {
    "FedAvg": fedavg,
    "FedProx": lambda: fedavg("FedProx", proximal_mu=0.1),
    "FedAdam": lambda: fedavg("FedAdam"),
    "FedMedian": lambda: fedavg("FedMedian"),
    "QFedAvg": lambda: fedavg("QFedAvg", client_learning_rate=0.1),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_recorded_exactly_and_gives_the_same_model_as_without(name: str, tmp_path: Path) -> None:
    untapped = run(STRATEGIES[name]())
    strategy = STRATEGIES[name]()
    assert tap.watch(strategy, tmp_path) is strategy
    final = run(strategy)
    exact(final, untapped)
    t = Transcript.open(tmp_path)
    assert t.problems == ()
    assert t.strategy == name
    assert t.position is None
    assert t.rounds == [1, 2, 3]
    assert t.clients == list(range(K))
    exact(t.sent(1), START)
    for r in t.rounds:
        assert t.clients_of(r) == t.asked(r) == list(range(K))
        for k in range(K):
            sent = t.sent_to(r, k)
            exact(t.received(r, k), {n: v + step(k, r, v.shape) for n, v in sent.items()})
            assert t.num_examples(r, k) == k + 1
            assert t.metrics(r, k)["train_loss"] == 0.5
        if r > 1:
            aggregate = t.aggregate(r - 1)
            assert aggregate is not None
            exact(aggregate, t.sent(r))
    exact(t.final(), final)
    if name == "FedAvg":
        np.testing.assert_allclose(t.sum(2)["z"], t.sent(3)["z"], rtol=1e-6)


def test_clients_that_fail_or_are_not_asked_are_told_apart(tmp_path: Path) -> None:
    run(tap.watch(fedavg(fraction_train=0.5), tmp_path / "half"), 6)
    t = Transcript.open(tmp_path / "half")
    assert t.clients == list(range(K))
    assert all(len(t.asked(r)) == 2 for r in t.rounds)
    for r in t.rounds:
        for k in t.asked(r):  # the number of a client does not depend on who took part
            exact(t.received(r, k), {n: v + step(k, r, v.shape) for n, v in t.sent(r).items()})
    run(tap.watch(fedavg(), tmp_path / "broken"), 1, broken=2)
    t = Transcript.open(tmp_path / "broken")
    assert t.failures(1) == {2: "ValueError: no disk"}
    assert t.clients_of(1) == [0, 1, 3]
    assert t.problems == ()


def dp(strategy: Any, side: str = "ServerSide") -> Any:
    return getattr(strategies, f"DifferentialPrivacy{side}FixedClipping")(
        strategy, noise_multiplier=0.1, clipping_norm=0.05, num_sampled_clients=K
    )


def test_around_a_dp_wrapper_the_server_sees_unclipped_updates(tmp_path: Path) -> None:
    final = run(tap.watch(dp(fedavg()), tmp_path))
    exact(final, run(dp(fedavg())))
    t = Transcript.open(tmp_path)
    assert t.strategy == "DifferentialPrivacyServerSideFixedClipping(FedAvg)"
    assert t.position is not None
    assert t.position.startswith("around DifferentialPrivacyServerSide")
    norms = [np.sqrt(sum((v**2).sum() for v in t.update(1, k).values())) for k in range(K)]
    assert min(norms) > 0.2  # 0.11 * sqrt(8) and more
    exact(t.final(), final)


def test_inside_a_dp_wrapper_updates_are_clipped_and_the_transcript_says_so(tmp_path: Path) -> None:
    final = run(dp(tap.watch(fedavg(), tmp_path)))
    exact(final, run(dp(fedavg())))
    t = Transcript.open(tmp_path)
    assert t.problems == ()
    assert t.strategy == "DifferentialPrivacyServerSideFixedClipping(FedAvg)"
    assert t.position is not None
    assert t.position.startswith("inside DifferentialPrivacyServerSide")
    norms = [np.sqrt(sum((v**2).sum() for v in t.update(1, k).values())) for k in range(K)]
    np.testing.assert_allclose(norms, 0.05, rtol=1e-3)
    released = t.sent(2)  # with noise; what came out of FedAvg is without
    before = t.aggregate(1)
    assert before is not None
    assert np.abs(released["z"] - before["z"]).max() > 1e-4


def test_an_object_that_merely_holds_a_strategy_is_no_wrapper(tmp_path: Path) -> None:
    class Loop:
        def __init__(self, strategy: Any) -> None:
            self.strategy = strategy
            self.strategy.strategy = "mine"

        def run(self) -> None:
            run(self.strategy, 1)

    Loop(tap.watch(fedavg(), tmp_path)).run()
    t = Transcript.open(tmp_path)
    assert t.strategy == "FedAvg"
    assert t.position is None


def test_clipping_at_the_client_is_seen_from_everywhere(tmp_path: Path) -> None:
    run(tap.watch(dp(fedavg(), "ClientSide"), tmp_path), mods=[fixedclipping_mod])
    t = Transcript.open(tmp_path)
    norms = [np.sqrt(sum((v**2).sum() for v in t.update(2, k).values())) for k in range(K)]
    np.testing.assert_allclose(norms, 0.05, rtol=1e-3)


def test_rounds_are_told_beforehand_and_an_early_end_is_noticed(tmp_path: Path) -> None:
    strategy = tap.watch(fedavg(), tmp_path, every=2)

    def killed(round_: int, arrays: ArrayRecord) -> None:
        if round_ == 4:
            raise KeyboardInterrupt

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid=grid, initial_arrays=start(), num_rounds=9, evaluate_fn=killed)

    with pytest.raises(KeyboardInterrupt):
        run_in_process(app, client_app(), n_clients=K)
    t = Transcript.open(tmp_path)
    assert t.rounds == [2, 4]
    assert len(t.problems) == 1
    assert "the last round on record is 4, not 8" in t.problems[0]


def test_only_sums_when_asked(tmp_path: Path) -> None:
    final = run(tap.watch(fedavg(), tmp_path, sums_only=True))
    t = Transcript.open(tmp_path)
    assert t.view == "server behind secure aggregation"
    assert t.clients_of(1) == []
    np.testing.assert_allclose(t.sum(3)["z"], final["z"], rtol=1e-6)
    assert t.total_examples(3) == sum(range(1, K + 1))
    assert t.problems == ()
    with pytest.raises(RunFolderError, match="view = 'server behind"):
        tap.watch(fedavg(), tmp_path)


def test_what_is_no_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dict is no Flower strategy"):
        tap.watch({}, tmp_path)


def test_an_error_in_the_tap_does_not_reach_the_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memberscope.federated import recorder

    monkeypatch.setattr(recorder, "write_arrays", lambda *a, **k: 1 / 0)
    exact(run(tap.watch(fedavg(), tmp_path)), run(fedavg()))
    assert any("ZeroDivisionError" in p for p in Transcript.open(tmp_path).problems)


# Custom loops --------------------------------------------------------------------------------------------------------


def _average(replies: list[Message]) -> ArrayRecord:
    arrays = [{k: v.numpy() for k, v in m.content["arrays"].items()} for m in replies]
    return ArrayRecord({k: Array(np.mean([a[k] for a in arrays], axis=0, dtype=np.float32)) for k in arrays[0]})


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("pushed", [True, False])
def test_a_custom_loop_is_recorded_whether_it_names_rounds_or_not(named: bool, pushed: bool, tmp_path: Path) -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        grid = tap.watch_grid(grid, tmp_path)
        arrays = start()
        for r in range(1, ROUNDS + 1):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": r} if named else {})})
            messages = [Message(content, node, "train") for node in grid.get_node_ids()]
            if pushed:  # one by one, and collected in two goes
                ids = [name for m in messages for name in grid.push_messages([m])]
                replies = [*grid.pull_messages(ids[:1]), *grid.pull_messages(ids[1:])]
            else:
                replies = list(grid.send_and_receive(messages))
            arrays = _average(replies)
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": ROUNDS})})
        list(grid.send_and_receive([Message(content, next(iter(grid.get_node_ids())), "evaluate")]))

    run_in_process(app, client_app(), n_clients=K)
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2, 3]
    assert t.problems == ()
    for r in t.rounds:
        assert t.clients_of(r) == list(range(K))
        for k in range(K):
            exact(t.received(r, k), {n: v + step(k, r * named, v.shape) for n, v in t.sent(r).items()})
    np.testing.assert_allclose(t.final()["a"], START["a"] + sum(0.25 + 0.01 * r * named for r in t.rounds), rtol=1e-5)


# Legacy apps ---------------------------------------------------------------------------------------------------------


def _legacy_apps(watched: Callable[[Any], Any], secure: bool = False) -> tuple[Any, Any]:
    from flwr.client import ClientApp as OldClientApp
    from flwr.client import NumPyClient
    from flwr.client.mod import secaggplus_mod
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
    from flwr.server import ServerApp as OldServerApp
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

    class Client(NumPyClient):
        def __init__(self, client: int) -> None:
            self.client = client

        def fit(self, parameters: Any, config: Any) -> Any:
            moved = [p + step(self.client, 0, p.shape) for p in parameters]
            return moved, self.client + 1, {"partition-id": self.client}

        def evaluate(self, parameters: Any, config: Any) -> Any:
            return 0.5, 1, {}

    old_client = OldClientApp(
        client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client(),
        mods=[secaggplus_mod] if secure else [],
    )
    strategy = watched(
        FedAvg(
            fraction_evaluate=1.0,
            min_available_clients=K,
            min_fit_clients=K,
            initial_parameters=ndarrays_to_parameters(list(START.values())),
        )
    )
    if not secure:
        config = ServerConfig(num_rounds=ROUNDS)
        return OldServerApp(server_fn=lambda _: ServerAppComponents(strategy=strategy, config=config)), old_client
    app = OldServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=2), strategy=strategy)
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.5))(grid, legacy)

    return app, old_client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", ["strategy", "grid"])
def test_a_legacy_app_is_recorded_from_its_strategy_and_from_its_grid(where: str, tmp_path: Path) -> None:
    watched = (lambda s: tap.watch(s, tmp_path)) if where == "strategy" else (lambda s: s)
    server, client = _legacy_apps(watched)
    wrap = None if where == "strategy" else (lambda g: tap.watch_grid(g, tmp_path))
    run_in_process(server, client, n_clients=K, wrap_grid=wrap, seed=0)
    t = Transcript.open(tmp_path)
    assert t.rounds == [1, 2, 3]
    assert t.problems == ()
    assert t.clients == list(range(K))
    assert t.clients_reported
    exact(t.sent(1), {"0": START["z"], "1": START["a"]})
    for r in t.rounds:
        for k in range(K):
            exact(t.received(r, k), {n: v + step(k, 0, v.shape) for n, v in t.sent(r).items()})
            assert t.num_examples(r, k) == k + 1
    np.testing.assert_allclose(t.final()["1"], START["a"] + 3 * 0.1 * (1 + 4 + 9 + 16) / 10, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loop_that_does_not_tell_its_rounds_can_be_told_of(tmp_path: Path) -> None:
    server, client = _legacy_apps(lambda s: tap.watch(s, tmp_path, total_rounds=9))
    run_in_process(server, client, n_clients=K, seed=0)
    assert "the last round on record is 3, not 9" in Transcript.open(tmp_path).problems[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_under_secure_aggregation_the_grid_shows_sums_only_and_the_transcript_says_so(tmp_path: Path) -> None:
    server, client = _legacy_apps(lambda s: s, secure=True)
    random.seed(0)
    run_in_process(server, client, n_clients=K, wrap_grid=lambda g: tap.watch_grid(g, tmp_path), seed=0)
    t = Transcript.open(tmp_path)
    assert t.view == "server behind secure aggregation"
    assert t.only_sums
    assert t.rounds == [1, 2]
    assert t.problems == ()
    assert not list(tmp_path.rglob("from_*"))
    expected = 0.1 * (1 + 4 + 9 + 16) / 10
    for r in t.rounds:
        assert t.clients_of(r) == []
        assert t.asked(r) == list(range(K))
        np.testing.assert_allclose(t.sum(r)["1"], t.sent(r)["1"] + expected, atol=2e-3)  # SecAgg+ rounds what it masks
        assert t.total_examples(r) == 10


# At the client -------------------------------------------------------------------------------------------------------


def test_a_curious_client_sees_the_global_models_and_itself(tmp_path: Path) -> None:
    strategy = strategies.FedAvg(min_available_nodes=K)
    final = run(strategy, mods=[tap.client_mod(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"client_{k}" for k in range(K)]
    server = tmp_path / "server"
    run(tap.watch(strategies.FedAvg(min_available_nodes=K), server))
    seen = Transcript.open(server)
    for k in range(K):
        t = Transcript.open(tmp_path / f"client_{k}")
        assert t.view == f"client {k}"
        assert t.problems == ()
        assert t.rounds == [1, 2, 3]
        for r in t.rounds:
            exact(t.sent(r), seen.sent(r))
            (me,) = t.clients_of(r)
            exact(t.received(r, me), seen.received(r, k))
        exact(t.final(), final)  # it came for evaluation


def test_a_client_that_is_started_anew_for_each_message_continues_its_transcript(tmp_path: Path) -> None:
    def forgetful(message: Message, context: Context, call_next: Any) -> Message:
        return tap.client_mod(tmp_path)(message, context, call_next)  # as a SuperNode does: a new process each time

    run(fedavg(), mods=[forgetful])
    t = Transcript.open(tmp_path / "client_1")
    assert t.rounds == [1, 2, 3]
    assert t.problems == ()


def test_a_client_trains_though_its_transcript_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "client_1").write_text("in the way")
    exact(run(fedavg(), mods=[tap.client_mod(tmp_path)]), run(fedavg()))
    assert "client 1 is not taped" in caplog.text
