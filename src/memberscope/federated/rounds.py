"""The rounds of a federation: what Flower's `Strategy.start` does, and each round left on disk to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from memberscope.errors import MemberscopeError, ModelError
from memberscope.events import Events
from memberscope.federated import standing
from memberscope.federated.canary_clients import CanaryLengths
from memberscope.federated.config import FederationConfig
from memberscope.federated.draws import global_draws
from memberscope.federated.replies import Sifted, client_of, sift

Exchange = Callable[[Grid, Sequence[Message], float], Iterable[Message]]
_LOOK_SECONDS = 1.0
_SILENT_ROUNDS = 3
"""So many rounds in a row without one good reply end a federation: something is wrong with all clients."""
_REPORTED = ("examples", "epochs", "global_loss", "global_acc", "train_loss", "train_acc")


class Rounds:
    """The server's loop.

    Parameters
    ----------
    config
        Its rounds, timeout and seed.
    strategy
        Flower's, tapped or not.
    folder
        The run folder.
    n_clients
        Number of clients.
    n_nodes
        That of all nodes; those beyond the clients are canary clients.
    watch
        Loss and accuracy of a global model on records of nobody.
    events
        Hears of rounds and of clients that failed.
    exchange
        How a round's messages are sent and answered; default: as they are.
    """

    def __init__(
        self,
        config: FederationConfig,
        strategy: Strategy,
        folder: Path,
        *,
        n_clients: int,
        n_nodes: int,
        watch: Callable[[ArrayRecord], tuple[float, float]],
        events: Events,
        exchange: Exchange | None = None,
    ) -> None:
        self._config, self._strategy, self._folder = config, strategy, folder
        self._n_clients, self._n_nodes, self._watch, self._events = n_clients, n_nodes, watch, events
        self._exchange = exchange or _plainly
        self._nodes: dict[int, int] = {}
        self._silent = 0
        self._canaries = CanaryLengths(config, n_clients) if config.canary_clients else None

    def run(self, grid: Grid, initial: ArrayRecord, *, resume: bool = False, resident: bool = True) -> ArrayRecord:
        """Run the rounds that are left; gives the global model.

        Parameters
        ----------
        grid
            Flower's.
        initial
            The model before the first round.
        resume
            Go on from what the run folder holds.
        resident
            All parties are in this process.

        Raises
        ------
        ModelError
            The global model is no longer finite.
        MemberscopeError
            Nobody answered several rounds in a row; the disk is full.
        """
        kept = standing.read(self._folder, self._strategy, resident=resident) if resume else None
        arrays, first = (initial, 1) if kept is None else (kept.arrays, kept.round + 1)
        if self._canaries is not None and kept is None:
            standing.write_first(self._folder, initial)
        elif self._canaries is not None and kept is not None:
            self._canaries.go_on(kept.history)
        self._await_clients(grid)
        seconds: list[float] = []
        for round_ in range(first, self._config.rounds + 1):
            began = time.perf_counter()
            with global_draws(self._config.seed, f"round {round_}"):
                arrays, sifted = self._round(round_, arrays, grid)
            record = self._record(round_, arrays, sifted)
            record["seconds"] = round(time.perf_counter() - began, 3)
            standing.write(self._folder, round_, arrays, self._strategy, record)
            seconds.append(time.perf_counter() - began)
            left = (self._config.rounds - round_) * float(np.mean(seconds[-5:]))
            self._events.federation_round(record, self._config.rounds, left)
            self._check_silence(sifted, record)
            del sifted  # a round's replies are gone before the next ones are made
        return arrays

    def _await_clients(self, grid: Grid) -> None:
        """Wait until all clients are there; those of this process are at once."""
        deadline = time.monotonic() + self._config.timeout
        there = -1
        while (now := len(list(grid.get_node_ids()))) < self._n_nodes:
            if now != there:
                there = now
                self._events.note(f"Waiting for clients: {now} of {self._n_nodes} are connected.")
            if time.monotonic() > deadline:
                raise MemberscopeError(
                    f"{now} of {self._n_nodes} clients connected within {self._config.timeout:g} seconds",
                    "start the missing SuperNodes, or ask for fewer clients",
                )
            time.sleep(_LOOK_SECONDS)

    def _round(self, round_: int, arrays: ArrayRecord, grid: Grid) -> tuple[ArrayRecord, Sifted]:
        strategy, timeout = self._strategy, self._config.timeout
        told = {} if self._canaries is None else self._canaries.told()
        messages = list(strategy.configure_train(round_, arrays, ConfigRecord(told), grid))
        replies = self._exchange(grid, messages, timeout)
        sifted = sift(messages, replies, arrays, timeout)
        aggregated, _ = strategy.aggregate_train(round_, self._shown(sifted))
        if aggregated is None:
            return arrays, sifted
        for name, array in aggregated.items():
            values = array.numpy()
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ModelError(
                    f"the federation diverged: {name} of the global model is not finite after round {round_}",
                    "lower the learning rate of clients (--learning-rate) or that of the strategy",
                )
        return aggregated, sifted

    def _shown(self, sifted: Sifted) -> list[Message]:
        """Replies for the strategy: Flower's wrappers for central privacy skip a round in which they see an error."""
        return sifted.good if self._config.central_noise else [*sifted.good, *sifted.bad]

    def _record(self, round_: int, arrays: ArrayRecord, sifted: Sifted) -> dict[str, Any]:
        metrics = [_metrics(message) for message in sifted.good]
        clients = [_reported(m) for m in metrics if m["partition-id"] < self._n_clients]
        self._nodes |= sifted.clients
        failed = [
            {"client": self._nodes.get(node, client_of(sifted, node)), "node": node, "reason": reason}
            for node, reason in sifted.reasons.items()
        ]
        loss, accuracy = self._watch(arrays)
        return {
            "round": round_,
            "test_loss": None if math.isnan(loss) else loss,
            "test_acc": None if math.isnan(accuracy) else accuracy,
            "train_loss": _weighted(clients, "train_loss"),
            "train_acc": _weighted(clients, "train_acc"),
            "clients": sorted(clients, key=lambda c: c["client"]),
            "failed": sorted(failed, key=lambda c: c["node"]),
            **({} if self._canaries is None else self._canaries.after(metrics)),
        }

    def _check_silence(self, sifted: Sifted, record: dict[str, Any]) -> None:
        asked_in_vain = sifted.reasons and not record["clients"]  # a round of canary clients alone is none of these
        self._silent = self._silent + 1 if asked_in_vain or not sifted.good else 0
        if self._silent >= _SILENT_ROUNDS:
            reasons = sorted({entry["reason"] for entry in record["failed"]})
            raise MemberscopeError(
                f"no client gave a usable answer in {self._silent} rounds: {'; '.join(reasons[:2])}",
                f"mend that, then go on with --resume {self._folder}",
            )


def _plainly(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterable[Message]:
    return grid.send_and_receive(messages, timeout=timeout)


def _metrics(message: Message) -> Any:
    return next(iter(message.content.metric_records.values()))


def _reported(metrics: Any) -> dict[str, Any]:
    return {"client": int(metrics["partition-id"]), **{name: metrics[name] for name in _REPORTED}}


def _weighted(clients: list[dict[str, Any]], name: str) -> float | None:
    total = sum(c["examples"] for c in clients)
    return sum(c["examples"] * c[name] for c in clients) / total if total else None
