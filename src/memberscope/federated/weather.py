"""Bad weather on purpose: clients that drop out of a round or are too slow for it, drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memberscope import seeds
from memberscope.errors import ConfigError
from memberscope.federated.config import FederationConfig

Fate = Literal["fine", "gone", "late"]


class ClientGone(Exception):
    """A client that does not answer, as the settings have it."""


@dataclass(frozen=True)
class Weather:
    """What befalls each client in each round; the same on every engine and after a resume.

    Parameters
    ----------
    config
        Its drop_out, stragglers, late, local_epochs and seed.
    """

    config: FederationConfig

    def __post_init__(self) -> None:
        partial = self.config.stragglers and self.config.late == "partial"
        if partial and self.config.local_epochs < 2:
            raise ConfigError(
                "a straggler cannot do a part of 1 local epoch", "--late dropped, or --local-epochs 2 or more"
            )
        if self.config.drop_out + self.config.stragglers > 1:
            raise ConfigError("drop_out and stragglers are more than 1 together")

    def epochs(self, round_: int, client: int) -> int:
        """Local epochs that a client makes in a round.

        Raises
        ------
        ClientGone
            It drops out, or would answer too late.
        """
        config = self.config
        if not config.drop_out and not config.stragglers:
            return config.local_epochs
        rng = seeds.generator(config.seed, "training", f"weather of client {client} in round {round_}")
        lot = rng.random()
        if lot < config.drop_out:
            raise ClientGone("dropped out of the round (simulated)")
        if lot < config.drop_out + config.stragglers:
            if config.late == "dropped":
                raise ClientGone("too late: a straggler (simulated)")
            return int(rng.integers(1, config.local_epochs))
        return config.local_epochs
