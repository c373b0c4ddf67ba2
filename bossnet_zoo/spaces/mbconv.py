"""MBConv: CNNs of inverted residual blocks (BossNAS, section 4.2; the space of MnasNet and EfficientNet-B0).

The rule. A 3x3 stride-2 convolution to 32 channels and a separable convolution to 16 are followed by five blocks of
choice layers, by one fixed layer and by the head. Every choice layer is an inverted residual block, one of four:

    0  expansion 6, kernel 3        2  expansion 3, kernel 3
    1  expansion 6, kernel 5        3  expansion 3, kernel 5

With 2, 4, 4, 4 and 4 layers that gives 4^18 = 68,719,476,736 architectures.

The written form is the candidates' digits, block by block: `11-1111-1101-1011-1101`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..errors import ArchitectureError, UsageError, require_at_least
from .space import Cost, Entry, Space, conv_cost, halve


class Candidate(NamedTuple):
    """One kind of inverted residual block."""

    expansion: int
    kernel: int


class LayerShape(NamedTuple):
    """Where a choice layer stands, whatever it chooses."""

    in_channels: int
    out_channels: int
    stride: int


class Stage(NamedTuple):
    """What all layers of a block have in common; the stride is the first layer's, the others have 1."""

    channels: int
    stride: int


CANDIDATES = (Candidate(6, 3), Candidate(6, 5), Candidate(3, 3), Candidate(3, 5))  # by digit
STAGES = (Stage(24, 2), Stage(40, 2), Stage(80, 2), Stage(112, 1), Stage(192, 2))  # by block
STEM_CHANNELS, FIRST_CHANNELS, LAST_CHANNELS, HEAD_CHANNELS = 32, 16, 320, 1280
LAST_CANDIDATE = CANDIDATES[0]  # of the fixed layer behind the blocks
SE_RATIO = 0.25  # inner channels of squeeze-excite, of the channels that enter the layer
_HINT = "the rule and examples: bossnet space mbconv"


