"""The records of somebody else's federation, with who trained on which: the one thing that no wire shows.

They come in one of three ways:

- ``package.module:load_data``, a function of the app itself that takes ``partition_id`` and ``num_partitions`` and
  gives a client's training and test data, as in Flower's own PyTorch template. The training data of client k are its
  members; its test data are records that it holds and did not train on.
- ``package.module:records``, a function without arguments that gives ``x, y, owner`` or ``x, y, owner, member``.
- ``FILE.npz`` with arrays of these names.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError
from memberscope.federated.foreign import imported

NOBODY = -1
_X_KEYS = ("x", "img", "image", "images", "features", "pixel_values", "input", "inputs", "data")
_Y_KEYS = ("y", "label", "labels", "target", "targets", "fine_label")
_OF_A_CLIENT = ("partition_id", "num_partitions")
_EXPECTED = "x [N, ...] as the model takes it, y [N], owner [N] (client that holds the record, -1 nobody), member [N]"
_SCHEME = "load_data(partition_id, num_partitions) -> (training data, test data), or records() -> (x, y, owner, member)"


@dataclass(frozen=True, eq=False, repr=False)
class ForeignRecords:
    """N records as the app's model takes them, and the truth about them.

    Parameters
    ----------
    x
        float32 [N, ...].
    y
        int64 [N], classes from 0.
    owner
        int32 [N], client that holds the record; -1: nobody.
    member
        bool [N]: its owner trained on it.

    Raises
    ------
    DataError
        Shapes or types that do not fit, NaN, a member that nobody holds.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    owner: NDArray[np.int32]
    member: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.x)
        for name in ("y", "owner", "member"):
            if getattr(self, name).shape != (n,):
                raise DataError(f"{name} has shape {list(getattr(self, name).shape)}, expected [{n}]", _EXPECTED)
        if not n or self.x.ndim < 2:
            raise DataError(f"x has shape {list(self.x.shape)}, expected [N, ...]", _EXPECTED)
        if not np.isfinite(self.x).all():
            raise DataError("x holds NaN or infinities", "give the records as the model takes them")
        if (self.y < 0).any():
            raise DataError("y holds a negative class", "classes count from 0")
        if (self.member & (self.owner < 0)).any():
            raise DataError("a record is a member, and nobody holds it (owner -1)", _EXPECTED)
        if not self.member.any() or self.member.all():
            what = "no record that anybody trained on" if not self.member.any() else "no record that is no member"
            raise DataError(f"there is {what}", "both are needed to tell them apart: give held-out records, too")

    @property
    def n_classes(self) -> int:
        """The number of classes, as far as the records show it."""
        return int(self.y.max()) + 1

    def content(self) -> list[bytes]:
        """What the records are and who trained on which, whatever their order: a sorted list of digests."""
        rows = zip(self.x, self.y.tolist(), self.owner.tolist(), self.member.tolist(), strict=True)
        return sorted(hashlib.blake2b(x.tobytes() + repr(said).encode(), digest_size=16).digest() for x, *said in rows)

    def __str__(self) -> str:
        held, nobody = int((~self.member & (self.owner >= 0)).sum()), int((self.owner < 0).sum())
        shape, trainers = "x".join(map(str, self.x.shape[1:])), len(np.unique(self.owner[self.member]))
        return (
            f"{len(self.x):,} records of shape {shape}: {int(self.member.sum()):,} trained on by {trainers} clients, "
            f"{held:,} held by them and not trained on, {nobody:,} of nobody"
        )

    def __repr__(self) -> str:
        return f"ForeignRecords({self})"


def load_records(source: str, clients: Sequence[int], config: Mapping[str, Any] | None = None) -> ForeignRecords:
    """Load the records that `source` names (see the module's text).

    Parameters
    ----------
    source
        A function as ``package.module:function``, or an .npz file.
    clients
        Numbers of the clients, for a function that gives one client's data at a time.
    config
        The app's run config: arguments of the function that have a setting's name (``batch_size`` for ``batch-size``)
        get its value.

    Raises
    ------
    DataError
        Records that cannot be used; says why.
    ConfigError
        The function cannot be imported.
    """
    if source.endswith(".npz"):
        return _given(_read_npz(Path(source).expanduser()), source)
    if ":" not in source:
        raise DataError(f"records {source!r} are neither package.module:function nor an .npz file", _SCHEME)
    function = imported(source)
    if not callable(function):
        raise DataError(f"{source!r} is {type(function).__name__}, expected a function", _SCHEME)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    by_client = any(p.default is p.empty or p.name in _OF_A_CLIENT for p in parameters)
    if not by_client:
        return _given(_called(function, source, {}), source)
    return _by_client(function, source, parameters, clients, config or {})


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in ("x", "y", "owner", "member") if key in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the records {path}: {error}", f"an .npz file with {_EXPECTED}") from None


