"""Memory of a HyTra search: `python benchmarks/bench_memory.py [--base-width 64] [--steps 200] [--json]`.

Counted, at the paper's width: the parameters of both networks with the blocks of all entries, and with the block in
training and the dearest path of every block before it, which is the most that a search ever holds.

Measured, at `--base-width`: the peak of a process that trains the last block for a few steps while it holds the one or
the other, less the peak of a process that has loaded the package alone. And of one that trains on: the peak after all
steps is to be that after the first half of them, in which every path was met and the allocator has filled its pages.

Each peak is that of a process of its own: VmHWM, as Linux counts it, in MiB of 2^20 bytes. The paper's width, 64,
needs about 10 GiB, the default a quarter of that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine
import torch
from timm.optim import Lars

from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.bootstrapping import SiameseSupernet, bootstrap, parameter_groups
from bossnet_zoo.search.counting import count_parameters
from bossnet_zoo.search.prefix import FrozenPrefix
from bossnet_zoo.search.supernets import make_block, trained_entries
from bossnet_zoo.spaces import Entry, HyTraSpace

PAPER = HyTraSpace(se=False)
SHARE_BAR = 1 / 3  # of the parameters with all blocks
GROWTH_BAR = 0.02  # of the peak: pages that the allocator has not used up
RUNTIME = Runtime(torch.device("cpu"))
RESOLUTION, IMAGES, NUM_PATHS, FEW = 64, 8, 4, 8


def all_blocks(space: HyTraSpace) -> list[tuple[int, Entry]]:
    """Every block, for every entry that it is trained for."""
    return [(block, entry) for block in range(space.num_blocks) for entry in trained_entries(space, block)]


def count_held(space: HyTraSpace) -> tuple[int, list[int]]:
    """Parameters of both networks with all blocks, and the most that a search holds while it trains each block."""
    with torch.device("meta"):
        both = {where: count_parameters(SiameseSupernet(make_block(space, *where))) for where in all_blocks(space)}
    before, held = 0, []
    for block in range(space.num_blocks):
        entries = trained_entries(space, block)
        held.append(before + max(both[block, entry] for entry in entries))
        before += max(
            space.path_cost(block, entry, path, 224).params for entry in entries for path in space.paths(block, entry)
        )
    return sum(both.values()), held


# --- in processes of their own


def peak_mib() -> float:
    """The most memory that this process ever had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise SystemExit("this system does not say how much memory a process had; measure on Linux")
    return int(match[1]) / 1024


def train(space: HyTraSpace, steps: int, everything: bool) -> tuple[float, float]:
    """Train the last block behind layers at stride 4; peaks after half of the steps, and after all.

    Args:
        everything: hold all blocks of both networks, and not just those layers.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    *before, (last, entry) = [(block, None if block == 0 else 0) for block in range(space.num_blocks)]
    chosen = [space.paths(block, at)[0] for block, at in before]
    others = [SiameseSupernet(make_block(space, *where)) for where in all_blocks(space)] if everything else []
    blocks = [make_block(space, block, at) for block, at in before]
    for block, path in zip(blocks, chosen, strict=True):
        block.restrict_to(path)
    prefix = FrozenPrefix(blocks, chosen, RUNTIME)
    siamese = SiameseSupernet(make_block(space, last, entry)).train()
    optimizer = Lars(parameter_groups(siamese, 1e-6), lr=0.1, momentum=0.9)
    generator, paths = random.Random(0), space.paths(last, entry)
    early = 0.0
    for step in range(steps):
        drawn = generator.sample(paths, NUM_PATHS)
        first, second = ([prefix(torch.rand(IMAGES, 3, RESOLUTION, RESOLUTION)) for _ in drawn] for _ in range(2))
        optimizer.zero_grad(set_to_none=True)
        bootstrap(siamese, first, second, drawn, RUNTIME)
        optimizer.step()
        siamese.update_target(0.99)
        if step < steps // 2:
            early = peak_mib()
    del others
    return early, peak_mib()


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed by a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(space: HyTraSpace, steps: int) -> dict[str, float]:
    loaded = apart(peak_mib)
    with ThreadPoolExecutor() as pool:  # both at once: how fast they are does not matter
        with_all, alone = (pool.submit(apart, train, space, *how) for how in ((FEW, True), (steps, False)))
    (whole, _), (early, late) = with_all.result(), alone.result()
    return {
        "base_width": space.base_width,
        "loaded_mib": loaded,
        "all_blocks_mib": whole - loaded,
        "stage_mib": late - loaded,
        "steps": steps,
        "grown_mib": late - early,
        "growth_bar_mib": GROWTH_BAR * (late - loaded),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="memory of a HyTra search")
    parser.add_argument("--base-width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    whole, held = count_held(PAPER)
    share = max(held) / whole
    counted = {"parameters_all_blocks": whole, "parameters_held": held, "share": share, "share_bar": SHARE_BAR}
    measured = measure(HyTraSpace(base_width=arguments.base_width, se=False), arguments.steps)
    holds = share <= SHARE_BAR and measured["grown_mib"] <= measured["growth_bar_mib"]
    if arguments.json:
        print(json.dumps({"what": "memory", "machine": machine.describe(), **counted, "measured": measured}, indent=2))
    else:
        blocks = ", ".join(f"{parameters / 1e6:.0f}" for parameters in held)
        print(f"counted at width 64: {whole / 1e6:,.0f} M parameters with all blocks in both networks; a search holds")
        print(f"{blocks} M in its four blocks: {100 * share:.1f} % at most, bar {100 * SHARE_BAR:.1f} %")
        print(
            f"measured at width {measured['base_width']}, block 4: {measured['all_blocks_mib']:,.0f} MiB with all "
            f"blocks, {measured['stage_mib']:,.0f} MiB as a search; after {measured['steps']} steps "
            f"{measured['grown_mib']:.1f} MiB more than after the first half"
        )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
