"""What every search space offers.

A network is a stem, a chain of blocks and a head. A *block* is a few choice layers; a *path* is one choice per layer
of a block. The state in which a block is entered, its *entry*, is all that a block needs to know of the blocks before
it (HyTra: the scale of the previous layer; NATS-Bench: its width; MBConv: nothing). Because of that, costs are sums
over blocks and the solver can search a space of 10^10 architectures exactly.
"""

from __future__ import annotations

import functools
import itertools
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ArchitectureError

Arch = Any  # a frozen, hashable value whose `str()` is its one written form
Path = tuple  # one hashable choice per layer of a block
Entry = Hashable | None  # None where the blocks before make no difference


@dataclass(frozen=True)
class Cost:
    """What an architecture costs.

    Attributes:
        madds: multiply-accumulates of convolutions, linear layers and attention matrix products, for one image.
            Normalisation, activations, pooling, additions and biases are not counted.
        params: trainable parameters, biases and normalisation included.
    """

    madds: int = 0
    params: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.madds + other.madds, self.params + other.params)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.madds * times, self.params * times)


class Space(ABC):
    """A search space. Implementations are frozen dataclasses; illegal architectures cannot be constructed.

    A space of your own inherits from this class what can be derived: it defines `name`, `default_resolution`,
    `num_blocks`, `paths`, `split`, `join` and `path_cost`, and `entries` and `exit` if blocks before matter.

    Attributes:
        name: by which the command line and files know the space.
        default_resolution: pixels at which `cost` counts unless told otherwise.
        num_blocks: blocks that the supernet is cut into.
    """

    if TYPE_CHECKING:  # at run time a dataclass would take such a property for the default of its field

        @property
        def name(self) -> str: ...

        @property
        def default_resolution(self) -> int: ...

        @property
        def num_blocks(self) -> int: ...

    def count(self) -> int:
        """Number of architectures."""
        return _count_ways(self, 0, None)

    def parse(self, text: str) -> Arch:
        """The architecture that `text` stands for; the inverse of `str`, by default of paths joined by `-`.

        Raises:
            ArchitectureError: naming the layer at fault and the rule it breaks.
        """
        parts = text.split("-")
        if len(parts) != self.num_blocks:
            raise ArchitectureError(f"{self.name} architecture {text!r} has {len(parts)} paths, not {self.num_blocks}")
        return self.join([self.parse_path(block, part) for block, part in enumerate(parts)])

    def sample(self, generator: random.Random) -> Arch:
        """One architecture, uniform over the whole space."""
        paths: list[Path] = []
        entry: Entry = None
        for block in range(self.num_blocks):
            legal = self.paths(block, entry)
            weights = [_count_ways(self, block + 1, self.exit(block, entry, path)) for path in legal]
            paths += generator.choices(legal, weights)
            entry = self.exit(block, entry, paths[-1])
        return self.join(paths)

    def cost(self, arch: Arch, resolution: int | None = None) -> Cost:
        """Cost at `resolution` pixels (default: the space's own), by arithmetic alone."""
        total, entry = Cost(), None  # type: tuple[Cost, Entry]
        for block, path in enumerate(self.split(arch)):
            total += self.path_cost(block, entry, path, resolution or self.default_resolution)
            entry = self.exit(block, entry, path)
        return total + self.fixed_cost(entry, resolution or self.default_resolution)

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments with which `models.build` makes this space's networks; none by default."""
        return {}

    # --- the chain of blocks

    def entries(self, block: int) -> tuple[Entry, ...]:
        """Every state in which `block` can be entered; `(None,)` for the first, and by default for all."""
        return (None,)

    @abstractmethod
    def paths(self, block: int, entry: Entry = None) -> tuple[Path, ...]:
        """Every legal path of `block` from `entry`, in a fixed order."""

    def exit(self, block: int, entry: Entry, path: Path) -> Entry:
        """The state in which the next block is entered after `path`; None by default."""
        return None

    @abstractmethod
    def split(self, arch: Arch) -> tuple[Path, ...]:
        """The architecture's path through each block."""

    @abstractmethod
    def join(self, paths: Sequence[Path]) -> Arch:
        """The architecture made of one path per block; the inverse of `split`."""

    def path_text(self, path: Path) -> str:
        """Written form of a path, a key of ratings files; by default its choices, one after the other."""
        return "".join(map(str, path))

    def parse_path(self, block: int, text: str) -> Path:
        """The inverse of `path_text`; raises `ArchitectureError`."""
        paths = {self.path_text(path): path for entry in self.entries(block) for path in self.paths(block, entry)}
        if text not in paths:
            raise ArchitectureError(
                f"{self.name} path {text!r} is not one of the {len(paths)} of block {block + 1}, such as {min(paths)}"
            )
        return paths[text]

    def entry_text(self, entry: Entry) -> str:
        """Written form of an entry, a key of ratings files; `any` for None."""
        return "any" if entry is None else str(entry)

    # --- costs along the chain: cost(arch) = fixed_cost(last exit) + sum of path_cost

    @abstractmethod
    def path_cost(self, block: int, entry: Entry, path: Path, resolution: int) -> Cost:
        """Cost of one block's layers when entered in `entry`."""

    def fixed_cost(self, exit: Entry, resolution: int) -> Cost:
        """Cost of everything outside the blocks, for a network whose last block ends in `exit`; by default nothing."""
        return Cost()


@functools.cache
def _count_ways(space: Space, block: int, entry: Entry) -> int:
    """Ways through `block` and all blocks after it, from `entry`; kept, as many paths lead to the same entry."""
    if block == space.num_blocks:
        return 1
    exits = Counter(space.exit(block, entry, path) for path in space.paths(block, entry))
    return sum(number * _count_ways(space, block + 1, exit) for exit, number in exits.items())


def halve(side: int) -> int:
    """Side of a feature map behind a stride-2 step; every network here rounds up."""
    return (side + 1) // 2


def conv_cost(in_channels: int, out_channels: int, kernel: int, side: int) -> Cost:
    """Bias-free convolution to `side` x `side` pixels, and its BN."""
    weights = in_channels * out_channels * kernel**2
    return Cost(weights * side**2, weights + 2 * out_channels)


def split_layers(layers: Sequence[Any], sizes: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    """Consecutive groups of `layers`, one of each size."""
    ends = itertools.accumulate(sizes)
    return tuple(tuple(layers[end - size : end]) for end, size in zip(ends, sizes, strict=True))
