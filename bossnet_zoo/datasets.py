"""Images by name or path, divided into parts: `open_images("digits", "train")`.

Parts are the same for the same source and seed, on every machine, and no seed moves an image in or out of `test`:

    test            what the source itself keeps for testing (val/ or test/, CIFAR's test images), else a fifth of it
    train           everything else
    search-val      the images of `train` by which a search is judged: a quarter, at most 50,000 (ImageNet's NAS-val)
    search-train    the rest of `train`
    all             the images of a source that keeps none apart for testing, undivided

NATS-Bench divides CIFAR otherwise, and its divisions are kept: CIFAR-10 into 25,000 / 25,000 / 10,000 and CIFAR-100
into 50,000 / 5,000 / 5,000 images for search-train / search-val / test, where search-val of CIFAR-100 is one half of
the official test images and the other half is the test part; so there `train` is search-train alone.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from . import console, image_sources
from .checkpoint import load_json, reading
from .determinism import seeded
from .errors import DataError, UnknownDataError, UsageError
from .image_files import UNREADABLE, to_rgb, why_unreadable
from .image_sources import Source
from .shards import shards
from .splits import Split, read_list, read_split, write_split

PARTS = ("search-train", "search-val", "train", "test", "all")
NAMES = ("digits", "digits:hard", "cifar10", "cifar100")
MAX_SEARCH_VAL = 50_000
UNLABELLED = -1
MANY = 10  # images that cannot be read, after which they are no longer named
DATA_HINT = (
    "allowed: digits, digits:hard, cifar10[:FOLDER], cifar100[:FOLDER], hf:NAME[:CONFIG], a folder of images "
    "(train/CLASS/*.jpg, CLASS/*.jpg, with a CSV, or without labels), a CSV, or shards such as data/{000..012}.tar"
)


@dataclass(frozen=True)
class ImageSet:
    """One part of a source: images by index, with labels where the source has them.

    An image that cannot be read is named once on stderr, counted, and replaced by the next one that can (the same one
    every time); with `strict` it is an error.

    Attributes:
        name: what the source is called in logs.
        part: one of `PARTS`.
        source, indices: where the images are, and which of the source's images belong to this part.
        strict: whether an unreadable image is an error.
        unreadable: (len(source),) bool, in memory that data-loading workers share: images found unreadable so far.
    """

    name: str
    part: str
    source: Source
    indices: np.ndarray
    strict: bool = False
    unreadable: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unreadable", torch.zeros(len(self.source), dtype=torch.bool).share_memory_())

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> list[int] | None:
        """The label of every image, or None."""
        labels = self.source.labels
        return None if labels is None else [labels[index] for index in self.indices]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    @property
    def num_unreadable(self) -> int:
        """How many images were found unreadable so far, by this process and its data-loading workers."""
        return int(self.unreadable.sum())

    def image(self, index: int) -> Image.Image:
        """The image at `index` in RGB, or its replacement. Raises `DataError`."""
        return self.load(index)[0]

    def load(self, index: int, replace: bool = True) -> tuple[Image.Image, int]:
        """Image in RGB and label (`UNLABELLED` without labels) at `index`, or those of the next that can be read.

        Unless `replace`, an image that cannot be read has no label, whatever stands in for it: none counts twice.

        Raises:
            DataError: no image can be read, or, with `strict`, this one cannot.
        """
        for step in range(len(self)):
            place = int(self.indices[(index + step) % len(self)])
            try:
                image = to_rgb(self.source.read(place))
            except UNREADABLE as error:
                self._report(place, error, replace)
                continue
            if self.source.labels is None or (step and not replace):
                return image, UNLABELLED
            return image, int(self.source.labels[place])
        raise DataError(f"{self.name}: none of its {len(self)} images can be read")

    def _report(self, place: int, error: BaseException, replace: bool) -> None:
        message = f"{self.source.describe(place)} cannot be read as an image: {why_unreadable(error)}"
        if self.strict:
            raise DataError(f"{message}; remove it, or leave out --strict-images") from error
        if self.unreadable[place]:
            return
        self.unreadable[place] = True
        if self.num_unreadable < MANY:
            console.note(f"{message}; {'the next readable image takes its place' if replace else 'it is left out'}")
        elif self.num_unreadable == MANY:
            console.note(f"{message}; {MANY} images of {self.name} so far; further ones are only counted")

    def require_labels(self, purpose: str) -> list[int]:
        """The labels. Raises `DataError` if there are none; `purpose` says what needs them, as in "training"."""
        labels = self.labels
        if labels is None:
            raise DataError(
                f"{self.name} has no labels, and {purpose} needs them; put the images into one folder per class, "
                "or add a CSV with a file name and a label in each row (in shards: KEY.cls beside KEY.jpg, a number)"
            )
        return labels

    def with_transform(
        self,
        transform: Callable[[Image.Image], Any],
        target: Callable[[int], Any] | None = None,
        replace: bool = True,
    ) -> Images:
        """A torch dataset of (transform(image), target(label)); see `load`."""
        return Images(self, transform, target, replace)


@dataclass(frozen=True)
class Images(Dataset):
    """An `ImageSet` as a map-style torch dataset.

    An item is asked for by its index, or by a tuple (index, *key): then the transform's random numbers are a pure
    function of the key.
    """

    image_set: ImageSet
    transform: Callable[[Image.Image], Any]
    target: Callable[[int], Any] | None = None
    replace: bool = True

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, item: int | tuple[int, ...]) -> tuple[Any, Any]:
        index, *key = item if isinstance(item, tuple) else (item,)
        image, label = self.image_set.load(index, self.replace)
        if key:
            with seeded(*key):
                image = self.transform(image)
        else:
            image = self.transform(image)
        return image, label if self.target is None else self.target(label)


def open_images(
    source: str,
    part: str,
    *,
    seed: int = 0,
    strict: bool = False,
    split_file: Path | None = None,
    search_val: Path | None = None,
) -> ImageSet:
    """The images of one part of a source.

    Args:
        source: `digits`, or `digits:hard` (8 x 8 pixels under noise, half of them kept for testing); `cifar10` or
            `cifar100`, with `:FOLDER` where torchvision's copy is not in $BOSSNET_DATA (by default
            ~/.cache/bossnet-zoo); `hf:NAME[:CONFIG]`; a folder (see `image_sources.folder`), or shards such as
            `data/{000..012}.tar`.
        part: one of `PARTS`.
        seed: draws search-val.
        strict: an unreadable image is an error.
        split_file: keeps the images drawn for search-val: read if it exists, else written.
        search_val: an index file of your own, which lists those images in place of a draw (see `splits`).

    Raises:
        UsageError: an unknown source or part, one without images, or an index file of something else.
        DataError: there are too few images, or `split_file` is of others.
        CheckpointError: `split_file` is not as it was written.
    """
    if part not in PARTS:
        raise UsageError(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
    name = source.rstrip("/") if len(source) > 1 else source
    if part == "all":
        images, indices = _all(name)
    elif part == "test":
        images, indices = _test(name)
    else:
        images, indices = _train(name, to_search=part != "train")
        if part != "train":
            images, indices = _search_part(name, part, images, indices, seed, split_file, search_val)
    if not len(indices) and len(images):
        raise DataError(f"{source} has {len(images)} images in all, too few for a part {part}; add some")
    if not len(indices):
        raise UsageError(f"{source} has no images for part {part}; {DATA_HINT}")
    return ImageSet(name, part, images, indices, strict)


def count_classes(images: ImageSet, test_images: ImageSet) -> int:
    """How many classes images to train on have; every one has a name, or a number below the largest that occurs.

    Raises:
        DataError: either part has no labels, or there is nothing to tell apart.
    """
    test_images.require_labels("measuring accuracy")
    labels = images.require_labels("training")
    if len(set(labels)) < 2:
        raise DataError(
            f"all {len(labels):,} images of {images.name} are of one class, so there is nothing to learn; "
            "put the images into one folder per class"
        )
    return len(images.class_names) if images.class_names is not None else max(labels) + 1


def _open(name: str, train: bool) -> Source | None:
    """The training or test side of a source; None where it keeps no images for testing."""
    kind, _, rest = name.partition(":")
    if name == "digits":
        return image_sources.digits() if train else None
    if name == "digits:hard":
        return image_sources.hard_digits(train)
    if kind in ("cifar10", "cifar100"):
        return image_sources.cifar(kind, rest or cifar_folder(), train)
    if kind == "hf" and rest:
        return image_sources.hub(rest, train)
    if name.endswith(".tar"):
        return shards(name) if train else None
    if name.endswith(".csv") and Path(name).is_file():
        return image_sources.table(Path(name)) if train else None
    if Path(name).is_dir():
        return image_sources.folder(Path(name), train)
    if near := difflib.get_close_matches(name, NAMES, cutoff=0.7):
        raise UsageError(f"data {name!r} is no folder and no known name; did you mean {' or '.join(near)}? {DATA_HINT}")
    raise UnknownDataError(f"data {name!r} is no folder and no known name; {DATA_HINT}")


def cifar_folder() -> str:
    """Where CIFAR is looked for and kept: $BOSSNET_DATA, by default ~/.cache/bossnet-zoo."""
    return os.environ.get("BOSSNET_DATA") or str(Path.home() / ".cache" / "bossnet-zoo")


def _all(name: str) -> tuple[Source, np.ndarray]:
    images = _open(name, train=True)
    if images is None or _open(name, train=False) is not None:
        raise UsageError(f"{name} keeps images for testing apart, so its parts are: {', '.join(PARTS[:-1])}")
    return images, np.arange(len(images))


def _train(name: str, to_search: bool) -> tuple[Source, np.ndarray]:
    """The training side of a source, and which of its images are not kept for testing.

    A search keeps nothing of unlabelled images: there is no accuracy that could be tested on them.
    """
    images = _open(name, train=True)
    if images is None:
        raise DataError(f"{name} has images for testing alone; put those for training into {name}/train")
    if _open(name, train=False) is not None or (to_search and images.labels is None):
        return images, np.arange(len(images))
    kept = _kept_for_testing(images)
    if name != "digits" and images.labels is not None and len(images):
        parts = f"{len(kept):,} of its {len(images):,}"
        console.note_once(f"{name}: no images are set apart for testing, so {parts} are now")
    return images, np.setdiff1d(np.arange(len(images)), kept)


def _test(name: str) -> tuple[Source, np.ndarray]:
    images = _open(name, train=False)
    if images is None:
        images = _open(name, train=True)
        assert images is not None
        return images, _kept_for_testing(images)
    if name.startswith("cifar100"):
        return images, _nats_indices(name, "xtest", len(images))
    return images, np.arange(len(images))


def _kept_for_testing(images: Source) -> np.ndarray:
    """A fifth of the images, in the classes' proportions; sorted indices."""
    return _draw(np.arange(len(images)), -(-len(images) // 5), 0, images.labels)


def _search_part(
    name: str,
    part: str,
    images: Source,
    pool: np.ndarray,
    seed: int,
    split_file: Path | None,
    search_val: Path | None,
) -> tuple[Source, np.ndarray]:
    judged, held = images, pool  # what search-val may be of
    if name.startswith("cifar100"):
        test = _open(name, train=False)
        assert test is not None
        judged, held = test, np.arange(len(test))
    if split_file is not None and split_file.exists():
        split = read_split(split_file, name, seed, pool, held)
    else:
        split = _divide(name, images, pool, held, seed, search_val)
        if split_file is not None:
            write_split(split_file, split, name, seed, pool, held)
    return (judged, split.search_val) if part == "search-val" else (images, split.search_train)


def _divide(name: str, images: Source, pool: np.ndarray, held: np.ndarray, seed: int, search_val: Path | None) -> Split:
    """The images by which a search is judged, chosen without a look at the labels, and those that it learns from."""
    kind = name.partition(":")[0]
    if search_val is not None:
        if kind in _NATS_FILES:
            raise UsageError(
                f"{kind} is divided as in NATS-Bench; put {_NATS_FILES[kind]} beside its images, "
                "and leave out --search-val"
            )
        chosen = read_list(search_val, images, held, name)
        return Split(np.setdiff1d(pool, chosen), chosen, f"as {search_val} lists them")
    if kind in _NATS_FILES:
        file = _nats_file(name)
        drawn = (
            f"as in NATS-Bench's {file.name}"
            if file.exists()
            else f"halves at random (seed 0), without NATS-Bench's {file.name}"
        )
        if kind == "cifar100":
            return Split(pool, _nats_indices(name, "xvalid", len(held)), drawn)
        train, valid = (_nats_indices(name, half, len(held)) for half in ("train", "valid"))
        return Split(train, valid, drawn)
    chosen = _draw(pool, min(MAX_SEARCH_VAL, len(pool) // 4), seed)
    return Split(np.setdiff1d(pool, chosen), chosen, f"at random, seed {seed}")


def _draw(pool: np.ndarray, count: int, seed: int, labels: Sequence[int] | None = None) -> np.ndarray:
    """`count` members of `pool`, sorted; in the proportions of `labels` if every class has at least two images."""
    from sklearn.model_selection import train_test_split

    if not 0 < count < len(pool):
        return pool[:count]
    classes = None if labels is None else np.asarray(labels)
    if classes is not None:
        sizes = np.unique(classes, return_counts=True)[1]
        if sizes.min() < 2 or len(sizes) > min(count, len(pool) - count):
            classes = None
    _, chosen = train_test_split(pool, test_size=count, random_state=seed, stratify=classes)
    return np.sort(chosen)


_NATS_FILES = {"cifar10": "cifar-split.txt", "cifar100": "cifar100-test-split.txt"}


def _nats_file(name: str) -> Path:
    """Where NATS-Bench's split file is looked for: beside the images."""
    kind, _, folder = name.partition(":")
    return Path(folder or cifar_folder()) / _NATS_FILES[kind]


def _nats_indices(name: str, part: str, total: int) -> np.ndarray:
    """One half of CIFAR's images: NATS-Bench's own where its split file lies beside the images, else random."""
    path = _nats_file(name)
    if path.exists():
        with reading(path, "NATS-Bench split file", "fetch it again"):
            return np.array(sorted(int(index) for index in load_json(path, "NATS-Bench split file")[part][1]))
    kind = name.partition(":")[0]
    console.note_once(
        f"{kind}: no {path.name} of NATS-Bench in {path.parent}, so its halves are drawn at random (seed 0)"
    )
    half = _draw(np.arange(total), total // 2, seed=0)
    return half if part in ("train", "xvalid") else np.setdiff1d(np.arange(total), half)
