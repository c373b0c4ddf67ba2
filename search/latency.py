"""Latency of a space's networks as a sum over their layers, from a table measured on the user's own device.

`bossnet latency build` measures such a table (`latency_build` says how) and `bossnet solve --latency-table` adds it up.

A *layer* stands at a place of the network and is entered in a state, and has a key: `2.1 8 16a` is layer 1 of block 2,
entered at stride 8, that chooses attention at stride 16. `stem 4c` is all that comes before a first layer `4c`, and
`head 32` all that comes after a last layer that leaves state `32`. An *operation* is what a layer computes: a choice
with the shapes of its input and output, as in `16a 512x28 > 1024x14`. Many layers compute the same operation, so the
table has one figure for each operation and says which one each layer is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from bossnet_zoo.checkpoint import load_json, save_json
from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Arch, Entry, Path, Space, get_space

from .rating_table import is_summable
from .solver import NS_PER_MS

FORMAT = 1


# --- which layers there are


def layers_of_path(space: Space, block: int, entry: Entry, path: Path) -> list[str]:
    """Keys of one path's layers; for a first block that of the stem before them."""
    keys = [f"stem {space.path_text(path[:1])}"] if block == 0 else []
    for index in range(len(path)):
        before = space.exit(block, entry, path[:index]) if index else entry
        keys.append(f"{block + 1}.{index + 1} {space.entry_text(before)} {space.path_text(path[index : index + 1])}")
    return keys


def head_of(space: Space, exit: Entry) -> str:
    """Key of what comes after the last block."""
    return f"head {space.entry_text(exit)}"


def layers_of(space: Space, arch: Arch) -> list[str]:
    """Keys of a whole network, in the order in which it computes."""
    keys, entry = [], None  # type: tuple[list[str], Entry]
    for block, path in enumerate(space.split(arch)):
        keys += layers_of_path(space, block, entry, path)
        entry = space.exit(block, entry, path)
    return [*keys, head_of(space, entry)]


def all_layers(space: Space) -> dict[str, Sequence[Path]]:
    """Every key of a space, with the paths of an architecture that has it."""
    beginnings: dict[Entry, tuple[Path, ...]] = {None: ()}
    found: dict[str, tuple[Path, ...]] = {}
    for block in range(space.num_blocks):
        reached: dict[Entry, tuple[Path, ...]] = {}
        for entry, beginning in beginnings.items():
            for path in space.paths(block, entry):
                exit = space.exit(block, entry, path)
                reached.setdefault(exit, (*beginning, path))
                new = [key for key in layers_of_path(space, block, entry, path) if key not in found]
                if new:
                    found |= dict.fromkeys(new, _completed(space, (*beginning, path), exit))
        beginnings = reached
    return found | {head_of(space, exit): paths for exit, paths in beginnings.items()}


def _completed(space: Space, paths: tuple[Path, ...], exit: Entry) -> tuple[Path, ...]:
    """The paths, and the first legal ones after them."""
    for block in range(len(paths), space.num_blocks):
        paths = (*paths, space.paths(block, exit)[0])
        exit = space.exit(block, exit, paths[-1])
    return paths


# --- the table


@dataclass(frozen=True)
class Operation:
    """One measured operation.

    Attributes:
        ms: median of its timings, in milliseconds for a whole batch.
        spread: distance between the quartiles of its timings, divided by the median.
        timings: how many there were.
    """

    ms: float
    spread: float
    timings: int


