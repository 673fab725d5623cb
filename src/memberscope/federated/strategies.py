"""Flower's strategies by name, with the settings of a federation; and what they remember between rounds."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from memberscope.errors import ConfigError
from memberscope.federated.config import FederationConfig

_OURS = (
    "fraction_train",
    "fraction_evaluate",
    "min_train_nodes",
    "min_evaluate_nodes",
    "min_available_nodes",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
)
_NOT_FOR_NETWORKS = ("FedXgb", "DifferentialPrivacy")  # of trees; wrappers that other settings ask for


def available() -> dict[str, type[Strategy]]:
    """Strategies of the installed Flower that aggregate networks, by their names in small letters."""
    found = {}
    for name, value in vars(flower).items():
        if inspect.isclass(value) and issubclass(value, flower.FedAvg) and not name.startswith(_NOT_FOR_NETWORKS):
            found[name.lower()] = value
    found.pop("fedopt", None)  # the others' base, it aggregates as FedAvg does
    return dict(sorted(found.items()))


def options_of(kind: type[Strategy]) -> list[str]:
    """What `--strategy-options` may set of a strategy."""
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, one in inspect.signature(kind).parameters.items() if one.kind not in open_ended]
    return [name for name in names if name not in _OURS and not name.endswith(("_fn", "_rule"))]


def chosen_each_round(config: FederationConfig, n_clients: int) -> int:
    """Clients that take part in a round."""
    return max(1, int(n_clients * config.fraction))


def make(config: FederationConfig, n_clients: int) -> Strategy:
    """Make the strategy of a federation, wrapped for central differential privacy where that is asked for.

    Raises
    ------
    ConfigError
        An unknown strategy or option; an option without which the strategy cannot be made; a value that it refuses.
    """
    known = available()
    if config.strategy not in known:
        raise ConfigError(f"strategy = {config.strategy!r} is unknown", f"one of {', '.join(known)}")
    kind = known[config.strategy]
    options = _options(config, kind)
    # One node is enough for a round: all are waited for once, before the first (`Rounds`), and a node that is lost for
    # good later must not stop the others.
    ours: dict[str, Any] = {
        "fraction_train": config.fraction,
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 0,
        "min_available_nodes": 1,
    }
    if config.strategy == "qfedavg":
        options.setdefault("train_loss_key", "global_loss")  # its F_k is the loss of the model that was sent
    try:
        strategy = kind(**ours, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {config.strategy} cannot be made: {error}", "see --strategy-options") from error
    if not config.central_noise:
        return strategy
    wrapper = {
        "server": flower.DifferentialPrivacyServerSideFixedClipping,
        "client": flower.DifferentialPrivacyClientSideFixedClipping,
    }[config.clip_at]
    return wrapper(strategy, config.central_noise, config.central_clip, chosen_each_round(config, n_clients))


def capture(strategy: Strategy) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What a strategy remembers between rounds: moments, momentum, an adapted clipping norm, those of what it wraps.

    Returns
    -------
    Arrays by their paths, and a description from which `restore` puts them back.
    """
    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {}
    for path, owner in _layers(strategy):
        for name, value in vars(owner).items():
            kept = _kept(value)
            if kept is None:
                continue
            form, entries, plain = kept
            about[f"{path}{name}"] = {"form": form, "keys": list(entries), "value": plain}
            arrays |= {f"{path}{name}/{key}": entry for key, entry in entries.items()}
    return arrays, about


def restore(strategy: Strategy, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Give a strategy of the same kind the memory that `capture` took from another."""
    owners = dict(_layers(strategy))
    for full, entry in about.items():
        path, _, name = full.rpartition(".")
        owner = owners[f"{path}." if path else ""]
        values = [arrays[f"{full}/{key}"] for key in entry["keys"]]
        setattr(owner, name, _remade(entry, values))


def _remade(entry: dict[str, Any], values: list[NDArray[Any]]) -> Any:
    form, keys = entry["form"], entry["keys"]
    if form == "plain":
        return entry["value"]
    if form == "array":
        return values[0]
    if form == "list":
        return values
    if form == "dict":
        return dict(zip(keys, values, strict=True))
    return ArrayRecord(dict(zip(keys, map(Array, values), strict=True)))


def _layers(strategy: Strategy) -> list[tuple[str, Any]]:
    layers: list[tuple[str, Any]] = [("", strategy)]
    while isinstance(getattr(layers[-1][1], "strategy", None), Strategy):
        layers.append((f"{layers[-1][0]}strategy.", layers[-1][1].strategy))
    return layers


def _kept(value: Any) -> tuple[str, dict[str, NDArray[Any]], Any] | None:
    """Form, arrays and plain value of an attribute; None: it is no memory."""
    if isinstance(value, bool | int | float):
        return "plain", {}, value
    if isinstance(value, np.ndarray):
        return "array", {"0": value}, None
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}, None
    if isinstance(value, dict) and value and all(isinstance(v, np.ndarray | np.generic) for v in value.values()):
        return "dict", {key: np.asarray(v) for key, v in value.items()}, None
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray | np.generic) for v in value):
        return "list", {str(i): np.asarray(v) for i, v in enumerate(value)}, None
    return None


def _options(config: FederationConfig, kind: type[Strategy]) -> dict[str, Any]:
    import difflib

    parameters = inspect.signature(kind).parameters
    allowed = options_of(kind)
    options: dict[str, Any] = {}
    for text in config.strategy_options:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            takes = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(allowed) or 'none'}"
            raise ConfigError(f"strategy {config.strategy} has no option {name!r}", takes)
        try:
            options[name] = json.loads(value) if equals else True
        except ValueError:
            raise ConfigError(f"strategy_options: {text!r} is no name=number", "for example eta=0.01") from None
    for name in allowed:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise ConfigError(f"strategy {config.strategy} needs {name}", f"--strategy-options {name}=...")
    return options
