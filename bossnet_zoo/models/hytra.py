"""HyTra networks, BossNet-T among them: bottlenecks of convolution (ResConv) or self-attention (ResAtt) on four scales.

Li et al., BossNAS: Exploring Hybrid CNN-transformers with Block-wisely Self-supervised Neural Architecture Search,
ICCV 2021, https://arxiv.org/abs/2103.12424, section 4.1.

Shapes: B images, C channels, H x W pixels, N = H * W tokens, D channels of an attention head.

State dict: module names are those of the authors' released checkpoints, and weights in the wild depend on every one of
them, odd as some are. Stem `conv1`, `bn1`; the layers at stride 4, 8, 16, 32 in `layer1` to `layer4`, counted from 0
(see `layer_names`); where a scale in front of the first layer has none, its downsampling step is `layer1.0`, ...;
classifier `fc`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite, create_classifier, get_act_layer
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UsageError
from ..spaces.hytra import STRIDES, HyTraArch
from .weights import LoadsWeightFiles, build_variant, imagenet_cfg

# --- blocks


class PositionConv(nn.Module):
    """Depth-wise 3x3 convolution: implicit position encoding (CPVT, arXiv 2102.10882), and the place of the stride."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Average-pool where the stride is 2, then 1x1 convolution and BN; the identity where nothing changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


class ResConv(nn.Module):
    """Residual bottleneck with a 3x3 convolution: (B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        se: bool = True,
        act_layer: type[nn.Module] = nn.SiLU,
        drop_path: float = 0.0,
        dilation: int = 1,
    ):
        super().__init__()
        out_channels = 4 * width
        self.downsample = make_shortcut(in_channels, out_channels, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.peg = PositionConv(width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = act_layer(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = act_layer(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        reduced = max(out_channels // 16, 8)
        self.se = SqueezeExcite(out_channels, rd_channels=reduced, act_layer=nn.ReLU) if se else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act3 = act_layer(inplace=True)

    @torch.jit.ignore
    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = self.peg(self.conv1(x))
        x = self.act1(self.bn1(x))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.se(self.bn3(self.conv3(x)))
        return self.act3(self.drop_path(x) + shortcut)


class Attention(nn.Module):
    """Multi-head self-attention over all pixels: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.num_heads = channels // head_dim
        self.scale = head_dim**-0.5
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)  # all queries, then all keys, then all values

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.to_qkv(x).reshape(B, 3 * self.num_heads, C // self.num_heads, H * W).transpose(-2, -1)
        q, k, v = qkv.chunk(3, dim=1)  # each (B, heads, N, D)
        x = F.scaled_dot_product_attention(q * self.scale, k, v, scale=1.0)
        return x.transpose(-2, -1).reshape(B, C, H, W)


class ResAtt(nn.Module):
    """Residual bottleneck with self-attention: (B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        head_dim: int = 64,
        act_layer: type[nn.Module] = nn.SiLU,
    ):
        super().__init__()
        self.shortcut = make_shortcut(in_channels, 4 * width, stride)
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            PositionConv(width, stride),
            nn.BatchNorm2d(width),
        )
        self.net = nn.Sequential(
            act_layer(inplace=True),
            Attention(width, head_dim),
            nn.BatchNorm2d(width),
            act_layer(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.act = act_layer(inplace=True)

    @torch.jit.ignore
    def zero_init_last(self) -> None:
        last = self.net[5]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.net(self.proj(x)) + self.shortcut(x))


def make_downsample(in_channels: int, out_channels: int, act_layer: type[nn.Module]) -> nn.Sequential:
    """The step that stands for a scale without layers: 3x3 stride-2 convolution, BN, activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        act_layer(inplace=True),
    )


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Kaiming normal, fan-out, on convolutions; the last BN of every residual block starts at zero."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and not child.weight.is_meta:  # where drawing nothing takes long
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
    for child in module.modules():
        if isinstance(child, ResConv | ResAtt):
            child.zero_init_last()


# --- from an architecture to its layers


class Step(NamedTuple):
    """One module of a stage: operation `c` or `a`, or `s` for the downsampling step of a scale without layers."""

    operation: str
    in_channels: int
    width: int  # inner channels; four times as many come out
    stride: int
    dilation: int


def plan_stages(arch: HyTraArch, base_width: int, last_stride: int, output_stride: int) -> list[list[Step]]:
    """The modules of each stage, from stride 4 to that of the last layer."""
    stages: list[list[Step]] = []
    channels, reduction, dilation = base_width, STRIDES[0], 1
    for scale in range(arch.last_scale + 1):
        width = base_width * 2**scale
        stride, first_dilation = last_stride if scale == 3 else 2, dilation
        if scale < arch.first_scale:
            operations = ["s"]
        else:
            operations = [layer.operation for layer in arch.layers if layer.scale == scale]
            if scale == arch.first_scale:  # the stem and the steps before have strided already
                stride = 1
            elif reduction * stride > output_stride:
                stride, dilation = 1, dilation * stride
        stage = []
        for operation in operations:
            stage.append(Step(operation, channels, width, stride, first_dilation))
            channels, reduction, stride, first_dilation = 4 * width, reduction * stride, 1, dilation
        stages.append(stage)
    return stages


