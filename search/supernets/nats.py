"""The NATS-Bench supernet block: slimmable layers, each width a slice of the widest kernel, with BN layers of its own.

A layer takes any number of channels, so that one block serves every width at which it may be entered. The
stand-alone network has the same convolutions under the benchmark's names (see `bossnet_zoo.models.nats`).

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.models.nats import layer_names
from bossnet_zoo.spaces.nats import REDUCTIONS, NatsArch, NatsSpace

from .block import SupernetBlock, keep_only, norms_of, put_under, state_under

NatsPath = tuple[int, ...]


class SlimConv(nn.Module):
    """Convolution of any width, and a BN for each: (B, C, H, W) -> (B, width, H', W').

    Args:
        widths: possible numbers of output channels.
        in_channels: most input channels.
        norm: whether a BN follows.
    """

    def __init__(self, widths: Sequence[int], in_channels: int, kernel: int, stride: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, max(widths), kernel, stride, padding=kernel // 2, bias=False)
        self.norms = nn.ModuleDict({str(width): nn.BatchNorm2d(width) for width in widths if norm})

    def weight(self, in_channels: int, width: int) -> Tensor:
        """The first `width` output channels of the kernel, as they see the first `in_channels` input channels."""
        return self.conv.weight[:width, :in_channels]

    def forward(self, x: Tensor, width: int) -> Tensor:
        x = F.conv2d(x, self.weight(x.shape[1], width), stride=self.conv.stride, padding=self.conv.padding)
        return self.norms[str(width)](x) if self.norms else x

    def stand_alone_state(
        self, in_channels: int, width: int, conv: str = "op.1", norm: str = "op.2"
    ) -> dict[str, Tensor]:
        """State of one width between `in_channels`, its kernel and BN under the names `conv` and `norm`."""
        kernel = {f"{conv}.weight": self.weight(in_channels, width)}
        return kernel | state_under(norm, self.norms[str(width)]) if self.norms else kernel


class SlimCell(nn.Module):
    """The benchmark's cell at any width; `edges` in its order: 0->1, 0->2, 1->2, the skip 0->3, 1->3, 2->3."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.edges = nn.ModuleList(SlimConv(widths, max(widths), 1 if edge == 3 else 3) for edge in range(6))

    def forward(self, x: Tensor, width: int) -> Tensor:
        skip = x if x.shape[1] == width else self.edges[3](x, width)
        node0 = F.relu(x)  # every edge but the skip begins with the activation
        node1 = F.relu(self.edges[0](node0, width))
        node2 = F.relu(self.edges[1](node0, width) + self.edges[2](node1, width))
        return skip + self.edges[4](node1, width) + self.edges[5](node2, width)

    def stand_alone_state(self, in_channels: int, width: int) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for edge, slim in enumerate(self.edges):
            assert isinstance(slim, SlimConv)
            if edge != 3:
                part = slim.stand_alone_state(in_channels if edge < 2 else width, width)
            else:
                part = {} if in_channels == width else slim.stand_alone_state(in_channels, width, "conv", "bn")
            state |= put_under(f"layers.{edge}", part)
        return state


class SlimReduction(nn.Module):
    """The benchmark's residual block of stride 2 at any width."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.conv_a = SlimConv(widths, max(widths), 3, stride=2)
        self.conv_b = SlimConv(widths, max(widths), 3)
        self.downsample = SlimConv(widths, max(widths), 1, norm=False)

    def forward(self, x: Tensor, width: int) -> Tensor:
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        residual = self.conv_b(F.relu(self.conv_a(F.relu(x), width)), width)
        return self.downsample(shortcut, width) + residual

    def stand_alone_state(self, in_channels: int, width: int) -> dict[str, Tensor]:
        return {
            **put_under("conv_a", self.conv_a.stand_alone_state(in_channels, width)),
            **put_under("conv_b", self.conv_b.stand_alone_state(width, width)),
            **self.downsample.stand_alone_state(in_channels, width, "downsample.1"),
        }


class NatsBlock(SupernetBlock):
    """(B, C, H, W) -> (B, C', H', W'), C = 3 in the first block, else any of the space's widths.

    Args:
        space: the search space.
        block: index of the block; the first one holds the stem, whose width is the first layer's.
        entry: None, as one block serves every width.
    """

    def __init__(self, space: NatsSpace, block: int, entry: None = None):
        super().__init__()
        self.first_layer = sum(space.block_layers[:block])
        self.num_features = max(space.widths)
        reductions = REDUCTIONS[self.first_layer :][: space.block_layers[block]]
        self.stem = SlimConv(space.widths, space.in_chans, 3) if block == 0 else None
        self.layers = nn.ModuleList((SlimReduction if reduces else SlimCell)(space.widths) for reduces in reductions)
        self.adapters = nn.ModuleDict(
            {
                str(width): nn.Sequential(
                    nn.Conv2d(width, self.num_features, 1, bias=False), nn.BatchNorm2d(self.num_features)
                )
                for width in space.widths
            }
        )

    def step(self, x: Tensor, path: NatsPath, index: int) -> Tensor:
        if index < 0:
            return x
        if index == 0 and self.stem is not None:
            x = self.stem(x, path[0])
        return self.layers[index](x, path[index])

    def step_modules(self, path: NatsPath, index: int) -> tuple[nn.Module, ...]:
        if index == -1:
            return ()
        if index == len(path):
            return (self.adapters[str(path[-1])],)
        stem = (self.stem,) if index == 0 and self.stem is not None else ()
        return (*stem, self.layers[index])

    def norms(self, path: NatsPath, index: int) -> tuple[_BatchNorm, ...]:
        norms = norms_of(*self.step_modules(path, index))
        return norms if index in (-1, len(path)) else tuple(n for n in norms if n.num_features == path[index])

    def stand_alone_state(self, arch: NatsArch, path: NatsPath) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        channels = arch.widths[max(self.first_layer - 1, 0)]
        if self.stem is not None:
            state |= self.stem.stand_alone_state(self.stem.conv.in_channels, channels, "stem.0", "stem.1")
        for name, layer, width in zip(layer_names(arch)[self.first_layer :], self.layers, path, strict=False):
            assert isinstance(layer, SlimCell | SlimReduction)
            state |= put_under(name, layer.stand_alone_state(channels, width))
            channels = width
        return state

    def restrict_to(self, path: NatsPath) -> None:
        for index, width in enumerate(path):
            for module in self.step_modules(path, index):
                for slim in module.modules():
                    if isinstance(slim, SlimConv) and slim.norms:
                        keep_only(slim.norms, str(width))
        self.adapters = nn.ModuleDict()
