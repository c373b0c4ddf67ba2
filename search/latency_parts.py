"""A space's networks in parts: stem, choice layers, head. On the meta device: neither weights nor arithmetic."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bossnet_zoo import models
from bossnet_zoo.errors import UsageError
from bossnet_zoo.runs import build_model
from bossnet_zoo.spaces import (
    Arch,
    HyTraArch,
    HyTraSpace,
    MBConvArch,
    MBConvSpace,
    NatsArch,
    NatsSpace,
    Space,
    get_space,
    parse_arch,
    space_names,
)
from bossnet_zoo.spaces.mbconv import STEM_CHANNELS
from bossnet_zoo.spaces.nats import BLOCK_LAYERS

from .latency import all_layers, layers_of
from .rating_table import read_ratings

_DRAWN = 30  # architectures, of which the one is taken that has most that is missing
_LAYER_NAMES: dict[type, Callable[[Any], tuple[str, ...]]] = {
    HyTraArch: models.hytra.layer_names,
    MBConvArch: models.mbconv.layer_names,
    NatsArch: models.nats.layer_names,
}


class Part(NamedTuple):
    """A piece of a network, the name of its operation, and the shape of its input."""

    operation: str
    module: nn.Module
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network and its parts, in the order in which it computes; `fill` gives both weights.

    Attributes:
        shape: of its input, (B, C, H, W).
    """

    arch: Arch
    model: nn.Module
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def operations(self) -> list[str]:
        return [part.operation for part in self.parts]


def cut(space: Space, arch: Arch, resolution: int, batch: int) -> Network:
    """A network and its parts: one for each of `layers_of`, in that order."""
    with torch.device("meta"):
        model = _build(space, arch)
    shape: tuple[int, ...] = (batch, space.in_chans, resolution, resolution)  # type: ignore[attr-defined]
    names = _LAYER_NAMES[type(arch)](arch)
    modules = list(_in_order(model, names))
    first, last = (index for index, (name, _) in enumerate(modules) if name in (names[0], names[-1]))
    stem = nn.Sequential(*(module for _, module in modules[:first]))
    layers = [module for _, module in modules[first : last + 1]]
    head = nn.Sequential(*(module for _, module in modules[last + 1 :]))
    assert len(layers) == len(names), "between choice layers there is nothing else"
    parts = []
    for key, module in zip(layers_of(space, arch), (stem, *layers, head), strict=True):
        what = key.split()[0 if module in (stem, head) else -1]
        answer = _output_shape(module, shape)
        parts.append(Part(f"{what} {_text(shape)} > {_text(answer)}", module, shape))
        shape = answer
    return Network(arch, model, tuple(parts))


def _build(space: Space, arch: Arch) -> nn.Module:
    options = {"num_classes": space.num_classes, "in_chans": space.in_chans}  # type: ignore[attr-defined]
    return models.build(arch, **options, **space.model_options()).eval()


_output_shapes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}  # networks share most of their parts


def _output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What comes out of a module of the meta device."""
    key = (str(module), shape)
    if key not in _output_shapes:
        with torch.no_grad():
            _output_shapes[key] = tuple(module(torch.empty(shape, device="meta")).shape)
    return _output_shapes[key]


def _text(shape: tuple[int, ...]) -> str:
    """`256x56` for (B, 256, 56, 56), `1000` for (B, 1000)."""
    return "x".join(map(str, shape[1:3]))


def _in_order(module: nn.Module, layers: Sequence[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A network's modules by name, in the order in which it runs them; containers of choice layers are taken apart."""
    for name, child in module.named_children():
        name = f"{prefix}{name}"
        if any(layer.startswith(f"{name}.") for layer in layers):
            yield from _in_order(child, layers, f"{name}.")
        else:
            yield name, child


