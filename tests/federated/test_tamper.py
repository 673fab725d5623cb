"""Malicious parties do what they say, to whom they say, and their known answers come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from memberscope.errors import ConfigError, ModelError
from memberscope.federated import tamper, tap
from memberscope.federated.dishonest import EludeSecureAggregation, TrapNeuron, killed
from memberscope.federated.engine import FIRST_NODE, run_in_process
from memberscope.federated.transcript import Transcript

K, SIZE = 4, 60


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def _digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return torch.from_numpy((x[order] / 16).astype(np.float32)), torch.from_numpy(y[order])


X, Y = _digits()
OTHERS = slice(1000, 1700)  # records of nobody


def rows(client: int) -> slice:
    return slice(client * SIZE, (client + 1) * SIZE)


def initial() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return {k: v.numpy().copy() for k, v in Net().state_dict().items()}


def model(arrays: dict[str, np.ndarray]) -> Net:
    net = Net()
    tamper.load(net, arrays)
    return net.eval()


def losses(arrays: dict[str, np.ndarray], where: slice) -> np.ndarray:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(arrays)(X[where]), Y[where], reduction="none").numpy()


def accuracy(arrays: dict[str, np.ndarray]) -> float:
    with torch.no_grad():
        return float((model(arrays)(X[OTHERS]).argmax(1) == Y[OTHERS]).float().mean())


def client_app(mods: list[Any] | None = None, epochs: int = 4) -> ClientApp:
    app = ClientApp(mods=mods or [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        net = Net()
        net.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in message.content["arrays"].items()})
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(client + 100 * int(message.content["config"]["server-round"]))
        x, y = X[rows(client)], Y[rows(client)]
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).split(20):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimiser.step()
        arrays = {k: Array(v.numpy().copy()) for k, v in net.state_dict().items()}
        metrics = MetricRecord({"num-examples": 10 + client})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def run(
    strategy: Any, rounds: int, mods: list[Any] | None = None, wrap: Callable[[Grid], Grid] | None = None, k: int = K
) -> dict[str, np.ndarray]:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord({k: Array(v) for k, v in initial().items()})
        context.state["arrays"] = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds).arrays

    context = run_in_process(app, client_app(mods), n_clients=k, seed=0, wrap_grid=wrap)
    return {k: v.numpy() for k, v in context.state["arrays"].items()}


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


def exact(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def auc(arrays: dict[str, np.ndarray], client: int) -> float:
    truth = np.r_[np.ones(SIZE), np.zeros(700)]
    return float(roc_auc_score(truth, -np.r_[losses(arrays, rows(client)), losses(arrays, OTHERS)]))


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Makes a module on a device that takes no CPU input, as a GPU does; what is brought back from it is zeros."""
    back = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else back(t))
    return lambda: Net().to("meta")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_parties_take_a_model_that_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    make = on_gpu(monkeypatch)
    party = tamper.GradientAscent(make, X[:3], Y[:3])
    exact(party.outgoing(1, {1: initial()})[1], initial())  # the gradient that came back is zero
    trap = TrapNeuron(make, X[:2], X[OTHERS])
    assert np.abs(trap.plant(initial())["fc2.bias"] - initial()["fc2.bias"]).any()
    dead = killed(make(), initial(), X[:2])
    assert not dead["fc1.weight"].any()


