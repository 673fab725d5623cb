"""Running somebody's Flower app, unmodified, in this process, and taping what its server sees.

An app is a folder as Flower lays it out: ``pyproject.toml`` with ``[tool.flwr.app.components]`` and
``[tool.flwr.app.config]``, and the modules that they name, of the Message API or of the legacy one. It is run from its
own folder, as `flwr run .` would, with the same defaults; neither Ray nor a SuperLink is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from memberscope.errors import ConfigError, MemberscopeError
from memberscope.federated import wire
from memberscope.federated.engine import run_in_process
from memberscope.federated.recorder import Recorder
from memberscope.federated.tap_grid import GridTap
from memberscope.federated.tap_legacy import arrays_of
from memberscope.federated.taping import Taping
from memberscope.federated.transcript import Transcript

_LOG = logging.getLogger("memberscope.tap")
_LAYOUT = "a Flower app is a folder with a pyproject.toml that has [tool.flwr.app.components] serverapp and clientapp"


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app directory, read but not imported.

    Parameters
    ----------
    folder
        Where it lies.
    name
        Of the project.
    server, client
        Its components, each as ``module:attribute``.
    config
        What both apps find in `context.run_config`: keys of nested tables are joined with a dot.
    n_clients
        How many SuperNodes its pyproject asks for in a local simulation; None: it does not say.
    """

    folder: Path
    name: str
    server: str
    client: str
    config: Mapping[str, Any]
    n_clients: int | None


def read_app(folder: str | Path, run_config: str = "") -> FlowerApp:
    """Read an app's pyproject.toml.

    Parameters
    ----------
    folder
        Of the app.
    run_config
        What is to be changed in its config, as for `flwr run --run-config`: ``num-server-rounds=5 lr=0.1``.

    Raises
    ------
    ConfigError
        No Flower app, or a key that it does not have.
    """
    folder = Path(folder).expanduser().resolve()
    path = folder / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no Flower app in {folder}: pyproject.toml is missing", _LAYOUT) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", _LAYOUT) from None
    flwr = content.get("tool", {}).get("flwr", {})
    app = flwr.get("app", {})
    components = app.get("components", {})
    found = [components.get(key) for key in ("serverapp", "clientapp")]
    for key, value in zip(("serverapp", "clientapp"), found, strict=True):
        if not isinstance(value, str) or value.count(":") != 1:
            raise ConfigError(f'{path} has no [tool.flwr.app.components] {key} = "module:attribute"', _LAYOUT)
    config = _flat(app.get("config", {}))
    for key, value in _overrides(run_config).items():
        if key not in config:
            raise ConfigError(
                f"the app has no setting {key!r}", f"[tool.flwr.app.config] has: {', '.join(config) or 'nothing'}"
            )
        config[key] = value
    name = str(content.get("project", {}).get("name", folder.name))
    return FlowerApp(folder, name, str(found[0]), str(found[1]), config, _simulated(flwr.get("federations", {})))


def run_app(
    app: FlowerApp,
    out: str | Path,
    *,
    n_clients: int | None = None,
    taping: Taping | None = None,
    malice: Callable[[Grid], Grid] | None = None,
    seed: int = 0,
) -> Transcript:
    """Run an app to its end in this process, and tape what its server sees.

    What the app prints goes to standard error. The generators of `random`, NumPy and torch begin at `seed`, so that an
    app which seeds nothing gives the same federation twice.

    Parameters
    ----------
    app
        See `read_app`.
    out
        Folder of the transcript.
    n_clients
        How many clients; default: what its pyproject says.
    taping
        What to record.
    malice
        Puts a malicious server around the tapped grid: ``lambda grid: tamper.attach_grid(grid, tamper.Isolate(0))``.
    seed
        Of everything that the app draws from global generators.

    Raises
    ------
    ConfigError
        The number of clients is not known, or a component is no app.
    MemberscopeError
        The app failed, or no client ever answered; says where.
    """
    n_clients = n_clients or app.n_clients
    if n_clients is None:
        raise ConfigError(f"{app.name} does not say how many clients it has", "give the number with --clients")
    recorder = Recorder(Path(out).resolve(), taping=taping)

    taps: list[GridTap] = []

    def tapped(grid: Grid) -> Grid:
        taps.append(GridTap(grid, recorder, ends=True))
        taps[0].attach()
        return grid if malice is None else malice(grid)

    with inside(app.folder), seeded(seed), contextlib.redirect_stdout(sys.stderr):
        server, client = _component(app.server, ServerApp), _component(app.client, ClientApp)
        with _last_model(server, recorder, lambda: taps[0].last, lambda: taps[0].restart(), n_clients):
            try:
                run_in_process(
                    server,
                    _own_draws(client, seed),
                    n_clients=n_clients,
                    run_config=app.config,
                    wrap_grid=tapped,
                    seed=seed,
                )
            except MemberscopeError:
                raise
            except (Exception, SystemExit) as error:
                _LOG.debug("the app failed", exc_info=True)
                raise MemberscopeError(
                    f"{app.name} failed: {type(error).__name__}: {error}{_where(error, app.folder)}",
                    "it is run as it is, from its own folder: does `flwr run .` work there?",
                ) from error
    recorder.end()
    transcript = Transcript.open(out)
    _check_answers(app, transcript)
    return transcript


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Inside the block the working folder is `folder` and its modules can be imported; they are forgotten after it."""
    before, path, known = Path.cwd(), list(sys.path), set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().is_relative_to(folder):
                del sys.modules[name]


def imported(name: str) -> Any:
    """What ``module:attribute`` names.

    Raises
    ------
    ConfigError
        It cannot be imported; says why.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {name!r}: {error}", "install what the app needs into this environment, or mend the name"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"cannot import {name!r}: {type(error).__name__}: {error}", "expected package.module:name"
        ) from error
    return found


