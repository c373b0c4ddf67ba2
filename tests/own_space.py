"""A search space of one's own: two blocks of two convolutions, each of which chooses its kernel: 1, 3 or 5."""

import itertools
from dataclasses import dataclass

from timm.layers import ConvNormAct
from torch import nn

from bossnet_zoo.models import build
from bossnet_zoo.search.supernets import SupernetBlock, make_block
from bossnet_zoo.spaces import Cost, Space, add_space


class KernelArch(str):
    """The kernels of each block's layers: 13-55."""


@add_space
@dataclass(frozen=True)
class KernelSpace(Space):
    name, default_resolution, num_blocks = "kernels", 32, 2

    def paths(self, block, entry=None):
        return tuple(itertools.product("135", repeat=2))

    def split(self, arch):
        return tuple(map(tuple, arch.split("-")))

    def join(self, paths):
        return KernelArch("-".join(map(self.path_text, paths)))

    def path_cost(self, block, entry, path, resolution):
        weights = sum(16 * 16 * int(kernel) ** 2 for kernel in path)
        return Cost(weights * (resolution // 2) ** 2, weights + 2 * 2 * 16)


@build.register
def network(arch: KernelArch, num_classes=10, in_chans=3):
    layers = [ConvNormAct(16, 16, int(kernel)) for kernel in arch.replace("-", "")]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)]
    return nn.Sequential(ConvNormAct(in_chans, 16, 3, stride=2), *layers, *head)


class KernelBlock(SupernetBlock):
    num_features = 16

    def __init__(self, space, block, entry):
        super().__init__()
        self.stem = nn.ModuleList([ConvNormAct(3, 16, 3, stride=2)] if block == 0 else [])
        candidates = ({kernel: ConvNormAct(16, 16, int(kernel)) for kernel in "135"} for _ in range(2))
        self.layers = nn.ModuleList(map(nn.ModuleDict, candidates))

    def step_modules(self, path, index):
        if index == -1:  # in front of every path
            return tuple(self.stem)
        return (self.layers[index][path[index]],) if index < len(path) else ()


make_block.register(KernelSpace, KernelBlock)
