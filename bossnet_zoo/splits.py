"""Which images a search learns from and which it is judged by (NAS-train and NAS-val), kept in files.

A search writes `split.json` once and reads it ever after:

    {"format": 1, "data": NAME, "seed": 0, "images": 1437, "drawn": "at random, seed 0",
     "search_val": [3, 8, ...], "search_train": null, "sha256": ...}

Images go by their positions in the source, in its order; `search_train` is null where it is all the others. An index
file of your own lists those to judge by, one in each line: by position, or by path, as in `n01440764/n01440764_1.JPEG`,
with or without a label behind it. A `split.json` of another search is such a list, too.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import console
from .checkpoint import check_seal, load_json, reading, save_json, sealed
from .errors import DataError, UsageError

FORMAT = 1


class Split(NamedTuple):
    """Positions of the images to learn from, of those to be judged by, and in words how they were divided."""

    search_train: np.ndarray
    search_val: np.ndarray
    drawn: str


def write_split(file: Path, split: Split, data: str, seed: int, train: np.ndarray, held: np.ndarray) -> None:
    """Keep a division in a file; `train` and `held` as for `read_split`."""
    others = np.array_equal(split.search_train, np.setdiff1d(train, split.search_val))
    record = {"format": FORMAT, "data": data, "seed": seed, "images": len(held), "drawn": split.drawn}
    record["search_val"] = split.search_val.tolist()
    record["search_train"] = None if others else split.search_train.tolist()
    save_json(file, sealed(record))


def read_split(file: Path, data: str, seed: int, train: np.ndarray, held: np.ndarray) -> Split:
    """The division that a file keeps.

    Args:
        train, held: positions of the images to learn from, if none of them was held out, and of those that can be.

    Raises:
        DataError: it is of other images, or of another seed.
        CheckpointError: it is not as it was written.
    """
    stored = load_json(file, "split file")
    with reading(file, "split file"):
        count, chosen = operator.index(stored["images"]), _positions(stored["search_val"])
        learned = stored.get("search_train")
        split = Split(
            np.setdiff1d(train, chosen) if learned is None else _positions(learned), chosen, str(stored["drawn"])
        )
        origin = str(stored["data"]), operator.index(stored["seed"])
    if count != len(held):
        raise DataError(
            f"split file {file} is for {count:,} images, {data} now has {len(held):,}; "
            "bring the missing images back, or start a new run"
        )
    check_seal(stored, file, "bring back a copy, or start a new run")
    if origin != (data, seed):
        raise DataError(
            f"split file {file} is of {origin[0]} with seed {origin[1]}, not of {data} with seed {seed}; "
            "bring back this run's own, or start a new run"
        )
    if not (len(chosen) and np.isin(chosen, held).all() and np.isin(split.search_train, train).all()):
        raise DataError(f"split file {file} names images that {data} does not have; start a new run")
    return split


def _positions(values: Sequence[Any]) -> np.ndarray:
    return np.array([*map(operator.index, values)], dtype=np.int64)


# --- index files of the user's own


def read_list(file: Path, source: Any, held: np.ndarray, data: str) -> np.ndarray:
    """Positions of the images that an index file lists, sorted.

    Args:
        source: the images; those in files have `paths`, those in shards `keys`.
        held: positions of the images that may be listed: none that is kept for testing.

    Raises:
        UsageError: there is no such file, or it lists what is no such image, or fewer than two.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--search-val {file} cannot be read: {error}; {_FORM}") from None
    if text.lstrip().startswith("{"):
        lines = _of_split(file, len(held), data)
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--search-val {file} lists no images; {_FORM}")
    if all(line.isdecimal() for line in lines):
        found = _positions([*map(int, lines)])
    else:
        found = _positions(_find(lines, source, file, data))
    allowed = np.isin(found, held)
    if not allowed.all():
        line = lines[int(np.flatnonzero(~allowed)[0])]
        raise UsageError(
            f"--search-val {file} lists {line!r}, which is none of the {len(held):,} images of {data} that are for "
            f"training; {_FORM}"
        )
    found = np.unique(found)
    if len(found) < 2:  # paths are rated by telling one image from another
        raise UsageError(
            f"--search-val {file} lists 1 different image of {data}, and rating needs 2; add others: {_FORM}"
        )
    return found


def _of_split(file: Path, count: int, data: str) -> list[str]:
    """The positions that the split.json of another search lists, which was one on as many images."""
    stored = load_json(file, "index file")
    if "search_val" not in stored:
        raise UsageError(f"--search-val {file} is JSON without search_val, so no split.json of a search; {_FORM}")
    of, images = stored.get("data", data), stored.get("images", count)
    if of != data and images != count:
        raise UsageError(
            f"--search-val {file} divides the {images} images of {of}, not the {count} of {data}; type a split.json of "
            f"{data}, or a list in which {_FORM}"
        )
    if of != data:
        console.note_once(f"--search-val {file} was written for {of}; its positions are taken for those of {data}")
    with reading(file, "index file", _FORM):
        return [str(operator.index(position)) for position in stored["search_val"]]


_FORM = "each line is the path of a training image, as in CLASS/FILE, or its position, counted from 0"


def _find(lines: Sequence[str], source: Any, file: Path, data: str) -> list[int]:
    """The position of every path in `lines`, which may begin at any folder."""
    names = getattr(source, "paths", None) or getattr(source, "keys", None)
    if names is None:
        raise UsageError(f"--search-val {file}: the images of {data} have no paths, only positions, counted from 0")
    known: dict[int, Mapping[str, int]] = {}  # by number of folders that a path names
    found = []
    for line in lines:
        plain = re.sub(r"\s+-?\d+$", "", line)  # without a label
        depth = plain.count("/")
        if depth not in known:
            known[depth] = _by_ending(names, depth)
        position = known[depth].get(line, known[depth].get(plain))
        if position is None:
            raise UsageError(f"--search-val {file} lists {line!r}, which is no image of {data}; {_FORM}")
        if position < 0:
            raise UsageError(f"--search-val {file} lists {line!r}, by which {data} has several images; name its folder")
        found.append(position)
    return found


def _by_ending(names: Sequence[str], depth: int) -> dict[str, int]:
    """Positions by the last parts of a name, so many folders and the file; -1 where several have the same."""
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        ending = "/".join(name.split("/")[-depth - 1 :])
        positions[ending] = -1 if ending in positions else position
    return positions
