"""NATS-Bench's size space S_S (Dong et al., arXiv 2009.00437): the widths of a small CNN for 32-pixel images.

The rule. A 3x3 convolution, then five layers: cell, reduction block, cell, reduction block, cell. Every layer chooses
its output channels from 8, 16, ..., 64, which gives 8^5 = 32,768 architectures. A cell has three nodes behind its
input; all edges are ReLU, 3x3 convolution, BN, except the one from the input to the last node, which is a skip (a 1x1
convolution and BN where the channels differ). A reduction block is a basic residual block of stride 2.

The written form is the benchmark's own: `8:16:24:32:64`.

Costs agree with the benchmark's own: parameters exactly, and its "FLOPs" are the multiply-accumulates counted here plus
one for each bias of the classifier (10 for CIFAR-10), which we, as everywhere, do not count.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ArchitectureError, UsageError, require_at_least, unknown
from .space import Cost, Entry, Space, conv_cost, halve, split_layers

WIDTHS = (8, 16, 24, 32, 40, 48, 56, 64)
REDUCTIONS = (False, True, False, True, False)  # by layer
BLOCK_LAYERS = {"cifar10": (2, 2, 1), "cifar100": (2, 1, 2)}  # by data set, as in BossNAS section 4.3
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
_HINT = "the rule and examples: bossnet space nats"


def check_widths(widths: Sequence[int], what: str, allowed: Sequence[int] = WIDTHS) -> None:
    """Raise `ArchitectureError` where a layer's width is not allowed; `what` is named in the message."""
    for number, width in enumerate(widths, start=1):
        if width not in allowed:
            raise ArchitectureError(
                f"nats {what}: layer {number}: width {width} is not allowed; "
                f"allowed: {', '.join(map(str, allowed))}; {_HINT}"
            )


def write_widths(widths: Sequence[int]) -> str:
    """`8:16:24`: the layers' output channels."""
    return ":".join(map(str, widths))


def read_widths(text: str, what: str) -> tuple[int, ...]:
    """The inverse of `write_widths`, without the rule of the space: see `check_widths`."""
    parts = text.split(":")
    if not all(re.fullmatch(r"[1-9][0-9]*", part) for part in parts):
        raise ArchitectureError(
            f"nats {what} {text!r} is not made of numbers joined by ':', as in 8:16:24:32:64; {_HINT}"
        )
    return tuple(map(int, parts))


@dataclass(frozen=True, order=True)
class NatsArch:
    """A network of the size space. Construction checks the rule; `str` gives the benchmark's written form."""

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.widths) != len(REDUCTIONS):
            raise ArchitectureError(
                f"nats architecture {str(self)!r} has {len(self.widths)} layers; it has {len(REDUCTIONS)}, "
                f"as in 8:16:24:32:64; {_HINT}"
            )
        check_widths(self.widths, what=f"architecture {str(self)!r}")

    def __str__(self) -> str:
        return write_widths(self.widths)

    @classmethod
    def parse(cls, text: str) -> NatsArch:
        """The architecture that `text` stands for. Raises `ArchitectureError`."""
        return cls(read_widths(text, what="architecture"))