def scale_channels(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8 that is not zero."""
    return max(8, 8 * int(channels * width / 8 + 0.5))


@dataclass(frozen=True, order=True)
class MBConvArch:
    """An MBConv network with any number of layers per block. Construction checks the rule; `str` writes it down.

    Attributes:
        blocks: for each of the five blocks, the indices of its layers' candidates.
    """

    blocks: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != len(STAGES) or not all(self.blocks):
            raise ArchitectureError(
                f"mbconv architecture {str(self)!r} has {sum(map(bool, self.blocks))} blocks with layers; "
                f"it has {len(STAGES)}, joined by '-', as in 11-1111-1101-1011-1101; {_HINT}"
            )
        check_choices(tuple(itertools.chain.from_iterable(self.blocks)), what=f"architecture {str(self)!r}")

    def __str__(self) -> str:
        return "-".join(write_path(block) for block in self.blocks)

    @classmethod
    def parse(cls, text: str) -> MBConvArch:
        """The architecture that `text` stands for. Raises `ArchitectureError`."""
        return cls(tuple(read_path(part, what=f"architecture {text!r}") for part in text.split("-")))


def check_choices(choices: Sequence[int], what: str) -> None:
    """Raise `ArchitectureError` where a layer's choice is no candidate; `what` is named in the message."""
    for number, choice in enumerate(choices, start=1):
        if choice not in range(len(CANDIDATES)):
            raise ArchitectureError(
                f"mbconv {what}: layer {number}: there is no candidate {choice}; "
                f"allowed: 0 to {len(CANDIDATES) - 1}; {_HINT}"
            )


def write_path(path: Sequence[int]) -> str:
    """`1101`: the digits of a block's candidates."""
    return "".join(map(str, path))


def read_path(text: str, what: str = "path") -> tuple[int, ...]:
    """The inverse of `write_path`; `what` is named in errors."""
    if not all(character in "0123456789" for character in text):
        raise ArchitectureError(f"mbconv {what}: {text!r} is not made of digits 0 to {len(CANDIDATES) - 1}; {_HINT}")
    return tuple(map(int, text))


@dataclass(frozen=True)
class MBConvSpace(Space):
    """All MBConv networks with the given number of layers in each block.

    Attributes:
        block_layers: choice layers of each of the five blocks.
        se: squeeze-excite in every inverted residual block, the separable one included.
        width: factor of all channels; 1 in the paper.
        num_classes: outputs of the classifier, which is part of the cost.
        in_chans: channels of an image.
        default_resolution: pixels at which `cost` counts unless told otherwise.
    """

    block_layers: tuple[int, ...] = (2, 4, 4, 4, 4)
    se: bool = True
    width: float = 1.0
    num_classes: int = 1000
    in_chans: int = 3
    name: ClassVar[str] = "mbconv"
    default_resolution: int = 224

    def __post_init__(self) -> None:
        if len(self.block_layers) != len(STAGES) or min(self.block_layers) < 1:
            raise ArchitectureError(
                f"block_layers {self.block_layers} is not possible: an mbconv space has {len(STAGES)} blocks of one or "
                f"more layers, such as (2, 4, 4, 4, 4); {_HINT}"
            )
        if not 0 < self.width < math.inf:
            raise UsageError(f"width is {self.width}; it must be positive and finite")
        require_at_least(
            num_classes=(self.num_classes, 0),
            in_chans=(self.in_chans, 1),
            default_resolution=(self.default_resolution, 1),
        )

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    @property
    def num_layers(self) -> int:
        return sum(self.block_layers)

    def count(self) -> int:
        return len(CANDIDATES) ** self.num_layers

    def parse(self, text: str) -> MBConvArch:
        arch = MBConvArch.parse(text)
        for block, path in enumerate(arch.blocks):
            self._check_length(block, path, f"architecture {text!r}: block {block + 1}")
        return arch

    def sample(self, generator: random.Random) -> MBConvArch:
        return MBConvArch(tuple(tuple(generator.choices(range(len(CANDIDATES)), k=size)) for size in self.block_layers))

    def model_options(self) -> dict[str, Any]:
        return {"se": self.se, "width": self.width}

    def layer_shape(self, block: int, index: int) -> LayerShape:
        """Channels and stride of layer `index` of a block."""
        stage = STAGES[block]
        out_channels = self.channels(stage.channels)
        if index:
            return LayerShape(out_channels, out_channels, 1)
        return LayerShape(
            self.channels(STAGES[block - 1].channels if block else FIRST_CHANNELS), out_channels, stage.stride
        )

    def channels(self, channels: int) -> int:
        """Channels at this space's width of what has `channels` at width 1."""
        return scale_channels(channels, self.width)

    # --- the chain of blocks; nothing that happens in a block matters to the next, so every entry is None

    def paths(self, block: int, entry: Entry = None) -> tuple[tuple[int, ...], ...]:
        return tuple(itertools.product(range(len(CANDIDATES)), repeat=self.block_layers[block]))

    def split(self, arch: MBConvArch) -> tuple[tuple[int, ...], ...]:
        return arch.blocks

    def join(self, paths: Sequence[tuple[int, ...]]) -> MBConvArch:
        return MBConvArch(tuple(paths))

    def parse_path(self, block: int, text: str) -> tuple[int, ...]:
        path = read_path(text)
        self._check_length(block, path, f"path {text!r} of block {block + 1}")
        check_choices(path, what=f"path {text!r}")
        return path

    def _check_length(self, block: int, path: Sequence[int], what: str) -> None:
        if len(path) != self.block_layers[block]:
            raise ArchitectureError(
                f"mbconv {what} has {len(path)} layers instead of {self.block_layers[block]}; {_HINT}"
            )

    # --- costs

    def fixed_cost(self, exit: Entry, resolution: int) -> Cost:
        """Stem, separable block, the layer behind the blocks, head and classifier."""
        stem, first, last, head = map(self.channels, (STEM_CHANNELS, FIRST_CHANNELS, LAST_CHANNELS, HEAD_CHANNELS))
        side_in, side_out = self._side(0, resolution), self._side(len(STAGES), resolution)
        total = conv_cost(self.in_chans, stem, 3, side_in)
        total += self._depthwise(stem, 3, side_in, squeezed=stem) + conv_cost(stem, first, 1, side_in)
        total += self._inverted_residual(self.channels(STAGES[-1].channels), last, LAST_CANDIDATE, side_out, side_out)
        total += conv_cost(last, head, 1, side_out)
        return total + Cost(head * self.num_classes, (head + 1) * self.num_classes)

    def path_cost(self, block: int, entry: Entry, path: Sequence[int], resolution: int) -> Cost:
        side, side_out = self._side(block, resolution), self._side(block + 1, resolution)
        total = Cost()
        for index, choice in enumerate(path):
            shape = self.layer_shape(block, index)
            total += self._inverted_residual(*shape[:2], CANDIDATES[choice], side, side_out)
            side = side_out
        return total

    @staticmethod
    def _side(block: int, resolution: int) -> int:
        """Side of the feature map that enters a block. Every stride-2 convolution rounds up."""
        side = halve(resolution)
        for stage in STAGES[:block]:
            side = halve(side) if stage.stride == 2 else side
        return side

    def _depthwise(self, channels: int, kernel: int, side: int, squeezed: int) -> Cost:
        """Depth-wise convolution, its BN and, where this space has it, squeeze-excite (1x1 convolutions with bias)."""
        total = Cost(channels * kernel**2 * side**2, channels * kernel**2 + 2 * channels)
        if self.se:
            reduced = round(squeezed * SE_RATIO)
            total += Cost(2 * channels * reduced, 2 * channels * reduced + channels + reduced)
        return total

    def _inverted_residual(
        self, in_channels: int, out_channels: int, candidate: Candidate, side_in: int, side: int
    ) -> Cost:
        width = in_channels * candidate.expansion
        total = conv_cost(in_channels, width, 1, side_in)
        total += self._depthwise(width, candidate.kernel, side, squeezed=in_channels)
        return total + conv_cost(width, out_channels, 1, side)
