"""HyTra: hybrid CNN-transformers on four scales (BossNAS, section 4.1 and appendix A.2).

The rule. A network is a sequence of layers. Each layer has a scale d = 0..3 (stride 4, 8, 16, 32) and an operation:
`c` (ResConv) at any scale, `a` (ResAtt) at d = 2 and 3. The first layer may have any scale; from one layer to the next
the scale stays or rises by one. Counting by scale of the last layer, with o(d) = 1, 1, 2, 2 operations,

    n(1, d) = o(d)        n(l, d) = o(d) * (n(l-1, d) + n(l-1, d-1))

gives 2,818,103 architectures of 16 layers.

The written form is the stride followed by the operations at that stride, scale by scale: `4c-8c-16cccac-32aaacaaaaa`.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..errors import ArchitectureError, require_at_least
from .space import Cost, Entry, Space, conv_cost, halve, split_layers

STRIDES = (4, 8, 16, 32)
OPERATIONS = {0: "c", 1: "c", 2: "ca", 3: "ca"}  # by scale
_HINT = "the rule and examples: bossnet space hytra"


class Layer(NamedTuple):
    """One choice layer: its scale index (0..3 for strides 4..32) and its operation, `c` or `a`."""

    scale: int
    operation: str


def check_layers(layers: Sequence[Layer], entry: int | None = None) -> None:
    """Raise `ArchitectureError` where `layers` break the rule; `entry` is the scale of the layer before, if any."""
    before = entry
    for number, (scale, operation) in enumerate(layers, start=1):
        if operation not in OPERATIONS[scale]:
            allowed = " or ".join(OPERATIONS[scale])
            raise ArchitectureError(
                f"layer {number}: operation {operation!r} is not allowed at stride {STRIDES[scale]}; "
                f"allowed: {allowed} (c = ResConv; a = ResAtt, at strides 16 and 32 only); {_HINT}"
            )
        if before is not None and scale not in (before, before + 1):
            verb = "falls" if scale < before else "jumps"
            allowed = " or ".join(str(STRIDES[d]) for d in (before, before + 1) if d < len(STRIDES))
            raise ArchitectureError(
                f"layer {number}: the stride {verb} from {STRIDES[before]} to {STRIDES[scale]}; "
                f"it may stay or double, so {allowed}; {_HINT}"
            )
        before = scale


def write_layers(layers: Sequence[Layer]) -> str:
    """`4c-8cc-16ca`: the stride, then the operations at that stride."""
    groups = itertools.groupby(layers, key=lambda layer: layer.scale)
    return "-".join(f"{STRIDES[scale]}{''.join(layer.operation for layer in group)}" for scale, group in groups)


def read_layers(text: str) -> tuple[Layer, ...]:
    """The inverse of `write_layers`, without the rule of the space: see `check_layers`."""
    layers: list[Layer] = []
    for part in text.split("-"):
        match = re.fullmatch(r"(4|8|16|32)([a-z]+)", part)
        if match is None:
            raise ArchitectureError(
                f"hytra architecture {text!r}: {part!r} is not a stride (4, 8, 16 or 32) followed by operations "
                f"(c or a), as in 4c-8c-16cccac-32aaacaaaaa; {_HINT}"
            )
        scale = STRIDES.index(int(match[1]))
        layers += [Layer(scale, operation) for operation in match[2]]
    if any(earlier == later for earlier, later in itertools.pairwise(re.findall(r"\d+", text))):
        raise ArchitectureError(
            f"hytra architecture {text!r}: a stride stands twice; write its operations together; {_HINT}"
        )
    return tuple(layers)


@dataclass(frozen=True, order=True)
class HyTraArch:
    """A HyTra network of any depth. Construction checks the rule; `str` gives the written form."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ArchitectureError(f"a hytra architecture has at least one layer; {_HINT}")
        try:
            check_layers(self.layers)
        except ArchitectureError as error:
            raise ArchitectureError(f"hytra architecture {write_layers(self.layers)!r}: {error}") from None

    def __str__(self) -> str:
        return write_layers(self.layers)

    @classmethod
    def parse(cls, text: str) -> HyTraArch:
        """The architecture that `text` stands for. Raises `ArchitectureError`."""
        return cls(read_layers(text))

    @property
    def first_scale(self) -> int:
        return self.layers[0].scale

    @property
    def last_scale(self) -> int:
        return self.layers[-1].scale