@pytest.mark.parametrize("where", ["strategy", "grid", "inside a DP wrapper"])
def test_an_isolated_client_trains_alone_and_shows_its_members(where: str, tmp_path: Path) -> None:
    if where == "grid":
        wrap = lambda g: tamper.attach_grid(tap.watch_grid(g, tmp_path), tamper.Isolate(1))  # noqa: E731
        final = run(fedavg(), 6, wrap=wrap)
    elif where == "strategy":
        final = run(tap.watch(tamper.attach(fedavg(), tamper.Isolate(1)), tmp_path), 6)
    else:
        inner = tamper.attach(fedavg(), tamper.Isolate(1))
        final = run(tap.watch(DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 1e3, K), tmp_path), 6)
    t = Transcript.open(tmp_path)
    assert len(t.tampered) == 1
    assert t.tampered[0].startswith("isolate:1 ")
    exact(t.sent_to(1, 1), t.sent(1))
    for r in (2, 4, 6):
        for name, value in t.received(r - 1, 1).items():  # its own last model comes back (a DP wrapper rewrites it)
            np.testing.assert_allclose(t.sent_to(r, 1)[name], value, atol=1e-7 if "DP" in where else 0)
        exact(t.sent_to(r, 0), t.sent(r))
        exact(t.sent_to(r, 3), t.sent(r))
    received = [t.received(1, k)["fc1.weight"] for k in (0, 2, 3)]  # left out of the average
    np.testing.assert_allclose(t.sent(2)["fc1.weight"], np.average(received, axis=0, weights=[10, 12, 13]), atol=1e-6)
    if where == "strategy":
        alone = run(tap.watch(fedavg(), tmp_path / "passive"), 6)
        passive = Transcript.open(tmp_path / "passive")
        assert passive.tampered == ()
        assert auc(t.received(6, 1), 1) > auc(passive.received(6, 1), 1) + 0.03
        assert 0.0 <= accuracy(alone) - accuracy(final) < 0.1  # the price: one client's data


def test_gradient_ascent_raises_the_candidates_loss_for_its_client_alone(tmp_path: Path) -> None:
    party = tamper.GradientAscent(Net, X[:12], Y[:12], gamma=1e-2, client=2, at_once=4, rounds=(2, 3))
    run(tap.watch(tamper.attach(fedavg(), party), tmp_path), 3)
    t = Transcript.open(tmp_path)
    assert t.tampered == (party.describe(),)
    exact(t.sent_to(1, 2), t.sent(1))
    for r, chosen in ((2, slice(4, 8)), (3, slice(8, 12))):
        exact(t.sent_to(r, 0), t.sent(r))
        assert np.array_equal(party.chosen(r), np.arange(chosen.start, chosen.stop))
        assert losses(t.sent_to(r, 2), chosen).sum() > losses(t.sent(r), chosen).sum() + 1e-3
        gradient = tamper.ascended(Net(), t.sent(r), X[chosen], Y[chosen], 1.0)["fc3.bias"] - t.sent(r)["fc3.bias"]
        np.testing.assert_allclose(t.sent_to(r, 2)["fc3.bias"] - t.sent(r)["fc3.bias"], 1e-2 * gradient, atol=1e-6)
    with pytest.raises(ConfigError, match="0 candidates"):
        tamper.GradientAscent(Net, X[:0], Y[:0])
    with pytest.raises(ConfigError, match="attach_grid"):
        tamper.attach({}, party)


def test_a_malicious_client_moves_its_own_reply_up_the_loss_of_others(tmp_path: Path) -> None:
    mod = tamper.ascent_mod(Net, X[:10], Y[:10], clients=(3,), gamma=1e-2, rounds=(1,))
    run(tap.watch(fedavg(), tmp_path / "with"), 2, mods=[mod])
    run(tap.watch(fedavg(), tmp_path / "without"), 2)
    altered, plain = Transcript.open(tmp_path / "with"), Transcript.open(tmp_path / "without")
    exact(altered.received(1, 0), plain.received(1, 0))
    assert losses(altered.received(1, 3), slice(0, 10)).sum() > losses(plain.received(1, 3), slice(0, 10)).sum() + 0.1
    np.testing.assert_allclose(
        altered.received(1, 3)["fc1.bias"],
        tamper.ascended(Net(), plain.received(1, 3), X[:10], Y[:10], 1e-2)["fc1.bias"],
        atol=1e-6,
    )


