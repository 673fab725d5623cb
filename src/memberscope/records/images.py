"""The user's own records as a folder of pictures, one folder a class."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memberscope.errors import DataError
from memberscope.records.npz import Pool
from memberscope.records.readers import reading

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's other plugins run programs (EPS) or give something else than one picture in 8 bits.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
LAYOUT = "train/<class>/* and test/<class>/*, or <class>/*"
_LITTER = ("Thumbs.db", "desktop.ini")


def read_image_folder(root: Path, *, progress: bool = True) -> Pool:
    """Read a pool from pictures in folders, in the order of class names and file names.

    Parameters
    ----------
    root
        Laid out as `LAYOUT`; without a test folder the pool has no official split (is_train all True). All pictures
        have one size, one frame and 8 bits a channel, in one of `FORMATS`. If all are grey, records have one channel;
        else grey ones are repeated to three. Hidden files are passed over; any other file that is no picture is
        refused, so that no record is lost unnoticed.
    progress
        Show a progress bar on standard error, where that is a terminal.

    Raises
    ------
    DataError
        Names the folder or picture, what was expected and what was found.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", f"give a folder with {LAYOUT}: imagefolder:PATH")
    train, test = root / "train", root / "test"
    parts = [train, test] if _folders(train) and test.is_dir() else [train] if _folders(train) else [root]
    classes = _class_names(parts)
    files, y, is_train = [], [], []
    for part in parts:
        for label, name in enumerate(classes):
            pictures = _pictures(part / name)
            files += pictures
            y += [label] * len(pictures)
            is_train += [part is parts[0]] * len(pictures)
    return _decode(files, progress=progress), np.array(y, np.int64), np.array(is_train), classes


def unread_folders(root: Path) -> list[str]:
    """Give the folders beside train and test, which are not read."""
    return [name for name in _folders(root) if name not in ("train", "test")] if _folders(root / "train") else []


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(parts: list[Path]) -> tuple[str, ...]:
    names = [_folders(part) for part in parts]
    for part, found in zip(parts, names, strict=True):
        if not found:
            raise DataError(f"{part} holds no folders of classes", f"expected {LAYOUT}")
    if names[0] != names[-1]:
        odd = sorted(set(names[0]) ^ set(names[-1]))
        raise DataError(
            f"{parts[0]} and {parts[-1]} hold different classes: {', '.join(odd[:5])} only in one of them",
            "give both parts the same folders",
        )
    return tuple(names[0])


def _pictures(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in _LITTER)
    nested = [path for path in files if path.is_dir()]
    if nested:
        raise DataError(f"{nested[0]} is a folder inside the class {folder.name}", f"expected pictures: {LAYOUT}")
    if not files:
        raise DataError(f"{folder} holds no pictures", "remove the empty folder, or fill it")
    return files


def _decode(files: list[Path], *, progress: bool) -> NDArray[np.uint8]:
    first = _pixels(files[0])
    x = np.empty((len(files), *first.shape), np.uint8)
    for row, path in enumerate(_tracked(files, progress)):
        pixels = _pixels(path)
        if pixels.shape[1:] != x.shape[2:]:
            height, width = pixels.shape[1:]
            raise DataError(
                f"pictures of different sizes: {files[0]} is {x.shape[3]}x{x.shape[2]}, {path} is {width}x{height}",
                "scale or crop all pictures to one size",
            )
        if len(pixels) > x.shape[1]:  # the first in colour after grey ones
            x = np.repeat(x, 3, axis=1)
        x[row] = pixels
    return x


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Decode one picture to uint8 [1 or 3, H, W]."""
    from PIL import Image

    hint = "mend or remove the picture; files that are no pictures do not belong into the folders of classes"
    with reading(path, f"a picture ({', '.join(FORMATS)})", hint), Image.open(path, formats=FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames != 1:
            raise ValueError(f"{frames} frames")
        image.load()
        plain = _without_alpha(image)
        if plain.mode == "1":
            plain = plain.convert("L")
        elif plain.mode in ("P", "CMYK", "YCbCr"):
            plain = plain.convert("RGB")
        if plain.mode not in ("L", "RGB"):
            raise ValueError(f"the mode {plain.mode}, not 8 bits a channel")
        pixels = np.asarray(plain)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _without_alpha(image: Image) -> Image:
    """Drop an alpha channel that says nothing; refuse one that hides part of the picture."""
    if not image.has_transparency_data:
        return image
    full = image.convert("RGBA")
    if full.getchannel("A").getextrema() != (255, 255):
        raise ValueError("transparent pixels")
    return full.convert("L" if image.mode in ("L", "LA") else "RGB")


def _tracked(files: list[Path], wanted: bool) -> Iterable[Path]:
    if not wanted or not sys.stderr.isatty():
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, description="decoding pictures", console=Console(stderr=True), transient=True)
