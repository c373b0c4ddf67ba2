"""The supernet step on a GPU: `python benchmarks/bench_gpu.py [--json]`.

HyTra at full width, 224 pixels, 64 images and 4 paths a step, in bf16 where the device has it: for every block behind a
prefix, images per second with compiled candidate operations and without, the share of the device's peak arithmetic
that the step reaches (MFU), peak memory, and how much longer a step takes when its views have to be made first, of
generated photographs, by workers that decode and the device that augments (data stall).

So far it has been run on a CPU alone (`--device cpu`, small), never on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import machine
import torch
from bench_data import write_photographs
from cases import Case, make_cases
from timm.optim import Lars
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.datasets import open_images
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.bootstrapping import bootstrap, parameter_groups
from bossnet_zoo.search.compiling import compile_candidates
from bossnet_zoo.search.prefix import FrozenPrefix
from bossnet_zoo.search.views import BYOL_VIEWS, ViewLoader
from bossnet_zoo.spaces import HyTraSpace, Path

# Dense bf16 multiply-adds count as two operations; 10^12 a second, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}
NUM_PATHS = 4
ARCH = "4c-8c-16cccac-32aaacaaaaa"  # BossNet-T0: its beginning is the prefix


class Step:
    """One optimiser step of a block, called with views (2 P, B, 3, H, W) and the P paths."""

    def __init__(self, case: Case, runtime: Runtime):
        self.runtime, self.siamese = runtime, case.siamese.to(runtime.device)
        self.prefix = FrozenPrefix(list(case.prefix.blocks), case.prefix.paths, runtime).to(runtime.device)
        self.optimizer = Lars(parameter_groups(self.siamese, 1e-6), lr=0.1, momentum=0.9)

    def __call__(self, views: Tensor, paths: Sequence[Path]) -> None:
        behind = [self.prefix(view.contiguous(memory_format=torch.channels_last)) for view in views]
        bootstrap(self.siamese, behind[:NUM_PATHS], behind[NUM_PATHS:], paths, self.runtime)
        self.optimizer.step()
        self.siamese.update_target(0.99)
        self.optimizer.zero_grad(set_to_none=True)


def seconds_per_step(step: Step, batches: Iterable[Tensor], draws: Sequence[Sequence[Path]]) -> float:
    """Wall-clock mean over the batches."""
    step.runtime.synchronize()
    started, number = time.perf_counter(), 0
    for views, paths in zip(batches, itertools.cycle(draws)):  # there are fewer batches
        step(views, paths)
        number += 1
    step.runtime.synchronize()
    return (time.perf_counter() - started) / number


def measure_block(
    case: Case, loader: ViewLoader, batch: int, steps: int, compiled: bool, peak: float | None
) -> dict[str, Any]:
    """All figures of one block."""
    runtime = Runtime.open(str(loader.device))
    step = Step(case, runtime)
    generator = random.Random(0)
    draws = [generator.sample(case.paths, NUM_PATHS) for _ in range(min(4, steps))]
    resident = torch.randn(2 * NUM_PATHS, batch, 3, case.resolution, case.resolution, device=runtime.device)
    with FlopCounterMode(display=False) as counter:
        for paths in draws:
            step(resident, paths)
    operations = counter.get_total_flops() / len(draws)
    if compiled:
        compile_candidates([(step.siamese.online.block, case.paths), (step.siamese.target.block, case.paths)])
    for paths in draws:  # warms up, and compiles what these paths use
        step(resident, paths)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    alone = seconds_per_step(step, itertools.repeat(resident, steps), draws)
    loaded = seconds_per_step(step, _views(loader, batch, steps), draws)
    cuda = runtime.device.type == "cuda"
    return {
        "block": case.name,
        "compiled": compiled,
        "images_per_second": batch / alone,
        "mfu": operations / alone / (1e12 * peak) if peak else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated(runtime.device) / 2**30 if cuda else None,
        "data_stall_share": max(0.0, 1 - alone / loaded),
    }


def _views(loader: ViewLoader, batch: int, steps: int) -> Iterator[Tensor]:
    order = [index % len(loader.images) for index in range(batch * steps)]
    chunks = [order[start : start + batch] for start in range(0, len(order), batch)]
    return loader.epoch(0, chunks, range(steps))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of every block, with compiled candidates and without."""
    runtime = Runtime.open(arguments.device)
    gpu = str(machine.describe()["gpu"] or "") if runtime.device.type == "cuda" else ""
    peak = arguments.peak_tflops or next((peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)
    space = HyTraSpace(base_width=arguments.base_width)
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(FilePath(folder), arguments.batch)
        loader = ViewLoader(
            open_images(folder, "all"),
            BYOL_VIEWS,
            arguments.resolution,
            NUM_PATHS,
            seed=0,
            on_device=True,
            workers=arguments.workers,
            device=runtime.device,
        )
        for compiled in (False, True)[: 1 + arguments.compile]:
            for case in itertools.islice(make_cases(space, space.parse(ARCH), arguments.resolution), arguments.blocks):
                blocks.append(measure_block(case, loader, arguments.batch, arguments.steps, compiled, peak))
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    return {
        "what": "supernet step",
        "settings": settings,
        "machine": machine.describe(),
        "runtime": runtime.description,
        "peak_tflops": peak,
        "blocks": blocks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=3, help="how many, from the second on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="measure that, too")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, where it is not known here")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['runtime']}, {arguments.batch} images of {arguments.resolution} pixels a step")
    for block in result["blocks"]:
        mfu, memory = block["mfu"], block["peak_memory_gib"]
        print(
            f"{block['block']:34} {'compiled' if block['compiled'] else 'eager':8} "
            f"{block['images_per_second']:8.1f} images/s  MFU {'unknown' if mfu is None else f'{mfu:.0%}'}  "
            f"peak {'unknown' if memory is None else f'{memory:.1f} GiB'}  data stall {block['data_stall_share']:.0%}"
        )


if __name__ == "__main__":
    main()