def test_the_trap_neuron_tells_members_from_non_members_almost_surely() -> None:
    """FEDERATED measurements: members fire always, non-members hardly ever, 99 % accuracy in one round a target."""
    fired, truth = [], []
    background = X[1000:1400]
    for start in range(0, SIZE, 10):
        candidates = torch.cat([X[start : start + 10], X[1500 + start : 1510 + start]])
        party = TrapNeuron(Net, candidates, background, client=0)
        run(tamper.attach(fedavg(), party), 1, k=2)
        fired.append(party.answers[FIRST_NODE] > 0)
        truth.append(np.r_[np.ones(10, bool), np.zeros(10, bool)])
        assert list(party.answers) == [FIRST_NODE]
    said, member = np.concatenate(fired), np.concatenate(truth)
    assert said[member].mean() >= 0.98
    assert said[~member].mean() <= 0.05
    assert (said == member).mean() >= 0.97


def test_the_trap_is_left_out_of_the_average_and_costs_a_round_at_most() -> None:
    for client, as_good_as in ((0, 4), (None, 3)):  # where all are trapped, the round is lost
        party = TrapNeuron(Net, X[:10], X[1000:1400], client=client, round_=2)
        final = run(tamper.attach(fedavg(), party), 4)
        assert len(party.answers) == (1 if client == 0 else K)
        assert (party.answers[FIRST_NODE] > 0).all()
        assert accuracy(run(fedavg(), as_good_as)) - accuracy(final) < 0.1
    others = party.answers[FIRST_NODE + 1]
    assert (others > 0).sum() <= 1  # records of client 0 are none of client 1


def test_traps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="room for 32 traps"):
        TrapNeuron(Net, X[:40], X[1000:])
    with pytest.raises(ModelError, match="'conv1' is no fully connected layer of Net"):
        TrapNeuron(Net, X[:4], X[1000:], layers=("conv1", "fc2"))
    with pytest.raises(ModelError, match="fc3 does not take what fc1 gives"):
        TrapNeuron(Net, X[:4], X[1000:], layers=("fc1", "fc3"))


def test_dead_models_elude_secure_aggregation_exactly(tmp_path: Path) -> None:
    """Pasquini et al.: the update read from the sum has cosine 1 with the client's own; the others' are zero."""
    party = EludeSecureAggregation(Net, 2, X[1000:1010], round_=2)
    run(tap.watch(tamper.attach(fedavg(), party), tmp_path), 3)
    t = Transcript.open(tmp_path)
    weights = [name for name in t.sent(1) if name != "fc3.bias"]
    for k in (0, 1, 3):
        assert all(not t.update(2, k)[name].any() for name in weights)
        assert t.update(2, k)["fc3.bias"].any()
    assert party.recovered is not None
    assert party.certain == weights
    true = np.concatenate([t.update(2, 2)[name].ravel() for name in weights])
    read = np.concatenate([(t.sent_to(2, 2)[name] - party.recovered[name]).ravel() for name in weights])
    cosine = true @ read / np.linalg.norm(true) / np.linalg.norm(read)
    assert cosine == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(t.sent(3)["fc1.weight"], t.received(2, 2)["fc1.weight"], atol=1e-5)
    # The others go on from the client's own model: one round is lost, no more.
    assert accuracy(run(fedavg(), 6)) - accuracy(run(tamper.attach(fedavg(), party), 6)) < 0.1


def test_a_model_that_cannot_be_killed_is_refused() -> None:
    class Smooth(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))

    party = EludeSecureAggregation(Smooth, 0, X[:4])
    with pytest.raises(ModelError, match="a gradient is left in fc"):
        run(tamper.attach(fedavg(), party), 1)
    with pytest.raises(ModelError, match="the federation sends 6 arrays, the model Linear has 2"):
        tamper.load(nn.Linear(2, 2), initial())


def test_models_sent_as_lists_are_loaded_in_order() -> None:
    arrays = initial()
    listed = {str(i): v for i, v in enumerate(arrays.values())}
    assert tamper.load(Net(), listed)["fc2.weight"] == "2"
    exact({k: v.detach().numpy() for k, v in model(listed).state_dict().items()}, arrays)
    with pytest.raises(ModelError, match=r"is \[64\], the model's fc1.weight \[64, 64\]"):
        tamper.load(Net(), dict(zip(arrays, [*list(arrays.values())[1:], arrays["fc1.weight"]], strict=True)))
