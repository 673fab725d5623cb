"""The outcome of a federation, once its rounds are done: accuracies, failures, guarantees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from memberscope.federated.apps import Site
    from memberscope.federated.config import FederationConfig
    from memberscope.federated.design import Design
    from memberscope.records.pool import Dataset
    from memberscope.training.trained_model import TrainedModel

_FORMAT = "memberscope federation 1"
MEANS = ("fedavg", "fedprox")
"""Strategies whose new model is the mean of what the clients sent, and nothing else."""


def as_epochs(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds as the history of a central training has its epochs: nobody's records are its validation."""
    return [
        {
            "epoch": record["round"],
            "train_loss": record["train_loss"] if record["train_loss"] is not None else 0.0,
            "train_acc": record["train_acc"] if record["train_acc"] is not None else 0.0,
            "val_loss": record["test_loss"],
            "val_acc": record["test_acc"],
            "seconds": record["seconds"],
        }
        for record in history
    ]


def summarise(
    config: FederationConfig,
    dataset: Dataset,
    design: Design,
    model: TrainedModel,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """What federation.json holds: records, accuracies of the global model on each kind, failures, guarantees."""
    x, y = dataset.x, dataset.y
    answered = took_part(history)
    trained = design.member & np.isin(design.owner, sorted(answered))
    groups = {"trained_on": trained, "held": ~trained & ~design.nobody, "of_nobody": design.nobody}
    accuracy = {name: model.accuracy(x[rows], y[rows]) if rows.any() else None for name, rows in groups.items()}
    failed = [entry for record in history for entry in record["failed"]]
    return {
        "format": _FORMAT,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "records": dataset.n},
        "clients": design.n_clients,
        "rounds": config.rounds,
        "took_part": len(answered),
        "records": {name: int(rows.sum()) for name, rows in groups.items()},
        "records_of_clients": design.partition.sizes.tolist(),
        "skew": design.partition.skew(dataset.y, dataset.n_classes),
        "accuracy": accuracy,
        "failures": {"replies": len(failed), "of": sum(len(r["clients"]) + len(r["failed"]) for r in history)},
        "privacy": client_privacy(config, design.n_clients, history),
        "canaries": None,
        "record_privacy": model.privacy,
        "seconds": sum(r["seconds"] for r in history),
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "settings": config.to_dict(),
    }


def took_part(history: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """The clients that answered in some round; what the others hold nobody trained on."""
    return frozenset(entry["client"] for record in history for entry in record["clients"])


def weakest_guarantee(site: Site, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """DP-SGD's guarantee for the records of the client that has the weakest; the steps of all its rounds add up."""
    epochs = [0] * site.design.n_clients
    for record in history:
        for entry in record["clients"]:
            epochs[entry["client"]] += entry["epochs"]
    found = [g for client, made in enumerate(epochs) if (g := site.local.guarantee(client, made)) is not None]
    return max(found, key=lambda g: float("inf") if g["epsilon"] is None else g["epsilon"], default=None)


def client_privacy(
    config: FederationConfig, n_clients: int, history: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The guarantee that central noise gives a client; None without any.

    A round adds Gaussian noise of z C / n to the mean of updates of norm C at most, n of which were asked for. With a
    client's update among k that came, or zeroed, the means differ by C / k: z k / n is the noise in units of that. T
    rounds of it are mu-GDP for mu^2 = sum of (n / (z k))^2, sqrt(T)/z where all answer (Dong et al. 2022, corollary
    3.3); no gain from the choice of clients is claimed. It holds for a mean and for nothing that a strategy makes of it
    before the noise comes in: epsilon is then None, with the reason.
    """
    if not config.central_noise:
        return None
    from memberscope.federated.strategies import chosen_each_round
    from memberscope.statistics.gaussian_dp import gdp_epsilon

    told: dict[str, Any] = {
        "unit": "one client's updates, present or zeroed",
        "holds_against": "whoever sees the global models, not the server",
        "delta": config.local_delta,
    }
    if config.strategy not in MEANS:
        reason = f"{config.strategy} makes more of the mean than the noise is scaled to"
        return {**told, "epsilon": None, "mu": None, "reason": reason}
    asked = chosen_each_round(config, n_clients + config.canary_clients)
    came = [len(record["clients"]) + len(record.get("canaries", ())) for record in history]
    mu = sum((asked / k) ** 2 for k in came if k) ** 0.5 / config.central_noise
    return {**told, "epsilon": gdp_epsilon(mu, config.local_delta), "mu": mu}
