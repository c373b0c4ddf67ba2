"""The networks of NATS-Bench's size space S_S (Dong et al., arXiv 2009.00437): five layers of free width.

Shapes: B images, C channels, H x W pixels.

State dict: module names are those of the benchmark's own networks, so that its weights can be loaded: `stem.{0,1}`,
layers `cells.0` to `cells.4`, `lastact.0`, `classifier`. A cell (layers 0, 2, 4) has its six edges as `layers.0` to
`layers.5`, in the order 0->1, 0->2, 1->2, 0->3, 1->3, 2->3; an edge is `op.{1,2}` (convolution, BN), except the skip
0->3: `conv` and `bn`, or nothing where channels agree. A reduction block (layers 1, 3) has `conv_a.op.{1,2}`,
`conv_b.op.{1,2}` and `downsample.1`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UsageError
from ..spaces.nats import REDUCTIONS, NatsArch
from .weights import LoadsWeightFiles, build_variant

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


class NatsNet(LoadsWeightFiles, nn.Module):
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
        super().__init__()
        arch = NatsArch.parse(arch) if isinstance(arch, str) else arch
        if output_stride != 4:
            raise UsageError(f"output_stride {output_stride} is not possible for {arch}; allowed: 4")
        self.arch = str(arch)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        channels, reduction = arch.widths[0], 1
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.cells = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for index, width in enumerate(arch.widths):
            self.cells.append(make_layer(index, channels, width, drop_path_rate * sum(REDUCTIONS[: index + 1]) / 2))
            channels, reduction = width, reduction * (2 if REDUCTIONS[index] else 1)
            if not REDUCTIONS[index]:  # the last layer of its scale
                self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"cells.{index}"})
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.num_features = self.head_hidden_size = channels
        self.global_pool, self.classifier = create_classifier(channels, num_classes, pool_type=global_pool)

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        return "classifier" if name_only else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.classifier = classifier.to(self.stem[0].weight).train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stem, every layer (there is nothing coarser), last BN."""
        return {"stem": r"^stem", "blocks": [(r"^cells\.(\d+)", None), (r"^lastact", (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint_seq(self.cells, x) if self.grad_checkpointing and not torch.jit.is_scripting() else self.cells(x)
        return self.lastact(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps after the last layer of each scale (strides 1, 2, 4), in timm's manner."""
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt {output_fmt!r} is not possible: feature maps of a NatsNet are NCHW")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        x = self.stem(x)
        for index, layer in enumerate(self.cells[: 2 * last + 1] if stop_early else self.cells):
            x = checkpoint_seq([layer], x) if self.grad_checkpointing and not torch.jit.is_scripting() else layer(x)
            if index % 2 == 0 and index // 2 in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (self.lastact(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the last of `indices`, and the classifier, which would no longer fit."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last + 1 < len(self.feature_info)
        self.cells = self.cells[: 2 * last + 1]
        if prune_norm or shortened:
            self.lastact = nn.Sequential()
        if prune_head or shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take


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
    kwargs = {"arch": arch, "feature_cfg": {"out_indices": (0, 1, 2), "flatten_sequential": True}, **kwargs}
    return build_variant(NatsNet, "nats_size", pretrained, recipe="bossnet-m", **kwargs)