@dataclass(frozen=True)
class LatencyTable:
    """A measured table. It is what `solver.PathLatency` asks for.

    Attributes:
        space: the measured space; its options decide what an operation costs.
        resolution: pixels of a side.
        batch: images; latencies are those of a whole batch.
        runtime: what it was measured with: `torch`, `onnxruntime` or `tensorrt`.
        versions: of that and of the other packages that matter, by name.
        device: what it was measured on: `NVIDIA L4, 8.9`, or the CPU's name.
        threads: of the CPU.
        date: when, in ISO 8601.
        operations: by name, see above.
        layers: the name of each layer's operation, by the layer's key.
        scale, offset_ms: a network takes `scale` times the sum of its operations, plus `offset_ms`.
        check: how far whole networks, measured for the purpose, are from that; None where it was not checked.
    """

    space: Space
    resolution: int
    batch: int
    runtime: str
    versions: Mapping[str, str]
    device: str
    threads: int
    date: str
    operations: Mapping[str, Operation]
    layers: Mapping[str, str]
    scale: float = 1.0
    offset_ms: float = 0.0
    check: Mapping[str, Any] | None = None

    def path_ns(self, block: int, entry: Entry, path: Path) -> int:
        """Latency of a path's layers in whole nanoseconds, so that the solver's sums are exact."""
        return sum(self._ns(key) for key in layers_of_path(self.space, block, entry, path))

    def fixed_ns(self, exit: Entry) -> int:
        """Latency of what comes after the last block, and the offset."""
        return self._ns(head_of(self.space, exit)) + round(self.offset_ms * NS_PER_MS)

    def _ns(self, key: str) -> int:
        return round(self.scale * self.operations[self.layers[key]].ms * NS_PER_MS)

    def require(self, space: Space, resolution: int | None = None) -> None:
        """Make sure that the table is of these networks.

        Args:
            resolution: pixels that were asked for; by default the space's own.

        Raises:
            UsageError: it is of another space, of other options or of another resolution.
        """
        if self.space.name != space.name:
            raise UsageError(
                f"the latency table is of space {self.space.name!r}, and the ratings are of {space.name!r}; "
                f"measure theirs with: bossnet latency build {space.name}"
            )
        if differences := list(_differences(self.space, space)):
            raise UsageError(
                f"the latency table is of {self.space.name} with {', '.join(here for here, _ in differences)}, and the "
                f"ratings are of {', '.join(there for _, there in differences)}; measure another table with: "
                "bossnet latency build RATINGS"
            )
        pixels = resolution or space.default_resolution
        if self.resolution != pixels:
            raise UsageError(
                f"the latency table is for {self.resolution} px, and {pixels} px were asked for; "
                f"type --resolution {self.resolution}, or measure another table with: "
                f"bossnet latency build {space.name} --resolution {pixels}"
            )

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        space = {"space": self.space.name, "space_options": dataclasses.asdict(self.space)}  # type: ignore[call-overload]
        operations = {name: dataclasses.asdict(operation) for name, operation in self.operations.items()}
        return {"format": FORMAT, **values, **space, "operations": operations, "layers": dict(self.layers)}

    def write(self, path: FilePath) -> None:
        """Write the table as JSON, atomically."""
        save_json(path, self.to_json())


def words(runtime: str, versions: Mapping[str, str], device: str, threads: int) -> str:
    """`onnxruntime 1.23.0, AMD EPYC, 1 thread`."""
    return f"{runtime} {versions.get(runtime, '')}, {device}, {threads} thread{'s' * (threads > 1)}"


def _differences(measured: Space, rated: Space) -> Iterator[tuple[str, str]]:
    """The options that differ, as `name=value` of both; pixels are no option, since a table states its own."""
    for field in dataclasses.fields(measured):  # type: ignore[arg-type]
        here, there = getattr(measured, field.name), getattr(rated, field.name)
        if here != there and field.name != "default_resolution":
            yield f"{field.name}={here}", f"{field.name}={there}"


# --- reading one


def read_latency(path: FilePath) -> LatencyTable:
    """The table in a file that `bossnet latency build` wrote.

    Raises:
        UsageError: the file does not exist, or is no such table, or one of another format.
        BossNetError: it is not JSON.
    """
    return latency_from_json(load_json(path, "latency table"), str(path))


def latency_from_json(value: Any, name: str = "latency table") -> LatencyTable:
    """The table that a decoded JSON value stands for; `name` is named in errors. Raises `UsageError`."""

    def wrong(what: str) -> UsageError:
        return UsageError(f"{name} is no latency table: {what}; make one with: bossnet latency build SPACE")

    if not isinstance(value, dict):
        raise wrong("it is no JSON object")
    if value.get("format") != FORMAT:
        raise wrong(f"its format is {value.get('format')!r}, and this version reads {FORMAT}")
    for key, kind in _KINDS.items():
        if not isinstance(value.get(key), kind) or isinstance(value[key], bool):
            raise wrong(f"{key!r} is missing, or of the wrong kind")
    for key, given in value["operations"].items():
        if not isinstance(given, dict) or set(given) != {field.name for field in dataclasses.fields(Operation)}:
            raise wrong(f"operation {key!r} is not ms, spread and timings")
        if not all(is_summable(number) and number >= 0 for number in given.values()):
            raise wrong(f"operation {key!r} is {given}, which is no time")
    for key, least in (("scale", 0.0), ("offset_ms", float("-inf"))):
        if not is_summable(value[key]) or value[key] < least:
            raise wrong(f"{key!r} is {value[key]!r}, which is no time")
    space = get_space(value["space"], **value["space_options"])
    layers = value["layers"]
    missing = sorted(key for key in all_layers(space) if layers.get(key) not in value["operations"])
    if missing:
        raise wrong(f"it lacks {len(missing)} layers, {missing[0]!r} among them")
    operations = {key: Operation(**given) for key, given in value["operations"].items()}
    texts = {key: value[key] for key in _KINDS if key not in ("space", "space_options", "operations")}
    return LatencyTable(space, operations=operations, **texts)


_KINDS: dict[str, Any] = {
    "space": str,
    "space_options": dict,
    "resolution": int,
    "batch": int,
    "runtime": str,
    "versions": dict,
    "device": str,
    "threads": int,
    "date": str,
    "operations": dict,
    "layers": dict,
    "scale": int | float,
    "offset_ms": int | float,
    "check": dict | None,
}
