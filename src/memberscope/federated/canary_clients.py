"""Canary clients as part of a federation: who they are, what they send, and what is left of them at the end.

A canary client holds no record, trains on nothing and has no place among the clients that are audited. When it is
chosen for a round it sends the model back that it got plus its random direction (`memberscope.federated.canaries`), as
long as what updates are clipped to; and it passes through the same mods, aggregation and bad weather as any client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.federated.canaries import LEAST, Arrays, Canaries, estimate
from memberscope.federated.config import FederationConfig

LENGTH, UPDATE_NORM = "canary-length", "update-norm"
"""What the server tells with a round, and what clients report for it, where nothing else says how long a canary is."""


def fixed_length(config: FederationConfig) -> float | None:
    """The norm of a canary's update that the settings give; None: it follows that of the clients' updates."""
    if config.canary_length:
        return config.canary_length
    if config.central_clip:
        return config.central_clip
    return config.local_clip if config.local_epsilon else None


def follows_updates(config: FederationConfig) -> bool:
    """Whether clients report the norm of their updates, for the next round's canaries."""
    return config.canary_clients > 0 and fixed_length(config) is None


@dataclass(frozen=True, eq=False)
class CanaryClients:
    """The canary clients of a federation: their numbers follow those of its clients.

    Parameters
    ----------
    config
        The settings.
    n_clients
        Clients that hold records.
    weight
        Examples that a canary reports, as a client in the middle would.
    names
        The trainable weights, which its direction lies in.
    """

    config: FederationConfig
    n_clients: int
    weight: int
    names: Sequence[str]

    def __contains__(self, client: int) -> bool:
        return self.n_clients <= client < self.n_clients + self.config.canary_clients

    @cached_property
    def directions(self) -> Canaries:
        """Drawn from the federation's seed."""
        seed = int(seeds.sequence(self.config.seed, "canaries", "clients").generate_state(1, np.uint64)[0] >> 1)
        return Canaries(seed, 1.0)

    def reply(self, client: int, sent: Arrays, told: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
        """The model that a canary sends back, and its weight.

        Parameters
        ----------
        client
            Its number among all.
        sent
            The model that it got.
        told
            The settings that came with it. In the first round they may not say how long an update is; the canary then
            sends the model back as it came, with the weight of one record.
        """
        length = fixed_length(self.config) or float(told.get(LENGTH, 0.0))
        if length <= 0:
            return dict(sent), 1
        planted = replace(self.directions, length=length)
        return planted.reply(client - self.n_clients, sent, self.names), self.weight

    def norm(self, sent: Arrays, trained: Arrays) -> float:
        """The norm of a client's update, in the weights that directions lie in."""
        squares = (np.square(np.asarray(trained[n], np.float64) - sent[n]).sum() for n in self.names)
        return math.sqrt(sum(squares))

    def outcome(self, first: Arrays, last: Arrays, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the canaries tell of a federation that is over, as federation.json has it.

        Returns
        -------
        clients, took_part (in at least one round), rounds (each of these, on average) and length (in the last round);
        mu and epsilon with intervals, delta, d and unseen_spread as in `canaries.CanaryEstimate`, or None and a reason.
        """
        rounds: dict[int, int] = {}
        for record in history:
            for canary in record["canaries"]:
                rounds[canary] = rounds.get(canary, 0) + 1
        there = sorted(rounds)
        about: dict[str, Any] = {
            "clients": self.config.canary_clients,
            "took_part": len(there),
            "rounds": sum(rounds.values()) / len(there) if there else 0.0,
            "length": next((r["canary_length"] for r in reversed(history) if r["canary_length"]), None),
            "holds_against": "whoever sees the first and the last global model, and nothing in between",
        }
        if len(there) < LEAST:
            reason = f"{len(there)} of {self.config.canary_clients} canary clients took part, fewer than {LEAST}"
            return {**about, "epsilon": None, "reason": reason}
        numbers = [client - self.n_clients for client in there]
        found = estimate(self.directions, first, last, numbers, names=self.names, delta=self.config.local_delta)
        return {
            **about,
            "mu": asdict(found.mu),
            "epsilon": asdict(found.epsilon),
            "delta": found.delta,
            "confidence": 0.95,
            "d": found.d,
            "unseen_spread": found.unseen_spread,
        }


class CanaryLengths:
    """How long canaries are, round by round, as the server tells it and its history keeps it.

    Parameters
    ----------
    config
        The settings.
    n_clients
        Clients that hold records.
    """

    def __init__(self, config: FederationConfig, n_clients: int) -> None:
        self._n_clients, self._follows = n_clients, follows_updates(config)
        self.length = fixed_length(config) or 0.0

    def told(self) -> dict[str, Any]:
        """What goes to the clients with a round."""
        return {LENGTH: self.length} if self._follows else {}

    def after(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the history keeps of a round, from the metrics of its replies.

        canaries (those that sent a direction), canary_length, and next_length where it follows the clients' updates.
        """
        there = sorted(int(m["partition-id"]) for m in metrics if m["partition-id"] >= self._n_clients)
        kept: dict[str, Any] = {"canaries": there if self.length else [], "canary_length": self.length}
        if self._follows:
            norms = [m[UPDATE_NORM] for m in metrics if m["partition-id"] < self._n_clients]
            kept["next_length"] = self.length = float(np.median(norms)) if norms else self.length
        return kept

    def go_on(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take up where an interrupted federation stands."""
        self.length = history[-1].get("next_length", self.length)
