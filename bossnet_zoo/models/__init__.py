"""Stand-alone networks. Importing this package registers them with timm."""

from __future__ import annotations

import fnmatch
import functools

import timm
from torch import nn

from ..errors import UsageError, unknown
from ..spaces import Arch, HyTraArch, MBConvArch, NatsArch, parse_arch
from . import hytra, mbconv, nats

__all__ = ["build", "create_model", "hytra", "mbconv", "model_names", "nats"]


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


_GENERIC = {HyTraArch: "hytra", MBConvArch: "mbconv", NatsArch: "nats_size"}


def model_names(pattern: str = "") -> list[str]:
    """The names that this package registers with timm, those that match a shell pattern (`*` is implied around it)."""
    names = [name for module in ("hytra", "mbconv", "nats") for name in timm.list_models(module=module)]
    return sorted(name for name in names if fnmatch.fnmatch(name, f"*{pattern}*"))


def create_model(name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    """`timm.create_model` that also takes the written form of an architecture of any space.

    Args:
        name: a registered name (ours or timm's, with or without a tag), `hf-hub:...`, `local-dir:...`, or an
            architecture such as `4c-8c-16cccac-32aaacaaaaa`.
        pretrained: load published weights.
        kwargs: as for `timm.create_model`.

    Raises:
        UsageError: an unknown name (with suggestions) or an illegal architecture.
    """
    if name[:1].isdigit():  # as all architectures begin, and no model's name
        arch = parse_arch(name)
        return timm.create_model(_GENERIC[type(arch)], pretrained, arch=str(arch), **kwargs)
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name.partition(".")[0]):
        raise unknown("model", name, model_names(), "list them with: bossnet list")
    return timm.create_model(name, pretrained, **kwargs)
