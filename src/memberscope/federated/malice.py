"""Malicious parties by name, in federations of ours: ``isolate:K``, ``ascent:K`` and ``ascent-client:K``.

- ``isolate:K``: the server cuts client K off.
- ``ascent:K`` or ``ascent:K:GAMMA``: the server moves what it sends to client K up the loss of candidate records.
- ``ascent-client:K`` or ``ascent-client:K:GAMMA``: client K moves its reply up the loss of others' records.

Candidates are records of the client that is gone for, half trained on and half not; of an ascending client those of all
others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memberscope.errors import ConfigError

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from memberscope.federated.design import Design
    from memberscope.federated.mods import Mod
    from memberscope.records.pool import Dataset
    from memberscope.training.batches import Normalisation
    from memberscope.training.recipe import Recipe

KINDS = ("isolate", "ascent", "ascent-client")
_GAMMA = {"isolate": 0.0, "ascent": 2e-4, "ascent-client": 1e-3}
_CANDIDATES = 200
"""Half of them non-members: as many as a false-positive rate of 10 % takes."""
_AT_ONCE = 20


@dataclass(frozen=True)
class Malice:
    """Who is malicious, how, and to whom.

    Parameters
    ----------
    kind
        One of `KINDS`.
    client
        Whom the server goes for, or who is malicious itself.
    gamma
        Length of a step up the loss.
    """

    kind: str
    client: int
    gamma: float


def parse(text: str) -> Malice:
    """Read a party's name.

    Raises
    ------
    ConfigError
        An unknown one.
    """
    found = re.fullmatch(r"([a-z-]+):([0-9]+)(?::([0-9.e+-]+))?", text)
    kind = found[1] if found else ""
    try:
        gamma = float(found[3]) if found and found[3] else _GAMMA.get(kind, 0.0)
    except ValueError:
        kind = ""
    if found is None or kind not in KINDS or (kind == "isolate" and found[3]):
        raise ConfigError(f"malicious = {text!r} is unknown", "isolate:K, ascent:K[:GAMMA] or ascent-client:K[:GAMMA]")
    return Malice(kind, int(found[2]), gamma)


def put_in_place(
    malice: Malice, recipe: Recipe, dataset: Dataset, design: Design, normalisation: Normalisation
) -> tuple[Callable[[Strategy], Strategy], tuple[Mod, ...]]:
    """What is done to the strategy, and the mods of the clients. The tape around the strategy names the party.

    Raises
    ------
    ConfigError
        There is no such client.
    """
    from memberscope.federated import tamper
    from memberscope.training.models import build_for

    client = malice.client
    if client >= design.n_clients:
        raise ConfigError(
            f"malicious = '{malice.kind}:{client}', but there are {design.n_clients} clients", "they count from 0"
        )
    if malice.kind == "isolate":
        return (lambda strategy: tamper.attach(strategy, tamper.Isolate(client))), ()

    def model() -> nn.Module:
        return build_for(recipe, dataset.input_shape, dataset.n_classes)

    rows = ascended(malice, design)[1]
    x, y = _inputs(dataset, rows, normalisation), dataset.y[rows]
    if malice.kind == "ascent":
        party = tamper.GradientAscent(model, x, y, gamma=malice.gamma, client=client, at_once=_AT_ONCE)
        return (lambda strategy: tamper.attach(strategy, party)), ()
    text = f"ascent-client:{client} (client {client} moves its reply up the loss of {len(x)} records of others)"
    mods = (tamper.ascent_mod(model, x, y, clients=(client,), gamma=malice.gamma),)
    return (lambda strategy: tamper.declare(strategy, text)), mods


def ascended(malice: Malice, design: Design) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of client and record that an ascending party asks about: half trained on, half not.

    Where clients hold no record that they do not train on, the others are of nobody, dealt to the clients in turn.

    Returns
    -------
    int64 [n] clients and int64 [n] pool indices; empty for an isolating server.
    """
    if malice.kind == "isolate":
        return np.empty(0, np.int64), np.empty(0, np.int64)
    mine = design.owner == malice.client
    whose = mine if malice.kind == "ascent" else ~mine & (design.owner >= 0)
    outside = ~design.member & whose
    rows = np.r_[_some(design.member & whose), _some(outside if outside.any() else design.owner < 0)]
    client = design.owner[rows].astype(np.int64)
    gone_for = np.unique(client[client >= 0])
    of_nobody = np.flatnonzero(client < 0)
    client[of_nobody] = gone_for[np.arange(len(of_nobody)) % len(gone_for)]
    return client, rows


def _some(which: NDArray[np.bool_]) -> NDArray[np.int64]:
    """So many of the records, evenly from all of them."""
    rows = np.flatnonzero(which)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _CANDIDATES // 2)).astype(np.int64)]


def _inputs(dataset: Dataset, rows: NDArray[np.int64], normalisation: Normalisation) -> Tensor:
    import torch

    from memberscope.training.batches import Records

    return Records(dataset.x[rows], normalisation, torch.device("cpu")).batch(slice(None)).contiguous()
