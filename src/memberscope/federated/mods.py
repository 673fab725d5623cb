"""Defenses that act on a client's update before it is sent: Flower mods, Flower's own where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from numpy.typing import NDArray

from memberscope import seeds
from memberscope.federated.config import FederationConfig

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
Alter = Callable[[NDArray[np.floating], np.random.Generator], NDArray[np.floating]]


def mods(config: FederationConfig) -> list[Mod]:
    """The mods of a federation, outermost first: an update passes through them from the last to the first.

    First the largest entries are kept, then norms are clipped and noise is added, then entries are rounded: what comes
    after the noise cannot take its guarantee away, what comes before can not add to the norm.
    """
    chain: list[Mod] = []
    if config.quantise_bits:
        chain.append(update_mod(lambda update, rng: quantised(update, config.quantise_bits, rng), config.seed))
    if config.local_epsilon:
        # The sensitivity of a clipped update is twice its largest norm; Flower leaves it to the caller.
        chain.append(LocalDpMod(config.local_clip, 2 * config.local_clip, config.local_epsilon, config.local_delta))
    if config.central_noise and config.clip_at == "client":
        chain.append(fixedclipping_mod)
    if config.keep_largest:
        chain.append(update_mod(lambda update, rng: sparsified(update, config.keep_largest), config.seed))
    return chain


def update_mod(alter: Alter, seed: int) -> Mod:
    """A mod that alters the update (what is sent minus what was received) as one flat vector of the floating arrays."""

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        received = {name: array.numpy() for name, array in next(iter(message.content.array_records.values())).items()}
        settings: Any = next(iter(message.content.config_records.values()))
        client, round_ = int(context.node_config["partition-id"]), settings["server-round"]
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        key, record = next(iter(reply.content.array_records.items()))
        sent = {name: array.numpy() for name, array in record.items()}
        floating = [name for name, values in sent.items() if values.dtype.kind == "f"]
        update = np.concatenate([(sent[name] - received[name]).ravel() for name in floating])
        rng = seeds.generator(seed, "training", f"update of client {client} in round {round_}")
        altered = alter(update, rng)
        start = 0
        for name in floating:
            size = sent[name].size
            values = received[name] + altered[start : start + size].reshape(sent[name].shape)
            sent[name] = np.asarray(values, sent[name].dtype)
            start += size
        # The kind of array that came: those of one process stay arrays.
        kinds = {name: type(array) for name, array in record.items()}
        out = ArrayRecord()
        for name, values in sent.items():
            out[name] = Array(values) if kinds[name] is Array else kinds[name](values)
        reply.content[key] = out
        return reply

    return mod


def sparsified(update: NDArray[np.floating], share: float) -> NDArray[np.floating]:
    """Keep this share of the entries, the largest in size, and set the others to zero.

    Top-k sparsification (Aji & Heafield 2017, "Sparse Communication for Distributed Gradient Descent"), without the
    residual that a client could keep for the next round.
    """
    keep = max(1, round(share * update.size))
    if keep >= update.size:
        return update
    smallest = np.argpartition(np.abs(update), update.size - keep)[: update.size - keep]
    kept = update.copy()
    kept[smallest] = 0
    return kept


def quantised(update: NDArray[np.floating], bits: int, rng: np.random.Generator) -> NDArray[np.floating]:
    """Round each entry at random to one of 2^bits even steps between -max and max, so that its mean is unchanged.

    Stochastic uniform quantisation, as in QSGD (Alistarh et al. 2017, section 3.1) with the largest entry as the scale.
    """
    top = float(np.abs(update).max(initial=0.0))
    if top == 0:
        return update
    steps = 2**bits - 1
    scaled = (update.astype(np.float64) / top + 1) / 2 * steps
    low = np.floor(scaled)
    rounded = low + (rng.random(update.size) < scaled - low)
    return np.asarray((2 * rounded / steps - 1) * top, update.dtype)
