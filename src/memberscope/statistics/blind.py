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


@dataclass(frozen=True)
class BlindResult:
    """How well a classifier on the records alone, cross-fitted, tells members from non-members.

    `p_value` is exact: the share of membership permutations, each fitted anew, that do at least as well.
    """

    auc: float
    p_value: float
    null_95: float
    permutations: int
    records: int
    features: int


@dataclass(frozen=True)
class DuplicateResult:
    """Records with exactly equal content on both sides."""

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
    n = len(x)
    if x.ndim == 4:
        pixels = x.astype(np.float32) / 255
        channels, height, width = pixels.shape[1:]
        rows = np.array_split(np.arange(height), min(_GRID, height))
        columns = np.array_split(np.arange(width), min(_GRID, width))
        bands = np.stack([pixels[:, :, r].mean(axis=2) for r in rows], axis=2)
        small = np.stack([bands[:, :, :, c].mean(axis=3) for c in columns], axis=3).reshape(n, -1)
        spread = pixels.std(axis=(2, 3)).reshape(n, channels)
        sharp = np.abs(np.diff(pixels, axis=3)).mean(axis=(2, 3)).reshape(n, channels)
        content = np.concatenate([small, spread, sharp], axis=1)
    else:
        content = x.astype(np.float32).reshape(n, -1)
    content = content.astype(np.float64)
    content -= content.mean(axis=0)
    content /= np.maximum(content.std(axis=0), 1e-12)
    parts = [content, content**2] if content.shape[1] <= 1024 else [content]
    parts.append((y[:, None] == np.arange(n_classes)).astype(np.float64))
    features = np.concatenate(parts, axis=1)
    features -= features.mean(axis=0)
    scale = features.std(axis=0)
    return np.asarray(features[:, scale > 1e-9] / scale[scale > 1e-9])


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

    Ridge regression on the class weights' +-1 target is a linear discriminant, and its solution for every permutation
    comes from one factorisation a fold, so the permutation test refits honestly at little cost.

    Parameters
    ----------
    x, y, member
        Records [N, ...], labels int64 [N], bool [N].
    at_most
        Records used, drawn with equal shares of members and non-members where there are more.
    """
    rows = _subsample(member, at_most, rng)
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


def duplicates(x: NDArray[np.generic], member: NDArray[np.bool_]) -> DuplicateResult:
    """Records whose content is exactly equal to that of a record of the other group."""
    flat = np.ascontiguousarray(x.reshape(len(x), -1))
    keys = flat.view(np.dtype((np.void, flat.shape[1] * flat.itemsize))).ravel()
    hashes = np.fromiter((hash(k.tobytes()) for k in keys), np.int64, len(keys))
    in_members = np.isin(hashes, hashes[~member]) & member
    in_nonmembers = np.isin(hashes, hashes[member]) & ~member
    first = None
    if in_members.any():
        a = int(np.flatnonzero(in_members)[0])
        partners = np.flatnonzero(in_nonmembers & (hashes == hashes[a]))
        first = (a, int(partners[0]))
    return DuplicateResult(int(in_members.sum()), int(in_nonmembers.sum()), first)


def _subsample(member: NDArray[np.bool_], at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    half = at_most // 2
    groups = [np.flatnonzero(g) for g in (member, ~member)]
    taken = [rng.permutation(g)[:half] if len(g) > half else g for g in groups]
    return np.sort(np.concatenate(taken))


def _column_aucs(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """AUC of every column; the scores of a ridge fit are continuous, so ties do not matter."""
    ranks = np.empty(scores.shape)
    order = scores.argsort(axis=0)
    np.put_along_axis(ranks, order, np.arange(1.0, len(scores) + 1)[:, None], axis=0)
    n_positive = positive.sum(axis=0)
    n_negative = len(scores) - n_positive
    return np.asarray(((ranks * positive).sum(axis=0) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
