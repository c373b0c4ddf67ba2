"""The layers of HyTra networks: residual bottlenecks with a convolution (ResConv) or with self-attention (ResAtt).

Li et al., BossNAS, ICCV 2021, https://arxiv.org/abs/2103.12424, section 4.1. Stand-alone networks and supernets are
made of the same modules. Their names are those of the authors' released checkpoints.

Shapes: B images, C channels, H x W pixels, N = H * W tokens, D channels of an attention head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn


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
