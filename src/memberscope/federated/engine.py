"""The in-process grid: unmodified Flower apps, run in this process without Ray, SuperLink or sockets.

It needs nothing but `flwr` and runs whatever a SuperLink runs: apps of the Message API, legacy apps (`server_fn`,
NumPyClient), workflows, mods and strategies. Clients are called one after the other, in the order of the messages, so a
run is repeatable; a real deployment calls them when they please.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from memberscope.errors import ConfigError, MemberscopeError

try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # before Flower 1.38 a grid wrote the sender into a message, and nobody else needed it

    class TaskIdentity:  # type: ignore[no-redef]
        """Nobody reads it there."""

        _run_id = _task_id = _node_id = None


FIRST_NODE = 10_000
"""Node id of client 0; that of client i is `FIRST_NODE + i`."""
RUN_ID = 1
_SERVER_NODE = 1
_PATIENCE = 5
"""How often in a row a server may ask for the nodes without sending anything: Flower's strategies ask once a second."""
_RAISED, _UNKNOWN_NODE, _TOO_LATE = 2, 5, 4  # Flower's error codes: app raised, node unavailable, reply unavailable


class InProcessGrid(Grid):
    """Delivers messages to a ClientApp by calling it.

    Every client has a context of its own that lasts for the run, as on a SuperNode; every message is delivered as a
    copy, so that nothing that a client or a mod does to it reaches another client or the server. A client that raises
    is answered for by an error message; the run goes on.

    Parameters
    ----------
    client_app
        Flower's.
    n_clients
        How many nodes there are.
    run_config
        What both apps find in `context.run_config`.
    node_configs
        Client -> more entries of its `context.node_config`; partition-id and num-partitions are there already.
    on_error
        Hears of a client that raised, as (client, exception); default: its traceback goes to Flower's log.
    on_reply
        Hears of each answer to `send_and_receive`, as (client, answers so far, answers expected).
    """

    def __init__(
        self,
        client_app: ClientApp,
        n_clients: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        node_configs: Mapping[int, Mapping[str, Any]] | None = None,
        on_error: Callable[[int, BaseException], None] | None = None,
        on_reply: Callable[[int, int, int], None] | None = None,
    ) -> None:
        if n_clients < 1:
            raise ConfigError(f"{n_clients} clients", "a federation has at least one")
        self._client_app, self._n_clients = client_app, n_clients
        self._on_error, self._on_reply = on_error, on_reply
        self._run_config = dict(run_config or {})
        self._node_configs = {k: dict(v) for k, v in (node_configs or {}).items()}
        self._run = Run.create_empty(run_id=RUN_ID)
        self._message_ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._lock = threading.RLock()  # legacy server loops call from a pool of threads
        self._thread, self._asked = threading.get_ident(), 0
        self.contexts: dict[int, Context] = {}

    @property
    def run(self) -> Run:
        """Information on the run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the information on the run."""
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        """Give the ids of all nodes, that of client 0 first.

        Raises
        ------
        MemberscopeError
            The server asks again and again and sends nothing: it waits for clients that will never come.
        """
        if threading.get_ident() == self._thread:  # legacy servers look around from a thread of their own, always
            self._asked += 1
            if self._asked > _PATIENCE:
                raise MemberscopeError(
                    f"the app waits for more clients than the {self._n_clients} that there are",
                    "more clients, or a strategy that is content with so many (min_available_nodes, min_train_nodes)",
                )
        return [FIRST_NODE + client for client in range(self._n_clients)]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message (old Flower apps ask the grid for it)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for delivery and give their ids; they are delivered when their replies are pulled."""
        ids = []
        for message in messages:
            with self._lock:
                name = self._stamp(message)
                self._waiting[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver the messages of these ids and give the replies, in their order."""
        replies = []
        for name in message_ids:
            with self._lock:
                message = self._waiting.pop(name, None)
            if message is not None:
                replies.append(self._deliver(message, None))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and give the replies, in the order of the messages.

        A client that took longer than `timeout` seconds is answered for by an error, as its reply would have come too
        late: all clients count as having begun together.
        """
        sent = list(messages)
        for message in sent:
            self._stamp(message)
        replies = []
        for message in sent:
            replies.append(self._deliver(message, timeout))
            if self._on_reply is not None:
                self._on_reply(message.metadata.dst_node_id - FIRST_NODE, len(replies), len(sent))
        return replies

    def context(self, client: int) -> Context:
        """The lasting context of a client."""
        node = FIRST_NODE + client
        if node not in self.contexts:
            own = {"partition-id": client, "num-partitions": self._n_clients, **self._node_configs.get(client, {})}
            self.contexts[node] = Context(
                run_id=RUN_ID, node_id=node, node_config=own, state=RecordDict(), run_config=dict(self._run_config)
            )
        return self.contexts[node]

    def _deliver(self, message: Message, timeout: float | None) -> Message:
        node = message.metadata.dst_node_id
        client = node - FIRST_NODE
        with self._lock, _identity(node):
            if not 0 <= client < self._n_clients:
                reply = Message(Error(_UNKNOWN_NODE, f"there is no node {node}"), reply_to=message)
            else:
                reply = self._call(message, client, timeout)
            self._stamp(reply)
        return reply

    def _call(self, message: Message, client: int, timeout: float | None) -> Message:
        began = time.monotonic()
        try:
            reply = self._client_app(isolated(message), self.context(client))
        except (Exception, SystemExit) as error:  # a client may fail in any way, the federation goes on
            if self._on_error is not None:
                self._on_error(client, error)
            else:
                _log_error(client, error)
            return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        seconds = time.monotonic() - began
        if timeout is not None and seconds > timeout:
            return Message(Error(_TOO_LATE, f"too late: {seconds:.1f} s of {timeout:g} s"), reply_to=message)
        return isolated(reply)

    def _stamp(self, message: Message) -> str:
        """Write into a message what a SuperLink or its grid would, where there is no setter."""
        self._asked = 0
        name = f"message-{next(self._message_ids)}"
        metadata = message.metadata.__dict__
        metadata["_message_id"], metadata["_run_id"] = name, RUN_ID
        if not metadata["_src_node_id"]:
            metadata["_src_node_id"] = _SERVER_NODE
        return name


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    n_clients: int,
    run_config: Mapping[str, Any] | None = None,
    node_configs: Mapping[int, Mapping[str, Any]] | None = None,
    wrap_grid: Callable[[Grid], Grid] | None = None,
    on_error: Callable[[int, BaseException], None] | None = None,
    on_reply: Callable[[int, int, int], None] | None = None,
    seed: int | None = None,
) -> Context:
    """Run a ServerApp and a ClientApp to the end, in this process.

    Parameters
    ----------
    server_app, client_app
        Flower's, as they would run on a SuperLink and SuperNodes.
    n_clients
        How many clients there are.
    run_config
        What both apps find in `context.run_config`.
    node_configs
        Client -> more entries of its `context.node_config`.
    wrap_grid
        Given the grid, returns the one that the ServerApp gets: the place for a tap on all traffic.
    on_error, on_reply
        Hear of clients that raised, and of answers, as `InProcessGrid` says.
    seed
        Of the choice of clients: strategies take it from the module `random`, whose state is restored afterwards.

    Returns
    -------
    Context
        Of the server: what the ServerApp left in its state.
    """
    grid: Grid = InProcessGrid(
        client_app,
        n_clients,
        run_config=run_config,
        node_configs=node_configs,
        on_error=on_error,
        on_reply=on_reply,
    )
    if wrap_grid is not None:
        grid = wrap_grid(grid)
    context = Context(
        run_id=RUN_ID, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config=dict(run_config or {})
    )
    with _identity(_SERVER_NODE), seeded(seed):
        server_app(grid, context)
    return context


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Inside the block the module `random` draws from this seed; its state is then as it was before."""
    before = random.getstate()
    if seed is not None:
        random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def isolated(message: Message) -> Message:
    """A copy of a message with records of its own; the bytes of arrays stay shared, nothing writes into them.

    Flower's strategies put one RecordDict into the messages to all clients, and some of its mods take entries out.
    """
    if not message.has_content():
        return message
    content = RecordDict({key: _copied(record) for key, record in message.content.items()})
    make: Any = Message  # with metadata alone it is Flower's own constructor, outside the documented signatures
    copy: Message = make(content, metadata=message.metadata)
    return copy


def _copied(record: Any) -> Any:
    if isinstance(record, ArrayRecord):
        copy = ArrayRecord()
        for name, array in record.items():
            copy[name] = array
        return copy
    if isinstance(record, MetricRecord | ConfigRecord):
        entries: Any = {key: list(v) if isinstance(v, list) else v for key, v in record.items()}
        return type(record)(entries)
    return record


@contextlib.contextmanager
def _identity(node: int) -> Iterator[None]:
    """Inside the block new messages come from this node: Flower keeps whose process it is in one place."""
    before = (TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id)
    TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id = RUN_ID, RUN_ID, node
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id = before


def _log_error(client: int, error: BaseException) -> None:
    import logging

    text = "".join(traceback.format_exception(error))
    logging.getLogger("flwr").error("client %d failed:\n%s", client, text)
