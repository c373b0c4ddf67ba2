"""WebDataset shards: images inside uncompressed tar files, each of which can be read alone."""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from .errors import DataError, UsageError
from .image_files import IMAGE_SUFFIXES, load_image


@dataclass(frozen=True)
class TarSource:
    """Images inside uncompressed tar files (WebDataset shards), found by offset, so that any one can be read alone.

    Attributes:
        places: for each image its shard, the offset in that file and its number of bytes.
        keys: for each image its key within the shard.
    """

    places: Sequence[tuple[str, int, int]]
    keys: Sequence[str]
    labels: Sequence[int] | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Image.Image:
        shard, offset, size = self.places[index]
        with open(shard, "rb") as file:
            file.seek(offset)
            return load_image(io.BytesIO(file.read(size)))

    def describe(self, index: int) -> str:
        return f"{self.keys[index]} in {self.places[index][0]}"


def expand_shards(pattern: str) -> list[str]:
    """The files that `dir/{000..012}.tar` or `dir/*.tar` names, in order."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    width = len(match[1])
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [
        file
        for n in numbers
        for file in expand_shards(f"{pattern[: match.start()]}{n:0{width}d}{pattern[match.end() :]}")
    ]


def shards(pattern: str) -> TarSource:
    """WebDataset shards: images `KEY.jpg`, their labels `KEY.cls` (a number)."""
    files = expand_shards(pattern)
    if not files:
        raise UsageError(f"no shard matches {pattern!r}; write for instance data/{{000..012}}.tar")
    return read_shards(files, pattern)


def read_shards(files: Iterable[str], name: str) -> TarSource:
    """The images in all files together; `name` is what errors call them."""
    places, keys, classes = [], [], []
    for shard in files:
        if not os.path.exists(shard):
            raise UsageError(f"shard {shard} does not exist")
        for key, place, label in _scan_shard(shard):
            places.append(place)
            keys.append(key)
            classes.append(label)
    labelled = [label for label in classes if label is not None]
    if labelled and len(labelled) < len(classes):
        raise DataError(f"{name}: {len(classes) - len(labelled)} of {len(classes)} images have no .cls file")
    if not labelled:
        return TarSource(places, keys, None, None)
    return TarSource(places, keys, labelled, tuple(str(label) for label in range(max(labelled) + 1)))


def _scan_shard(shard: str) -> list[tuple[str, tuple[str, int, int], int | None]]:
    """Key, place and label of every image in a shard, from the tar's headers and its .cls members alone."""
    images, labels = {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if f".{suffix}".lower().endswith(IMAGE_SUFFIXES):
                    images[key] = (shard, member.offset_data, member.size)
                elif suffix == "cls":
                    labels[key] = _label(tar.extractfile(member).read(), f"{member.name} in {shard}")  # type: ignore[union-attr]
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"shard {shard} cannot be read: {error}; shards are uncompressed tar files") from error
    return [(key, place, labels.get(key)) for key, place in images.items()]


def _label(text: bytes, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{name} holds {text[:20]!r}; a label is the number of a class, counted from 0") from None
