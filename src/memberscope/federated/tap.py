"""Recording what a party of a Flower federation sees: two lines in anybody's app, in this process or on a SuperLink.

    from memberscope.federated import tap
    strategy = tap.watch(FedAvg(...), "runs/a")

`watch` is for strategies, `watch_grid` for custom loops and legacy servers, `client_mod` for a curious client. Taps
never change a message and never end a federation: on an error (a full disk, say) they stop, and say so in the log of
`memberscope.tap` and in the transcript, which `memberscope.federated.transcript.Transcript` reads.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from flwr.app import ArrayRecord, Message

from memberscope.errors import ConfigError
from memberscope.federated import wire
from memberscope.federated.array_files import Arrays
from memberscope.federated.recorder import Recorder
from memberscope.federated.tap_client import client_mod
from memberscope.federated.tap_grid import watch_grid
from memberscope.federated.taping import Taping, TapingSettings

if TYPE_CHECKING:
    from memberscope.federated.online import OnlineFeatures

__all__ = ["client_mod", "watch", "watch_grid"]

S = TypeVar("S")

TAMPERED = "memberscope_tampered"
"""Attribute of a strategy or grid under which `tamper` tells what was done to it."""
_ROUNDS_OF_START = 3  # Flower's default for Strategy.start(num_rounds=)
_DEPTH = 12


def watch(
    strategy: S,
    out: str | Path,
    *,
    total_rounds: int | None = None,
    features: OnlineFeatures | None = None,
    **settings: Unpack[TapingSettings],
) -> S:
    """Record what the server sees: each round's model as sent, each client's reply, and what came out of the round.

    The strategy is changed in place and given back, so that it keeps its class, which some of Flower's wrappers check.
    Around a DP wrapper, ``watch(Wrapper(FedAvg()))``, replies are recorded as they arrive; inside it,
    ``Wrapper(watch(FedAvg()))``, as the wrapper hands them on, and what comes out of a round is without the wrapper's
    noise. The transcript says which (`Transcript.position`).

    Parameters
    ----------
    strategy
        Of `flwr.serverapp.strategy`, or a legacy one of `flwr.server.strategy`, or anything with their methods.
    out
        Folder of the transcript; that of an interrupted federation is continued.
    total_rounds
        How many there will be, where your own loop calls the strategy; `Strategy.start` tells it by itself.
    features
        Compute these of each round while its models are in memory, and keep no models: `memberscope.federated.online`.
    every, rounds, clients, without, precision, sums_only, max_bytes
        See `memberscope.federated.taping.Taping`.

    Raises
    ------
    ConfigError
        A setting out of range, or an object that is no strategy.
    RunFolderError
        `out` holds the transcript of another seat or precision.
    """
    taping = Taping(**settings)
    if hasattr(strategy, "configure_train") and hasattr(strategy, "aggregate_train"):
        _StrategyTap(strategy, Recorder(out, taping=taping, features=features), total_rounds).attach()
    elif hasattr(strategy, "configure_fit") and hasattr(strategy, "aggregate_fit"):
        from memberscope.federated.tap_legacy import LegacyStrategyTap

        LegacyStrategyTap(strategy, Recorder(out, taping=taping, features=features), total_rounds).attach()
    else:
        raise ConfigError(
            f"{type(strategy).__name__} is no Flower strategy: it has neither configure_train nor configure_fit",
            "record a custom loop with tap.watch_grid(grid, out)",
        )
    return strategy


class _StrategyTap:
    """Stands in for `configure_train`, `aggregate_train` and `start` of one strategy object."""

    def __init__(self, strategy: Any, recorder: Recorder, total_rounds: int | None) -> None:
        self.strategy, self.recorder = strategy, recorder
        self.configure, self.aggregate = strategy.configure_train, strategy.aggregate_train
        self.start = getattr(strategy, "start", None)
        self.total_rounds = total_rounds
        self.begun = False
        self.before = self.last = 0
        """Rounds of earlier starts of the strategy, and the last round on record."""

    def attach(self) -> None:
        self.strategy.configure_train = self._configure_train
        self.strategy.aggregate_train = self._aggregate_train
        if self.start is not None:
            self.strategy.start = self._start

    def _start(self, *args: Any, **kwargs: Any) -> Any:
        number = kwargs.get("num_rounds", args[2] if len(args) > 2 else _ROUNDS_OF_START)
        if self.begun:  # a second federation with the same strategy goes on counting
            self.begun, self.before = False, self.last
        self.total_rounds = self.before + number if isinstance(number, int) else None
        assert self.start is not None
        result = self.start(*args, **kwargs)
        arrays = getattr(result, "arrays", None)
        if self.total_rounds is not None and isinstance(arrays, ArrayRecord):
            self.recorder.aggregate(self.total_rounds, lambda: wire.Decoder().record(arrays), final=True)
        self.recorder.end()
        return result

    def _configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        messages = list(self.configure(server_round, arrays, config, grid))
        self.last = self.before + server_round
        if not self.begun:
            self.begun = True
            wrapper = _wrapper(self.strategy)  # looks at who called: not inside the recorder
            self.recorder.begin(lambda: facts(self.strategy, wrapper, self.total_rounds))
        self.recorder.nodes(lambda: grid.get_node_ids())
        self.recorder.sent(self.last, wire.outgoing(messages))
        return messages

    def _aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.recorder.received(self.before + server_round, wire.replies(replies, _weighted_by(self.strategy)))
        result = self.aggregate(server_round, replies)

        def arrays() -> Arrays | None:
            found = result[0] if isinstance(result, tuple) and result else None
            return wire.Decoder().record(found) if isinstance(found, ArrayRecord) else None

        self.recorder.aggregate(self.before + server_round, arrays)
        return result


def facts(strategy: Any, wrapper: Any, total_rounds: int | None) -> Mapping[str, Any]:
    """What the line ``begin`` tells: strategy, where the tap sits, malicious parties, rounds."""
    chain = _chain(strategy)
    names = [type(s).__name__ for s in chain]
    position = None
    if len(chain) > 1:
        position = (
            f"around {names[0]}: replies are recorded as they arrived, before what it does to them; what comes out of "
            "a round is what it released"
        )
    elif wrapper is not None:
        name = type(wrapper).__name__
        position = (
            f"inside {name}: replies are recorded as it handed them on (clipped, if it clips on the server); what "
            "comes out of a round is before what it adds"
        )
        names.insert(0, name)
    tampered = [text for s in [wrapper, *chain] for text in getattr(s, TAMPERED, ())]
    return {
        "strategy": "(".join(names) + ")" * (len(names) - 1),
        "position": position,
        "tampered": tampered,
        "total_rounds": total_rounds,
    }


def _chain(strategy: Any) -> list[Any]:
    """A strategy and those that it wraps, outermost first."""
    chain = [strategy]
    while _is_strategy(inner := getattr(chain[-1], "strategy", None)) and len(chain) < _DEPTH:
        chain.append(inner)
    return chain


def _wrapper(strategy: Any) -> Any:
    """The strategy that wraps this one, as found among the callers; None if nothing does.

    A wrapper is made after what it wraps, so that no tap can know of it before it calls.
    """
    frame: Any = sys._getframe(1)
    for _ in range(_DEPTH):
        frame = frame.f_back
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        with contextlib.suppress(Exception):  # the objects of others may answer a question with any error
            if caller is not strategy and _is_strategy(caller) and caller.strategy is strategy:
                return caller
    return None


def _is_strategy(found: Any) -> bool:
    return hasattr(found, "configure_train") or hasattr(found, "configure_fit")


def _weighted_by(strategy: Any) -> str | None:
    return next((key for s in _chain(strategy) if isinstance(key := getattr(s, "weighted_by_key", None), str)), None)