def _given(found: Any, source: str) -> ForeignRecords:
    """Records that come whole: a mapping, or a tuple in the order x, y, owner, member."""
    if isinstance(found, tuple | list):
        found = dict(zip(("x", "y", "owner", "member"), found, strict=False))
    if not isinstance(found, Mapping) or not {"x", "y", "owner"} <= found.keys():
        raise DataError(f"{source} gives {type(found).__name__} without x, y and owner", f"expected {_EXPECTED}")
    owner = np.asarray(found["owner"])
    if owner.dtype.kind not in "iu":
        raise DataError(f"{source}: owner is {owner.dtype}, expected whole numbers", _EXPECTED)
    member = np.asarray(found["member"]).astype(bool) if "member" in found else owner >= 0
    try:
        x, y = np.ascontiguousarray(_array(found["x"]), np.float32), np.asarray(_array(found["y"]), np.int64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: x or y are no numbers: {error}", _EXPECTED) from None
    return ForeignRecords(x, y, owner.astype(np.int32), member)


def _by_client(
    function: Callable[..., Any],
    source: str,
    parameters: Sequence[inspect.Parameter],
    clients: Sequence[int],
    config: Mapping[str, Any],
) -> ForeignRecords:
    settings = {key.replace("-", "_").replace(".", "_"): value for key, value in config.items()}

    def data_of(client: int) -> list[tuple[NDArray[np.float32], int, bool]]:
        known = {"partition_id": client, "num_partitions": len(clients), **settings}
        arguments = {}
        for place, parameter in enumerate(parameters):
            if parameter.name in known:
                arguments[parameter.name] = known[parameter.name]
            elif parameter.default is not parameter.empty:
                continue
            elif place < 2:
                arguments[parameter.name] = (client, len(clients))[place]
            else:
                raise DataError(
                    f"{source} wants {parameter.name!r}, which is no setting of the app", f"expected {_SCHEME}"
                )
        where = f"{source}, client {client}"
        parts = _called(function, source, arguments)
        if not isinstance(parts, tuple | list) or not parts:
            raise DataError(f"{source} gives {type(parts).__name__} for client {client}", f"expected {_SCHEME}")
        both = zip(parts[:2], (True, False), strict=False)
        try:
            return [(x, y, m) for part, m in both for x, y in _items(part, where)]
        except DataError:
            raise
        except Exception as error:  # the dataset is not ours
            raise DataError(
                f"{where}: a record cannot be read: {type(error).__name__}: {error}", f"expected {_SCHEME}"
            ) from error

    found = {client: data_of(client) for client in clients}
    _check_repeatable(found[clients[0]], data_of(clients[0]), source)
    rows = [(x, y, client, m) for client, data in found.items() for x, y, m in data]
    if len({x.shape for x, *_ in rows}) != 1:
        raise DataError(f"{source} gives no records, or of several shapes", "give them as the model takes them")
    return _once(
        np.stack([x for x, *_ in rows]),
        np.array([y for _, y, _, _ in rows], np.int64),
        np.array([client for *_, client, _ in rows], np.int32),
        np.array([m for *_, m in rows]),
    )


def check_repeatable(
    records: ForeignRecords, source: str, clients: Sequence[int], config: Mapping[str, Any] | None = None
) -> None:
    """Load the records again, from modules that were imported anew, and refuse a source that gives others.

    Raises
    ------
    DataError
        What it gave is not what it gave to the clients.
    """
    if source.endswith(".npz"):
        return
    if records.content() != load_records(source, clients, config).content():
        raise _other_records(source)


def _other_records(source: str) -> DataError:
    return DataError(
        f"{source} gives other records each time: what it gives now is not what the clients trained on",
        "seed its split, and take random augmentation out; or write a function without arguments that gives "
        "x, y, owner, member",
    )


def _check_repeatable(
    one: Sequence[tuple[NDArray[np.float32], int, bool]],
    other: Sequence[tuple[NDArray[np.float32], int, bool]],
    source: str,
) -> None:
    """Asked twice, the function must say the same: else what it says now is not what was trained on."""
    first, second = ([(x.tobytes(), y, m) for x, y, m in data] for data in (one, other))
    if first == second:
        return
    if sorted(first) == sorted(second):
        return  # another order, the same truth
    raise _other_records(source)


def _called(function: Callable[..., Any], source: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return function(**arguments)
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise DataError(f"{source}({shown}) failed: {type(error).__name__}: {error}", f"expected {_SCHEME}") from error


def _items(part: Any, source: str) -> Iterator[tuple[NDArray[np.float32], int]]:
    """The records of a DataLoader, of a dataset, or of (x, y) arrays, in a fixed order.

    Of a loader the dataset is read, one record after the other, those that its sampler draws and as its `collate_fn`
    makes a batch of them. Its batches are not: they are shuffled, and may leave a last one out.
    """
    if isinstance(part, tuple | list) and len(part) == 2 and not _is_pair(part[0]):
        yield from zip(np.asarray(_array(part[0]), np.float32), map(int, _array(part[1])), strict=True)
        return
    dataset = part.dataset if hasattr(part, "collate_fn") else part  # a Subset, too, has one
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"{source}: {type(part).__name__} is neither a DataLoader nor a dataset", f"expected {_SCHEME}")
    collate = _collate(part)
    for row in _drawn(part, len(dataset), source):
        if collate is None:
            x, y = _pair(dataset[row], source)
        else:
            xs, ys = _pair(collate([dataset[row]]), source)
            x, y = xs[0], ys[0]
        yield np.asarray(_array(x), np.float32), int(y)


def _collate(part: Any) -> Callable[[list[Any]], Any] | None:
    """What a loader makes batches with, if that is not what torch does by itself."""
    from torch.utils.data import default_collate, default_convert

    collate: Callable[[list[Any]], Any] | None = getattr(part, "collate_fn", None)
    return None if collate in (None, default_collate, default_convert) else collate


def _drawn(part: Any, n: int, source: str) -> Sequence[int]:
    """Which of n records a loader's sampler draws in an epoch; all of them where there is none.

    Raises
    ------
    DataError
        A sampler that draws some at random: which were trained on cannot be told afterwards.
    """
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

    batches = getattr(part, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None) if type(batches) is BatchSampler else batches
    sampler = getattr(part, "sampler", None) if sampler is None else sampler
    if sampler is None or type(sampler) is SequentialSampler:
        return range(n)
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == n:
        return range(n)
    indices = getattr(sampler, "indices", None)
    if indices is None:
        raise DataError(
            f"{source}: its {type(sampler).__name__} draws records as it goes: which were trained on cannot be told",
            "give records() -> (x, y, owner, member), or a sampler of fixed indices (SubsetRandomSampler)",
        )
    return sorted(int(i) for i in indices)


def _is_pair(item: Any) -> bool:
    return isinstance(item, dict) or (isinstance(item, tuple | list) and len(item) == 2 and np.ndim(item[1]) == 0)


def _pair(item: Any, source: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        x = next((item[key] for key in _X_KEYS if key in item), None)
        y = next((item[key] for key in _Y_KEYS if key in item), None)
        if x is None or y is None:
            raise DataError(
                f"{source}: a record has the keys {', '.join(map(str, item))}, none known as input and class",
                f"known: {', '.join(_X_KEYS)}; {', '.join(_Y_KEYS)}",
            )
        return x, y
    if isinstance(item, Iterable) and len(tuple(item)) == 2:
        x, y = item
        return x, y
    raise DataError(f"{source}: a record is {type(item).__name__}, expected (input, class) or a dict of both", _SCHEME)


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _once(
    x: NDArray[np.float32], y: NDArray[np.int64], owner: NDArray[np.int32], member: NDArray[np.bool_]
) -> ForeignRecords:
    """Each record once, so that each answer is true: what is trained on is no test record of anybody.

    A record that several clients test on is nobody's. One that several train on is left out: to each of them it would
    count as another client's record, which it is not.
    """
    digest = hashlib.blake2b
    names = [digest(a.tobytes() + b.tobytes(), digest_size=16).digest() for a, b in zip(x, y, strict=True)]
    trainers: dict[bytes, set[int]] = {}
    for row in np.flatnonzero(member).tolist():
        trainers.setdefault(names[row], set()).add(int(owner[row]))
    kept, owner = np.zeros(len(x), bool), owner.copy()
    first: dict[tuple[bytes, bool], int] = {}
    for row, name in enumerate(names):
        trained = bool(member[row])
        if len(trainers.get(name, ())) > 1 or (not trained and name in trainers):
            continue
        earlier = first.setdefault((name, trained), row)
        kept[earlier] = True
        if owner[earlier] != owner[row]:
            owner[earlier] = NOBODY
    return ForeignRecords(x[kept], y[kept], owner[kept], member[kept])
