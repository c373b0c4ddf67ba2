"""Ratings of a space's paths, as a search leaves them in `ratings.json` and as the solver and `bossnet rank` read them.

The full form keeps a table for each state in which a block can be entered, `any` for ratings that hold in every state:

    {"format": 1, "space": "hytra", "space_options": {}, "lower_is_better": true, "method": "bossnas",
     "blocks": [{"entries": {"any": {"4cccc": -3.1}}}, {"entries": {"4": {"4cccc": -3.0}, "8": {"8cccc": -2.9}}}]}

The plain form has one table per block: `"blocks": [{"4cccc": -3.1}, {"4cccc": -3.0, "8cccc": -2.9}]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bossnet_zoo import console
from bossnet_zoo.checkpoint import SEAL, load_json, save_json, sealed
from bossnet_zoo.errors import ArchitectureError, CheckpointError, UsageError
from bossnet_zoo.spaces import Arch, Entry, Space, get_space, space_command

FORMAT = 1
ANY = "any"
LARGEST = 1e100  # of a rating or an accuracy
ORIGIN = ("space", "space_options", "method", "data", "seed")  # in ratings.json and config.json: of which search it is
ANEW = "bring back a copy, or remove it: every block is then trained again"
_KNOWN = ("format", "space", "lower_is_better", "blocks", SEAL)  # others are kept as they are in `meta`

Ratings = Mapping[str, float]  # by path text


@dataclass(frozen=True)
class RatingTable:
    """How good each path of each block is.

    Attributes:
        space: name of the search space.
        blocks: for each block, by entry text (`Space.entry_text`, or `any`), the ratings by path text.
        lower_is_better: whether a small rating is a good one.
        meta: everything else that the file says, `space_options` and `method` for instance.
    """

    space: str
    blocks: tuple[Mapping[str, Ratings], ...]
    lower_is_better: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def space_options(self) -> dict[str, Any]:
        """Options with which the rated space was made."""
        return dict(self.meta.get("space_options", {}))

    def rating(self, block: int, entry: str, path: str) -> float | None:
        """Rating of a path of `block` when entered in `entry` (both in written form); None where it has none."""
        tables = self.blocks[block]
        rating = tables.get(entry, {}).get(path)
        return tables.get(ANY, {}).get(path) if rating is None else rating

    def make_space(self, **options: Any) -> Space:
        """The rated space, as the search made it; `options` override what the file says.

        Raises:
            UsageError: an unknown space, or options that it does not have.
        """
        options = {name: _frozen(value) for name, value in {**self.space_options, **options}.items()}
        try:
            return get_space(self.space, **options)
        except TypeError as error:
            raise UsageError(f"options {options} do not make a space {self.space!r}: {error}") from None

    def check(self, space: Space) -> None:
        """Make sure that every rating belongs to a path of `space`.

        Raises:
            UsageError: naming the block and the entry or path that the space does not have.
        """
        if self.space != space.name:
            raise UsageError(f"the ratings are of space {self.space!r}, not of {space.name!r}")
        if len(self.blocks) != space.num_blocks:
            raise UsageError(
                f"the ratings have {len(self.blocks)} blocks where space {space.name!r} has {space.num_blocks}"
            )
        for block, tables in enumerate(self.blocks):
            entries = {space.entry_text(entry): entry for entry in space.entries(block)}
            allowed = set(entries) | {ANY}
            for entry, ratings in tables.items():
                if entry not in allowed:
                    known = ", ".join(sorted(allowed))
                    raise UsageError(f"ratings of block {block + 1}: no entry {entry!r}; allowed: {known}")
                _check_paths(space, block, entry, ratings)

    def check_origin(self, expected: Mapping[str, Any], file: Path) -> None:
        """Make sure that these ratings say what `expected` does, for whoever takes over what an earlier search rated.

        Raises:
            CheckpointError: these are the ratings of another search, or `file` was edited.
        """
        said = {"space": self.space, **self.meta}
        for name, value in json.loads(json.dumps(expected)).items():
            if said.get(name) != value:
                mixed = "config.json and ratings.json are of different searches: " if name in ORIGIN else ""
                raise CheckpointError(
                    f"{mixed}{file}: {name} is {str(said.get(name))[:80]!r}, and in this search it is "
                    f"{str(value)[:80]!r}; {ANEW}"
                )

    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Make sure that a search's config.json tells of the search that `file` was rated in, as far as both say.

        Raises:
            CheckpointError: as `check_origin`.
        """
        told = {"space", *self.meta}
        self.check_origin({name: config[name] for name in ORIGIN if name in config and name in told}, file)

    def score(self, space: Space, arch: Arch, lambdas: Sequence[float] | None = None) -> float | None:
        """Weighted sum of the ratings of the architecture's paths, in block order; None where a path has no rating."""
        lambdas = lambdas or (1.0,) * space.num_blocks
        total, entry = 0.0, None  # type: tuple[float, Entry]
        for block, path in enumerate(space.split(arch)):
            rating = self.rating(block, space.entry_text(entry), space.path_text(path))
            if rating is None:
                return None
            total += lambdas[block] * rating
            entry = space.exit(block, entry, path)
        return total

    def coverage(self, space: Space) -> float:
        """Fraction of the space's architectures all of whose paths are rated."""
        reached: dict[Entry, int] = {None: 1}  # rated beginnings by the state in which they end
        for block in range(space.num_blocks):
            beginnings, reached = reached, {}
            for entry, number in beginnings.items():
                text = space.entry_text(entry)
                for path in space.paths(block, entry):
                    if self.rating(block, text, space.path_text(path)) is not None:
                        exit = space.exit(block, entry, path)
                        reached[exit] = reached.get(exit, 0) + number
        return sum(reached.values()) / space.count()

    def to_json(self) -> dict[str, Any]:
        """The full form."""
        blocks = [{"entries": {entry: dict(ratings) for entry, ratings in tables.items()}} for tables in self.blocks]
        head = {"format": FORMAT, "space": self.space, "lower_is_better": self.lower_is_better}
        return {**head, **self.meta, "blocks": blocks}

    def write(self, path: Path) -> None:
        """Write the full form to `path`, atomically; a search that goes on from it compares the checksum in it."""
        save_json(path, sealed(self.to_json()))