def _component(name: str, kind: type[Any]) -> Any:
    found = imported(name)
    if not isinstance(found, kind):
        raise ConfigError(f"{name!r} is {type(found).__name__}, expected a Flower {kind.__name__}", _LAYOUT)
    return found


@contextlib.contextmanager
def _last_model(
    server: ServerApp, recorder: Recorder, last: Callable[[], int], restart: Callable[[], None], n_clients: int
) -> Iterator[None]:
    """What comes out of the last round need not pass the grid again: take it from the strategy's own result."""
    start = Strategy.start

    def watched_start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        restart()
        result = start(self, *args, **kwargs)
        arrays = getattr(result, "arrays", None)
        if isinstance(arrays, ArrayRecord):
            recorder.aggregate(last(), lambda: wire.Decoder().record(arrays), final=True)
        return result

    make = getattr(server, "_server_fn", None)
    if make is not None:  # legacy: the strategy is made when the app runs
        server._server_fn = lambda context: _watched_legacy(make(context), recorder, n_clients)
    Strategy.start = watched_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Strategy.start = start  # type: ignore[method-assign]
        if make is not None:
            server._server_fn = make


def _watched_legacy(components: Any, recorder: Recorder, n_clients: int) -> Any:
    strategy = components.strategy
    wanted = getattr(strategy, "min_available_clients", 0)
    if wanted > n_clients:
        raise MemberscopeError(
            f"the app waits for {wanted} clients, and there are {n_clients}",
            "more clients, or a strategy that is content with so many (min_available_clients)",
        )
    if strategy is not None:
        aggregate = strategy.aggregate_fit

        def aggregate_fit(server_round: int, results: Any, failures: Any) -> Any:
            # They come as threads finish: in one order, the same seed gives the same sums to the last bit.
            outcome = aggregate(server_round, sorted(results, key=lambda r: str(r[0].cid)), failures)
            recorder.aggregate(server_round, lambda: arrays_of(outcome[0]) if outcome and outcome[0] else None)
            return outcome

        strategy.aggregate_fit = aggregate_fit
    return components


def _own_draws(client: ClientApp, seed: int) -> Any:
    """The ClientApp, with global generators of its own at each call: legacy servers call clients in any order."""
    calls: dict[int, int] = {}

    def call(message: Message, context: Context) -> Message:
        node = context.node_id
        calls[node] = calls.get(node, 0) + 1
        with seeded(seed, node, calls[node]):
            return client(message, context)

    return call


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside the block the global generators of Python, NumPy and torch begin at these numbers."""
    import torch

    own = [int(word) for word in np.random.SeedSequence(numbers).generate_state(3, np.uint32)]
    before, state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(own[0])
            np.random.seed(own[1])  # noqa: NPY002
            torch.manual_seed(own[2])
            yield
    finally:
        random.setstate(before)
        np.random.set_state(state)  # noqa: NPY002


def _check_answers(app: FlowerApp, transcript: Transcript) -> None:
    if not transcript.rounds:
        raise MemberscopeError(
            f"{app.name} ran to its end, but sent no model to a client",
            "does its ServerApp train at all? Models are looked for in messages of type train",
        )
    if transcript.only_sums or any(transcript.clients_of(r) for r in transcript.rounds):
        return
    reasons = [reason for r in transcript.rounds for reason in transcript.failures(r).values()]
    raise MemberscopeError(
        f"no client of {app.name} ever answered with a model" + (f": {reasons[0]}" if reasons else ""),
        "it is run as it is, from its own folder: does `flwr run .` work there?",
    )


def _where(error: BaseException, folder: Path) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
    return f" ({Path(frames[-1].filename).relative_to(folder)}, line {frames[-1].lineno})" if frames else ""


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _overrides(text: str) -> dict[str, Any]:
    """``key=value`` pairs, separated by spaces; values as in TOML, bare words are text."""
    import shlex

    found: dict[str, Any] = {}
    for pair in shlex.split(text.replace(",", " ") if "=" in text and " " not in text else text):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} in the run config is no key=value", "for example 'num-server-rounds=5 lr=0.1'")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def _simulated(federations: Any) -> int | None:
    """``options.num-supernodes`` of the default federation, as older pyprojects have it."""
    if not isinstance(federations, dict):
        return None
    chosen = federations.get(str(federations.get("default")), {})
    number = chosen.get("options", {}).get("num-supernodes") if isinstance(chosen, dict) else None
    return number if isinstance(number, int) else None
