"""The MBConv supernet block: every layer holds its four candidates, the stand-alone network's own modules.

All paths of a block end with the same channels at the same stride, so that none of them needs an adapter.
"""

from __future__ import annotations

from timm.models._efficientnet_builder import efficientnet_init_weights
from torch import Tensor, nn

from bossnet_zoo.models.mbconv import layer_names, make_layer, make_stem
from bossnet_zoo.spaces.mbconv import CANDIDATES, MBConvArch, MBConvSpace

from .block import SupernetBlock, keep_only, state_under

MBConvPath = tuple[int, ...]


class MBConvBlock(SupernetBlock):
    """(B, C, H, W) -> (B, C', H', W'), C = 3 in the first block, else the channels of the block before.

    Args:
        space: the search space; its `width` and `se` shape the candidates.
        block: index of the block; the first one holds the stem and the separable convolution.
        entry: None, as the blocks before make no difference.
    """

    def __init__(self, space: MBConvSpace, block: int, entry: None = None):
        super().__init__()
        self.first_layer = sum(space.block_layers[:block])
        self.num_features = space.layer_shape(block, 0).out_channels
        self.stem = make_stem(space) if block == 0 else nn.Sequential()
        self.layers = nn.ModuleList(
            nn.ModuleDict({str(choice): make_layer(space, block, index, choice) for choice in range(len(CANDIDATES))})
            for index in range(space.block_layers[block])
        )
        efficientnet_init_weights(self)

    def step_modules(self, path: MBConvPath, index: int) -> tuple[nn.Module, ...]:
        if index == -1:
            return tuple(self.stem.children())
        if index == len(path):
            return ()
        candidates = self.layers[index]
        assert isinstance(candidates, nn.ModuleDict)
        return (candidates[str(path[index])],)

    def stand_alone_state(self, arch: MBConvArch, path: MBConvPath) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, module in zip(("conv_stem", "bn1", "blocks.0.0"), self.stem, strict=False):
            state |= state_under(name, module)
        for index, name in enumerate(layer_names(arch)[self.first_layer :][: len(path)]):
            state |= state_under(name, self.step_modules(path, index)[0])
        return state

    def restrict_to(self, path: MBConvPath) -> None:
        for candidates, choice in zip(self.layers, path, strict=True):
            keep_only(candidates, str(choice))