def read_ratings(path: Path, space: str | None = None) -> RatingTable:
    """The ratings in a file of either form, or in the folder of a search.

    Ratings may be edited; where they no longer fit their checksum, a note says so.

    Args:
        space: the name of the space, where the file does not say it.

    Raises:
        UsageError: the file does not exist, or says something that is no rating, or is of a later format.
        BossNetError: it is not JSON.
    """
    if path.is_dir():
        path = path / "ratings.json"
    if path.name == "ratings.json" and not path.exists() and (path.parent / "config.json").exists():
        raise UsageError(f"{path} does not exist yet: the search has not ended; bossnet search --resume {path.parent}")
    value = load_json(path, "ratings file")
    table = ratings_from_json(value, str(path), space)
    if SEAL in value and value[SEAL] != sealed(value)[SEAL]:
        console.note_once(f"{path} is not as it was written, for its checksum does not fit; used is what it says now")
    return table


def ratings_from_json(value: Any, name: str = "ratings", space: str | None = None) -> RatingTable:
    """The table that a decoded JSON value of either form stands for; `name` is named in errors.

    Args:
        space: as in `read_ratings`.

    Raises:
        UsageError: as `read_ratings`.
    """

    def wrong(what: str) -> UsageError:
        return UsageError(
            f'{name}: {what}; a ratings file is {{"space": NAME, "lower_is_better": true, '
            f'"blocks": [{{PATH: RATING, ...}}, ...]}}, as bossnet search writes it'
        )

    if not isinstance(value, dict):
        raise wrong("it is no JSON object")
    if value.get("format", FORMAT) != FORMAT:
        raise wrong(f"format {value['format']!r} is not known to this version, which reads format {FORMAT}")
    space = value.get("space", space)
    blocks, lower_is_better = value.get("blocks"), value.get("lower_is_better", True)
    if not isinstance(space, str):
        raise wrong('"space" is no name')
    if not isinstance(lower_is_better, bool):
        raise wrong('"lower_is_better" is neither true nor false')
    if not isinstance(value.get("space_options", {}), dict):
        raise wrong('"space_options" is no JSON object')
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise wrong('"blocks" is no list of JSON objects, one for each block')
    tables = []
    for number, block in enumerate(blocks, start=1):
        entries = block["entries"] if isinstance(block.get("entries"), dict) else {ANY: block}
        for ratings in entries.values():
            if not isinstance(ratings, dict):
                raise wrong(f"block {number}: an entry is no JSON object of ratings")
            for path, rating in ratings.items():
                if not is_summable(rating):
                    raise wrong(f"block {number}, path {path!r}: {rating!r} is no finite number below {LARGEST:g}")
        tables.append({entry: {path: float(r) for path, r in ratings.items()} for entry, ratings in entries.items()})
    meta = {key: entry for key, entry in value.items() if key not in _KNOWN}
    return RatingTable(space, tuple(tables), lower_is_better, meta)


def is_summable(value: object) -> bool:
    """Whether a decoded JSON value is a number of which many can be added up: no text, boolean or NaN, none huge."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _check_paths(space: Space, block: int, entry: str, ratings: Ratings) -> None:
    legal = {
        space.path_text(path)
        for state in space.entries(block)
        if entry in (ANY, space.entry_text(state))
        for path in space.paths(block, state)
    }
    foreign = next((path for path in ratings if path not in legal), None)
    if foreign is not None:
        raise UsageError(
            f"ratings of block {block + 1}, entry {entry!r}: {foreign!r} is no path that space {space.name!r} has "
            f"there; it has {len(legal)}, such as {min(legal)}; the rule and examples: {space_command(space)}"
        )


def parse_in(space: Space, text: str) -> Arch:
    """The architecture that `text` stands for.

    Raises:
        ArchitectureError: it is none of `space`; the message sends its reader to the rule of this very space, options
            included, where `Space.parse` knows of none.
    """
    try:
        return space.parse(text)
    except ArchitectureError as error:
        whole = f"bossnet space {space.name}"
        raise ArchitectureError(re.sub(f"{whole}$", lambda _: space_command(space), str(error))) from None


def _frozen(value: Any) -> Any:
    """A JSON value as a field of a frozen dataclass: lists become tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
