"""Where images come from: arrays, files, Hub datasets and tar shards, all read by index.

A source knows its images in one fixed order. How they are divided into parts is the business of `datasets.py`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from . import console
from .errors import DataError, UsageError
from .image_files import IMAGE_SUFFIXES, FileSource, image_files, load_image
from .shards import TarSource, read_shards

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "target", "category")
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("val", "validation", "valid", "test")


class Source(Protocol):
    """Images in a fixed order, with their labels where there are any."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The image as stored, in any mode. Raises one of `UNREADABLE`."""

    def describe(self, index: int) -> str:
        """What to call the image in a message: its path, or its place."""


@dataclass(frozen=True)
class ArraySource:
    """Images in memory: uint8, (N, H, W) or (N, H, W, 3)."""

    name: str
    images: np.ndarray
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


@dataclass(frozen=True)
class HubSource:
    """One split of a dataset opened by the `datasets` library, whose images stay encoded until they are read."""

    name: str
    rows: Any
    image_column: str
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Image.Image:
        stored = self.rows[index][self.image_column]
        return load_image(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"])

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


def digits() -> ArraySource:
    """The 1,797 handwritten digits of scikit-learn: 8 x 8 pixels and 17 grey levels, here 64 x 64 and 0..255."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = np.rint(data.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)) for image in small]
    return ArraySource("digits", np.stack(large), data.target.tolist(), tuple("0123456789"))


def hard_digits(train: bool) -> ArraySource:
    """The digits made hard enough to tell networks apart: 8 x 8 pixels under noise, half of them for testing.

    The noise is normal with 0.35 of white as its deviation, a fixed part of every image (drawn from seed 0).
    """
    from sklearn.datasets import load_digits

    data, generator = load_digits(), np.random.default_rng(0)
    noisy = data.images / 16 + 0.35 * generator.standard_normal(data.images.shape)
    grey = np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)
    order = generator.permutation(len(grey))  # as they come, the digits repeat 0 to 9
    half = np.sort(order[: len(order) // 2] if train else order[len(order) // 2 :])
    return ArraySource("digits:hard", grey[half], data.target[half].tolist(), tuple("0123456789"))


def cifar(name: str, root: str, train: bool) -> ArraySource:
    """CIFAR-10 or CIFAR-100 from `root`, as torchvision stores it; downloaded if it is not there."""
    from torchvision import datasets as torchvision_datasets

    kind = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[name]
    try:
        data = kind(root, train=train, download=not _is_there(kind, root))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({error}); "
            f"put torchvision's copy there, or give its folder: --data {name}:FOLDER"
        ) from error
    return ArraySource(name, data.data, list(data.targets), tuple(data.classes))


def _is_there(kind: Any, root: str) -> bool:
    return os.path.isdir(os.path.join(root, kind.base_folder))


def hub(name: str, train: bool) -> HubSource | None:
    """The train or the test split of `NAME[:CONFIG]`, a Hub dataset or a local folder; None if it has no test split."""
    try:
        import datasets
    except ImportError:
        raise UsageError('hf: datasets need a package more; type: pip install "bossnet-zoo[data]"') from None
    path, _, config = name.partition(":")
    try:
        splits = datasets.load_dataset(path, config or None)
    except Exception as error:  # those of every format and archive that the package knows
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"dataset hf:{name} could not be opened: {reason}") from error
    wanted = [split for split in (TRAIN_FOLDERS if train else TEST_FOLDERS) if split in splits]
    if not wanted:
        if train:
            raise DataError(f"dataset hf:{name} has no split named train; it has {', '.join(splits)}")
        return None
    rows = splits[wanted[0]]
    images = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    classes = [column for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if not images:
        raise DataError(f"dataset hf:{name} has no column of images; its columns are {', '.join(rows.features)}")
    labels = rows[classes[0]][:] if classes else None
    names = tuple(rows.features[classes[0]].names) if classes else None
    rows = rows.cast_column(images[0], datasets.Image(decode=False))
    return HubSource(f"hf:{name}", rows, images[0], labels, names)


def folder(root: Path, train: bool) -> FileSource | TarSource | None:
    """The training or the test side of a folder, None where it has none; an undivided folder is a training side.

    Known forms: `train/` and `val/` (or `test/`), each with one folder per class, unlabelled images or tar shards;
    `train.csv` and `val.csv`, one CSV; shards `train-000.tar` and `val-000.tar`; or no division at all.
    """
    if tars := sorted(root.glob("*.tar")):
        sides = [_side(tar) for tar in tars]
        if {*sides} != {TRAIN_FOLDERS, TEST_FOLDERS}:
            return read_shards(map(str, tars), str(root)) if train else None
        wanted = TRAIN_FOLDERS if train else TEST_FOLDERS
        return read_shards([str(tar) for tar, side in zip(tars, sides, strict=True) if side == wanted], str(root))
    if tables := sorted(root.glob("*.csv")):
        by_stem = {table.stem.lower(): table for table in tables}
        side = _first(by_stem, TRAIN_FOLDERS if train else TEST_FOLDERS)
        if len(tables) == 1 or side is None:
            return _csv(tables[0], tables) if train else None
        return _csv(by_stem[side], tables)
    folders = {name.lower(): root / name for name in _folders(root)}
    train_name, test_name = _first(folders, TRAIN_FOLDERS), _first(folders, TEST_FOLDERS)
    # A lone folder named train among others is a class: there are pictures of trains.
    divided = (train_name and test_name) or (folders.keys() and folders.keys() <= {*TRAIN_FOLDERS, *TEST_FOLDERS})
    if not divided:
        return _images_or_shards(root) if train else None
    side = train_name if train else test_name
    if side is None:
        return None
    classes = _class_folders(folders[train_name]) if train_name and not train else ()
    return _images_or_shards(folders[side], classes)


def _side(shard: Path) -> tuple[str, ...] | None:
    """Whether a shard's name says, as `imagenet-val-000.tar` does, that its images are for training or for testing."""
    words = re.split("[^a-z]+", shard.stem.lower())
    return next((names for names in (TRAIN_FOLDERS, TEST_FOLDERS) if set(names) & set(words)), None)


def _first(known: Container[str], wanted: Iterable[str]) -> str | None:
    return next((name for name in wanted if name in known), None)


def _images_or_shards(root: Path, classes: Sequence[str] = ()) -> FileSource | TarSource:
    """Images below `root`; their labels are positions in `classes`, by default `root`'s own folders."""
    if tars := sorted(root.glob("*.tar")):
        return read_shards(map(str, tars), str(root))
    own = _class_folders(root)
    if not own:
        return FileSource(image_files(root), None, None)
    if classes and (strangers := sorted(set(own) - set(classes))):
        raise DataError(f"{root} has classes that the training images do not have: {', '.join(strangers[:5])}")
    names = list(classes) or own
    if beside := sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in root.iterdir()):
        console.note_once(f"{root}: its folders are classes, so {beside} images beside them are left out")
    by_class = {name: image_files(root / name) for name in own}
    if empty := [name for name, files in by_class.items() if not files]:
        console.note_once(
            f"{root}: {len(empty)} classes have no images, and count all the same: {', '.join(empty[:5])}"
        )
    paths = [path for name in own for path in by_class[name]]
    labels = [names.index(name) for name in own for _ in by_class[name]]
    return FileSource(paths, labels, tuple(names))


