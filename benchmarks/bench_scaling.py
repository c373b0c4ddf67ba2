"""How rating and solving grow with the size of the space: `python benchmarks/bench_scaling.py [--plot FILE] [--json]`.

Rating all paths of a block, against their number (blocks of more and more layers), beside the naive loop on a sample
of the paths (see `bench_rating.py`). Finding the best architecture under a MAdds bound that a quarter of the space
meets, against the number of architectures (more blocks in HyTra, more layers in MBConv's five blocks), beside scoring
all of them. Exponents are slopes of straight lines through the logarithms, by least squares. Processor time, one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_rating
import machine
import numpy as np
from bench_solver import lower_quartile, seconds
from cases import Case, make_cases
from drawn import draw_ratings
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bossnet_zoo.checkpoint import write_atomically
from bossnet_zoo.search.rating_table import RatingTable
from bossnet_zoo.search.solver import solve
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, Space

NAIVE_PATHS = 8
LONGEST_BRUTE_FORCE = 150_000  # architectures
RATING, SOLVING = "rating all paths of a block", "best architecture under a MAdds bound"
COLORS = {"HyTra": "#1f6fb4", "MBConv": "#c8553d"}


@dataclass
class Curve:
    """Time against size.

    Attributes:
        task: `RATING` or `SOLVING`.
        space: whose sizes these are.
        form: ours, or what it is compared with.
        sizes: number of paths, or of architectures.
        seconds: processor time for each.
        exponent: e in seconds = constant * size^e.
    """

    task: str
    space: str
    form: str
    sizes: list[int]
    seconds: list[float]
    exponent: float = 0.0

    def __post_init__(self) -> None:
        self.exponent = float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


# --- rating


def hytra_cases(most: int) -> Iterator[Case]:
    """Second blocks of 1 to `most` layers, entered at stride 8: 3, 11, 35, 99, 259, 643 paths."""
    for layers in range(1, most + 1):
        space = HyTraSpace(block_layers=(1, layers), base_width=16, se=False, act_layer="relu")
        yield next(make_cases(space, space.parse("8" + "c" * (1 + layers)), 64))


def mbconv_cases(most: int) -> Iterator[Case]:
    """Second blocks of 1 to `most` layers: 4, 16, 64, 256 paths."""
    for layers in range(1, most + 1):
        space = MBConvSpace(block_layers=(1, layers, 1, 1, 1), se=False, width=0.5)
        yield next(make_cases(space, space.parse(f"0-{'0' * layers}-0-0-0"), 64))


def rating_curves(name: str, cases: Iterator[Case], repeats: int) -> list[Curve]:
    """Time of rating every path of a block, and of the naive loop, scaled from a sample."""
    sizes, ours, naive = [], [], []
    for case in cases:
        forms = bench_rating.make_forms(case, images=4, batches=1, naive_paths=NAIVE_PATHS)
        sizes.append(len(case.paths))
        forms.ours()  # the first time sets up the kernels
        ours.append(seconds(forms.ours, repeats))
        naive.append(forms.scale * seconds(forms.naive, 1))
    return [Curve(RATING, name, "ours", sizes, ours), Curve(RATING, name, "naive loop", sizes, naive)]


# --- solving


def hytra_spaces(most: int) -> Iterator[Space]:
    """1 to `most` blocks of four layers each: 131 to 391 billion architectures with eight."""
    return (HyTraSpace(block_layers=(4,) * blocks) for blocks in range(1, most + 1))


def mbconv_spaces(most: int) -> Iterator[Space]:
    """Five blocks of 1 to `most` layers each: 1,024 to 1.1e15 architectures with five."""
    return (MBConvSpace(block_layers=(layers,) * 5) for layers in range(1, most + 1))


def solving_curves(name: str, spaces: Iterator[Space], repeats: int) -> list[Curve]:
    """Time of the solver, and of scoring every architecture where that is possible."""
    sizes, ours, naive = [], [], []
    for space in spaces:
        table, bound = draw_ratings(space), lower_quartile(space, "madds")
        sizes.append(space.count())
        ours.append(seconds(lambda s=space, t=table, b=bound: solve(s, t, max_madds=b), repeats))
        if space.count() <= LONGEST_BRUTE_FORCE:
            naive.append(seconds(lambda s=space, t=table, b=bound: brute_force(s, t, b), 1))
    curves = [Curve(SOLVING, name, "ours", sizes, ours)]
    return [*curves, Curve(SOLVING, name, "all scored", sizes[: len(naive)], naive)] if len(naive) > 1 else curves


def brute_force(space: Space, table: RatingTable, max_madds: int) -> str:
    """The best architecture, by scoring all."""
    within = (arch for arch in every_architecture(space) if space.cost(arch).madds <= max_madds)
    return str(min(within, key=lambda arch: table.score(space, arch)))


def every_architecture(space: Space) -> Iterator[Any]:
    chains: list[tuple[tuple, Any]] = [((), None)]
    for block in range(space.num_blocks):
        chains = [
            ((*paths, path), space.exit(block, entry, path))
            for paths, entry in chains
            for path in space.paths(block, entry)
        ]
    return (space.join(paths) for paths, _ in chains)


# --- the picture


def plot(curves: list[Curve], path: Path) -> None:
    """Write both tasks side by side, on logarithmic axes, as PNG."""
    figure = Figure(figsize=(10.4, 4.6), dpi=150, layout="constrained")
    for axes, task, size in zip(figure.subplots(1, 2), (RATING, SOLVING), ("paths", "architectures"), strict=True):
        _draw(axes, [curve for curve in curves if curve.task == task])
        axes.set_title(task[0].upper() + task[1:], loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(f"number of {size}")
    figure.axes[0].set_ylabel("processor time on one core (s)")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw(axes: Axes, curves: list[Curve]) -> None:
    for curve in curves:
        ours, color = curve.form == "ours", COLORS[curve.space]
        constant = np.exp(np.mean(np.log(curve.seconds) - curve.exponent * np.log(curve.sizes)))
        ends = np.array([min(curve.sizes), max(curve.sizes)], dtype=float)
        axes.plot(ends, constant * ends**curve.exponent, color=color, lw=1.6 if ours else 1.2, ls="-" if ours else ":")
        axes.plot(
            curve.sizes,
            curve.seconds,
            "o",
            color=color,
            markersize=6,
            markerfacecolor=color if ours else "white",
            label=rf"{curve.space}, {curve.form}: time $\propto n^{{{curve.exponent:.2f}}}$",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(which="major", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend


# --- running


def run(hytra_layers: int, mbconv_layers: int, blocks: int, repeats: int) -> list[Curve]:
    """All curves, up to the given sizes."""
    return [
        *rating_curves("HyTra", hytra_cases(hytra_layers), repeats),
        *rating_curves("MBConv", mbconv_cases(mbconv_layers), repeats),
        *solving_curves("HyTra", hytra_spaces(blocks), repeats),
        *solving_curves("MBConv", mbconv_spaces(mbconv_layers + 1), repeats),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hytra-layers", type=int, default=5, help="most layers of a HyTra block that is rated")
    parser.add_argument("--mbconv-layers", type=int, default=4, help="the same of MBConv; one more when solving")
    parser.add_argument("--blocks", type=int, default=8, help="most blocks of a HyTra space that is solved")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument("--plot", type=Path, help="write the picture there, as PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    curves = run(arguments.hytra_layers, arguments.mbconv_layers, arguments.blocks, arguments.repeats)
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.json:
        print(json.dumps({"machine": machine.describe(), "curves": [asdict(curve) for curve in curves]}, indent=2))
        return
    for curve in curves:
        points = ", ".join(f"{time:.3g} s for {n:,}" for n, time in zip(curve.sizes, curve.seconds, strict=True))
        print(f"{curve.task}, {curve.space}, {curve.form}: time ~ n^{curve.exponent:.2f} ({points})")


if __name__ == "__main__":
    main()