def fill(module: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
    """Give a module of the meta device memory of its own and weights that keep activations finite and normal."""
    module.to_empty(device=device)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.reset_running_stats()
            nn.init.ones_(child.weight)
        elif isinstance(child, nn.Conv2d | nn.Linear):
            bound = (6 / child.weight[0].numel()) ** 0.5  # He's: subnormal numbers would slow a CPU down
            nn.init.uniform_(child.weight, -bound, bound)
        if getattr(child, "bias", None) is not None:
            nn.init.zeros_(child.bias)  # type: ignore[arg-type]
    return module


# --- networks that have every operation


def cover(
    space: Space, resolution: int, batch: int, least: int, seed: int = 0
) -> tuple[dict[str, str], dict[Arch, Network]]:
    """Which operation each layer is, in the networks' order, and networks that have every operation between them.

    Args:
        least: number of networks, at least; those beyond need repeat the operations that the others have least often.

    Raises:
        UsageError: a space that latency tables do not know.
    """
    if not isinstance(space, HyTraSpace | MBConvSpace | NatsSpace):
        raise UsageError(f"latency tables do not know space {space.name!r}; they know hytra, mbconv and nats")
    generator = random.Random(seed)
    archs = dict.fromkeys(_with_every_layer(space, generator))
    while len(archs) < min(least, space.count()):
        archs[space.sample(generator)] = None
    layers: dict[str, str] = {}
    networks = []
    modules: dict[str, str] = {}
    for arch in archs:
        network = cut(space, arch, resolution, batch)
        networks.append(network)
        layers |= zip(layers_of(space, arch), network.operations, strict=True)
        for operation, module, _ in network.parts:
            assert modules.setdefault(operation, str(module)) == str(module), f"{operation} names two operations"
    layers = dict(sorted(layers.items(), key=lambda layer: (layer[0].startswith("head"), layer[0][0].isdigit(), layer)))
    return layers, {network.arch: network for network in _choose(networks, least)}


def _choose(networks: Sequence[Network], least: int) -> list[Network]:
    """Few of the networks that have all their operations, and `least` of them if there are as many."""
    seen: Counter[str] = Counter()
    chosen: list[Network] = []
    missing = {operation for network in networks for operation in network.operations}

    def gain(network: Network) -> tuple[int, float]:
        operations = set(network.operations)
        return len(operations & missing), sum(1 / (1 + seen[operation]) for operation in operations)

    while missing or len(chosen) < min(least, len(networks)):
        chosen.append(max((network for network in networks if network not in chosen), key=gain))
        seen.update(chosen[-1].operations)
        missing -= set(chosen[-1].operations)
    return chosen


def _with_every_layer(space: Space, generator: random.Random) -> Iterator[Arch]:
    """Few architectures that have every layer of the space."""
    missing = dict(all_layers(space))
    while missing:
        wanted = generator.sample(list(missing.values()), min(_DRAWN, len(missing)))
        drawn = [*map(space.join, wanted), *(space.sample(generator) for _ in range(_DRAWN))]
        arch = max(drawn, key=lambda arch: len(missing.keys() & set(layers_of(space, arch))))
        yield arch
        for key in layers_of(space, arch):
            missing.pop(key, None)


# --- which space


def find_space(source: str, options: Mapping[str, Any]) -> Space:
    """The space that a name, a model, a ratings file or the folder of a search stands for.

    Args:
        options: of the space; where `source` is more than a name, they override what it says.

    Raises:
        UsageError: none of these, or a model that is in no space: with other strides, or of another depth.
    """
    if source in space_names():
        return get_space(source, **options)
    ratings = Path(source) / "ratings.json" if Path(source).is_dir() else Path(source)
    if ratings.suffix == ".json":
        return read_ratings(ratings).make_space(**options)
    with torch.device("meta"):
        model = build_model(source)
        text = str(getattr(model, "arch", ""))
        for space in _spaces_like(model) if text else ():
            if str(_build(space, parse_arch(text)).train()) == str(model):
                space.parse(text)
                return get_space(space.name, **{**asdict(space), **options})  # type: ignore[call-overload]
    raise UsageError(
        f"{source} is no member of a search space; type {', '.join(space_names())}, a ratings file or a model such as "
        "bossnet_t0"
    )


def _spaces_like(model: Any) -> list[Space]:
    """The spaces in which a model with these channels and classes may be."""
    outside = {"num_classes": model.num_classes, "in_chans": model.in_chans}
    match parse_arch(model.arch):
        case HyTraArch():
            widths = {"base_width": model.conv1.out_channels, **outside}
            return [HyTraSpace(se=se, act_layer=act, **widths) for se in (True, False) for act in ("silu", "relu")]
        case MBConvArch():
            width = model.conv_stem.out_channels / STEM_CHANNELS
            return [MBConvSpace(se=se, width=width, **outside) for se in (True, False)]
    return [NatsSpace(dataset=dataset, in_chans=model.in_chans) for dataset in BLOCK_LAYERS]
