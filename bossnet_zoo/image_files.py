"""Image files: which there are, and what is raised for those that cannot be read."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import UsageError

# What Pillow raises for files that are damaged, cut short, absurdly large or no images at all.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def load_image(file: str | IO[bytes]) -> Image.Image:
    """The image in a file, of any mode. Raises one of `UNREADABLE`, for one of too many pixels too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # on large ones, which are read all the same
        image = Image.open(file)
        image.load()
    return image


def why_unreadable(error: BaseException) -> str:
    """In words what Pillow raised for a file."""
    if isinstance(error, Image.DecompressionBombError):
        numbers = [round(int(number) / 1e6) for number in re.findall(r"\d+", str(error))]
        if len(numbers) == 2:
            return f"it has {numbers[0]} million pixels, and at most {numbers[1]} million are read"
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known kind, or damaged"
    return getattr(error, "strerror", None) or re.sub(" <.*>", "", str(error))  # without Python's name of a buffer


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit colour; grey of 16 bits is scaled, where Pillow alone would cut it off at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        image = Image.fromarray((grey // 256 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass(frozen=True)
class FileSource:
    """Image files."""

    paths: Sequence[str]
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        with open(self.paths[index], "rb") as file:
            return load_image(file)

    def describe(self, index: int) -> str:
        return self.paths[index]


def image_files(root: Path) -> list[str]:
    """All image files in a folder and below, in order."""
    found = []
    seen: set[str] = set()  # a link may lead back
    for parent, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [os.path.join(parent, name) for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)]
    return found


def expand_folders(paths: Sequence[str]) -> list[str]:
    """Image files as they are, and for each folder all images in it and below.

    Raises:
        UsageError: something does not exist, or a folder has no images.
    """
    files = []
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"{path} does not exist; give image files or folders of them")
        found = image_files(Path(path)) if os.path.isdir(path) else [path]
        if not found:
            raise UsageError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}); give another folder")
        files += found
    return files
