"""Malicious parties: a server that alters what it sends or aggregates, a client that alters its reply.

A malicious server is attached to a strategy, or to a grid for apps that are not to be changed:

    strategy = tap.watch(tamper.attach(FedAvg(...), tamper.Isolate(client=3)), "runs/a")

The tap goes around it, and records what was really sent and what really came back. What these parties gain, and what
they cost in accuracy, is measured on the federation that they took part in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.errors import ConfigError, ModelError
from memberscope.federated import wire
from memberscope.federated.array_files import Arrays
from memberscope.federated.engine import isolated
from memberscope.federated.prober import array_names
from memberscope.federated.tap import TAMPERED
from memberscope.federated.tap_client import CallNext, Mod

S = TypeVar("S")
G = TypeVar("G")


class MaliciousServer:
    """What a malicious server may do; this one does nothing. Models are ``dict`` name -> array, not to be written to.

    `client` is the number of the client that it is after, `node` that client's node id once it is known.
    """

    client: int | None = None
    node: int | None = None

    def describe(self) -> str:
        """One line for the transcript and the report."""
        return "does nothing"

    def outgoing(self, round_: int, models: dict[int, Arrays]) -> dict[int, Arrays]:
        """Node -> model that it is to be sent."""
        return models

    def incoming(self, round_: int, replies: Mapping[int, Arrays], weights: Mapping[int, float]) -> Collection[int]:
        """The nodes whose replies are to be aggregated, given each one's model and number of examples."""
        return replies.keys()

    def outcome(self, round_: int, model: Arrays) -> Arrays:
        """The model that is to come out of the round."""
        return model


class Isolate(MaliciousServer):
    """Cuts one client off: it is sent its own last model, and left out of the average.

    The client then trains alone, and its model overfits its own records (the isolating attack of Nasr, Shokri &
    Houmansadr 2019, section IV-C).

    Parameters
    ----------
    client
        Its number: ``partition-id``, or its place among all node ids.
    """

    def __init__(self, client: int) -> None:
        self.client = client
        self._last: Arrays | None = None

    def describe(self) -> str:
        """One line for the transcript and the report."""
        return f"isolate:{self.client} (the server sends client {self.client} its own last model, and leaves it out)"

    def outgoing(self, round_: int, models: dict[int, Arrays]) -> dict[int, Arrays]:
        """The client's own last model in place of the global one."""
        return {n: self._last if n == self.node and self._last is not None else m for n, m in models.items()}

    def incoming(self, round_: int, replies: Mapping[int, Arrays], weights: Mapping[int, float]) -> Collection[int]:
        """All but the client's."""
        if self.node is not None and self.node in replies:
            self._last = replies[self.node]
        return [node for node in replies if node != self.node]


