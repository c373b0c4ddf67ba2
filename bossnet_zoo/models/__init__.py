"""Stand-alone networks. Importing this package registers them with timm."""

from __future__ import annotations

import fnmatch
import functools

import timm
from torch import nn

from ..errors import UsageError
from ..spaces import Arch, HyTraArch, MBConvArch, NatsArch
from . import hytra, mbconv, nats

__all__ = ["build", "hytra", "mbconv", "model_names", "nats"]


@functools.singledispatch
def build(arch: Arch, num_classes: int = 1000, in_chans: int = 3, **options) -> nn.Module:
    """The network of an architecture of any space, freshly initialised.

    A space of your own joins with `build.register(MyArch, MyNetwork)`.

    Args:
        arch: an architecture, as `Space.parse`, `Space.sample` or `bossnet_zoo.spaces.parse_arch` give it.
        num_classes: outputs of the classifier; 0 for pooled features.
        in_chans: channels of an image.
        options: arguments of the network's class, for instance `Space.model_options()`.

    Raises:
        UsageError: `arch` belongs to no known space.
    """
    raise UsageError(f"{arch!r} is no architecture; make one with bossnet_zoo.spaces.parse_arch(TEXT)")


build.register(HyTraArch, hytra.HyTra)
build.register(MBConvArch, mbconv.MBConvNet)
build.register(NatsArch, nats.NatsNet)


def model_names(pattern: str = "") -> list[str]:
    """The names that this package registers with timm: those that contain `pattern`, which may be a shell pattern."""
    names = [name for module in ("hytra", "mbconv", "nats") for name in timm.list_models(module=module)]
    return sorted(name for name in names if fnmatch.fnmatch(name, f"*{pattern}*"))
