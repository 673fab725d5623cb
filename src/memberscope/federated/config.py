"""The settings of a federation: typed, from TOML or flags, and back to TOML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from memberscope.config import Number, check_number, coerced, default_output_dir, plain
from memberscope.errors import ConfigError
from memberscope.training.recipe import Recipe

Recorded = Literal["updates", "sums", "features", "nothing"]
Late = Literal["dropped", "partial"]
ClipAt = Literal["server", "client"]
Precision = Literal["float32", "float16"]

_NUMBERS: dict[str, Number] = {
    "clients": (int, 1, math.inf, "at least 1"),
    "rounds": (int, 1, math.inf, "at least 1"),
    "local_epochs": (int, 1, math.inf, "at least 1"),
    "fraction": (float, 1e-9, 1 + 1e-12, "in (0, 1]"),
    "held_fraction": (float, 0, 0.9 + 1e-12, "in [0, 0.9]"),
    "drop_out": (float, 0, 1, "in [0, 1)"),
    "stragglers": (float, 0, 1, "in [0, 1)"),
    "timeout": (float, 1e-3, math.inf, "more than 0 seconds"),
    "record_every": (int, 1, math.inf, "at least 1"),
    "record_candidates": (int, 2, math.inf, "at least 2"),
    "record_megabytes": (int, 1, math.inf, "at least 1"),
    "central_noise": (float, 0, math.inf, "at least 0"),
    "central_clip": (float, 0, math.inf, "at least 0"),
    "local_epsilon": (float, 0, math.inf, "at least 0"),
    "local_delta": (float, 1e-300, 1, "in (0, 1)"),
    "local_clip": (float, 1e-300, math.inf, "more than 0"),
    "keep_largest": (float, 0, 1 + 1e-12, "in (0, 1], 0 is off"),
    "quantise_bits": (int, 0, 17, "from 1 to 16, 0 is off"),
    "canary_clients": (int, 0, math.inf, "at least 5, 0 is off"),
    "canary_length": (float, 0, math.inf, "at least 0"),
    "references": (int, 0, math.inf, "at least 0"),
    "partition_seed": (int, 0, math.inf, "at least 0"),
    "seed": (int, 0, math.inf, "at least 0"),
    "threads": (int, 1, math.inf, "at least 1"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "record": get_args(Recorded),
    "record_precision": get_args(Precision),
    "late": get_args(Late),
    "clip_at": get_args(ClipAt),
}


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Everything that determines a federation.

    Parameters
    ----------
    dataset
        Name (`memberscope list datasets`), npz:PATH or imagefolder:PATH.
    data_dir
        Folder of the dataset's files, ours or torchvision's; default: $MEMBERSCOPE_DATA_DIR, else ./data.
    unverified_data
        Take files whose checksum is not the official one: you vouch for them.
    clients
        How many there are.
    partition
        How the training part is shared out: iid, dirichlet:ALPHA, pathological:CLASSES, shards:SHARDS, sizes:BETA, or
        natural:FILE.npy (an id for each record of the pool).
    held_fraction
        Share of each client's records, drawn by coin, that it does not train on: its own non-members.
    rounds
        Rounds of training.
    local_epochs
        Passes over its records that a client makes in a round.
    fraction
        Share of the clients that take part in a round.
    strategy
        How updates are aggregated: a strategy of Flower by its name in small letters.
    strategy_options
        Settings of the strategy as name=value: proximal_mu=0.1 (fedprox), eta=0.01 (fedadam), beta=0.1.
    recipe
        How clients train. Its epochs are set by rounds and local_epochs.
    drop_out
        Probability that a client, chosen for a round, does not answer (simulated).
    stragglers
        Probability that it is too slow to finish its local epochs in time (simulated).
    late
        What stragglers do: their replies are dropped, or they answer in time after part of their epochs.
    timeout
        Seconds that the server waits for the replies of a round.
    secure_aggregation
        The server sees sums of updates and no single one: exact, without the protocol's cost.
    secagg_plus
        The same by Flower's SecAgg+ itself: keys, shares and masks travel, and weights are rounded to 22 bits.
    record
        What the server's tape keeps: each client's updates, their sums, features that an audit computes from them
        (while they are in memory: no model is kept), or nothing.
    record_every
        Keep one round in this many.
    record_precision
        float32, or float16: each update in half the space, its entries to three digits.
    record_candidates
        Pairs a client, at most, that features are computed for (--record features); half of them members.
    record_megabytes
        Stop the tape (not the federation) beyond this size.
    central_noise
        Differential privacy at the server: noise multiplier; 0: off.
    central_clip
        Norm that updates are clipped to for it.
    clip_at
        Who clips: the server, or each client.
    local_epsilon
        Local differential privacy: nominal epsilon of each update in each round (no composition); 0: off.
    local_delta
        Its delta.
    local_clip
        Norm that the update is clipped to for it; the noise is scaled to twice this.
    keep_largest
        Share of an update's entries that is sent, the largest; 0: all.
    quantise_bits
        Bits of each entry of an update, rounded at random; 0: all 32.
    malicious
        A malicious party: isolate:K (the server cuts client K off), ascent:K (it moves what it sends to client K up the
        loss of candidate records) or ascent-client:K (client K does so with its reply).
    canary_clients
        Clients that never train and send random directions instead, from which an epsilon is estimated; 0: none.
    canary_length
        Norm of their updates; 0: what updates are clipped to, else the clients' median of the round before.
    references
        Reference federations to train beside it, of the same clients and records with other coins: for attacks that
        know what rounds look like without a record.
    partition_seed
        Seed of the partition alone; default: seed. A federation with this one's seed here is a reference for it.
    seed
        One seed for partition, membership, choice of clients, training and noise.
    device
        auto, cpu, cuda, cuda:1, mps.
    threads
        CPU threads; default: all cores.
    out
        Folder for run folders; default: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs.
    """

    dataset: str = ""
    data_dir: Path | None = None
    unverified_data: bool | None = None
    clients: int = 10
    partition: str = "iid"
    held_fraction: float = 0.5
    rounds: int = 20
    local_epochs: int = 1
    fraction: float = 1.0
    strategy: str = "fedavg"
    strategy_options: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    drop_out: float = 0.0
    stragglers: float = 0.0
    late: Late = "dropped"
    timeout: float = 3600.0
    secure_aggregation: bool = False
    secagg_plus: bool = False
    record: Recorded = "updates"
    record_every: int = 1
    record_precision: Precision = "float32"
    record_candidates: int = 1000
    record_megabytes: int = 20_480
    central_noise: float = 0.0
    central_clip: float = 0.0
    clip_at: ClipAt = "server"
    local_epsilon: float = 0.0
    local_delta: float = 1e-5
    local_clip: float = 1.0
    keep_largest: float = 0.0
    quantise_bits: int = 0
    malicious: str = ""
    canary_clients: int = 0
    canary_length: float = 0.0
    references: int = 0
    partition_seed: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, coerced(f.name, getattr(self, f.name)))
        if self.dataset == "":
            raise ConfigError(
                "no dataset was named",
                "for example --dataset digits; with --resume the run folder has all other settings",
            )
        if not isinstance(self.dataset, str):
            raise ConfigError(f"dataset = {self.dataset!r} is no name", "`memberscope list datasets` shows them all")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is unknown", f"one of {', '.join(choices)}")
        for name, wanted in _NUMBERS.items():
            if getattr(self, name) is not None or name not in ("threads", "partition_seed"):
                check_number(name, getattr(self, name), wanted)
        for name in ("unverified_data", "secure_aggregation", "secagg_plus"):
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither true nor false")
        self._check_defenses()
        if self.malicious and self.record == "features":
            raise ConfigError(
                "what a malicious party did is read from the models", "--record updates, or leave --malicious out"
            )
        if self.malicious:
            from memberscope.federated.malice import parse

            parse(self.malicious)
        if self.recipe.epochs not in (Recipe().epochs, self.rounds * self.local_epochs):
            raise ConfigError(
                f"epochs = {self.recipe.epochs} is of a central training",
                "a federation has --rounds and --local-epochs",
            )
        if (self.central_noise > 0) != (self.central_clip > 0):
            raise ConfigError(
                "--central-noise and --central-clip go together",
                "noise is scaled to the norm that updates are clipped to",
            )
        self._check_canaries()
        object.__setattr__(self, "recipe", replace(self.recipe, epochs=self.rounds * self.local_epochs))

    @property
    def defenses(self) -> list[str]:
        """What blunts attacks in it, in words: at the clients, on updates, at the server."""
        from memberscope.defenses.registry import in_force

        named = [defense.name for defense in in_force(self.recipe)]
        if self.local_epsilon:
            named.append(f"local DP (nominal epsilon {self.local_epsilon:g} an update)")
        if self.keep_largest:
            named.append(f"largest {100 * self.keep_largest:g} % of each update")
        if self.quantise_bits:
            named.append(f"updates of {self.quantise_bits} bits")
        if self.central_noise:
            named.append(f"central DP (noise {self.central_noise:g})")
        if self.secagg_plus:
            named.append("SecAgg+")
        elif self.secure_aggregation:
            named.append("secure aggregation")
        return named

    def _check_canaries(self) -> None:
        if 0 < self.canary_clients < 5:
            raise ConfigError(
                f"canary_clients = {self.canary_clients} say too little", "some dozens are usual, five the least"
            )
        if self.canary_length and not self.canary_clients:
            raise ConfigError("--canary-length was given without --canary-clients", "say how many there are")
        if self.canary_clients and self.strategy == "qfedavg":
            raise ConfigError(
                "qfedavg weights updates by the clients' losses, and canary clients have none", "another strategy"
            )

    def _check_defenses(self) -> None:
        """Clients take training steps and nothing else: what trains or watches other models has no place."""
        from memberscope.defenses.registry import procedure

        taught = procedure(self.recipe)
        name = self.recipe.needs_validation or (taught.name if taught is not None else "")
        if name:
            raise ConfigError(
                f"{name} has no place in a federation: clients take training steps and nothing else",
                "choose a defense that acts on data, loss or gradient (`memberscope list defenses`)",
            )

    @property
    def output_dir(self) -> Path:
        """Where run folders go."""
        return self.out or default_output_dir()

    @property
    def recorded(self) -> Recorded:
        """What the server can keep: behind secure aggregation it has sums at most."""
        return "sums" if self.sees_sums and self.record == "updates" else self.record

    @property
    def sees_sums(self) -> bool:
        """Whether the server sees sums of updates and no single one."""
        return self.secure_aggregation or self.secagg_plus or self.record == "sums"

    def to_dict(self) -> dict[str, Any]:
        """Flat, JSON-able: the recipe's settings stand beside the others, as the flags do. None is left out."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        of_recipe = {k: v for k, v in self.recipe.to_dict().items() if k != "epochs"}
        return {k: plain(v) for k, v in {**own, **of_recipe}.items() if v is not None and v not in ((), [], "")}


def from_settings(settings: Mapping[str, Any]) -> FederationConfig:
    """A config from flat settings, those of the recipe among them.

    Raises
    ------
    ConfigError
        An unknown setting (the nearest known one is named), or a value that cannot be used.
    """
    import difflib

    own = {f.name for f in fields(FederationConfig)} - {"recipe"}
    of_recipe = {f.name for f in fields(Recipe)}
    for key in settings:
        if key not in own | of_recipe:
            near = difflib.get_close_matches(key, own | of_recipe, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see FederationConfig"
            raise ConfigError(f"unknown setting {key!r}", hint)
    recipe = Recipe.from_dict({k: v for k, v in settings.items() if k in of_recipe})
    return FederationConfig(recipe=recipe, **{k: v for k, v in settings.items() if k in own})


def read(path: Path) -> FederationConfig:
    """The config of a TOML file.

    Raises
    ------
    ConfigError
        There is no such file, or it is no TOML, or its settings cannot be used.
    """
    import tomllib

    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}", "is it the folder of a federation?") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return from_settings(settings)
