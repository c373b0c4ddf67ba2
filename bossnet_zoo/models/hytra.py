"""HyTra networks, BossNet-T among them: bottlenecks of convolution (ResConv) or self-attention (ResAtt) on four scales.

Li et al., BossNAS: Exploring Hybrid CNN-transformers with Block-wisely Self-supervised Neural Architecture Search,
ICCV 2021, https://arxiv.org/abs/2103.12424, section 4.1.

Shapes: B images, C channels, H x W pixels.

State dict: module names are those of the authors' released checkpoints, and weights in the wild depend on every one of
them, odd as some are. Stem `conv1`, `bn1`; the layers at stride 4, 8, 16, 32 in `layer1` to `layer4`, counted from 0
(see `layer_names`); where a scale in front of the first layer has none, its downsampling step is `layer1.0`, ...;
classifier `fc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..errors import UsageError, require_at_least
from ..spaces.hytra import STRIDES, HyTraArch
from .hytra_layers import ResAtt, ResConv, init_weights, make_downsample
from .network import Network, activation, check_options
from .weights import build_variant, imagenet_cfg

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


def check_output_stride(arch: HyTraArch, output_stride: int) -> None:
    """Raise `UsageError` unless a network of this architecture can stop striding at `output_stride`."""
    allowed = [stride for stride in (8, 16, 32) if stride >= STRIDES[arch.first_scale]]
    if output_stride not in allowed:
        choices = ", ".join(map(str, allowed))
        raise UsageError(f"output_stride {output_stride} is not possible for {arch}; allowed: {choices}")


# --- the network


class HyTra(Network):
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
        UsageError: an option that is not possible, as an `output_stride` that the architecture cannot have.
    """

    classifier_name = "fc"
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
        arch = HyTraArch.parse(arch) if isinstance(arch, str) else arch
        check_output_stride(arch, output_stride)
        check_options(num_classes, in_chans, global_pool, drop_rate, drop_path_rate, act_layer, se)
        head_dim = base_width if head_dim is None else head_dim
        require_at_least(base_width=(base_width, 1), head_dim=(head_dim, 1))
        if base_width % head_dim:
            raise UsageError(f"head_dim {head_dim} does not divide the {base_width} channels of base_width")
        if last_stride not in (1, 2):
            raise UsageError(f"last_stride {last_stride} is not possible; allowed: 1, 2")
        super().__init__(arch, num_classes, in_chans, drop_rate)
        act = activation(act_layer)

        self.conv1 = nn.Conv2d(in_chans, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.act1 = act(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_info.append({"num_chs": base_width, "reduction": 2, "module": "act1"})

        rates = [drop_path_rate * index / max(len(arch.layers) - 1, 1) for index in range(len(arch.layers))]
        reduction = STRIDES[0]
        for number, stage in enumerate(plan_stages(arch, base_width, last_stride, output_stride), start=1):
            modules: list[nn.Module] = []
            for operation, in_channels, width, stride, dilation in stage:
                reduction *= stride
                if operation == "s":
                    modules.append(make_downsample(in_channels, 4 * width, act))
                    continue
                rate, shape = rates.pop(0), (in_channels, width, stride)
                if operation == "c":
                    modules.append(ResConv(*shape, se=se, act_layer=act, drop_path=rate, dilation=dilation))
                else:
                    modules.append(ResAtt(*shape, head_dim=head_dim, act_layer=act))
            self.add_module(f"layer{number}", nn.Sequential(*modules))
            self.feature_info.append({"num_chs": 4 * width, "reduction": reduction, "module": f"layer{number}"})
        self.drop_layers_after(arch.last_scale + 1, drop_norm=False)  # these scales have none
        self.make_head(4 * base_width * 2**arch.last_scale, global_pool)
        init_weights(self)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = self.run(self.layer1, x)
        x = self.run(self.layer2, x)
        x = self.run(self.layer3, x)
        return self.run(self.layer4, x)

    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """The feature maps after the stem (at stride 2) and after each scale."""
        x = self.act1(self.bn1(self.conv1(x)))
        yield x
        x = self.maxpool(x)
        for layers in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self.run(layers, x)
            yield x

    def drop_layers_after(self, index: int, drop_norm: bool) -> None:
        for number in range(index + 1, len(STRIDES) + 1):
            self.add_module(f"layer{number}", nn.Sequential())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stem, then every residual block (coarse: every scale)."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


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


def _create(variant: str, pretrained: bool, arch: str, /, **kwargs: Any) -> HyTra:
    num_stages = HyTraArch.parse(str(arch)).last_scale + 1
    feature_cfg = {"out_indices": tuple(range(1, num_stages + 1))}
    return build_variant(HyTra, variant, pretrained, arch, recipe="bossnet-t", feature_cfg=feature_cfg, **kwargs)


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
