"""Flower's SecAgg+ (Bell et al. 2020) around the rounds of a federation: the server learns the sum and nothing else.

Flower has the protocol for its legacy API alone: a workflow at the server, a mod at the client. Here the workflow makes
one round's exchange, and our strategies, rounds and apps stay as they are. What the server gets is the weighted mean;
it is handed to the strategy as the reply of each client that took part, so that the mean of the replies is that mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from memberscope.errors import ConfigError
from memberscope.federated.replies import REFUSED

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from memberscope.federated.config import FederationConfig
    from memberscope.federated.mods import Mod

MEANS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need nothing but the mean of the updates."""
_LEAST = 3
_THRESHOLD = 0.5
"""Share of the clients that must stay to the end of a round; fewer, and nothing can be unmasked."""
Call = Callable[[Message, Context], Message]


def check(config: FederationConfig, *, each_round: int, has_buffers: bool) -> None:
    """Refuse what the protocol cannot do.

    Raises
    ------
    ConfigError
        A strategy that needs single updates, clipping at the server, too few clients, or statistics in the model.
    """
    reason = None
    if config.strategy not in MEANS:
        reason = f"{config.strategy} looks at single updates", f"one of {', '.join(MEANS)}"
    elif config.central_noise and config.clip_at == "server":
        reason = "a server that sees no update cannot clip it", "--clip-at client"
    elif each_round < _LEAST:
        reason = f"{each_round} clients a round are too few to hide in", f"at least {_LEAST}"
    elif has_buffers:
        reason = "the counts of a batch normalisation lie outside its range of numbers", "choose another model"
    if reason is not None:
        raise ConfigError(f"SecAgg+ cannot be used: {reason[0]}", reason[1])


class SecureExchange:
    """Sends a round's messages and gives the replies, by SecAgg+.

    Parameters
    ----------
    heaviest
        The largest weight that a client may report.
    """

    def __init__(self, heaviest: float) -> None:
        self._heaviest = heaviest

    def __call__(self, grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
        """Give a reply for each message: the common mean, or why a client is not in it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the protocol lives in Flower's legacy modules
            from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
            from flwr.compat.common import recorddict_compat as compat
            from flwr.server import ServerConfig
            from flwr.server.compat.legacy_context import LegacyContext
            from flwr.server.workflow import SecAggPlusWorkflow
            from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

        if not messages:
            return []
        record, settings = _parts(messages[0].content)
        values = {name: array.numpy() for name, array in record.items()}
        told = _Collector([m.metadata.dst_node_id for m in messages], dict(settings))
        context: Any = LegacyContext(
            context=Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}),
            config=ServerConfig(),
            strategy=told,  # type: ignore[arg-type]
            client_manager=told,  # type: ignore[arg-type]
        )
        context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: settings["server-round"]})
        parameters = ndarrays_to_parameters(list(values.values()))
        context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(parameters, keep_input=True)
        workflow = SecAggPlusWorkflow(1.0, _THRESHOLD, max_weight=self._heaviest, timeout=timeout)
        workflow(grid, context)
        if told.mean is None:
            reason = "secure aggregation was broken off: too few clients stayed in the round"
            return [Message(Error(REFUSED, reason), reply_to=message) for message in messages]
        mean = [
            np.asarray(v, old.dtype) for v, old in zip(parameters_to_ndarrays(told.mean), values.values(), strict=True)
        ]
        return [self._reply(message, dict(zip(values, mean, strict=True)), told) for message in messages]

    @staticmethod
    def _reply(message: Message, mean: Mapping[str, Any], told: _Collector) -> Message:
        result = told.results.get(message.metadata.dst_node_id)
        if result is None:
            return Message(Error(REFUSED, "left the round before its update was masked"), reply_to=message)
        arrays = ArrayRecord({name: Array(values) for name, values in mean.items()})
        metrics = MetricRecord({"num-examples": result.num_examples, **result.metrics})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def mods(names: Callable[[], list[str]]) -> list[Mod]:
    """The client's side: Flower's mod, and one that turns its legacy messages into ours and back.

    Parameters
    ----------
    names
        Gives the names of the model's arrays, which legacy messages do not carry.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from flwr.client.mod import secaggplus_mod
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.compat.common import recorddict_compat as compat

    def translated(message: Message, context: Context, call_next: Call) -> Message:
        asked = compat.recorddict_to_fitins(message.content, keep_input=True)
        values = dict(zip(names(), parameters_to_ndarrays(asked.parameters), strict=True))
        content = RecordDict({"arrays": ArrayRecord({n: Array(v) for n, v in values.items()})})
        content["config"] = ConfigRecord(dict(asked.config))
        make: Any = Message
        reply = call_next(make(content, metadata=message.metadata), context)
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        record, _ = _parts(reply.content)
        metrics: dict[str, Any] = dict(next(iter(reply.content.metric_records.values())))
        weight = int(metrics.pop("num-examples"))
        parameters = ndarrays_to_parameters([array.numpy() for array in record.values()])
        result = FitRes(Status(Code.OK, ""), parameters, weight, metrics)
        return Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)

    return [secaggplus_mod, translated]


class _Collector:
    """What the legacy workflow takes for its strategy and its client manager: it says who takes part, and listens."""

    def __init__(self, nodes: Sequence[int], settings: dict[str, Any]) -> None:
        self._nodes, self._settings = nodes, settings
        self.mean: Any = None
        self.results: dict[int, Any] = {}

    def num_available(self) -> int:
        """Number of clients."""
        return len(self._nodes)

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, Any]]:
        """Who takes part, and with what."""
        from flwr.common import FitIns

        del server_round, client_manager
        return [(_Node(node), FitIns(parameters, self._settings)) for node in self._nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
        """Listen: every result holds the one mean, and what its client said beside it."""
        del server_round, failures
        self.results = {proxy.node_id: result for proxy, result in results}
        self.mean = next((result.parameters for _, result in results), None)
        return None, {}


class _Node:
    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


def _parts(content: RecordDict) -> tuple[ArrayRecord, Mapping[str, Any]]:
    return next(iter(content.array_records.values())), next(iter(content.config_records.values()), {})