def _class_folders(root: Path) -> list[str]:
    return sorted(name for name in _folders(root) if not name.startswith("."))


def _folders(root: Path) -> Iterator[str]:
    """The names of the folders in `root`; a link that leads to itself is none."""
    with os.scandir(root) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir():
                    yield entry.name


def table(file: Path) -> FileSource:
    """The images that one CSV names, without a division."""
    return _csv(file, [file])


def _csv(table: Path, tables: Sequence[Path]) -> FileSource:
    """The images that one table names; the class names are those of all `tables` together."""
    names = sorted({label for other in tables for _, label in _rows(other)}, key=_natural)
    numbers = {name: number for number, name in enumerate(names)}
    rows = _rows(table)
    paths = [str(table.parent / file) for file, _ in rows]
    return FileSource(paths, [numbers[label] for _, label in rows], tuple(names))


def _rows(table: Path) -> list[tuple[str, str]]:
    """File and label of each row: the columns that a header calls so, else the first two; others are ignored."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read as CSV in UTF-8: {error}; save it anew in that form") from error
    file_at, label_at = 0, 1
    if rows and not any(cell.strip().lower().endswith(IMAGE_SUFFIXES) for cell in rows[0]):
        header = [cell.strip().lower() for cell in rows.pop(0)]
        file_at = next((header.index(name) for name in _FILE_COLUMNS if name in header), 0)
        label_at = next((header.index(name) for name in _LABEL_COLUMNS if name in header), 1)
    if not rows:
        raise DataError(f"{table} names no images; each row is a file name and a label, as in: 0001.png,cat")
    if short := [row for row in rows if len(row) <= max(file_at, label_at) or not row[label_at].strip()]:
        raise DataError(
            f"{table}: {short[0][0]} has no label; each row is a file name and a label, as in: 0001.png,cat"
        )
    return [(row[file_at].strip(), row[label_at].strip()) for row in rows]


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by value, before words."""
    return (0, int(name), "") if name.isdigit() else (1, 0, name)
