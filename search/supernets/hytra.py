"""The HyTra supernet block: every legal path of four layers over four scales, entered at a given scale.

Each layer holds one candidate for every transition (scale before, scale, operation) that occurs in a legal path. The
candidates are the stand-alone network's own modules, so that weights carry over and both compute the same function.
"""

from __future__ import annotations

from torch import Tensor, nn

from bossnet_zoo.models.hytra import layer_names
from bossnet_zoo.models.hytra_layers import ResAtt, ResConv, init_weights, make_downsample
from bossnet_zoo.models.network import activation
from bossnet_zoo.spaces.hytra import STRIDES, HyTraArch, HyTraSpace, Layer

from .block import SupernetBlock, keep_only, state_under

HyTraPath = tuple[Layer, ...]


class HyTraBlock(SupernetBlock):
    """(B, C, H, W) -> (B, C', H', W'), C = 3 in the first block, else the channels of the entry scale.

    Args:
        space: the search space; its `base_width`, `se` and `act_layer` shape the candidates.
        block: index of the block.
        entry: scale of the layer before the block; None in the first block, which holds the stem and the
            downsampling module.
    """

    def __init__(self, space: HyTraSpace, block: int, entry: int | None):
        super().__init__()
        self.entry = entry
        self.first_layer = sum(space.block_layers[:block])
        act, base_width = activation(space.act_layer), space.base_width
        self.num_features = 32 * base_width

        def channels(scale: int) -> int:
            return 4 * base_width * 2**scale

        self.stem = nn.Sequential()
        self.downsample = nn.ModuleList()
        if entry is None:
            self.stem = nn.Sequential(
                nn.Conv2d(space.in_chans, base_width, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(base_width),
                act(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
            widths = [base_width, *(channels(scale) for scale in range(3))]
            self.downsample.extend(make_downsample(widths[scale], widths[scale + 1], act) for scale in range(3))

        paths = space.paths(block, entry)
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in paths[0])
        for path in paths:
            for index, (scale, operation) in enumerate(path):
                candidates, key = self.layers[index], self._key(path, index)
                assert isinstance(candidates, nn.ModuleDict)
                if key in candidates:
                    continue
                before = self._scale_before(path, index)
                stride = 1 if before in (None, scale) else 2
                if before is None:  # behind the downsampling module
                    in_channels = base_width if scale == 0 else channels(scale - 1)
                else:
                    in_channels = channels(before)
                width = base_width * 2**scale
                if operation == "c":
                    candidates[key] = ResConv(in_channels, width, stride, se=space.se, act_layer=act)
                else:
                    candidates[key] = ResAtt(in_channels, width, stride, head_dim=base_width, act_layer=act)

        # Depth-wise reduction to stride 32, then to the widest scale's channels; that scale needs none.
        self.adapters = nn.ModuleDict()
        for scale in sorted({path[-1].scale for path in paths} - {3}):
            kernel = 2 ** (3 - scale)
            self.adapters[str(STRIDES[scale])] = nn.Sequential(
                nn.Conv2d(channels(scale), channels(scale), kernel, stride=kernel, groups=channels(scale), bias=False),
                nn.Conv2d(channels(scale), self.num_features, 1, bias=False),
                nn.BatchNorm2d(self.num_features),
            )
        init_weights(self)

    def _scale_before(self, path: HyTraPath, index: int) -> int | None:
        return path[index - 1].scale if index else self.entry

    def _key(self, path: HyTraPath, index: int) -> str:
        before = self._scale_before(path, index)
        source = "stem" if before is None else str(STRIDES[before])
        return f"{source}_to_{STRIDES[path[index].scale]}{path[index].operation}"

    def step_modules(self, path: HyTraPath, index: int) -> tuple[nn.Module, ...]:
        if index == -1:
            return tuple(self.stem.children())
        if index == len(path):
            stride = str(STRIDES[path[-1].scale])
            return (self.adapters[stride],) if stride in self.adapters else ()
        candidates = self.layers[index]
        assert isinstance(candidates, nn.ModuleDict)
        candidate = candidates[self._key(path, index)]
        if index == 0 and self.entry is None:
            return (*self.downsample[: path[0].scale], candidate)
        return (candidate,)

    def stand_alone_state(self, arch: HyTraArch, path: HyTraPath) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        if self.entry is None:
            state |= state_under("conv1", self.stem[0]) | state_under("bn1", self.stem[1])
            for scale in range(path[0].scale):
                state |= state_under(f"layer{scale + 1}.0", self.downsample[scale])
        for index, name in enumerate(layer_names(arch)[self.first_layer :][: len(path)]):
            state |= state_under(name, self.step_modules(path, index)[-1])
        return state

    def restrict_to(self, path: HyTraPath) -> None:
        for index, candidates in enumerate(self.layers):
            keep_only(candidates, self._key(path, index))
        if self.entry is None:
            self.downsample = self.downsample[: path[0].scale]
        self.adapters = nn.ModuleDict()

    def share_with(self, other: SupernetBlock) -> None:
        assert isinstance(other, HyTraBlock)
        for mine, theirs in zip([*self.layers, self.adapters], [*other.layers, other.adapters], strict=True):
            assert isinstance(mine, nn.ModuleDict)
            assert isinstance(theirs, nn.ModuleDict)
            mine.update({key: theirs[key] for key in mine if key in theirs})
