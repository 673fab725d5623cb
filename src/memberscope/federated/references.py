"""Reference federations: the same clients and records, other coins and draws, trained by the adversary.

They show what rounds look like without a record (attack `fl-lira-cosine`). One that differs from the target in more
than its draws shows something else, and is refused; so is one with the target's own coins, which would give them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memberscope import seeds
from memberscope.errors import ConfigError, DataError
from memberscope.events import Events
from memberscope.federated.config import FederationConfig

if TYPE_CHECKING:
    from memberscope.federated.subject import Subject
    from memberscope.records.pool import Dataset

FOLDER = "references"
_FREE = {
    *("seed", "partition_seed", "references", "malicious"),
    *("data_dir", "unverified_data", "device", "threads", "out", "timeout", "record_megabytes", "record_precision"),
}
"""Settings in which a reference federation may differ: its draws, and where and how it was computed."""


def config_of(config: FederationConfig, number: int) -> FederationConfig:
    """The settings of reference federation `number` of a federation: its partition, a seed of its own."""
    drawn = seeds.sequence(config.seed, "references", f"federation {number}").generate_state(1)[0]
    return replace(
        config,
        seed=int(drawn >> 1),
        partition_seed=config.seed if config.partition_seed is None else config.partition_seed,
        references=0,
        malicious="",
    )


def train(config: FederationConfig, folder: Path, dataset: Dataset, events: Events) -> list[Path]:
    """Train the reference federations of a federation that are missing, each a run folder in ``folder/references``.

    One that was interrupted goes on after its last finished round.
    """
    from memberscope.federated.federation import SUMMARY, federate

    folders = [folder / FOLDER / f"{number:02d}" for number in range(config.references)]
    for number, path in enumerate(folders):
        if not (path / SUMMARY).is_file():
            events.stage(f"Reference federation {number + 1} of {config.references}")
            going_on = (path / "rounds").is_dir()
            federate(config_of(config, number), events=events, folder=path, dataset=dataset, resume=going_on)
    return folders


def finished(folder: Path) -> list[Path]:
    """The finished reference federations beside a run."""
    from memberscope.federated.federation import SUMMARY

    return sorted(path.parent for path in (folder / FOLDER).glob(f"*/{SUMMARY}"))


def check_settings(config: FederationConfig) -> None:
    """Refuse reference federations that no attack could use.

    Raises
    ------
    ConfigError
        Nothing is recorded of a client's own updates.
    """
    if config.references and config.recorded != "updates":
        raise ConfigError(
            f"--references {config.references}, but no client's updates are recorded",
            "attacks with reference federations hold updates against updates: --record updates",
        )


def check(target: Subject, references: Sequence[Subject]) -> None:
    """Refuse reference federations that differ from the target in more than their draws.

    Raises
    ------
    DataError
        Names the federation and what it differs in.
    """
    for reference in references:
        if reference.dataset["fingerprint"] != target.dataset["fingerprint"] or len(reference.owner) != len(
            target.owner
        ):
            raise DataError(
                f"{reference.name} was trained on other records ({reference.dataset['name']}) than {target.name}",
                "a reference federation has the pool of the target",
            )
        if not np.array_equal(reference.owner, target.owner):
            raise DataError(
                f"in {reference.name} other clients hold the records than in {target.name}",
                "train it with --partition-seed, the seed of the target, and a --seed of its own",
            )
        if np.array_equal(reference.member, target.member):
            raise DataError(
                f"{reference.name} trains on the very records of {target.name}: it would give the truth away",
                "train it with another --seed, and --partition-seed as in the target",
            )
        _check_settings(target, reference)
        if reference.transcript.rounds != target.transcript.rounds:
            raise DataError(
                f"of {reference.name} {len(reference.transcript.rounds)} rounds are on record, of {target.name} "
                f"{len(target.transcript.rounds)}, or not the same ones",
                "record both alike (--rounds, --record-every)",
            )


def _check_settings(target: Subject, reference: Subject) -> None:
    if target.target["recipe"] is None or reference.target["recipe"] is None:
        return  # somebody else's: what they were trained with is not known
    ours, theirs = ({k: v for k, v in s.settings.items() if k not in _FREE} for s in (target, reference))
    other = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
    if other:
        named = ", ".join(f"{k} = {_shown(theirs.get(k))} instead of {_shown(ours.get(k))}" for k in other[:3])
        raise DataError(
            f"{reference.name} was trained with other settings than {target.name}: {named}",
            "a reference federation differs in its seed alone",
        )


def _shown(value: Any) -> str:
    return "the default" if value is None else repr(value)