@dataclass(frozen=True)
class HyTraSpace(Space):
    """All HyTra networks with the given number of layers.

    Attributes:
        block_layers: layers of each block that the supernet is cut into.
        base_width: channels of the stem and inner channels at stride 4; inner channels double with the stride, and a
            layer puts out four times its inner channels. 64 in the paper.
        se: squeeze-excite in ResConv (BossNet-T0 and T1; T0 without SE has none).
        act_layer: timm's name of the activation (T0 without SE has `relu`); no part of the cost.
        num_classes: outputs of the classifier, which is part of the cost.
        in_chans: channels of an image.
        default_resolution: pixels at which `cost` counts unless told otherwise.
    """

    block_layers: tuple[int, ...] = (4, 4, 4, 4)
    base_width: int = 64
    se: bool = True
    act_layer: str = "silu"
    num_classes: int = 1000
    in_chans: int = 3
    name: ClassVar[str] = "hytra"
    default_resolution: int = 224

    def __post_init__(self) -> None:
        if not self.block_layers or min(self.block_layers) < 1:
            raise ArchitectureError(
                f"block_layers {self.block_layers} is not possible: a hytra space has blocks of one or more layers, "
                f"such as (4, 4, 4, 4); {_HINT}"
            )
        require_at_least(
            base_width=(self.base_width, 1),
            num_classes=(self.num_classes, 0),
            in_chans=(self.in_chans, 1),
            default_resolution=(self.default_resolution, 1),
        )

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    @property
    def num_layers(self) -> int:
        return sum(self.block_layers)

    def count(self) -> int:
        return sum(self._continuations(self.num_layers, scale) for scale in range(len(STRIDES)))

    @staticmethod
    @functools.cache
    def _continuations(num_layers: int, scale: int) -> int:
        """Sequences of `num_layers` layers whose first layer is at `scale`."""
        if scale >= len(STRIDES):
            return 0
        rest = 1
        if num_layers > 1:
            rest = HyTraSpace._continuations(num_layers - 1, scale) + HyTraSpace._continuations(
                num_layers - 1, scale + 1
            )
        return len(OPERATIONS[scale]) * rest

    def parse(self, text: str) -> HyTraArch:
        arch = HyTraArch.parse(text)
        if len(arch.layers) != self.num_layers:
            raise ArchitectureError(
                f"hytra architecture {text!r} has {len(arch.layers)} layers; this space has {self.num_layers}; {_HINT}"
            )
        return arch

    def sample(self, generator: random.Random) -> HyTraArch:
        layers: list[Layer] = []
        scales: tuple[int, ...] = tuple(range(len(STRIDES)))
        for remaining in range(self.num_layers, 0, -1):
            weights = [self._continuations(remaining, scale) for scale in scales]
            scale = generator.choices(scales, weights)[0]
            layers.append(Layer(scale, generator.choice(OPERATIONS[scale])))
            scales = (scale, scale + 1)
        return HyTraArch(tuple(layers))

    def model_options(self) -> dict[str, Any]:
        return {"base_width": self.base_width, "se": self.se, "act_layer": self.act_layer}

    # --- the chain of blocks; an entry is the scale of the layer before

    def entries(self, block: int) -> tuple[Entry, ...]:
        return (None,) if block == 0 else tuple(range(len(STRIDES)))

    def paths(self, block: int, entry: Entry = None) -> tuple[tuple[Layer, ...], ...]:
        return _paths(self.block_layers[block], entry)  # type: ignore[arg-type]

    def exit(self, block: int, entry: Entry, path: tuple[Layer, ...]) -> Entry:
        return path[-1].scale

    def split(self, arch: HyTraArch) -> tuple[tuple[Layer, ...], ...]:
        return split_layers(arch.layers, self.block_layers)

    def join(self, paths: Sequence[tuple[Layer, ...]]) -> HyTraArch:
        return HyTraArch(tuple(itertools.chain.from_iterable(paths)))

    def path_text(self, path: tuple[Layer, ...]) -> str:
        return write_layers(path)

    def parse_path(self, block: int, text: str) -> tuple[Layer, ...]:
        layers = read_layers(text)
        check_layers(layers)
        if len(layers) != self.block_layers[block]:
            raise ArchitectureError(
                f"hytra path {text!r} has {len(layers)} layers; "
                f"block {block + 1} has {self.block_layers[block]}; {_HINT}"
            )
        return layers

    def entry_text(self, entry: Entry) -> str:
        return "any" if entry is None else str(STRIDES[entry])  # type: ignore[call-overload]

    # --- costs

    def fixed_cost(self, exit: Entry, resolution: int) -> Cost:
        """Stem (7x7 stride 2, BN) and classifier."""
        assert isinstance(exit, int)
        features = self._channels(exit)
        head = Cost(features * self.num_classes, (features + 1) * self.num_classes)
        return conv_cost(self.in_chans, self.base_width, 7, halve(resolution)) + head

    def path_cost(self, block: int, entry: Entry, path: Sequence[Layer], resolution: int) -> Cost:
        total = Cost()
        if entry is None:
            channels, stage = self.base_width, -1  # the stem's output, at stride 4
            for scale in range(path[0].scale):  # the downsampling module, one stride-2 convolution per absent scale
                total += conv_cost(channels, self._channels(scale), 3, self._side(scale + 1, resolution))
                channels = self._channels(scale)
            stage = path[0].scale
        else:
            assert isinstance(entry, int)
            channels, stage = self._channels(entry), entry
        for scale, operation in path:
            layer_cost = self._res_conv if operation == "c" else self._res_att
            total += layer_cost(channels, scale, self._side(stage, resolution), self._side(scale, resolution))
            channels, stage = self._channels(scale), scale
        return total

    def _channels(self, scale: int) -> int:
        return 4 * self.base_width * 2**scale

    @staticmethod
    def _side(scale: int, resolution: int) -> int:
        """Feature-map side at a scale. Every stride-2 step of the network rounds up."""
        side = halve(halve(resolution))
        for _ in range(scale):
            side = halve(side)
        return side

    def _position(self, width: int, side: int) -> Cost:
        """Depth-wise 3x3 with bias; its BN is counted with the 1x1 before it, which has the same width."""
        return Cost(9 * width * side**2, 10 * width)

    def _shortcut(self, in_channels: int, scale: int, side: int) -> Cost:
        out_channels = self._channels(scale)
        return conv_cost(in_channels, out_channels, 1, side) if in_channels != out_channels else Cost()

    def _res_conv(self, in_channels: int, scale: int, side_in: int, side: int) -> Cost:
        width, out_channels = self.base_width * 2**scale, self._channels(scale)
        total = conv_cost(in_channels, width, 1, side_in) + self._position(width, side)
        total += conv_cost(width, width, 3, side) + conv_cost(width, out_channels, 1, side)
        if self.se:
            reduced = max(out_channels // 16, 8)
            total += Cost(2 * out_channels * reduced, 2 * out_channels * reduced + out_channels + reduced)
        return total + self._shortcut(in_channels, scale, side)

    def _res_att(self, in_channels: int, scale: int, side_in: int, side: int) -> Cost:
        width, tokens = self.base_width * 2**scale, side**2
        total = conv_cost(in_channels, width, 1, side_in) + self._position(width, side)
        total += Cost(3 * width**2 * tokens, 3 * width**2)  # queries, keys and values
        total += Cost(2 * width * tokens**2, 2 * width)  # q k^T and its product with v; the BN after it
        return total + conv_cost(width, self._channels(scale), 1, side) + self._shortcut(in_channels, scale, side)


@functools.cache
def _paths(num_layers: int, entry: int | None) -> tuple[tuple[Layer, ...], ...]:
    """Every legal sequence of layers after a layer at scale `entry`, in order of scale, then operation."""
    if num_layers == 0:
        return ((),)
    scales = range(len(STRIDES)) if entry is None else range(entry, min(entry + 2, len(STRIDES)))
    return tuple(
        (Layer(scale, operation), *rest)
        for scale in scales
        for operation in OPERATIONS[scale]
        for rest in _paths(num_layers - 1, scale)
    )
