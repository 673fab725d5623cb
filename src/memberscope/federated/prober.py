"""One model in memory that takes on the weights of any party, and is asked about the same records every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memberscope.errors import ModelError
from memberscope.federated.alignment import Alignment, align
from memberscope.signals import logit_scaled_confidence
from memberscope.training.batches import Normalisation, Records
from memberscope.training.hardware import cpu_threads, exact_fp32
from memberscope.training.trained_model import evaluating, place

Arrays = Mapping[str, NDArray[Any]]
"""A model as it travels: name -> array, in the order of the model."""

_CHUNK = 512


class Prober:
    """Asks models of one architecture about N records.

    Parameters
    ----------
    module
        Any instance of the architecture; its weights are overwritten.
    batches
        From start and end to the inputs of these records as the model takes them, float32 [n, ...] on its device.
    labels
        int64 [N].
    threads
        CPU threads; None: as many as torch uses.
    kept
        Names of weights that do not travel: they stay as they are in the module.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Callable[[int, int], Tensor],
        labels: NDArray[np.int64],
        *,
        threads: int | None = None,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        self.module, self.batches, self.labels, self.threads, self.kept = module, batches, labels, threads, kept
        self.module.requires_grad_(True)
        self._trainable = {name for name, _ in module.named_parameters()}

    @classmethod
    def of_records(
        cls,
        module: nn.Module,
        x: NDArray[Any],
        y: NDArray[np.int64],
        normalisation: Normalisation,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> Prober:
        """Ask about records of a pool, uint8 [N, C, H, W] or float32 [N, d]."""
        where = torch.device(device)
        channels_last = place(module, x.shape[1:], where)
        records = Records(x, normalisation, where)

        def batches(start: int, end: int) -> Tensor:
            batch = records.batch(slice(start, end))
            return batch if channels_last or batch.ndim != 4 else batch.contiguous()

        return cls(module, batches, y, threads=threads)

    @classmethod
    def of_inputs(
        cls,
        module: nn.Module,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        *,
        kept: frozenset[str] = frozenset(),
    ) -> Prober:
        """Ask about records as the model takes them, float32 [N, ...]; a batch at a time goes to where the model is."""
        inputs = torch.from_numpy(np.ascontiguousarray(x))

        def batches(start: int, end: int) -> Tensor:
            return inputs[start:end].to(next(module.parameters()).device)

        return cls(module, batches, y, kept=kept)

    def take_on(self, arrays: Arrays) -> None:
        """Overwrite the weights, matched by name, or in order where names tell nothing (lists of legacy apps).

        Raises
        ------
        ModelError
            Arrays that do not fit the model; the first is named.
        """
        state = self.module.state_dict()
        named = named_arrays(arrays, [name for name in state if name not in self.kept])
        with torch.no_grad():
            for name in named:
                target = state[name]
                value = torch.as_tensor(np.asarray(named[name]))
                if value.shape != target.shape:
                    raise ModelError(
                        f"array {name!r} has shape {list(value.shape)}, the model's is {list(target.shape)}",
                        "give the model that the federation trains",
                    )
                target.copy_(value)

    def update(self, sent: Arrays, received: Arrays) -> dict[str, Tensor]:
        """Sent minus received, of the trainable weights: the way a client went, pointing along the gradient."""
        state = self.module.state_dict()
        exchanged = [name for name in state if name not in self.kept]
        before, after = named_arrays(sent, exchanged), named_arrays(received, exchanged)
        found: dict[str, Tensor] = {}
        for name in state:
            if name not in self._trainable:
                continue
            if name in self.kept:
                found[name] = torch.zeros(state[name].shape)
                continue
            one, other = np.asarray(before[name], np.float32), np.asarray(after[name], np.float32)
            if one.shape != other.shape:
                raise ModelError(
                    f"array {name!r} came back with shape {list(other.shape)}, it was sent with {list(one.shape)}"
                )
            found[name] = torch.from_numpy(one - other)
        return found

    def logits(self) -> NDArray[np.float32]:
        """float32 [N, C]: answers of the weights taken on last."""
        n, found = len(self.labels), []
        with cpu_threads(self.threads), exact_fp32(), evaluating(self.module):
            for start in range(0, n, _CHUNK):
                found.append(self.module(self.batches(start, min(start + _CHUNK, n))).float().cpu().numpy())
        return np.concatenate(found)

    def phi(self) -> NDArray[np.float32]:
        """float32 [N]: logit-scaled confidence in the true class."""
        return logit_scaled_confidence(self.logits(), self.labels).astype(np.float32)

    def align(self, directions: Sequence[Mapping[str, Tensor]]) -> Alignment:
        """Hold each record's gradient, at the weights taken on last, against directions."""
        with cpu_threads(self.threads), exact_fp32():
            return align(self.module, self.batches, self.labels, directions)


def array_names(arrays: Arrays, wanted: Sequence[str]) -> dict[str, str]:
    """Which array of a model is which of a module's: names of `wanted`, in their order -> names among `arrays`.

    An app may send them under a common prefix (``model.fc.weight``), or leave one out; lists of legacy apps have places
    for names. Other names tell which array is which, so that nothing is matched by its place against them.

    Raises
    ------
    ModelError
        Names that do not fit; says which are missing.
    """
    if arrays.keys() >= set(wanted):
        return {name: name for name in wanted}
    if all(name.isdecimal() for name in arrays):
        if len(arrays) == len(wanted):
            return dict(zip(wanted, arrays, strict=True))
        raise ModelError(
            f"the recorded model has {len(arrays)} arrays without names and this one {len(wanted)}",
            "give the model that the federation trains; batch statistics are among the arrays of a model",
        )
    for name in arrays:
        for long, short in ((name, wanted[0]), (wanted[0], name)):
            prefix = long[: len(long) - len(short)]
            if not long.endswith(short) or (prefix and not prefix.endswith(".")):
                continue
            theirs = {w: prefix + w if long is name else w.removeprefix(prefix) for w in wanted}
            if set(theirs.values()) <= arrays.keys():
                return theirs
    missing = [name for name in wanted if name not in arrays]
    raise ModelError(
        f"of this model's arrays {', '.join(map(repr, missing[:3]))} are not among those recorded, which are "
        f"{', '.join(map(repr, list(arrays)[:3]))}" + (" and so on" if len(arrays) > 3 else ""),
        "give the model that the federation trains",
    )


def named_arrays(arrays: Arrays, wanted: Sequence[str]) -> Arrays:
    """The arrays of a model by the names that its module has for them (see `array_names`)."""
    return {name: arrays[their] for name, their in array_names(arrays, wanted).items()}


def staying(module: nn.Module, again: nn.Module, recorded: Sequence[str]) -> frozenset[str]:
    """The weights of a module that do not travel, where an app exchanges a part of its model: they are kept as made.

    Parameters
    ----------
    module, again
        Made twice by the app's factory: what does not travel must be the same in both, as it is for all clients.
    recorded
        Names of the arrays that travel.

    Raises
    ------
    ModelError
        What does not travel is known to no server: batch statistics, or weights that are drawn anew each time.
    """
    state, other = module.state_dict(), again.state_dict()
    missing = frozenset(state) - frozenset(recorded)
    if not missing or not frozenset(recorded) < frozenset(state):
        return frozenset()
    statistics = sorted(missing - {name for name, _ in module.named_parameters()})
    if statistics:
        raise ModelError(
            f"{', '.join(map(repr, statistics[:3]))} do not travel: no server knows the whole model",
            "exchange the whole state_dict(), batch statistics with it; or use a model without them",
        )
    drawn = sorted(name for name in missing if not torch.equal(state[name], other[name]))
    if drawn:
        raise ModelError(
            f"{', '.join(map(repr, drawn[:3]))} do not travel, and the factory draws them anew each time",
            "let it load or seed what the clients keep to themselves",
        )
    return missing


def length(update: Mapping[str, Tensor]) -> float:
    """The l2 norm of an update."""
    return float(sum(part.double().square().sum() for part in update.values()) ** 0.5)


def finite(arrays: Arrays) -> bool:
    """Whether no array holds NaN or an infinity: a client may send anything."""
    return all(bool(np.isfinite(a).all()) for a in arrays.values() if np.asarray(a).dtype.kind == "f")
