"""Settings of a federation that trains in a moment."""

from __future__ import annotations

from typing import Any

from memberscope.federated.config import FederationConfig, from_settings

SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp",
    "clients": 4,
    "rounds": 3,
    "local_epochs": 2,
    "batch_size": 32,
    "device": "cpu",
    "record": "nothing",
}


def settings(**changes: Any) -> FederationConfig:
    return from_settings({**SETTINGS, **changes})
