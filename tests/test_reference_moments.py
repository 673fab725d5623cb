"""The engine below all attacks with reference models, against loops over records that anyone can check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memberscope import reference_moments
from memberscope.reference_moments import Grouped, means, medians, moments

shapes = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 7))


def group(queries: int, n: int, k: int, seed: int, *, balanced: bool, offset: float = 0.0) -> Grouped:
    rng = np.random.default_rng(seed)
    n_in = np.full(n, k // 2) if balanced else rng.integers(0, k + 1, n)
    return Grouped(rng.normal(0, 2, (queries, n, k)), rng.normal(offset, 5, (queries, n)), n_in)


@given(shapes, st.integers(0, 1000), st.booleans())
def test_moments_and_medians_are_those_of_a_loop(shape: tuple[int, int, int], seed: int, balanced: bool) -> None:
    one = group(*shape, seed, balanced=balanced)
    found, middle = moments(one), medians(one)
    for query in range(shape[0]):
        for record in range(shape[1]):
            values, cut = one.values[query, record], one.n_in[record]
            for world, mine, median in zip((values[:cut], values[cut:]), found, middle, strict=True):
                assert mine.n[record] == len(world)
                if len(world):
                    assert mine.mean[query, record] == pytest.approx(world.mean(), rel=1e-12)
                    assert mine.ss[query, record] == pytest.approx(len(world) * world.var(), rel=1e-9, abs=1e-12)
                    assert median[query, record] == pytest.approx(np.median(world), rel=1e-12)
                else:
                    assert np.isnan(mine.mean[query, record])
                    assert mine.ss[query, record] == 0
                    assert np.isnan(median[query, record])


@given(shapes, st.integers(0, 1000), st.booleans())
def test_means_of_what_is_made_of_the_values(shape: tuple[int, int, int], seed: int, balanced: bool) -> None:
    one = group(*shape, seed, balanced=balanced)
    seen = np.zeros(shape[:2], bool)

    def cubed(block: np.ndarray, query: int, rows: slice) -> None:
        seen[query, rows] = True
        block **= 3

    inside, outside = means(one, cubed)
    first = np.arange(shape[2]) < one.n_in[:, None]
    for found, mask in ((inside, first), (outside, ~first)):
        expected = np.where(mask, one.values**3, 0).sum(-1) / np.maximum(mask.sum(-1), 1)
        expected[:, ~mask.any(-1)] = np.nan
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert seen.all()


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("values", [1, 16, 50, 10**6])
def test_the_size_of_blocks_changes_nothing(values: int, balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    one = group(2, 103, 8, 0, balanced=balanced)
    expected = moments(one)
    monkeypatch.setattr(reference_moments, "_BLOCK_VALUES", values)
    for found, wanted in zip(moments(one), expected, strict=True):
        np.testing.assert_array_equal(found.mean, wanted.mean)
        np.testing.assert_array_equal(found.ss, wanted.ss)
    np.testing.assert_array_equal(medians(one), medians(group(2, 103, 8, 0, balanced=balanced)))


@pytest.mark.parametrize("balanced", [True, False])
def test_a_common_offset_costs_no_digits(balanced: bool) -> None:
    near, far = (group(1, 50, 6, 1, balanced=balanced, offset=offset) for offset in (0.0, 1e9))
    for a, b in zip(moments(near), moments(far), strict=True):
        np.testing.assert_array_equal(a.ss, b.ss)
    equal = moments(Grouped(np.zeros((1, 3, 4)), np.full((1, 3), 0.1), np.array([0, 2, 4])))
    for world in equal:
        np.testing.assert_array_equal(world.ss, 0)
