"""The in-process grid runs Flower apps as a SuperLink would."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from memberscope.errors import ConfigError
from memberscope.federated.engine import FIRST_NODE, InProcessGrid, run_in_process


def _client_app(seen: list[tuple[int, int]] | None = None, broken: int | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        round_ = int(message.content["config"].pop("server-round"))
        if seen is not None:
            seen.append((round_, client))
        if client == broken:
            raise ValueError("no disk")
        context.state["rounds"] = MetricRecord(
            {"n": 1 + (context.state["rounds"]["n"] if "rounds" in context.state else 0)}
        )
        w = message.content["arrays"]["w"].numpy() + client + 1
        metrics = MetricRecord({"num-examples": client + 1, "mine": float(context.state["rounds"]["n"])})
        return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)

    return app


def _server_app(rounds: int, fraction: float = 1.0, **more: float) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=fraction, fraction_evaluate=0.0)
        start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, train_config=ConfigRecord(), **more)
        context.state["arrays"] = result.arrays
        context.state["metrics"] = result.train_metrics_clientapp[rounds]

    return app


def test_apps_run_and_contexts_last() -> None:
    context = run_in_process(_server_app(3), _client_app(), n_clients=3)
    # FedAvg of +1, +2, +3 weighted 1, 2, 3, three times. Replies come in a drawn order, and float32 rounds by it.
    np.testing.assert_allclose(context.state["arrays"]["w"].numpy(), 3 * (1 + 4 + 9) / 6, rtol=1e-6)
    assert context.state["metrics"]["mine"] == pytest.approx(3)


def test_a_failing_client_does_not_end_the_run() -> None:
    errors: list[tuple[int, str]] = []
    context = run_in_process(
        _server_app(2),
        _client_app(broken=2),
        n_clients=3,
        on_error=lambda client, error: errors.append((client, str(error))),
    )
    assert errors == [(2, "no disk"), (2, "no disk")]
    np.testing.assert_allclose(context.state["arrays"]["w"].numpy(), 2 * (1 + 4) / 3, rtol=1e-6)


def test_messages_are_isolated_though_the_strategy_shares_one() -> None:
    seen: list[tuple[int, int]] = []  # the app pops the round out of its config: the next client finds it none the less
    run_in_process(_server_app(1), _client_app(seen), n_clients=3)
    assert sorted(seen) == [(1, 0), (1, 1), (1, 2)]


def test_the_seed_chooses_the_clients_and_leaves_random_alone() -> None:
    picks = []
    for seed in (5, 5, 6):
        seen: list[tuple[int, int]] = []
        random.seed(99)
        run_in_process(_server_app(4, fraction=0.3), _client_app(seen), n_clients=20, seed=seed)
        picks.append(seen)
        assert random.random() == random.Random(99).random()
    assert picks[0] == picks[1] != picks[2]


def test_a_reply_that_comes_too_late_is_an_error() -> None:
    grid = InProcessGrid(_client_app(), 2)
    from memberscope.federated import engine

    content = RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.zeros(2))}), "config": ConfigRecord({"server-round": 1})}
    )
    with engine._identity(1):
        messages = [Message(content, FIRST_NODE + i, "train") for i in (0, 1, 7)]
        late = list(grid.send_and_receive(messages[:1], timeout=0.0))
        unknown = list(grid.send_and_receive(messages[2:]))
        ids = list(grid.push_messages(messages[1:2]))
        pulled = list(grid.pull_messages([*ids, "message-none"]))
    assert "too late" in late[0].error.reason
    assert "no node" in unknown[0].error.reason
    assert [m.metadata.src_node_id for m in pulled] == [FIRST_NODE + 1]
    assert pulled[0].metadata.reply_to_message_id == ids[0]


def test_no_clients_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 clients"):
        InProcessGrid(_client_app(), 0)
