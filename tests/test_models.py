"""The stand-alone networks: arithmetic, names, costs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import efficientnet_b0
from torch import nn

from bossnet_zoo import models
from bossnet_zoo.errors import UsageError
from bossnet_zoo.models import hytra, hytra_layers, mbconv, nats
from bossnet_zoo.models.table import PUBLISHED, measure, with_table
from bossnet_zoo.spaces import HyTraArch, MBConvArch, MBConvSpace, NatsArch, get_space, parse_arch

ROOT = Path(__file__).parents[1]


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


# --- costs

DESIGN = {  # model, pixels: multiply-adds of the paper, and how far from them an exact count may be
    ("bossnet_t0_nose", 224): (3.44e9, 0.003),
    ("bossnet_t0", 224): (3.44e9, 0.003),
    ("bossnet_t0", 288): (5.73e9, 0.003),
    ("bossnet_t1", 224): (7.94e9, 0.003),
    ("bossnet_t1", 256): (10.51e9, 0.003),
    ("hytra_resnet50", 224): (4.104e9, 0.003),
    ("hytra_botnet50", 224): (3.879e9, 0.003),
    ("hytra_dna", 224): (3.911e9, 0.003),
    ("hytra_vit16", 224): (3.2e9, 0.05),
    ("hytra_unnas", 224): (3.7e9, 0.05),
    ("hytra_random", 224): (3.7e9, 0.05),
    ("bossnet_m1", 224): (479.5e6, 0.0002),
    ("bossnet_m2", 224): (403.4e6, 0.0002),
}
PAPER_ROUNDED = {"hytra_resnet50": 4.1, "hytra_botnet50": 3.9, "hytra_dna": 3.9}


@pytest.mark.parametrize(("name", "resolution"), DESIGN)
def test_multiply_adds_are_those_of_the_paper(name, resolution):
    expected, tolerance = DESIGN[name, resolution]
    madds = measure(on_meta(name), resolution).madds
    assert madds == pytest.approx(expected, rel=tolerance)
    if name in PAPER_ROUNDED:
        assert round(madds / 1e9, 1) == PAPER_ROUNDED[name]


def test_measuring_counts_what_timm_states_of_resnet50():
    cost = measure(on_meta("resnet50"), 224)
    assert cost.params == 25_557_032
    assert cost.madds == pytest.approx(4.09e9, rel=0.003)


def test_measuring_leaves_the_model_as_it_is():
    model = timm.create_model("test_bossnet_t").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, 64)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_readme_table_is_that_of_the_models():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "type: python -m bossnet_zoo.models.table README.md"
    assert {(row.model, row.resolution) for row in PUBLISHED} == DESIGN.keys()


# --- HyTra


def attention_in_float64(attention: hytra_layers.Attention, x: torch.Tensor) -> torch.Tensor:
    """Head by head and token by token: softmax over keys of q k^T / sqrt(D), applied to v."""
    B, C, H, W = x.shape
    weight = attention.to_qkv.weight.double().reshape(3 * C, C)
    tokens = x.double().flatten(2).transpose(1, 2)  # (B, N, C)
    q, k, v = (tokens @ part.T for part in weight.split(C))
    output = torch.empty_like(tokens)
    D = C // attention.num_heads
    for head in range(attention.num_heads):
        channels = slice(head * D, (head + 1) * D)
        scores = q[..., channels] @ k[..., channels].transpose(1, 2) / D**0.5  # rows: queries, columns: keys
        weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        output[..., channels] = weights @ v[..., channels]
    return output.transpose(1, 2).reshape(B, C, H, W)


@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_is_softmax_over_keys_applied_to_values(channels_last):
    torch.manual_seed(0)
    attention, x = hytra_layers.Attention(24, head_dim=8), torch.randn(2, 24, 3, 5)
    nn.init.normal_(attention.to_qkv.weight)  # far from uniform attention
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = attention_in_float64(attention, x)
        torch.testing.assert_close(attention(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_heads_are_1_2_4_8_of_64_channels():
    model = on_meta("hytra", arch="4c-8c-16ca-32aa")
    attentions = {name: m for name, m in model.named_modules() if isinstance(m, hytra_layers.Attention)}
    heads = {name: attention.num_heads for name, attention in attentions.items()}
    assert heads == {"layer3.1.net.1": 4, "layer4.0.net.1": 8, "layer4.1.net.1": 8}
    assert model.layer3[1].net[1].to_qkv.weight.shape == (3 * 256, 256, 1, 1)


KEYS = {  # of a layer whose channels change
    "c": {"conv1", "peg.conv", "bn1", "conv2", "bn2", "conv3", "bn3", "se.fc1", "se.fc2"}
    | {"downsample.1", "downsample.2"},
    "a": {"proj.0", "proj.1.conv", "proj.2", "net.1.to_qkv", "net.2", "net.4", "net.5", "shortcut.1", "shortcut.2"},
}
IDENTITIES = {"downsample.1", "downsample.2", "shortcut.1", "shortcut.2"}  # where they do not change


def test_state_dict_has_the_names_of_the_release():
    keys = {key.rpartition(".")[0] for key in on_meta("bossnet_t0").state_dict()}
    expected = {"conv1", "bn1", "fc"}
    for stage, operations in enumerate(("c", "c", "cccac", "aaacaaaaa"), start=1):
        for index, operation in enumerate(operations):
            names = KEYS[operation] - (IDENTITIES if index else set())
            expected |= {f"layer{stage}.{index}.{name}" for name in names}
    assert keys == expected
    assert {"layer3.0.peg.conv.bias", "layer4.2.net.1.to_qkv.weight"} <= on_meta("bossnet_t0").state_dict().keys()
    assert not [key for key in on_meta("bossnet_t0_nose").state_dict() if ".se." in key]


def test_a_resconv_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    layer, x = hytra_layers.ResConv(16, 8, stride=2).eval(), torch.randn(2, 16, 7, 7)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    F = nn.functional
    with torch.no_grad():
        inner = F.silu(layer.bn1(F.conv2d(layer.conv1(x), layer.peg.conv.weight, layer.peg.conv.bias, 2, 1, 1, 8)))
        inner = layer.bn3(layer.conv3(F.silu(layer.bn2(layer.conv2(inner)))))
        gate = layer.se.fc2(F.relu(layer.se.fc1(inner.mean((2, 3), keepdim=True)))).sigmoid()
        pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        shortcut = layer.downsample[2](layer.downsample[1](pooled))
        torch.testing.assert_close(layer(x), F.silu(inner * gate + shortcut))


def test_absent_scales_are_single_convolutions_and_the_network_ends_where_the_architecture_does():
    model = on_meta("hytra_vit16")
    assert isinstance(model.layer1[0][0], nn.Conv2d)
    assert isinstance(model.layer2[0][0], nn.Conv2d)
    assert len(model.layer1) == len(model.layer2) == 1
    assert [module.stride for module in (model.layer1[0][0], model.layer2[0][0])] == [(2, 2), (2, 2)]
    assert len(model.layer3) == 16
    assert len(model.layer4) == 0
    assert model.num_features == 1024
    assert model.layer3[0].proj[1].conv.stride == (1, 1)


def test_t1_keeps_its_resolution_in_the_last_stage():
    t0, t1 = on_meta("bossnet_t0"), on_meta("bossnet_t1")
    assert t0.state_dict().keys() == t1.state_dict().keys()
    assert t1.layer4[0].proj[1].conv.stride == (1, 1)
    assert t0.layer4[0].proj[1].conv.stride == (2, 2)


def test_drop_path_grows_linearly_over_the_layers_and_spares_attention():
    model = on_meta("hytra", arch="4c-8c-16ca-32c", drop_path_rate=0.4)
    rates = {name: module.drop_prob for name, module in model.named_modules() if isinstance(module, DropPath)}
    assert rates == pytest.approx({"layer2.0.drop_path": 0.1, "layer3.0.drop_path": 0.2, "layer4.0.drop_path": 0.4})


def test_output_stride_dilates_the_convolutions_behind_it():
    model = on_meta("hytra", arch="4cc-8cc-16cc-32cc", output_stride=8)
    dilations = {name: module.dilation[0] for name, module in model.named_modules() if name.endswith("conv2")}
    assert list(dilations.values()) == [1, 1, 1, 1, 1, 2, 2, 4]


def test_weights_start_as_the_authors_do():
    torch.manual_seed(0)
    model = timm.create_model("hytra", arch="4c-8c-16ca-32aa", base_width=32)
    assert model.layer1[0].bn3.weight.eq(0).all()
    assert model.layer4[0].net[5].weight.eq(0).all()
    weight = model.layer4[0].net[1].to_qkv.weight  # fan-out of a 1x1 convolution: its output channels
    assert weight.std().item() == pytest.approx((2 / (3 * 256)) ** 0.5, rel=0.02)


# --- MBConv


def test_mbconv_layers_are_those_of_efficientnet():
    """EfficientNet-B0 has its kernels and depths; with them, the networks are the same."""
    with torch.device("meta"):
        b0 = efficientnet_b0()
        ours = models.build(MBConvArch.parse("00-11-000-111-1111"))
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in b0.state_dict().items()}
    assert ours.blocks[3][0].conv_dw.stride == b0.blocks[3][0].conv_dw.stride == (2, 2)


def test_identity_shortcuts_stand_where_stride_is_1_and_channels_agree():
    model = on_meta("bossnet_m1")
    skips = [[block.has_skip for block in stage] for stage in model.blocks]
    later = [False, True, True, True]
    assert skips == [[False], [False, True], later, later, later, later, [False]]
    assert [stage[0].conv_dw.stride[0] for stage in model.blocks] == [1, 2, 2, 2, 1, 2, 1]


def test_each_digit_is_its_candidate():
    model = on_meta("mbconv", arch="01-23-0-1-2")
    chosen = [(block.conv_pw.out_channels / block.conv_pw.in_channels, block.conv_dw.kernel_size[0])
              for stage in model.blocks[1:3] for block in stage]  # fmt: skip
    assert chosen == [(6, 3), (6, 5), (3, 3), (3, 5)]


# --- NATS


@pytest.mark.parametrize(
    ("arch", "params", "madds"),
    [("8:8:8:8:8", 11_714, 4.481114), ("8:8:8:16:32", 49_202, 6.840650), ("8:8:40:32:40", 144_834, 21.827994)],
)
def test_nats_networks_cost_what_the_benchmark_states(arch, params, madds):
    cost = measure(on_meta("nats_size", arch=arch), 32)
    assert cost.params == params
    assert cost.madds + 10 == round(madds * 1e6)  # the benchmark also counts the classifier's ten biases


def test_a_nats_cell_is_the_fixed_genotype():
    torch.manual_seed(0)
    cell, x = nats.Cell(8, 16).eval(), torch.randn(2, 8, 5, 5)
    edge = dict(zip(("01", "02", "12", "03", "13", "23"), cell.layers, strict=True))
    with torch.no_grad():
        one = edge["01"](x)
        two = edge["02"](x) + edge["12"](one)
        three = edge["03"](x) + edge["13"](one) + edge["23"](two)
        torch.testing.assert_close(cell(x), three)
        torch.testing.assert_close(edge["03"](x), edge["03"].bn(edge["03"].conv(x)))  # no activation on the skip
    assert isinstance(nats.Cell(8, 8).layers[3], nn.Identity)


# --- all spaces


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("4c-8cc-16ca-32aa", hytra.layer_names(HyTraArch.parse("4c-8cc-16ca-32aa"))),
        ("16ca-32a", hytra.layer_names(HyTraArch.parse("16ca-32a"))),
        ("01-23-1-2-0", mbconv.layer_names(MBConvArch.parse("01-23-1-2-0"))),
        ("8:16:24:32:64", nats.layer_names(NatsArch.parse("8:16:24:32:64"))),
    ],
)
def test_layer_names_are_those_of_the_choice_layers(text, names):
    model = models.build(parse_arch(text), num_classes=10)
    kinds = (
        hytra_layers.ResConv,
        hytra_layers.ResAtt,
        nats.Cell,
        nats.ReductionBlock,
        timm.models._efficientnet_blocks.InvertedResidual,
    )
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert list(names) == [name for name in layers if name != "blocks.6.0"]


def test_make_layer_gives_a_layer_of_the_stand_alone_network():
    space = MBConvSpace(se=True, width=0.5)
    arch = MBConvArch.parse("01-23-1-2-0")
    model = models.build(arch, **space.model_options())
    for name in mbconv.layer_names(arch):
        block, index = (int(number) for number in name.split(".")[1:])
        layer = mbconv.make_layer(space, block - 1, index, arch.blocks[block - 1][index])
        layer.load_state_dict(model.get_submodule(name).state_dict())
        assert layer.has_skip == model.get_submodule(name).has_skip
    net = models.build(NatsArch.parse("8:16:24:32:64"))
    for index, (before, width) in enumerate([(8, 8), (8, 16), (16, 24), (24, 32), (32, 64)]):
        nats.make_layer(index, before, width).load_state_dict(net.cells[index].state_dict())


@pytest.mark.parametrize("name", ["hytra", "mbconv", "nats"])
def test_build_makes_networks_of_any_space(name):
    space = get_space(name)
    with torch.device("meta"):
        model = models.build(space.sample(random.Random(0)), num_classes=5, in_chans=1, **space.model_options())
    assert model(torch.empty(2, 1, 64, 64, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(("name", "generic"), [("bossnet_t0", "hytra"), ("bossnet_m2", "mbconv")])
def test_a_name_keeps_its_architecture(name, generic):
    with pytest.raises(UsageError, match=f"another architecture is: create_model\\('{generic}', arch=...\\)"):
        timm.create_model(name, arch="4c-8c")
    for options in ({"num_classes": -1}, {"in_chans": 0}):
        with pytest.raises(UsageError, match="it must be at least"):
            timm.create_model(name, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act_layer": "foo"}, "unknown activation 'foo'"),
        ({"drop_rate": 2}, "drop_rate is 2; it must be at least 0 and less than 1"),
        ({"drop_path_rate": -1}, "drop_path_rate is -1"),
        ({"global_pool": ""}, "a classifier needs pooling in front of it"),
        ({"head_dim": 7}, "head_dim 7 does not divide the 8 channels"),
        ({"head_dim": 0}, "head_dim is 0; it must be at least 1"),
        ({"last_stride": 3}, "last_stride 3 is not possible; allowed: 1, 2"),
    ],
)
def test_options_that_would_fail_once_images_come_are_refused(options, message):
    for name in ("test_bossnet_t", "test_bossnet_m")[: 2 - ("head_dim" in options or "last_stride" in options)]:
        with pytest.raises(UsageError, match=message):
            timm.create_model(name, **options)


def test_build_refuses_what_is_no_architecture():
    with pytest.raises(UsageError, match="'4c-8c' is no architecture"):
        models.build("4c-8c")