def layer_names(arch: HyTraArch) -> tuple[str, ...]:
    """The module name of each choice layer, `layer3.0` for the first layer at stride 16."""
    scales = [layer.scale for layer in arch.layers]
    return tuple(f"layer{scale + 1}.{scales[:number].count(scale)}" for number, scale in enumerate(scales))


# --- the network


class HyTra(LoadsWeightFiles, nn.Module):
    """A HyTra network as a timm model.

    Args:
        arch: the architecture, or its written form.
        num_classes: outputs of the classifier; 0 for pooled features.
        in_chans: channels of an image.
        global_pool: timm's name of the pooling in front of the classifier; '' for none.
        base_width: channels of the stem and inner channels at stride 4; 64 in the paper.
        head_dim: channels of an attention head; by default as many as `base_width`, which gives 1, 2, 4 and 8 heads.
        se: squeeze-excite in ResConv.
        act_layer: an activation class or timm's name of one.
        last_stride: stride on entering the last scale; 1 in BossNet-T1.
        output_stride: 32, 16 or 8: later scales keep that stride and their 3x3 convolutions dilate instead.
        drop_rate: dropout in front of the classifier.
        drop_path_rate: stochastic depth of the last layer, growing linearly from 0; in ResConv only, as the authors do.

    Raises:
        ArchitectureError: an illegal architecture.
        UsageError: an `output_stride` that the architecture cannot have.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        arch: HyTraArch | str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        base_width: int = 64,
        head_dim: int | None = None,
        se: bool = True,
        act_layer: type[nn.Module] | str = "silu",
        last_stride: int = 2,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        arch = HyTraArch.parse(arch) if isinstance(arch, str) else arch
        allowed = [stride for stride in (8, 16, 32) if stride >= STRIDES[arch.first_scale]]
        if output_stride not in allowed:
            choices = ", ".join(map(str, allowed))
            raise UsageError(f"output_stride {output_stride} is not possible for {arch}; allowed: {choices}")
        self.arch = str(arch)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        act = get_act_layer(act_layer)
        assert act is not None

        self.conv1 = nn.Conv2d(in_chans, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.act1 = act(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": base_width, "reduction": 2, "module": "act1"}]

        rates = [drop_path_rate * index / max(len(arch.layers) - 1, 1) for index in range(len(arch.layers))]
        reduction = STRIDES[0]
        for number, stage in enumerate(plan_stages(arch, base_width, last_stride, output_stride), start=1):
            modules: list[nn.Module] = []
            for operation, in_channels, width, stride, dilation in stage:
                reduction *= stride
                if operation == "s":
                    modules.append(make_downsample(in_channels, 4 * width, act))
                    continue
                rate = rates.pop(0)
                if operation == "c":
                    kwargs = {"se": se, "act_layer": act, "drop_path": rate, "dilation": dilation}
                    modules.append(ResConv(in_channels, width, stride, **kwargs))
                else:
                    modules.append(ResAtt(in_channels, width, stride, head_dim=head_dim or base_width, act_layer=act))
            self.add_module(f"layer{number}", nn.Sequential(*modules))
            self.feature_info.append({"num_chs": 4 * width, "reduction": reduction, "module": f"layer{number}"})
        for number in range(arch.last_scale + 2, len(STRIDES) + 1):  # the network ends before these scales
            self.add_module(f"layer{number}", nn.Sequential())

        self.num_features = self.head_hidden_size = 4 * base_width * 2**arch.last_scale
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        init_weights(self)

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.fc = classifier.to(self.conv1.weight).train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stem, then every residual block (coarse: every scale)."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return self.layer4(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

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
        """Feature maps after the stem (index 0, stride 2) and after each scale, in timm's manner."""
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt {output_fmt!r} is not possible: feature maps of a HyTra network are NCHW")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        x = self.act1(self.bn1(self.conv1(x)))
        if 0 in take:
            intermediates.append(x)
        x = self.maxpool(x)
        num_stages = last if stop_early else len(self.feature_info) - 1
        for index, stage in enumerate([self.layer1, self.layer2, self.layer3, self.layer4][:num_stages], start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if index in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the scales after the last of `indices`, and the classifier, which would no longer fit."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last + 1 < len(self.feature_info)
        for index in range(last + 1, len(STRIDES) + 1):
            setattr(self, f"layer{index}", nn.Sequential())
        if prune_head or shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take


# --- weights

RELEASE = "https://github.com/changlin31/BossNAS/releases/download/v0.1/"


def _cfg(**values: Any) -> dict[str, Any]:
    return imagenet_cfg(first_conv="conv1", classifier="fc", **values)


def _released(name: str, file: str, **values: Any) -> dict[str, dict[str, Any]]:
    """Two tags for one file: its plain weights, and their moving average where the file has it."""
    return {f"{name}.{tag}": _cfg(url=RELEASE + file, **values) for tag in ("in1k", "ema_in1k")}


default_cfgs = generate_default_cfgs(
    {
        **_released("bossnet_t0", "BossNet-T0-80_8.pth", test_input_size=(3, 288, 288), test_pool_size=(9, 9)),
        **_released("bossnet_t0_nose", "BossNet-T0-nose-80_5.pth"),
        **_released(
            "bossnet_t1",
            "BossNet-T1-81_9.pth",
            pool_size=(14, 14),
            test_input_size=(3, 256, 256),
            test_pool_size=(16, 16),
        ),
        "hytra.untrained": _cfg(),
        "hytra_resnet50.untrained": _cfg(),
        "hytra_botnet50.untrained": _cfg(),
        "hytra_vit16.untrained": _cfg(pool_size=(14, 14)),
        "hytra_dna.untrained": _cfg(),
        "hytra_unnas.untrained": _cfg(),
        "hytra_random.untrained": _cfg(),
        "test_bossnet_t.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


# --- timm entry points


def _create(variant: str, pretrained: bool, arch: str, **kwargs: Any) -> HyTra:
    kwargs = {"arch": arch, **kwargs}
    num_stages = HyTraArch.parse(str(kwargs["arch"])).last_scale + 1
    feature_cfg = {"out_indices": tuple(range(1, num_stages + 1))}
    return build_variant(HyTra, variant, pretrained, recipe="bossnet-t", feature_cfg=feature_cfg, **kwargs)


BOSSNET_T = "4c-8c-16cccac-32aaacaaaaa"


@register_model
def bossnet_t0(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """BossNet-T0: SiLU, squeeze-excite; 80.8 % top-1 at 224, 81.6 % at 288 (the authors' figures)."""
    return _create("bossnet_t0", pretrained, BOSSNET_T, **kwargs)


@register_model
def bossnet_t0_nose(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """BossNet-T0 without squeeze-excite, with ReLU; 80.5 % top-1 at 224 (the authors' figure)."""
    return _create("bossnet_t0_nose", pretrained, BOSSNET_T, **{"se": False, "act_layer": "relu", **kwargs})


@register_model
def bossnet_t1(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """BossNet-T1: T0 with stride 1 in the last stage; 81.9 % top-1 at 224 (the released file; 82.2 % in the paper)."""
    return _create("bossnet_t1", pretrained, BOSSNET_T, **{"last_stride": 1, **kwargs})


@register_model
def hytra(pretrained: bool = False, arch: str = BOSSNET_T, **kwargs: Any) -> HyTra:
    """Any HyTra network: `timm.create_model("hytra", arch="4ccc-8cccc-16cccccc-32ccc")`."""
    return _create("hytra", pretrained, arch, **kwargs)


@register_model
def hytra_resnet50(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """ResNet50-T: ResNet-50 as a member of the space; 78.2 % top-1 in the paper."""
    return _create("hytra_resnet50", pretrained, "4ccc-8cccc-16cccccc-32ccc", **kwargs)


@register_model
def hytra_botnet50(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """BoTNet50-T: attention in the last stage; 79.5 % top-1 in the paper."""
    return _create("hytra_botnet50", pretrained, "4ccc-8cccc-16cccccc-32aaa", **kwargs)


@register_model
def hytra_vit16(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """ViT-T/16: sixteen layers of attention at stride 16; 76.5 % top-1 in the paper."""
    return _create("hytra_vit16", pretrained, "16aaaaaaaaaaaaaaaa", **kwargs)


@register_model
def hytra_dna(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """DNA-T: found by supervised block-wise distillation; 80.3 % top-1 in the paper."""
    return _create("hytra_dna", pretrained, "4c-8ccc-16caccccac-32accc", **kwargs)


@register_model
def hytra_unnas(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """UnNAS-T: found by rotation prediction; 79.8 % top-1 in the paper."""
    return _create("hytra_unnas", pretrained, "8c-16cc-32cccaaaacaacca", **kwargs)


@register_model
def hytra_random(pretrained: bool = False, **kwargs: Any) -> HyTra:
    """Random-T: drawn at random; 76.7 % top-1 in the paper."""
    return _create("hytra_random", pretrained, "16acccaacacca-32acacc", **kwargs)


@register_model
def test_bossnet_t(pretrained: bool = False, **kwargs: Any) -> HyTra:  # noqa: PT028 (no test, but timm's name for tiny models)
    """A tiny network with every kind of layer on every scale, for tests."""
    return _create("test_bossnet_t", pretrained, "4c-8c-16ca-32ac", **{"base_width": 8, **kwargs})
