"""Batches: normalised as the formula says, augmented as drawn, every record once an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memberscope.training.batches import (
    Draws,
    Normalisation,
    Records,
    StackedRecords,
    draw,
    fixed,
    measure,
    upload,
)
from memberscope.training.recipe import Recipe
from memberscope.training.train_target import fit

CPU = torch.device("cpu")


def images(n=40, channels=3, height=8, width=6, seed=0):
    return np.random.default_rng(seed).integers(256, size=(n, channels, height, width)).astype(np.uint8)


def expected(x, normalisation):
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    scale = 255 if x.ndim == 4 else 1
    return (x.astype(np.float64) / scale - normalisation.mean.reshape(shape)) / normalisation.std.reshape(shape)


@pytest.mark.parametrize("x", [images(), images(channels=1), np.random.default_rng(0).normal(7, 3, (50, 5))])
def test_normalisation_is_that_of_the_members(x):
    x = x if x.ndim == 4 else x.astype(np.float32)
    member = np.arange(len(x)) % 3 == 0
    found = measure(x, member)
    values = x[member].astype(np.float64) / (255 if x.ndim == 4 else 1)
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    np.testing.assert_allclose(found.mean, values.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(found.std, values.std(axes), rtol=1e-6)
    other = x.copy()
    other[~member] = 0
    again = measure(other, member)
    assert np.array_equal(again.mean, found.mean)
    assert np.array_equal(again.std, found.std)


def test_constant_channels_and_features_are_not_divided_by_zero():
    x = images()
    x[:, 1] = 13
    assert measure(x, np.ones(40, bool)).std[1] == 1
    rows = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    rows[:, 0] = 1e6
    found = measure(rows, np.ones(30, bool))
    assert found.std[0] == 1
    assert Records(rows, found, CPU).batch(slice(0, 30))[:, 0].abs().max() == 0


def test_a_large_mean_does_not_swallow_the_spread():
    rows = (1000 + np.random.default_rng(0).normal(0, 0.5, (20_000, 1))).astype(np.float32)
    assert measure(rows, np.ones(len(rows), bool)).std[0] == pytest.approx(rows.std(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize("x", [images(), images(channels=1, height=4, width=4)])
def test_a_batch_is_the_normalised_records_channels_last(x):
    normalisation = measure(x, np.ones(len(x), bool))
    index = np.array([3, 0, 3, 17])
    batch = Records(x, normalisation, CPU).batch(torch.from_numpy(index))
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(batch.numpy(), expected(x[index], normalisation), atol=2e-6)


def test_a_slice_can_be_mirrored():
    x = images()
    records = Records(x, Normalisation(np.zeros(3, np.float32), np.ones(3, np.float32)), CPU)
    np.testing.assert_array_equal(
        records.batch(slice(2, 5), flipped=True).numpy(), records.batch(slice(2, 5)).numpy()[..., ::-1]
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 17), st.integers(2, 17), st.booleans(), st.booleans(), st.integers(0, 99))
def test_augmentation_is_that_of_the_obvious_loop(channels, height, width, flips, crops, seed):
    x = images(12, channels, height, width, seed)
    records = Records(x, Normalisation(np.zeros(channels, np.float32), np.full(channels, 1 / 255, np.float32)), CPU)
    rng = np.random.default_rng(seed)
    names = ("flip",) * flips + ("crop",) * crops
    draws = draw(12, 5, names, records.padding, rng, rng)
    pad = records.padding
    for index, chosen in zip(draws.batches, draws.on(CPU), strict=True):
        want = []
        for i in index:
            image = x[i]
            if draws.offset is not None:
                top, left = draws.offset[i]
                image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + height, left : left + width]
            want.append(image[..., ::-1] if draws.flip is not None and draws.flip[i] else image)
        np.testing.assert_allclose(records.batch(*chosen).numpy(), np.stack(want), atol=1e-3)


def test_crops_and_flips_leave_the_records_alone():
    x = images()
    records = Records(x, Normalisation(np.zeros(3, np.float32), np.ones(3, np.float32)), CPU)
    before = records.batch(slice(None)).clone()
    draws = Draws([np.arange(40)], np.ones(40, bool), np.zeros((40, 2), np.int64))
    (chosen,) = draws.on(CPU)
    records.batch(*chosen)
    assert torch.equal(records.batch(slice(None)), before)


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 1000))
def test_an_epoch_holds_every_record_once_in_batches_of_nearly_equal_size(n, batch_size, seed):
    draws = draw(n, batch_size, (), 4, np.random.default_rng(seed), np.random.default_rng(seed))
    sizes = [len(b) for b in draws.batches]
    assert sorted(np.concatenate(draws.batches)) == list(range(n))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // batch_size)


def test_augmentation_draws_do_not_disturb_the_order():
    plain, augmented = (
        draw(50, 8, names, 4, np.random.default_rng(1), np.random.default_rng(2)) for names in ((), ("flip", "crop"))
    )
    assert all(np.array_equal(a, b) for a, b in zip(plain.batches, augmented.batches, strict=True))
    assert plain.flip is None
    assert plain.offset is None
    assert 10 < augmented.flip.sum() < 40
    assert augmented.offset.min() == 0
    assert augmented.offset.max() == 8


@settings(deadline=None, max_examples=20)
@given(st.booleans(), st.booleans(), st.sampled_from([(3, 8, 8), (1, 6, 10), (7,)]), st.integers(0, 99))
def test_batches_of_several_models_at_once_are_each_one_s_own(flips, crops, shape, seed):
    rng = np.random.default_rng(seed)
    image = len(shape) == 3
    x = rng.integers(0, 256, (30, *shape), dtype=np.uint8) if image else rng.normal(size=(30, *shape)).astype("f4")
    pool = Records(x, fixed(x), CPU)
    rows = [np.sort(rng.permutation(30)[:12]) for _ in range(3)]
    chosen = [pool.chosen(r, measure(x, np.isin(np.arange(30), r))) for r in rows]
    apart = [Records(x[r], measure(x, np.isin(np.arange(30), r)), CPU) for r in rows]
    names = (("flip",) * flips + ("crop",) * crops) if image else ()
    draws = [draw(12, 5, names, pool.padding, rng, rng) for _ in rows]
    stacked = StackedRecords(chosen)
    batches = [stacked.batch(*of_all) for of_all in upload(draws, CPU)]
    assert len(batches) == 3
    for k in range(3):
        for step, drawn in enumerate(draws[k].on(CPU)):
            own = apart[k].batch(*drawn)
            assert torch.equal(batches[step][k], own)
            assert torch.equal(chosen[k].batch(*drawn), own)
        index = draws[k].batches[0]
        assert torch.equal(chosen[k].batch(slice(2, 7)), apart[k].batch(slice(2, 7)))
        assert torch.equal(chosen[k].part(index).batch(slice(None)), apart[k].batch(torch.from_numpy(index)))
        assert len(chosen[k]) == 12


@pytest.mark.parametrize("names", [(), ("flip",), ("crop",), ("flip", "crop")])
def test_batches_of_poisson_sampling_are_uploaded_as_drawn_the_empty_ones_too(names):
    x = images(40)
    records = Records(x, fixed(x), CPU)
    draws = draw(40, 1, names, 1, np.random.default_rng(0), np.random.default_rng(1), poisson=True)
    assert {0, 1, 2} <= {len(batch) for batch in draws.batches}
    for index, chosen in zip(draws.batches, draws.on(CPU), strict=True):
        np.testing.assert_array_equal(chosen.positions, index)
        for found, drawn in ((chosen.flip, draws.flip), (chosen.offset, draws.offset)):
            assert (found is None) if drawn is None else np.array_equal(found, drawn[index])
        assert records.batch(*chosen).shape == (len(index), 3, 8, 6)


def test_steps_upload_nothing(monkeypatch):
    """What an epoch draws goes to the device at once, in however many steps it is trained."""
    x, y = images(40), np.arange(40) % 3
    upload_, uploads = torch.from_numpy, []
    monkeypatch.setattr(torch, "from_numpy", lambda array: uploads.append(array.shape) or upload_(array))
    counts = []
    for batch_size in (40, 4):
        recipe = Recipe(model="mlp", epochs=2, batch_size=batch_size, augmentation=("flip", "crop"))
        uploads.clear()
        fit(recipe, x, y, np.ones(40, bool), n_classes=3, seed=0, device="cpu")
        counts.append(len(uploads))
    assert counts[0] == counts[1] > 0


def test_only_records_chosen_from_the_same_are_stacked():
    x = images()
    one, other = (Records(x, fixed(x), CPU) for _ in range(2))
    for wrong in ([one, one], [one.chosen(np.arange(3), fixed(x)), other.chosen(np.arange(3), fixed(x))]):
        with pytest.raises(ValueError, match="not chosen from the same"):
            StackedRecords(wrong)
