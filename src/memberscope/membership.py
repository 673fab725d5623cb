"""Who is in: the membership of every record of a pool, drawn once, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import ConfigError, DataError

Protocol = Literal["holdout", "random-half"]
PROTOCOLS: dict[str, str] = {
    "holdout": "members: the official training part less validation; non-members: the official test part",
    "random-half": "each record of the pool is a member with probability 1/2, independently",
}


@dataclass(frozen=True, eq=False)
class Split:
    """The part that every record of the pool plays.

    Parameters
    ----------
    member
        bool [N]; the target is trained on these.
    validation
        bool [N]; watched during training (curves, early stopping), so neither members nor honest non-members.
    audited
        bool [N]; the members and non-members that attacks are judged on. Never a validation record.
    canary
        bool [N]; places of canaries (`memberscope.canaries`), which are audited apart; None: there are none.
    """

    member: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    audited: NDArray[np.bool_]
    canary: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if np.any(self.validation & (self.member | self.audited)):
            raise DataError("a validation record is also a member or audited", "validation records must be set apart")
        if self.canary is not None and np.any(self.canary & (self.validation | self.audited)):
            raise DataError("a canary is also a validation record or an ordinary one", "canaries must be set apart")

    @property
    def nonmember(self) -> NDArray[np.bool_]:
        """bool [N]: audited records that the target was not trained on."""
        return self.audited & ~self.member

    @property
    def pool(self) -> NDArray[np.bool_]:
        """bool [N]: records that reference models may be trained on, the audited ones and canaries."""
        return self.audited if self.canary is None else self.audited | self.canary

    def __repr__(self) -> str:
        counts = (int(a.sum()) for a in (self.member, self.nonmember, self.validation))
        return "Split({:,} members, {:,} non-members, {:,} validation)".format(*counts)


def draw(
    protocol: Protocol | str,
    labels: NDArray[np.int64],
    is_train: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    validation_fraction: float = 0.1,
    validation_rng: np.random.Generator | None = None,
) -> Split:
    """Draw the membership of every record of a pool.

    Parameters
    ----------
    protocol
        ``holdout`` or ``random-half`` (see `PROTOCOLS`).
    labels, is_train
        int64 [N] and bool [N] of the pool.
    rng
        The generator kept for membership; nothing else may draw from it.
    validation_fraction
        Share of the training records set apart for validation: of the official training part under ``holdout``, of the
        half that a model is trained on (so half this share of the pool) under ``random-half``. Drawn by class, before
        membership, so that validation has the pool's class mix and membership stays independent of it.
    validation_rng
        Draws the validation records; default: `rng`. Several targets of one audit share theirs.

    Raises
    ------
    DataError
        ``holdout`` on a pool without an official test part; a pool so small that no member or no non-member is left.
    ConfigError
        An unknown protocol, or a fraction outside [0, 0.5].
    """
    if not 0 <= validation_fraction <= 0.5:
        raise ConfigError(f"validation fraction {validation_fraction} is outside [0, 0.5]", "0.1 is the default")
    setting_apart = rng if validation_rng is None else validation_rng
    if protocol == "holdout":
        if is_train.all() or not is_train.any():
            part = "test" if is_train.all() else "training"
            raise DataError(
                f"the protocol 'holdout' compares an official training and test part, and this pool has no {part} part",
                "use --protocol random-half, or give both parts (x_train, y_train, x_test, y_test; train/ and test/)",
            )
        member = is_train.copy()
        validation = _take_by_class(member, labels, validation_fraction, setting_apart)
        return _with_both_groups(Split(member & ~validation, validation, ~validation))
    if protocol == "random-half":
        everyone = np.ones(len(labels), bool)
        validation = _take_by_class(everyone, labels, validation_fraction / 2, setting_apart)
        member = (rng.random(len(labels)) < 0.5) & ~validation
        return _with_both_groups(Split(member, validation, ~validation))
    raise ConfigError(f"unknown protocol {protocol!r}", f"known: {', '.join(PROTOCOLS)}")


def given(mask: NDArray[np.generic], n: int, *, source: str = "the membership mask") -> Split:
    """Membership that the user states: a bool or 0/1 mask over the pool; every record is audited.

    An entry of -1 (integer masks) leaves a record out of the audit: neither member nor non-member.

    Raises
    ------
    DataError
        Wrong length, values other than -1, 0, 1, or one of the two groups empty.
    """
    values = np.asarray(mask)
    if values.shape != (n,):
        raise DataError(
            f"{source} has shape {values.shape}, expected ({n},): one entry for every record of the pool",
            "order the mask as the pool is: official training part first, then the test part",
        )
    if values.dtype.kind not in "biuf":
        raise DataError(f"{source} has dtype {values.dtype}, expected bool or 0/1", "save it as bool or 0/1")
    odd = values[~np.isin(values, (-1, 0, 1))]
    if odd.size:
        raise DataError(f"{source} holds the value {odd[0]}", "1 means member, 0 non-member, -1 left out")
    member = values == 1
    audited = values != -1
    for count, group in ((member.sum(), "members"), ((audited & ~member).sum(), "non-members")):
        if count == 0:
            raise DataError(f"{source} names no {group}", "an audit compares members with non-members")
    return Split(member, np.zeros(n, bool), audited)


def _with_both_groups(split: Split) -> Split:
    for group, mask in (("member", split.member), ("non-member", split.nonmember)):
        if not mask.any():
            raise DataError(
                f"of {len(mask):,} records the protocol made none a {group}",
                "an audit compares members with non-members: give more records",
            )
    return split


def class_mix_difference(labels: NDArray[np.int64], split: Split, n_classes: int) -> float:
    """Total variation distance between the class mixes of members and non-members, in [0, 1].

    At 0 the class alone says nothing about membership; an adversary who knows only the label gains at most this
    advantage (TPR - FPR).
    """
    mixes = []
    for group in (split.member & split.audited, split.nonmember):
        counts = np.bincount(labels[group], minlength=n_classes).astype(np.float64)
        mixes.append(counts / counts.sum())
    return float(0.5 * np.abs(mixes[0] - mixes[1]).sum())


def _take_by_class(
    of: NDArray[np.bool_], labels: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(of & (labels == label))
        taken[rng.permutation(rows)[: round(fraction * len(rows))]] = True
    return taken