class GradientAscent(MaliciousServer):
    """Moves the model up the loss of candidate records before sending it: members are pulled back down by training.

    The active attack of Nasr, Shokri & Houmansadr (2019, section IV-C): ``W + gamma * dL(x)/dW``. It gains little, or
    ruins the model, when many candidates are ascended at once: give few, or few a round.

    Parameters
    ----------
    model
        Makes the module that the federation trains.
    x, y
        The candidates, as the module takes them: float [n, ...], and int64 [n].
    gamma
        Length of a step along the sum of the candidates' gradients.
    client
        Only this client is sent the altered model; None: all are.
    at_once
        So many candidates a round, in turn; None: all.
    rounds
        In these rounds only; None: all.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        x: Tensor | NDArray[Any],
        y: Tensor | NDArray[np.int64],
        *,
        gamma: float = 2e-4,
        client: int | None = None,
        at_once: int | None = None,
        rounds: Collection[int] | None = None,
    ) -> None:
        self.module, self.x, self.y = model(), torch.as_tensor(x), torch.as_tensor(y)
        if not len(self.x) or len(self.x) != len(self.y):
            raise ConfigError(
                f"{len(self.x)} candidates with {len(self.y)} classes", "give as many of each, at least 1"
            )
        self.gamma, self.client, self.at_once, self.rounds = gamma, client, at_once, rounds

    def describe(self) -> str:
        """One line for the transcript and the report."""
        to = "all clients" if self.client is None else f"client {self.client}"
        what = f"moved up the loss of {len(self.x)} candidates, gamma {self.gamma:g}"
        return f"ascent (the server sends {to} a model {what})"

    def chosen(self, round_: int) -> NDArray[np.int64]:
        """The candidates of a round, by place."""
        n, size = len(self.x), min(self.at_once or len(self.x), len(self.x))
        return (np.arange(size) + (round_ - 1) * size) % n

    def outgoing(self, round_: int, models: dict[int, Arrays]) -> dict[int, Arrays]:
        """The altered model for the client, or for all."""
        if self.rounds is not None and round_ not in self.rounds:
            return models
        rows = torch.from_numpy(self.chosen(round_))
        altered: dict[int, Arrays] = {}  # one of each model, however many get it
        known: list[tuple[Arrays, Arrays]] = []
        for node, model in models.items():
            if self.client is not None and node != self.node:
                altered[node] = model
                continue
            found = next((new for old, new in known if old is model), None)
            if found is None:
                found = ascended(self.module, model, self.x[rows], self.y[rows], self.gamma)
                known.append((model, found))
            altered[node] = found
        return altered


def ascent_mod(
    model: Callable[[], nn.Module],
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[np.int64],
    *,
    clients: Collection[int],
    gamma: float = 2e-3,
    rounds: Collection[int] | None = None,
) -> Mod:
    """A Flower mod for malicious clients: the reply is moved up the loss of the candidates, not of their own records.

    Members of other clients are pulled back down in the next rounds (the active participant of Nasr et al. 2019).

    Parameters
    ----------
    model, x, y, gamma, rounds
        As in `GradientAscent`.
    clients
        The malicious ones, by ``partition-id``.
    """
    module, inputs, labels = model(), torch.as_tensor(x), torch.as_tensor(y)

    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        malicious = int(str(context.node_config.get("partition-id", -1))) in clients
        number = wire.round_of(message)
        reply = call_next(message, context)
        if not malicious or not wire.is_training(message) or not reply.has_content():
            return reply
        if rounds is not None and number not in rounds:
            return reply
        for key, record in reply.content.array_records.items():
            arrays = wire.Decoder().record(record)
            reply.content[key] = wire.to_record(ascended(module, arrays, inputs, labels, gamma))
        return reply

    return mod


def ascended(module: nn.Module, arrays: Arrays, x: Tensor, y: Tensor, gamma: float) -> Arrays:
    """`arrays` moved by gamma along the gradient of the summed cross-entropy of (x, y), with respect to all weights."""
    names = load(module, arrays)
    module.eval()
    module.zero_grad()
    device = device_of(module)
    nn.functional.cross_entropy(module(x.to(device)), y.to(device), reduction="sum").backward()  # type: ignore[no-untyped-call]
    moved = dict(arrays)
    for name, weight in module.named_parameters():
        if weight.grad is not None:
            key = names[name]
            moved[key] = arrays[key] + (gamma * weight.grad).cpu().numpy().astype(arrays[key].dtype)
    return moved


def device_of(module: nn.Module) -> torch.device:
    """Where a module takes its input: a user's may be on a GPU."""
    return next(module.parameters()).device


def load(module: nn.Module, arrays: Arrays) -> dict[str, str]:
    """Load a model as it travels, by its names (see `prober.array_names`); gives state name -> array name.

    Raises
    ------
    ModelError
        The arrays do not fit the module.
    """
    state = module.state_dict()
    if len(arrays) != len(state):
        raise ModelError(
            f"the federation sends {len(arrays)} arrays, the model {type(module).__name__} has {len(state)}",
            "give the model that the federation trains",
        )
    names = array_names(arrays, list(state))
    for name, value in state.items():
        if value.shape != arrays[names[name]].shape:
            raise ModelError(
                f"the federation's {names[name]} is {list(arrays[names[name]].shape)}, the model's {name} "
                f"{list(value.shape)}",
                "give the model that the federation trains",
            )
    module.load_state_dict({name: torch.from_numpy(np.array(arrays[key])) for name, key in names.items()})
    return names