@dataclass(frozen=True)
class NatsSpace(Space):
    """All networks of the size space.

    Attributes:
        dataset: `cifar10` or `cifar100`; decides the classes and where the supernet is cut into blocks.
        widths: what a layer may choose from; the benchmark's eight, or a few of them.
        in_chans: channels of an image.
        default_resolution: pixels at which `cost` counts unless told otherwise.
    """

    dataset: str = "cifar10"
    widths: tuple[int, ...] = WIDTHS
    in_chans: int = 3
    name: ClassVar[str] = "nats"
    default_resolution: int = 32

    def __post_init__(self) -> None:
        if self.dataset not in BLOCK_LAYERS:
            raise unknown("dataset of the nats space", self.dataset, BLOCK_LAYERS)
        if not self.widths or not set(self.widths) <= set(WIDTHS) or len(set(self.widths)) < len(self.widths):
            allowed = ", ".join(map(str, WIDTHS))
            raise UsageError(
                f"widths {self.widths} are not possible in a nats space; allowed: some of {allowed}; {_HINT}"
            )
        require_at_least(in_chans=(self.in_chans, 1), default_resolution=(self.default_resolution, 1))

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Layers of each block that the supernet is cut into."""
        return BLOCK_LAYERS[self.dataset]

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier, which is part of the cost."""
        return NUM_CLASSES[self.dataset]

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    @property
    def num_layers(self) -> int:
        return len(REDUCTIONS)

    def count(self) -> int:
        return len(self.widths) ** self.num_layers

    def parse(self, text: str) -> NatsArch:
        arch = NatsArch.parse(text)
        check_widths(arch.widths, f"architecture {text!r}", self.widths)
        return arch

    def sample(self, generator: random.Random) -> NatsArch:
        return NatsArch(tuple(generator.choices(self.widths, k=self.num_layers)))

    # --- the chain of blocks; an entry is the width of the layer before: costs depend on it, the legal paths do not

    def entries(self, block: int) -> tuple[Entry, ...]:
        return (None,) if block == 0 else self.widths

    def paths(self, block: int, entry: Entry = None) -> tuple[tuple[int, ...], ...]:
        return tuple(itertools.product(self.widths, repeat=self.block_layers[block]))

    def exit(self, block: int, entry: Entry, path: tuple[int, ...]) -> Entry:
        return path[-1]

    def split(self, arch: NatsArch) -> tuple[tuple[int, ...], ...]:
        return split_layers(arch.widths, self.block_layers)

    def join(self, paths: Sequence[tuple[int, ...]]) -> NatsArch:
        return NatsArch(tuple(itertools.chain.from_iterable(paths)))

    def path_text(self, path: tuple[int, ...]) -> str:
        return write_widths(path)

    def parse_path(self, block: int, text: str) -> tuple[int, ...]:
        path = read_widths(text, what="path")
        if len(path) != self.block_layers[block]:
            raise ArchitectureError(
                f"nats path {text!r} has {len(path)} layers; block {block + 1} has {self.block_layers[block]}; {_HINT}"
            )
        check_widths(path, f"path {text!r}", self.widths)
        return path

    # --- costs

    def fixed_cost(self, exit: Entry, resolution: int) -> Cost:
        """Last BN and classifier; the stem has the width of the first layer and counts there."""
        assert isinstance(exit, int)
        return Cost(exit * self.num_classes, 2 * exit + (exit + 1) * self.num_classes)

    def path_cost(self, block: int, entry: Entry, path: Sequence[int], resolution: int) -> Cost:
        first_layer = sum(self.block_layers[:block])
        side = resolution
        for reduces in REDUCTIONS[:first_layer]:
            side = halve(side) if reduces else side
        total = Cost()
        if entry is None:
            total, channels = conv_cost(self.in_chans, path[0], 3, side), path[0]
        else:
            assert isinstance(entry, int)
            channels = entry
        for width, reduces in zip(path, REDUCTIONS[first_layer:], strict=False):
            side = halve(side) if reduces else side
            total += _reduction(channels, width, side) if reduces else _cell(channels, width, side)
            channels = width
        return total


def _cell(in_channels: int, width: int, side: int) -> Cost:
    """Two edges from the input, three between nodes, and the skip."""
    total = conv_cost(in_channels, width, 3, side) * 2 + conv_cost(width, width, 3, side) * 3
    return total + conv_cost(in_channels, width, 1, side) if in_channels != width else total


def _reduction(in_channels: int, width: int, side: int) -> Cost:
    """Two convolutions, and the shortcut's 1x1 convolution, which has no BN."""
    shortcut = Cost(in_channels * width * side**2, in_channels * width)
    return conv_cost(in_channels, width, 3, side) + conv_cost(width, width, 3, side) + shortcut
