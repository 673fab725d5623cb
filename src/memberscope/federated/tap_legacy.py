"""Recording a legacy strategy (`flwr.server.strategy`): `configure_fit` and `aggregate_fit` instead of messages."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from memberscope.federated.array_files import Arrays
from memberscope.federated.recorder import Recorder
from memberscope.federated.taping import ClientReply


class LegacyStrategyTap:
    """Stands in for `configure_fit` and `aggregate_fit` of one strategy object. Arrays are named ``0``, ``1``, ..."""

    def __init__(self, strategy: Any, recorder: Recorder, total_rounds: int | None) -> None:
        self.strategy, self.recorder, self.total_rounds = strategy, recorder, total_rounds
        self.configure, self.aggregate = strategy.configure_fit, strategy.aggregate_fit
        self.begun = False

    def attach(self) -> None:
        """Take the strategy's place."""
        self.strategy.configure_fit = self._configure_fit
        self.strategy.aggregate_fit = self._aggregate_fit

    def _configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        from memberscope.federated.tap import facts

        instructions = self.configure(server_round, parameters, client_manager)
        if not self.begun:
            self.begun = True
            self.recorder.begin(lambda: facts(self.strategy, None, self.total_rounds))
        self.recorder.nodes(lambda: [_node(proxy) for proxy in client_manager.all().values()])
        self.recorder.sent(server_round, _outgoing(instructions))
        return instructions

    def _aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.recorder.received(server_round, _replies(results))
        outcome = self.aggregate(server_round, results, failures)
        self.recorder.aggregate(server_round, lambda: arrays_of(outcome[0]) if outcome and outcome[0] else None)
        return outcome


def arrays_of(parameters: Any) -> Arrays:
    """Name (its place) -> array of legacy Parameters; nothing is ever unpickled."""
    return {
        str(place): np.load(io.BytesIO(tensor), allow_pickle=False) for place, tensor in enumerate(parameters.tensors)
    }


def _outgoing(instructions: Any) -> Iterator[tuple[int, Arrays]]:
    known: dict[int, tuple[Any, Arrays]] = {}
    for proxy, instruction in instructions:
        parameters = instruction.parameters
        if id(parameters) not in known:
            known[id(parameters)] = parameters, arrays_of(parameters)
        yield _node(proxy), known[id(parameters)][1]


def _replies(results: Any) -> Iterator[ClientReply]:
    for proxy, result in results:
        metrics = {k: v for k, v in dict(result.metrics or {}).items() if isinstance(v, bool | int | float | str)}
        told = metrics.get("partition-id", metrics.get("partition_id"))
        try:
            arrays, failure = arrays_of(result.parameters) or None, "the reply holds no model"
        except (ValueError, TypeError, EOFError, OSError) as error:
            arrays, failure = None, f"the model cannot be decoded: {error}"
        yield ClientReply(
            _node(proxy),
            arrays,
            num_examples=float(result.num_examples),
            metrics={k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()},
            client=int(told) if isinstance(told, int) else None,
            failure="" if arrays else failure,
        )


def _node(proxy: Any) -> int:
    return int(getattr(proxy, "node_id", None) or proxy.cid)
