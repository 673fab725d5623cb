"""The blind baseline: can members and non-members be told apart *without* the model?

If they can, the two groups were not drawn alike, and a membership figure measures that difference as well as the
model's leakage (Das et al. 2024, "Blind baselines beat membership inference attacks"; Meeus et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GRID = 8  # images are averaged down to at most 8 x 8 cells
_CHUNK_VALUES = 2**24  # pixels that are float32 at a time, 64 MB
_SQUARED = 1024  # features of which the squares are features too, at most


@dataclass(frozen=True)
class BlindResult:
    """How well a classifier on the records alone, cross-fitted, tells members from non-members.

    `p_value` is exact: the share of membership permutations, each fitted anew, that do at least as well. `null_95` is
    the AUC that one in twenty of them exceeds.
    """

    auc: float
    p_value: float
    null_95: float
    permutations: int
    records: int
    features: int


@dataclass(frozen=True)
class DuplicateResult:
    """Records with exactly equal content on both sides; `first_pair` is a member and a non-member with the same."""

    member_records: int
    nonmember_records: int
    first_pair: tuple[int, int] | None


def record_features(x: NDArray[np.generic], y: NDArray[np.int64], n_classes: int) -> Floats:
    """What a person sees of a record without a model: a small picture of it and its square, contrast, class.

    Parameters
    ----------
    x
        uint8 [N, C, H, W] or float [N, d].
    y
        int64 [N].

    Returns
    -------
    float64 [N, F], standardised, no constant column.
    """
    content = _standardised(content_features(x))
    parts = [content, content**2] if content.shape[1] <= _SQUARED else [content]
    parts.append((y[:, None] == np.arange(n_classes)).astype(np.float64))
    return _standardised(np.concatenate(parts, axis=1))


def content_features(x: NDArray[np.generic]) -> Floats:
    """A record as a short vector, float64 [N, F]: a small picture of an image, or the feature row itself."""
    if x.ndim != 4:
        return x.reshape(len(x), -1).astype(np.float64)
    step = max(1, _CHUNK_VALUES // max(1, int(np.prod(x.shape[1:]))))
    return np.concatenate([_picture_features(x[start : start + step]) for start in range(0, len(x), step)])


def _picture_features(x: NDArray[np.generic]) -> Floats:
    """Cells of a small picture, spread and sharpness of each channel: float64 [N, F] from uint8 [N, C, H, W]."""
    pixels = x.astype(np.float32) / 255
    n, _, height, width = pixels.shape
    rows = np.array_split(np.arange(height), min(_GRID, height))
    columns = np.array_split(np.arange(width), min(_GRID, width))
    bands = np.stack([pixels[:, :, r].mean(axis=2) for r in rows], axis=2)
    small = np.stack([bands[:, :, :, c].mean(axis=3) for c in columns], axis=3).reshape(n, -1)
    parts = [small, pixels.std(axis=(2, 3))]
    if width > 1:
        parts.append(np.abs(np.diff(pixels, axis=3)).mean(axis=(2, 3)))
    return np.concatenate(parts, axis=1).astype(np.float64)


def _standardised(values: Floats) -> Floats:
    """Mean 0 and standard deviation 1 in each column; constant columns are left out."""
    centred = values - values.mean(axis=0)
    scale = centred.std(axis=0)
    varies = scale > 1e-9 * np.maximum(1e-3, np.abs(values).max(axis=0, initial=0))
    return np.asarray(centred[:, varies] / scale[varies])


def blind_baseline(
    x: NDArray[np.generic],
    y: NDArray[np.int64],
    member: NDArray[np.bool_],
    n_classes: int,
    *,
    rng: np.random.Generator,
    permutations: int = 199,
    folds: int = 5,
    at_most: int = 20_000,
) -> BlindResult:
    """Cross-fitted ridge discriminant on the records alone, against permutations of membership.

    Ridge regression on the centred membership is a linear discriminant, and its solution for every permutation comes
    from one factorisation a fold, so the permutation test refits honestly at little cost.

    Parameters
    ----------
    x, y, member
        Records [N, ...], labels int64 [N], bool [N].
    at_most
        Records used, drawn with equal shares of members and non-members where there are more.
    """
    rows = _subsample(member, at_most, rng)  # in random order: nothing below may depend on where members stand
    features, truth = record_features(x[rows], y[rows], n_classes), member[rows]
    n, width = features.shape
    targets = np.empty((n, permutations + 1))
    targets[:, 0] = truth
    for p in range(1, permutations + 1):
        targets[:, p] = rng.permutation(truth)
    targets -= truth.mean()
    penalty = 0.1 * n
    predicted = np.empty_like(targets)
    fold_of = rng.permutation(n) % folds
    gram, moments = features.T @ features, features.T @ targets
    for fold in range(folds):
        out = fold_of == fold
        held = features[out]
        inner = gram - held.T @ held + penalty * np.eye(width)
        predicted[out] = held @ np.linalg.solve(inner, moments - held.T @ targets[out])
    aucs = _column_aucs(predicted, targets > 0)
    at_least = int((aucs[1:] >= aucs[0]).sum())
    return BlindResult(
        auc=float(aucs[0]),
        p_value=(1 + at_least) / (1 + permutations),
        null_95=float(np.quantile(aucs[1:], 0.95)),
        permutations=permutations,
        records=n,
        features=width,
    )


def label_p_value(y: NDArray[np.int64], member: NDArray[np.bool_], n_classes: int) -> float:
    """P-value of the chi-square test that members and non-members have the same class mix."""
    from scipy.special import chdtrc

    table = np.stack([np.bincount(y[g], minlength=n_classes) for g in (member, ~member)]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(chdtrc(table.shape[1] - 1, statistic))


def duplicates(
    x: NDArray[np.generic], member: NDArray[np.bool_], index: NDArray[np.int64] | None = None
) -> DuplicateResult:
    """Records whose content is exactly equal to that of a record of the other group.

    Parameters
    ----------
    x, member
        Records [N, ...] and bool [N].
    index
        int64 [N], the pool index of each record, by which the pair is named; default: 0..N-1.
    """
    flat = np.ascontiguousarray(x.reshape(len(x), -1))
    hashes = np.fromiter((hash(row.tobytes()) for row in flat), np.int64, len(flat))
    in_members = np.isin(hashes, hashes[~member]) & member
    in_nonmembers = np.isin(hashes, hashes[member]) & ~member
    first = None
    if in_members.any():
        a = int(np.flatnonzero(in_members)[0])
        b = int(np.flatnonzero(in_nonmembers & (hashes == hashes[a]))[0])
        first = (a, b) if index is None else (int(index[a]), int(index[b]))
    return DuplicateResult(int(in_members.sum()), int(in_nonmembers.sum()), first)


def _subsample(member: NDArray[np.bool_], at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    half = at_most // 2
    groups = [np.flatnonzero(g) for g in (member, ~member)]
    taken = [rng.permutation(g)[:half] if len(g) > half else g for g in groups]
    return rng.permutation(np.concatenate(taken))


def _column_aucs(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """AUC of every column, half a success for each tie: records of equal content have equal scores."""
    n = len(scores)
    order = scores.argsort(axis=0)
    ordered = np.take_along_axis(scores, order, axis=0)
    place = np.arange(n)[:, None]
    new = np.concatenate([np.ones((1, scores.shape[1]), bool), ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    ends = np.concatenate([new[1:], np.ones((1, scores.shape[1]), bool)])
    last = np.minimum.accumulate(np.where(ends, place, n)[::-1], axis=0)[::-1]
    ranks = 1 + (first + last) / 2
    of_positive = (ranks * np.take_along_axis(positive, order, axis=0)).sum(axis=0)
    n_positive = positive.sum(axis=0)
    return np.asarray((of_positive - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive)))
