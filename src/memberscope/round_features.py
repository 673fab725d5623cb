"""What the models of a federation's rounds say about records: the numbers that every attack on rounds is made of.

Loss and confidence come from one number, the logit-scaled confidence phi = log(p / (1 - p)) of the true class: the loss
is log(1 + exp(-phi)), exact at both ends. A gradient is kept as its length and as its products, scaled to length 1,
with the updates that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import EvidenceError

Floats = NDArray[np.float64]

MAX_PARTS = 4
"""Consecutive layers are merged into so many parts at most: a product is kept for each part."""


def loss_of(phi: NDArray[np.floating]) -> Floats:
    """Cross-entropy, float64, from the logit-scaled confidence."""
    return np.asarray(np.logaddexp(0.0, -phi.astype(np.float64)))


@dataclass(frozen=True, eq=False)
class RoundFeatures:
    """Features of N records under B models that were sent and S models that came back, in T rounds with P model parts.

    Parameters
    ----------
    labels
        int64 [N], true classes.
    rounds
        int64 [T], round numbers, ascending.
    sent_round
        int64 [B], position in `rounds` of each model that was sent. A round has one (its global model), or more where
        the server sent clients different ones.
    main
        int64 [T], of each round the position in B of its global model.
    sent_phi, sent_log_norm
        float32 [B, N]: phi under each model sent, and the logarithm of the norm of the record's gradient there.
    next_phi
        float32 [T, N]: phi under the global model that came out of each round.
    sum_along, sum_length
        float32 [T, P, N] and [T], or None: product of the record's gradient at the global model, scaled to length 1,
        with the mean update of the round (global model sent minus the one that came out of the clients' weighted mean),
        and the length of that update.
    reply_sent, reply_client
        int64 [S], or None where no client's own update was seen: position in B of the model that a client answered,
        and the client.
    reply_phi, reply_along, reply_length
        float32 [S, N], [S, P, N] and [S]: phi under the client's model; product of the record's gradient at the model
        sent, scaled to length 1, with the client's update (sent minus received); the length of that update.
    """

    labels: NDArray[np.int64]
    rounds: NDArray[np.int64]
    sent_round: NDArray[np.int64]
    main: NDArray[np.int64]
    sent_phi: NDArray[np.float32] = field(repr=False)
    sent_log_norm: NDArray[np.float32] = field(repr=False)
    next_phi: NDArray[np.float32] = field(repr=False)
    sum_along: NDArray[np.float32] | None = field(default=None, repr=False)
    sum_length: NDArray[np.float32] | None = field(default=None, repr=False)
    reply_sent: NDArray[np.int64] | None = field(default=None, repr=False)
    reply_client: NDArray[np.int64] | None = field(default=None, repr=False)
    reply_phi: NDArray[np.float32] | None = field(default=None, repr=False)
    reply_along: NDArray[np.float32] | None = field(default=None, repr=False)
    reply_length: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n, t, b = len(self.labels), len(self.rounds), len(self.sent_round)
        s = 0 if self.reply_sent is None else len(self.reply_sent)
        expected: dict[str, tuple[int | None, ...]] = {
            "main": (t,),
            "sent_phi": (b, n),
            "sent_log_norm": (b, n),
            "next_phi": (t, n),
            "sum_along": (t, None, n),
            "sum_length": (t,),
            "reply_client": (s,),
            "reply_phi": (s, n),
            "reply_along": (s, None, n),
            "reply_length": (s,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if len(value.shape) != len(shape) or any(
                want not in (None, got) for want, got in zip(shape, value.shape, strict=True)
            ):
                raise EvidenceError(
                    f"{name} has shape {list(value.shape)}, expected {['any' if w is None else w for w in shape]}",
                    "features of one federation come from one extraction",
                )
        self._check_groups()
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, np.ndarray):
                value = value.view()
                value.setflags(write=False)
                object.__setattr__(self, one.name, value)

    def _check_groups(self) -> None:
        for names in (
            ("sum_along", "sum_length"),
            ("reply_sent", "reply_client", "reply_phi", "reply_along", "reply_length"),
        ):
            given = [name for name in names if getattr(self, name) is not None]
            if given and len(given) < len(names):
                raise EvidenceError(f"{given[0]} was given without {sorted(set(names) - set(given))[0]}", "give all")

    @property
    def n_records(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def n_parts(self) -> int:
        """P; 0 where no update was seen."""
        seen = self.reply_along if self.reply_along is not None else self.sum_along
        return 0 if seen is None else int(seen.shape[1])

    @property
    def clients(self) -> NDArray[np.int64]:
        """int64: the clients of which a reply was seen, ascending."""
        return np.empty(0, np.int64) if self.reply_client is None else np.unique(self.reply_client)

    def only(self, *, sums: bool, replies: bool) -> RoundFeatures:
        """The same without what a seat does not see."""
        hidden: dict[str, Any] = {}
        if not sums:
            hidden |= dict.fromkeys(("sum_along", "sum_length"))
        if not replies:
            hidden |= dict.fromkeys(f.name for f in fields(self) if f.name.startswith("reply_"))
        return replace(self, **hidden)
