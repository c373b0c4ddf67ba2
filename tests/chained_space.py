"""A search space of one's own whose blocks depend on the block before: convolutions of 4, 6 or 8 channels.

A block is entered in the width of the block before, which its convolution must take as input. Width 6 may not follow
itself, so that the legal paths depend on the entry, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from timm.layers import ConvNormAct
from torch import nn

from bossnet_zoo.search.supernets import SupernetBlock, make_block
from bossnet_zoo.spaces import Cost, Entry, Path, Space, add_space

WIDTHS = (4, 6, 8)
FEATURES = 8


class ChainedArch(str):
    """The widths of the blocks: 4-8-8."""


@add_space
@dataclass(frozen=True)
class ChainedSpace(Space):
    num_blocks: int = 3
    default_resolution: int = 16
    name: ClassVar[str] = "chained"

    def entries(self, block: int) -> tuple[Entry, ...]:
        return WIDTHS if block else (None,)

    def paths(self, block: int, entry: Entry = None) -> tuple[Path, ...]:
        return tuple((width,) for width in WIDTHS if not entry == width == 6)

    def exit(self, block: int, entry: Entry, path: Path) -> Entry:
        return path[-1]

    def split(self, arch: ChainedArch) -> tuple[Path, ...]:
        return tuple((int(width),) for width in arch.split("-"))

    def join(self, paths: Sequence[Path]) -> ChainedArch:
        return ChainedArch("-".join(map(self.path_text, paths)))

    def path_cost(self, block: int, entry: Entry, path: Path, resolution: int) -> Cost:
        weights = 9 * path[0] * (entry or 3)  # type: ignore[operator]
        return Cost(weights * resolution**2, weights + 2 * path[0])


class ChainedBlock(SupernetBlock):
    num_features = FEATURES

    def __init__(self, space: ChainedSpace, block: int, entry: Entry):
        super().__init__()
        widths = [path[0] for path in space.paths(block, entry)]
        self.layers = nn.ModuleDict({str(width): ConvNormAct(entry or 3, width, 3) for width in widths})
        self.adapters = nn.ModuleDict({str(width): ConvNormAct(width, FEATURES, 1) for width in widths})

    def step_modules(self, path: Path, index: int) -> tuple[nn.Module, ...]:
        return () if index == -1 else ((self.adapters if index else self.layers)[str(path[0])],)


make_block.register(ChainedSpace, ChainedBlock)
