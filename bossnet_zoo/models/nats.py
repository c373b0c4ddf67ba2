"""The networks of NATS-Bench's size space S_S (Dong et al., arXiv 2009.00437): five layers of free width.

Shapes: B images, C channels, H x W pixels.

State dict: module names are those of the benchmark's own networks, so that its weights can be loaded: `stem.{0,1}`,
layers `cells.0` to `cells.4`, `lastact.0`, `classifier`. A cell (layers 0, 2, 4) has its six edges as `layers.0` to
`layers.5`, in the order 0->1, 0->2, 1->2, 0->3, 1->3, 2->3; an edge is `op.{1,2}` (convolution, BN), except the skip
0->3: `conv` and `bn`, or nothing where channels agree. A reduction block (layers 1, 3) has `conv_a.op.{1,2}`,
`conv_b.op.{1,2}` and `downsample.1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..errors import UsageError
from ..spaces.nats import REDUCTIONS, NatsArch
from .network import Network, check_options
from .weights import build_variant

# --- layers


class ReLUConvBN(nn.Module):
    """Activation, 3x3 convolution, BN: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Skip(nn.Module):
    """The edge from a cell's input to its last node, where the channels differ: 1x1 convolution and BN."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Cell(nn.Module):
    """The benchmark's fixed genotype, three nodes behind the input: (B, in_channels, ...) -> (B, out_channels, ...)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                ReLUConvBN(in_channels, out_channels),
                ReLUConvBN(in_channels, out_channels),
                ReLUConvBN(out_channels, out_channels),
                nn.Identity() if in_channels == out_channels else Skip(in_channels, out_channels),
                ReLUConvBN(out_channels, out_channels),
                ReLUConvBN(out_channels, out_channels),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        node1 = self.layers[0](x)
        node2 = self.layers[1](x) + self.layers[2](node1)
        return self.layers[3](x) + self.layers[4](node1) + self.layers[5](node2)


class ReductionBlock(nn.Module):
    """Basic residual block of stride 2: (B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, drop_path: float = 0.0):
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, stride=2)
        self.conv_b = ReLUConvBN(out_channels, out_channels)
        # The benchmark's images have even sides; ceil mode lets any side fit that of the 3x3 convolution.
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False)
        self.downsample = nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.drop_path(self.conv_b(self.conv_a(x)))


def make_layer(index: int, in_channels: int, out_channels: int, drop_path: float = 0.0) -> nn.Module:
    """Layer `index` (0 to 4) as the stand-alone network has it: a cell, or a reduction block where the rule says so."""
    if REDUCTIONS[index]:
        return ReductionBlock(in_channels, out_channels, drop_path)
    return Cell(in_channels, out_channels)


def layer_names(arch: NatsArch) -> tuple[str, ...]:
    """The module name of each layer."""
    return tuple(f"cells.{index}" for index in range(len(arch.widths)))


# --- the network


class NatsNet(Network):
    """A network of the size space as a timm model.

    Args:
        arch: the architecture, or its written form.
        num_classes: outputs of the classifier; 0 for pooled features.
        in_chans: channels of an image.
        global_pool: timm's name of the pooling in front of the classifier; '' for none.
        output_stride: 4, which all these networks have; others are refused.
        drop_rate: dropout in front of the classifier.
        drop_path_rate: stochastic depth of the second reduction block, half of it in the first; 0 in the benchmark.

    Raises:
        ArchitectureError: an illegal architecture.
        UsageError: another `output_stride`.
    """

    classifier_name = "classifier"

    def __init__(
        self,
        arch: NatsArch | str,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        arch = NatsArch.parse(arch) if isinstance(arch, str) else arch
        if output_stride != 4:
            raise UsageError(f"output_stride {output_stride} is not possible for {arch}; allowed: 4")
        check_options(num_classes, in_chans, global_pool, drop_rate)
        super().__init__(arch, num_classes, in_chans, drop_rate)

        channels, reduction = arch.widths[0], 1
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.cells = nn.Sequential()
        for index, width in enumerate(arch.widths):
            self.cells.append(make_layer(index, channels, width, drop_path_rate * sum(REDUCTIONS[: index + 1]) / 2))
            channels, reduction = width, reduction * (2 if REDUCTIONS[index] else 1)
            if not REDUCTIONS[index]:  # the last layer of its scale
                self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"cells.{index}"})
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.make_head(channels, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.lastact(self.run(self.cells, self.stem(x)))

    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """The feature maps after the last layer of each scale, at strides 1, 2 and 4."""
        x = self.stem(x)
        for index, layer in enumerate(self.cells):
            x = self.run(layer, x)
            if not REDUCTIONS[index]:
                yield x

    def last_norm(self, x: Tensor) -> Tensor:
        return self.lastact(x)

    def drop_layers_after(self, index: int, drop_norm: bool) -> None:
        self.cells = self.cells[: 2 * index + 1]
        if drop_norm:
            self.lastact = nn.Sequential()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stem, every layer (there is nothing coarser), last BN."""
        return {"stem": r"^stem", "blocks": [(r"^cells\.(\d+)", None), (r"^lastact", (99999,))]}


# --- timm entry point

default_cfgs = generate_default_cfgs(
    {
        "nats_size.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "stem.0",
            "classifier": "classifier",
            "paper_name": "NATS-Bench",
            "paper_ids": "arXiv:2009.00437",
        }
    }
)


@register_model
def nats_size(pretrained: bool = False, arch: str = "64:64:64:64:64", **kwargs: Any) -> NatsNet:
    """Any network of NATS-Bench's size space: `timm.create_model("nats_size", arch="8:16:24:32:64")`."""
    kwargs = {"feature_cfg": {"out_indices": (0, 1, 2), "flatten_sequential": True}, **kwargs}
    return build_variant(NatsNet, "nats_size", pretrained, arch, recipe="bossnet-m", **kwargs)
