"""The blocks that `bench_step.py` and `bench_rating.py` measure, and how they compare two forms of one computation."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import machine
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.bootstrapping import SiameseSupernet
from bossnet_zoo.search.prefix import FrozenPrefix, stage_of
from bossnet_zoo.search.supernets import SupernetBlock, make_block
from bossnet_zoo.spaces import Arch, Entry, HyTraSpace, MBConvSpace, NatsSpace, Path, Space

RUNTIME = Runtime(torch.device("cpu"))
torch.set_num_threads(1)


@dataclass(frozen=True)
class Study:
    """The blocks of one space that are measured: all that have a prefix.

    Attributes:
        space: the search space; narrower than the paper's where that saves time, which changes both forms alike.
        arch: the architecture whose beginning is the frozen prefix.
        rating_arch: the same while paths are rated.
        resolution: pixels of an image.
        step_images: of a step's micro-batch, so many that arithmetic dominates.
        step_bar, rating_bar: least geometric mean of the ratios.
    """

    space: Space
    arch: Arch
    rating_arch: Arch
    resolution: int
    step_images: int
    step_bar: float
    rating_bar: float


@dataclass(frozen=True)
class Case:
    """One block, freshly initialised, behind its frozen prefix.

    Attributes:
        madds: of each path, for one image.
    """

    name: str
    siamese: SiameseSupernet
    prefix: FrozenPrefix
    paths: tuple[Path, ...]
    madds: tuple[int, ...]
    resolution: int

    def sample(self, number: int) -> tuple[Path, ...]:
        """So many paths that stand for all: the middle one of each of `number` equal parts, from cheap to dear."""
        if number >= len(self.paths):
            return self.paths
        order = sorted(range(len(self.paths)), key=lambda index: self.madds[index])
        bounds = [part * len(order) // number for part in range(number + 1)]
        return tuple(self.paths[order[(a + b) // 2]] for a, b in itertools.pairwise(bounds))


@dataclass(frozen=True)
class Comparison:
    """One block's figures.

    Attributes:
        naive_seconds, seconds: processor time on one core, fastest of the repeats.
        ratio: their quotient.
        allowed: quotient of the counted arithmetic, which a ratio may come near to.
        difference: largest difference of the two forms' results.
        remark: what else is to be known of the figures.
    """

    name: str
    naive_seconds: float
    seconds: float
    ratio: float
    allowed: float
    difference: float
    remark: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name:42} {self.naive_seconds:8.2f} s {self.seconds:8.2f} s  {self.ratio:5.2f}x (arithmetic "
            f"{self.allowed:.2f}x), results differ by {self.difference:.1e}{self.remark and '; '}{self.remark}"
        )


def studies() -> dict[str, Study]:
    """By name. The architectures are BossNet-T0, BossNet-M1, and for NATS-Bench the widest and a middling one."""
    hytra = HyTraSpace(base_width=32, se=False, act_layer="relu")
    mbconv, nats = MBConvSpace(se=False), NatsSpace()
    t0, m1 = hytra.parse("4c-8c-16cccac-32aaacaaaaa"), mbconv.parse("11-0110-0111-1100-0110")
    widest, middling = nats.parse("64:64:64:64:64"), nats.parse("32:32:32:32:32")
    return {
        "hytra": Study(hytra, t0, t0, 128, 32, step_bar=2.2, rating_bar=8.0),
        "mbconv": Study(mbconv, m1, m1, 128, 16, step_bar=2.4, rating_bar=8.0),
        "nats": Study(nats, widest, middling, 32, 16, step_bar=3.0, rating_bar=4.5),
    }


def make_cases(space: Space, arch: Arch, resolution: int) -> Iterator[Case]:
    """Every block but the first, one at a time, behind the blocks before it as `arch` has them."""
    entry: Entry = None
    before: list[SupernetBlock] = []
    chosen = space.split(arch)
    for block, path in enumerate(chosen):
        stage = stage_of(space, block, entry)
        torch.manual_seed(block)
        if block:
            siamese = SiameseSupernet(make_block(space, block, stage.entry), hidden=512, out_features=128)
            siamese.to(memory_format=torch.channels_last).train()  # as a search has it
            paths = space.paths(block, stage.entry)
            name = f"{space.name} block {block + 1}, entry {space.entry_text(stage.entry)}, {len(paths)} paths"
            madds = tuple(space.path_cost(block, entry, path, resolution).madds for path in paths)
            yield Case(name, siamese, FrozenPrefix(before, chosen[:block], RUNTIME), paths, madds, resolution)
        before.append(make_block(space, block, stage.entry))
        before[-1].restrict_to(path)
        entry = space.exit(block, entry, path)


def draw_batch(images: int, resolution: int, generator: torch.Generator) -> Tensor:
    """(images, 3, resolution, resolution) normally distributed numbers, in the memory format of a search."""
    batch = torch.randn(images, 3, resolution, resolution, generator=generator)
    return batch.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Forms:
    """One computation in two forms.

    Attributes:
        naive, ours: the forms.
        part: `ours` of as much as `naive` computes, where that is not all: the results of these two are compared.
        scale: how many times as long the naive form would take for all.
    """

    naive: Callable[[], Any]
    ours: Callable[[], Any]
    part: Callable[[], Any] | None = None
    scale: float = 1.0


def compare(
    name: str,
    forms: Forms,
    difference: Callable[[Any, Any], float],
    repeats: int,
    counted: Forms | None = None,
    remark: str = "",
) -> Comparison:
    """Time both forms, in turn.

    Args:
        difference: of their results.
        counted: the same on less data, to count the arithmetic and to warm up; by default the forms themselves.
    """
    counted = counted or forms
    allowed = forms.scale * _arithmetic(counted.naive) / _arithmetic(counted.ours)
    times: tuple[list[float], list[float]] = ([], [])
    results = [None, None]
    for _ in range(repeats):
        for number, form in enumerate((forms.naive, forms.ours)):
            started = time.process_time()
            results[number] = form()
            times[number].append(time.process_time() - started)
    slow, fast = forms.scale * min(times[0]), min(times[1])
    apart = difference(results[0], forms.part() if forms.part else results[1])
    comparison = Comparison(name, slow, fast, slow / fast, allowed, apart, remark)
    print(comparison, file=sys.stderr)  # minutes pass between them
    return comparison


def _arithmetic(form: Callable[[], Any]) -> int:
    """Counted operations of convolutions and matrix products, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        form()
    return counter.get_total_flops()


def parse_arguments(description: str, **defaults: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--spaces", nargs="+", default=list(studies()), choices=list(studies()))
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def report(
    what: str, arguments: argparse.Namespace, found: dict[str, list[Comparison]], bars: dict[str, float]
) -> None:
    """Print the figures, as text or as one JSON document."""
    means = {name: math.prod(case.ratio for case in cases) ** (1 / len(cases)) for name, cases in found.items()}
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        spaces = {
            name: {"geometric_mean": means[name], "bar": bars[name], "cases": [asdict(case) for case in cases]}
            for name, cases in found.items()
        }
        print(
            json.dumps({"what": what, "settings": settings, "machine": machine.describe(), "spaces": spaces}, indent=2)
        )
        return
    for name, cases in found.items():
        for case in cases:
            print(case)
        print(f"{name}: geometric mean {means[name]:.2f}x, bar {bars[name]}x\n")