def attach(strategy: S, party: MaliciousServer) -> S:
    """Put a malicious server in a strategy's place; the strategy is changed in place and given back.

    Raises
    ------
    ConfigError
        No strategy of Flower's Message API.
    """
    target: Any = strategy
    if not (hasattr(target, "configure_train") and hasattr(target, "aggregate_train")):
        raise ConfigError(
            f"{type(strategy).__name__} has no configure_train", "for legacy apps and custom loops: tamper.attach_grid"
        )
    hands = _Hands(party)
    configure, aggregate = target.configure_train, target.aggregate_train

    def configure_train(server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        messages = list(configure(server_round, arrays, config, grid))
        return hands.outgoing(server_round, messages, list(grid.get_node_ids()))

    def aggregate_train(server_round: int, replies: Iterable[Message]) -> Any:
        model, metrics = aggregate(server_round, hands.incoming(server_round, list(replies)))
        if isinstance(model, ArrayRecord):
            arrays = wire.Decoder().record(model)
            altered = party.outcome(server_round, arrays)
            model = model if altered is arrays else wire.to_record(altered)
        return model, metrics

    target.configure_train, target.aggregate_train = configure_train, aggregate_train
    return declare(strategy, party.describe())


def attach_grid(grid: G, party: MaliciousServer) -> G:
    """Put a malicious server between any app and its grid: ``attach_grid(tap.watch_grid(grid, out), party)``.

    Replies that the party leaves out become errors, so that every loop finds as many as it sent. What comes out of a
    round is the app's own business: `MaliciousServer.outcome` is not asked.
    """
    target: Any = grid
    hands = _Hands(party)
    both = target.send_and_receive

    def send_and_receive(messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        if not messages or not wire.is_training(messages[0]):
            return both(messages, timeout=timeout)  # type: ignore[no-any-return]
        number = wire.round_of(messages[0]) or 0
        sent = hands.outgoing(number, messages, list(target.get_node_ids()))
        return hands.incoming(number, list(both(sent, timeout=timeout)), as_errors=True)

    target.send_and_receive = send_and_receive
    return declare(grid, party.describe())


def declare(tapped: S, text: str) -> S:
    """Name a malicious party to the tap of a strategy or grid, which writes it into the transcript.

    A text that begins with `ascent-client` or `client` names a client: an audit gives it what clients see, no more.
    """
    known: list[str] = [*getattr(tapped, TAMPERED, ()), text]
    setattr(tapped, TAMPERED, known)
    return tapped


class _Hands:
    """Between messages and models: gives each node a message of its own, and knows which node the target is."""

    def __init__(self, party: MaliciousServer) -> None:
        self.party = party
        self._reported: dict[int, int] = {}

    def outgoing(self, round_: int, messages: Sequence[Message], nodes: Sequence[int]) -> list[Message]:
        self._find(nodes)
        models = dict(wire.outgoing(messages))
        altered = self.party.outgoing(round_, dict(models))
        sent = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in models and altered[node] is not models[node]:
                message = isolated(message)  # strategies put one RecordDict into the messages to all clients
                (key,) = message.content.array_records
                message.content[key] = wire.to_record(altered[node])
            sent.append(message)
        return sent

    def incoming(self, round_: int, replies: Sequence[Message], *, as_errors: bool = False) -> list[Message]:
        found = {reply.node: reply for reply in wire.replies(replies) if reply.arrays is not None}
        self._reported.update({reply.client: node for node, reply in found.items() if reply.client is not None})
        weights = {node: 1.0 if reply.num_examples is None else reply.num_examples for node, reply in found.items()}
        models = {node: reply.arrays for node, reply in found.items() if reply.arrays is not None}
        kept = set(self.party.incoming(round_, models, weights))
        out = []
        for message in replies:
            if message.metadata.src_node_id in models and message.metadata.src_node_id not in kept:
                if not as_errors:
                    continue
                message = _left_out(message)
            out.append(message)
        return out

    def _find(self, nodes: Sequence[int]) -> None:
        client = self.party.client
        if client is None:
            return
        if client in self._reported:
            self.party.node = self._reported[client]
        elif client < len(nodes):
            self.party.node = sorted(nodes)[client]


def _left_out(reply: Message) -> Message:
    make: Any = Message  # with metadata alone it is Flower's own constructor, outside the documented signatures
    message: Message = make(Error(0, "left out by the malicious server"), metadata=reply.metadata)
    return message
