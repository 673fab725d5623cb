"""Folders of pictures: every picture a record, in order; what is no picture or has another size is refused by name."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from memberscope.errors import DataError
from memberscope.records.images import read_image_folder, unread_folders

RNG = np.random.default_rng(6)
RGB = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def put(path, pixels=None, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RGB[0] if pixels is None else pixels)
    (image.convert(mode) if mode else image).save(path, **options)


def test_a_plain_folder_is_a_pool_without_a_split(tmp_path):
    for i, name in enumerate(["dog/2.png", "cat/b.png", "cat/a.bmp", "dog/10.tif"]):
        put(tmp_path / name, RGB[i])
    (tmp_path / "README.txt").write_text("beside the classes, so no record")
    (tmp_path / "cat" / ".DS_Store").write_text("")
    (tmp_path / "cat" / "Thumbs.db").write_text("")
    x, y, is_train, classes = read_image_folder(tmp_path)
    assert classes == ("cat", "dog")
    assert (y.tolist(), y.dtype) == ([0, 0, 1, 1], np.int64)
    np.testing.assert_array_equal(x, RGB[[2, 1, 3, 0]].transpose(0, 3, 1, 2))
    assert is_train.dtype == bool
    assert is_train.all()


def test_train_and_test_folders_are_the_official_split(tmp_path):
    for i, name in enumerate(["train/b/1.png", "train/a/1.png", "train/a/2.png", "test/a/1.png", "test/b/1.png"]):
        put(tmp_path / name, RGB[i])
    (tmp_path / "val" / "a").mkdir(parents=True)
    x, y, is_train, classes = read_image_folder(tmp_path)
    assert classes == ("a", "b")
    assert y.tolist() == [0, 0, 1, 0, 1]
    assert is_train.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(x, RGB[[1, 2, 0, 3, 4]].transpose(0, 3, 1, 2))
    assert unread_folders(tmp_path) == ["val"]


def test_a_train_folder_alone_has_no_split_and_a_class_may_be_called_train(tmp_path):
    for name in ("one/train/a/1.png", "one/train/b/1.png", "two/train/1.png", "two/plane/1.png"):
        put(tmp_path / name)
    assert read_image_folder(tmp_path / "one")[2].all()
    assert read_image_folder(tmp_path / "two")[3] == ("plane", "train")
    assert unread_folders(tmp_path / "two") == []


def test_grey_pictures_have_one_channel(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name / "1.png", RGB[0, :, :, 0])
    x, *_ = read_image_folder(tmp_path)
    assert x.shape == (2, 1, 5, 4)
    np.testing.assert_array_equal(x[0, 0], RGB[0, :, :, 0])


def test_grey_among_colour_is_repeated_wherever_it_stands(tmp_path):
    put(tmp_path / "a" / "1.png", RGB[0, :, :, 0])
    put(tmp_path / "a" / "2.png", RGB[1])
    put(tmp_path / "b" / "1.png", RGB[2, :, :, 0])
    x, *_ = read_image_folder(tmp_path)
    assert x.shape == (3, 3, 5, 4)
    np.testing.assert_array_equal(x[0], np.broadcast_to(RGB[0, :, :, 0], (3, 5, 4)))
    np.testing.assert_array_equal(x[1], RGB[1].transpose(2, 0, 1))
    np.testing.assert_array_equal(x[2], np.broadcast_to(RGB[2, :, :, 0], (3, 5, 4)))


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_other_modes_become_grey_or_colour(tmp_path, mode, channels):
    suffix = "tif" if mode == "CMYK" else "png"
    for name in ("a", "b"):
        put(tmp_path / name / f"1.{suffix}", mode=mode)
    x, *_ = read_image_folder(tmp_path)
    assert x.shape == (2, channels, 5, 4)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(x[0], RGB[0].transpose(2, 0, 1))


def two_classes(root):
    put(root / "a" / "1.png")
    put(root / "b" / "1.png")
    return root


def test_pictures_of_different_sizes_are_both_named(tmp_path):
    put(two_classes(tmp_path) / "b" / "2.png", RGB[0, :4])
    with pytest.raises(DataError) as caught:
        read_image_folder(tmp_path)
    assert caught.value.problem == (
        f"pictures of different sizes: {tmp_path / 'a' / '1.png'} is 4x5, {tmp_path / 'b' / '2.png'} is 4x4"
    )


def transparent():
    alpha = np.full((5, 4, 1), 255, np.uint8)
    alpha[2, 2] = 254
    return np.concatenate((RGB[0], alpha), axis=2)


def save_moving(path):
    Image.fromarray(RGB[0]).save(path, save_all=True, append_images=[Image.fromarray(RGB[1])])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("notes.txt", lambda path: path.write_text("text"), "UnidentifiedImageError"),
        ("empty.png", lambda path: path.write_bytes(b""), "UnidentifiedImageError"),
        ("deep.png", lambda path: Image.fromarray(np.zeros((5, 4), np.uint16)).save(path), "the mode I;16"),
        ("moving.gif", save_moving, "2 frames"),
        ("clear.png", lambda path: Image.fromarray(transparent()).save(path), "transparent pixels"),
        ("page.eps", lambda path: Image.fromarray(RGB[0]).save(path), "UnidentifiedImageError"),
    ],
)
def test_what_is_no_plain_picture_is_named(tmp_path, name, write, message):
    write(two_classes(tmp_path) / "b" / name)
    with pytest.raises(DataError, match=message) as caught:
        read_image_folder(tmp_path)
    assert f"cannot read {tmp_path / 'b' / name}: expected a picture (PNG, JPEG" in caught.value.problem


def test_folders_that_hold_no_pool_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*absent"):
        read_image_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no folders of classes"):
        read_image_folder(tmp_path / "empty")
    (two_classes(tmp_path / "poor") / "c").mkdir()
    with pytest.raises(DataError, match=r"poor/c holds no pictures"):
        read_image_folder(tmp_path / "poor")
    (two_classes(tmp_path / "nested") / "b" / "more").mkdir()
    with pytest.raises(DataError, match=r"nested/b/more is a folder inside the class b"):
        read_image_folder(tmp_path / "nested")
    two_classes(tmp_path / "odd" / "train")
    put(tmp_path / "odd" / "test" / "a" / "1.png")
    with pytest.raises(DataError, match=r"odd/train and .*odd/test hold different classes: b only in one"):
        read_image_folder(tmp_path / "odd")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"]), share=st.floats(0, 0.97))
def test_a_truncated_picture_is_a_data_error(tmp_path, suffix, share):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, Image.registered_extensions()[f".{suffix}"])
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "1").write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(DataError, match=r"cannot read .*a/1: expected a picture"):
        read_image_folder(tmp_path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path)
    read_image_folder(tmp_path)
    assert capsys.readouterr() == ("", "")
    for wanted in (False, True):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        read_image_folder(tmp_path, progress=wanted)
        assert ("decoding pictures" in terminal.getvalue()) is wanted
