"""The outcome of a federation, once its rounds are done: accuracies, failures, guarantees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memberscope.federated.apps import Site
    from memberscope.federated.config import FederationConfig
    from memberscope.federated.design import Design
    from memberscope.records.pool import Dataset
    from memberscope.training.trained_model import TrainedModel

_FORMAT = "memberscope federation 1"


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
    accuracy = {
        name: model.accuracy(x[rows], y[rows]) if rows.any() else None
        for name, rows in (
            ("trained_on", design.member),
            ("held", ~design.member & ~design.nobody),
            ("of_nobody", design.nobody),
        )
    }
    failed = [entry for record in history for entry in record["failed"]]
    return {
        "format": _FORMAT,
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "records": dataset.n},
        "clients": design.n_clients,
        "rounds": config.rounds,
        "records": {
            "trained_on": int(design.member.sum()),
            "held": int((~design.member & ~design.nobody).sum()),
            "of_nobody": int(design.nobody.sum()),
        },
        "records_of_clients": design.partition.sizes.tolist(),
        "skew": design.partition.skew(dataset.y, dataset.n_classes),
        "accuracy": accuracy,
        "failures": {"replies": len(failed), "of": sum(len(r["clients"]) + len(r["failed"]) for r in history)},
        "privacy": client_privacy(config),
        "record_privacy": model.privacy,
        "seconds": sum(r["seconds"] for r in history),
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "settings": config.to_dict(),
    }


def weakest_guarantee(site: Site, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """DP-SGD's guarantee for the records of the client that has the weakest; the steps of all its rounds add up."""
    epochs = [0] * site.design.n_clients
    for record in history:
        for entry in record["clients"]:
            epochs[entry["client"]] += entry["epochs"]
    found = [g for client, made in enumerate(epochs) if (g := site.local.guarantee(client, made)) is not None]
    return max(found, key=lambda g: float("inf") if g["epsilon"] is None else g["epsilon"], default=None)


def client_privacy(config: FederationConfig) -> dict[str, Any] | None:
    """The guarantee that central noise gives a client; None without any.

    Each round adds Gaussian noise of z C / n to the mean of n updates of norm C at most: with a client's update in it
    or zeroed, the means differ by C / n. T rounds of it are sqrt(T)/z-GDP (Dong et al. 2022, corollary 3.3); no gain
    from the choice of clients is claimed.
    """
    if not config.central_noise:
        return None
    from memberscope.statistics.gaussian_dp import gdp_epsilon

    mu = config.rounds**0.5 / config.central_noise
    return {
        "unit": "one client's updates, present or zeroed",
        "holds_against": "whoever sees the global models, not the server",
        "delta": config.local_delta,
        "epsilon": gdp_epsilon(mu, config.local_delta),
        "mu": mu,
    }
