"""Two capability demonstrations of a dishonest server: the trap neuron, and eluding secure aggregation.

They show what the protocol allows, not what a curious server would do: anybody who looks at the models that are sent
sees them. They are reported apart from the attacks of the ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.errors import ConfigError, ModelError
from memberscope.federated.array_files import Arrays
from memberscope.federated.tamper import MaliciousServer, device_of, load

_DEAD = -1.0
"""Bias of a unit that never fires: its weights are zero."""


class TrapNeuron(MaliciousServer):
    """Plants, in the model sent to one client, a unit for each candidate that fires for that record alone.

    The bias of a unit that never fires gets no gradient: after one round of local training it has moved if, and only
    if, the candidate was among the client's records. The gate is ``relu(width - relu(vx - c) - relu(c - vx))`` with
    ``c = v . candidate``: open within `width` of the candidate along the direction v, as in the two-layer attack of
    Nguyen et al. 2023 (AMI, arXiv 2302.12685); the idea is that of Pichler et al. 2024 (arXiv 2203.16463). It takes two
    units of the first of two neighbouring fully connected layers with ReLU for each candidate, and one of the second.

    Parameters
    ----------
    model
        Makes the module that the federation trains.
    candidates
        As the module takes them: float [n, ...].
    background
        Records of nobody, likewise [m, ...]: v is the direction, of many drawn, along which they keep farthest away.
    layers
        Names of the two layers.
    client
        Who is sent the trap; None: everybody.
    round_
        In which round.
    seed
        Of the directions.

    Raises
    ------
    ConfigError
        More candidates than units.
    ModelError
        The layers are not two fully connected ones, one behind the other.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        candidates: Tensor | NDArray[Any],
        background: Tensor | NDArray[Any],
        *,
        layers: tuple[str, str] = ("fc1", "fc2"),
        client: int | None = None,
        round_: int = 1,
        seed: int = 0,
    ) -> None:
        self.module = model().eval()
        self.candidates, self.background = torch.as_tensor(candidates), torch.as_tensor(background)
        self.layers, self.client, self.round, self.seed = layers, client, round_, seed
        self.first, self.second = (_linear(self.module, name) for name in layers)
        if self.second.in_features != self.first.out_features:
            raise ModelError(f"{layers[1]} does not take what {layers[0]} gives", "name two neighbouring layers")
        self.most = min(self.first.out_features // 2, self.second.out_features)
        if not 0 < len(self.candidates) <= self.most:
            raise ConfigError(
                f"{len(self.candidates)} candidates for a model that has room for {self.most} traps",
                "give fewer candidates a round",
            )
        self._before: Arrays | None = None
        self._planted: Arrays | None = None
        self.answers: dict[int, NDArray[np.float64]] = {}
        """Node -> how far the bias of each trap moved, float64 [n]."""

    def describe(self) -> str:
        """One line for the transcript and the report."""
        to = "all clients" if self.client is None else f"client {self.client}"
        return f"trap (the server sends {to} a model with {len(self.candidates)} trap neurons in round {self.round})"

    def outgoing(self, round_: int, models: dict[int, Arrays]) -> dict[int, Arrays]:
        """The trapped model for the target."""
        if round_ != self.round:
            return models
        targets = [node for node in models if self.client is None or node == self.node]
        if targets:
            self._before = models[targets[0]]
            self._planted = self.plant(self._before)
            models.update(dict.fromkeys(targets, self._planted))
        return models

    def incoming(self, round_: int, replies: Mapping[int, Arrays], weights: Mapping[int, float]) -> Collection[int]:
        """Reads the traps, and leaves the replies to the trapped model out."""
        if round_ != self.round or self._planted is None:
            return replies.keys()
        caught = [node for node in replies if self.client is None or node == self.node]
        for node in caught:
            self.answers[node] = self.read(self._planted, replies[node])
        return [node for node in replies if node not in caught] or replies.keys()

    def outcome(self, round_: int, model: Arrays) -> Arrays:
        """Where everybody was sent the trap, the model from before it: a round is lost, and nothing else."""
        everybody = round_ == self.round and self.client is None and self._before is not None
        return self._before if everybody and self._before is not None else model

    def plant(self, arrays: Arrays) -> Arrays:
        """The model with a trap for each candidate."""
        names = load(self.module, arrays)
        inside, around = self._inputs(self.candidates), self._inputs(self.background)
        n = len(inside)
        directions, centres, widths = self._gates(inside, around)
        first, second = (names[f"{layer}.weight"] for layer in self.layers)
        first_bias, second_bias = (names[f"{layer}.bias"] for layer in self.layers)
        new = {name: np.array(value) for name, value in arrays.items()}
        new[first][: 2 * n] = np.stack([directions, -directions], 1).reshape(2 * n, -1)
        new[first_bias][: 2 * n] = np.stack([-centres, centres], 1).reshape(-1)
        new[second][:n] = 0
        new[second][:, : 2 * n] = 0
        for trap in range(n):
            new[second][trap, 2 * trap : 2 * trap + 2] = -1
        new[second_bias][:n] = widths
        return new

    def read(self, planted: Arrays, reply: Arrays) -> NDArray[np.float64]:
        """How far the bias of each trap moved, float64 [n]; not at all where the candidate was not seen."""
        key = load(self.module, planted)[f"{self.layers[1]}.bias"]
        n = len(self.candidates)
        return np.abs(reply[key][:n].astype(np.float64) - planted[key][:n])

    def _inputs(self, x: Tensor) -> NDArray[np.float64]:
        """What the first layer is given for each record, float64 [n, d]."""
        seen: list[Tensor] = []
        handle = self.first.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        try:
            with torch.no_grad():
                self.module(x.to(device_of(self.module)))
        finally:
            handle.remove()
        return seen[0].cpu().double().numpy()

    def _gates(
        self, inside: NDArray[np.float64], around: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Unit directions [n, d], centres [n] and widths [n]: a quarter of the way to the nearest other record."""
        rng = np.random.default_rng(self.seed)
        tried = rng.standard_normal((256, inside.shape[1]))
        tried /= np.linalg.norm(tried, axis=1, keepdims=True)
        across, others = inside @ tried.T, np.sort(around @ tried.T, axis=0)
        best, centres, widths = [], [], []
        for row in across:
            places = [np.searchsorted(others[:, j], value) for j, value in enumerate(row)]
            gaps = [
                min(abs(others[max(p - 1, 0), j] - row[j]), abs(others[min(p, len(others) - 1), j] - row[j]))
                for j, p in enumerate(places)
            ]
            j = int(np.argmax(gaps))
            best.append(tried[j])
            centres.append(row[j])
            widths.append(gaps[j] / 4)
        return np.array(best), np.array(centres), np.array(widths)


class EludeSecureAggregation(MaliciousServer):
    """Makes the secure sum equal to one client's update: all others are sent a model whose units never fire.

    A dead unit has no gradient, so that the others give back what they were sent in all but the last bias, and the
    server takes it off the sum (Pasquini, Francati & Ateniese 2022, arXiv 2111.07380). The model that comes out of the
    round is the client's own, so that the others notice nothing in the next.

    Uses what a server behind secure aggregation has: what it sent, the numbers of examples, and the weighted mean.

    Parameters
    ----------
    model
        Makes the module that the federation trains.
    client
        Whose update is wanted.
    probe
        A few records as the module takes them, float [m, ...]: the dead model is tried on them before it is sent.
    round_
        In which round.
    """

    def __init__(
        self, model: Callable[[], nn.Module], client: int, probe: Tensor | NDArray[Any], *, round_: int = 1
    ) -> None:
        self.module, self.client, self.round, self.probe = model(), client, round_, torch.as_tensor(probe)
        self._sent: dict[int, Arrays] = {}
        self._weights: dict[int, float] = {}
        self.recovered: Arrays | None = None
        """The client's model as read from the sum; None until then."""
        self.certain: list[str] = []
        """Names of the arrays that were read from the sum: all but the last bias and integers."""

    def describe(self) -> str:
        """One line for the transcript and the report."""
        return f"elude (in round {self.round} the server sends all but client {self.client} a model that cannot learn)"

    def outgoing(self, round_: int, models: dict[int, Arrays]) -> dict[int, Arrays]:
        """A dead model for all but the client."""
        if round_ != self.round or self.node not in models:
            return models
        dead = killed(self.module, models[self.node], self.probe)
        self._sent = {node: model if node == self.node else dead for node, model in models.items()}
        return dict(self._sent)

    def incoming(self, round_: int, replies: Mapping[int, Arrays], weights: Mapping[int, float]) -> Collection[int]:
        """Notes the numbers of examples, and not one reply: behind secure aggregation there are none."""
        if round_ == self.round:
            self._weights = dict(weights)
        return replies.keys()

    def outcome(self, round_: int, model: Arrays) -> Arrays:
        """The client's own model, read from the weighted mean of all."""
        if round_ != self.round or self.node not in self._weights:
            return model
        names = load(self.module, model)
        last = _output_bias(self.module)
        own, total = self._weights[self.node], sum(self._weights.values())
        recovered = dict(self._sent[self.node])
        self.certain = []
        for state, name in names.items():
            if model[name].dtype.kind != "f" or state == last:
                continue  # the others' last bias did learn: the client's stays as it was sent
            others = sum(w * self._sent[n][name].astype(np.float64) for n, w in self._weights.items() if n != self.node)
            value = (total * model[name].astype(np.float64) - others) / own
            recovered[name] = value.astype(model[name].dtype)
            self.certain.append(name)
        self.recovered = recovered
        return recovered


def killed(module: nn.Module, arrays: Arrays, probe: Tensor) -> Arrays:
    """The model with every hidden layer dead: zero weights, bias -1, so that ReLU lets nothing through.

    Parameters
    ----------
    module, arrays
        The module and the model to kill.
    probe
        Records to try the dead model on, float [m, ...].

    Raises
    ------
    ModelError
        A gradient is left: the model has other units than ReLU, or layers without a bias.
    """
    names = load(module, arrays)
    last = _output_bias(module).rpartition(".")[0]
    dead = {name: np.array(value) for name, value in arrays.items()}
    for name, weight in module.named_parameters():
        if name.rpartition(".")[0] != last:
            dead[names[name]] = np.full(weight.shape, _DEAD if name.endswith("bias") else 0.0, np.float32)
    load(module, dead)
    module.train()
    module.zero_grad()
    device = device_of(module)
    labels = torch.zeros(len(probe), dtype=torch.int64, device=device)
    nn.functional.cross_entropy(module(probe.to(device)), labels).backward()  # type: ignore[no-untyped-call]
    for name, weight in module.named_parameters():
        if name != f"{last}.bias" and weight.grad is not None and bool(weight.grad.cpu().any()):
            raise ModelError(
                f"a gradient is left in {name} of {type(module).__name__} when its units are dead",
                "secure aggregation is eluded this way where hidden layers have a bias and end in ReLU",
            )
    return dead


def _output_bias(module: nn.Module) -> str:
    """Name of the bias of the last fully connected layer."""
    found = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and part.bias is not None]
    if not found:
        raise ModelError(f"{type(module).__name__} has no fully connected layer with a bias", "choose another model")
    return f"{found[-1]}.bias"


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = dict(module.named_modules()).get(name)
    if not isinstance(found, nn.Linear) or found.bias is None:
        known = [n for n, part in module.named_modules() if isinstance(part, nn.Linear)]
        raise ModelError(
            f"{name!r} is no fully connected layer of {type(module).__name__}", f"these are: {', '.join(known)}"
        )
    return found
