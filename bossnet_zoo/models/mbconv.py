"""MBConv networks, BossNet-M among them: timm's EfficientNet with a choice of expansion and kernel in every layer.

Li et al., BossNAS, ICCV 2021, https://arxiv.org/abs/2103.12424, section 4.2. The paper's encodings of BossNet-M1 and M2
were never published; ours are the exact optima of the authors' published ratings, without a bound on multiply-adds
(M1, 479.5 M; the paper says 475 M) and at 403.4 M (M2; the paper says 403 M).

State dict, with `block` and `index` counted from 0: stem `conv_stem`, `bn1`, separable convolution `blocks.0.0`; choice
layer `index` of `block` is `blocks.{block + 1}.{index}`, and holds exactly what `make_layer` of that layer holds; the
fixed last layer is `blocks.6.0`; head `conv_head`, `bn2`, `classifier`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import EfficientNetBuilder, decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import nn

from ..errors import UsageError
from ..spaces.mbconv import (
    CANDIDATES,
    FIRST_CHANNELS,
    HEAD_CHANNELS,
    LAST_CANDIDATE,
    LAST_CHANNELS,
    SE_RATIO,
    STAGES,
    STEM_CHANNELS,
    Candidate,
    MBConvArch,
    MBConvSpace,
    scale_channels,
)
from .network import activation, check_options
from .weights import LoadsWeightFiles, build_variant, imagenet_cfg

# --- the network in timm's notation, `ir_r1_k3_s2_e6_c24_se0.25`


def _inverted_residual(candidate: Candidate, channels: int, stride: int, se: bool) -> str:
    expansion, kernel = candidate
    return f"ir_r1_k{kernel}_s{stride}_e{expansion}_c{channels}" + (f"_se{SE_RATIO}" if se else "")


def _separable(channels: int, se: bool) -> str:
    return f"ds_r1_k3_s1_e1_c{channels}" + (f"_se{SE_RATIO}" if se else "")


def network_definition(arch: MBConvArch, se: bool = True, width: float = 1.0) -> list[list[str]]:
    """The stages of a network, from the separable convolution to the last fixed layer, for `decode_arch_def`."""
    channels = partial(scale_channels, width=width)
    stages = [[_separable(channels(FIRST_CHANNELS), se)]]
    for (stage_channels, stride), path in zip(STAGES, arch.blocks, strict=True):
        strides = (stride, *[1] * (len(path) - 1))
        stages.append(
            [
                _inverted_residual(CANDIDATES[choice], channels(stage_channels), layer_stride, se)
                for choice, layer_stride in zip(path, strides, strict=True)
            ]
        )
    stages.append([_inverted_residual(LAST_CANDIDATE, channels(LAST_CHANNELS), 1, se)])
    return stages


def make_layer(space: MBConvSpace, block: int, index: int, choice: int) -> nn.Module:
    """One choice layer as the stand-alone network has it: (B, in_channels, H, W) -> (B, out_channels, H/s, W/s).

    The shape is `space.layer_shape(block, index)`; the identity shortcut stands where stride is 1 and channels agree.
    """
    in_channels, out_channels, stride = space.layer_shape(block, index)
    definition = [[_inverted_residual(CANDIDATES[choice], out_channels, stride, space.se)]]
    builder = EfficientNetBuilder(act_layer=nn.SiLU, norm_layer=nn.BatchNorm2d, se_layer=SqueezeExcite)
    return builder(in_channels, decode_arch_def(definition))[0][0]


def make_stem(space: MBConvSpace) -> nn.Sequential:
    """What stands in front of the choice layers: `conv_stem`, `bn1` and `blocks.0.0` of the stand-alone network.

    (B, 3, H, W) -> (B, 16, H/2, W/2) at width 1.
    """
    network = EfficientNet(
        decode_arch_def([[_separable(space.channels(FIRST_CHANNELS), space.se)]]),
        num_classes=0,
        num_features=1,  # of a head that is thrown away
        in_chans=space.in_chans,
        stem_size=space.channels(STEM_CHANNELS),
        fix_stem=True,
        act_layer=nn.SiLU,
        norm_layer=nn.BatchNorm2d,
    )
    return nn.Sequential(network.conv_stem, network.bn1, *network.blocks[0].children())


def layer_names(arch: MBConvArch) -> tuple[str, ...]:
    """The module name of each choice layer, `blocks.1.0` for the first."""
    return tuple(f"blocks.{block}.{index}" for block, path in enumerate(arch.blocks, 1) for index in range(len(path)))


class MBConvNet(LoadsWeightFiles, EfficientNet):
    """An MBConv network as a timm model.

    Args:
        arch: the architecture, or its written form.
        num_classes: outputs of the classifier; 0 for pooled features.
        in_chans: channels of an image.
        global_pool: timm's name of the pooling in front of the classifier; '' for none.
        se: squeeze-excite in every inverted residual block and in the separable one.
        width: factor of all channels; 1 in the paper.
        act_layer: an activation class or timm's name of one.
        output_stride: 32, 16 or 8: later stages keep that stride and their depth-wise convolutions dilate instead.
        drop_rate: dropout in front of the classifier.
        drop_path_rate: stochastic depth of the last layer, growing linearly from 0 (the paper's drop-connect).

    Raises:
        ArchitectureError: an illegal architecture.
        UsageError: another `output_stride`, or an option that is not possible.
    """

    def __init__(
        self,
        arch: MBConvArch | str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        se: bool = True,
        width: float = 1.0,
        act_layer: type[nn.Module] | str = "silu",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        arch = MBConvArch.parse(arch) if isinstance(arch, str) else arch
        check_options(num_classes, in_chans, global_pool, drop_rate, drop_path_rate, act_layer, se)
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride {output_stride} is not possible for {arch}; allowed: 8, 16, 32")
        super().__init__(
            decode_arch_def(network_definition(arch, se, width)),
            num_classes=num_classes,
            num_features=scale_channels(HEAD_CHANNELS, width),
            in_chans=in_chans,
            stem_size=scale_channels(STEM_CHANNELS, width),
            fix_stem=True,
            output_stride=output_stride,
            act_layer=activation(act_layer),
            norm_layer=nn.BatchNorm2d,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool=global_pool,
        )
        self.arch = str(arch)


# --- weights: none are published


def _cfg(**values: Any) -> dict[str, Any]:
    return imagenet_cfg(first_conv="conv_stem", classifier="classifier", **values)


default_cfgs = generate_default_cfgs(
    {
        "bossnet_m1.untrained": _cfg(),
        "bossnet_m2.untrained": _cfg(),
        "mbconv.untrained": _cfg(),
        "test_bossnet_m.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


# --- timm entry points


def _create(variant: str, pretrained: bool, arch: str, /, **kwargs: Any) -> MBConvNet:
    kwargs = {"feature_cfg": {"flatten_sequential": True}, **kwargs}
    return build_variant(MBConvNet, variant, pretrained, arch, recipe="bossnet-m", **kwargs)


BOSSNET_M1 = "11-0110-0111-1100-0110"
BOSSNET_M2 = "11-0110-0111-1320-2332"


@register_model
def bossnet_m1(pretrained: bool = False, **kwargs: Any) -> MBConvNet:
    """BossNet-M1: no squeeze-excite; 479.5 M multiply-adds, best of all by the published ratings (paper: 76.2 %)."""
    return _create("bossnet_m1", pretrained, BOSSNET_M1, **{"se": False, **kwargs})


@register_model
def bossnet_m2(pretrained: bool = False, **kwargs: Any) -> MBConvNet:
    """BossNet-M2: squeeze-excite; best by the published ratings at 403.4 M multiply-adds (paper: 77.4 % top-1)."""
    return _create("bossnet_m2", pretrained, BOSSNET_M2, **kwargs)


@register_model
def mbconv(pretrained: bool = False, arch: str = BOSSNET_M2, **kwargs: Any) -> MBConvNet:
    """Any MBConv network: `timm.create_model("mbconv", arch="11-1111-1101-1011-1101", se=False)`."""
    return _create("mbconv", pretrained, arch, **kwargs)


@register_model
def test_bossnet_m(pretrained: bool = False, **kwargs: Any) -> MBConvNet:  # noqa: PT028 (no test, but timm's name for tiny models)
    """A tiny network with every candidate, for tests."""
    return _create("test_bossnet_m", pretrained, "01-23-1-2-0", **{"width": 0.25, **kwargs})
