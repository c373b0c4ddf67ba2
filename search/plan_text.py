"""A plan as `bossnet search --dry-run` prints it."""

from __future__ import annotations

import dataclasses
import os
import statistics
import textwrap
import time
from pathlib import Path

import torch
from torch import nn

from bossnet_zoo import console
from bossnet_zoo.datasets import MAX_SEARCH_VAL, open_images
from bossnet_zoo.errors import UnknownDataError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import options_in_words

from .distillation import DECAY, FIRST_BLOCK_RATE
from .plan import BlockPlan, plan_search, total_madds
from .settings import REFERENCE_BATCH, SearchSettings, drawn_in_a_step
from .supernets import trained_entries

GPU_TFLOPS = 60.0  # of one GPU of a data centre in practice, in bfloat16
IMAGENET = 1_281_167  # images for training
CIFAR = {
    "cifar10": (25_000, 25_000),
    "cifar100": (50_000, 5_000),
}  # search-train and search-val, as NATS-Bench has them


def print_plan(
    settings: SearchSettings, throughput: float | None = None, device: str = "auto", as_json: bool = False
) -> None:
    """What the search would do, block by block, and how long it would take.

    Args:
        throughput: TFLOP/s of one process in practice; by default what is measured here on a CPU, and on a GPU
            `GPU_TFLOPS`.
        device: that the search would run on.

    Raises:
        UsageError, DataError: what the search itself would refuse, except for images that are not there: then the plan
            is for as many as ImageNet has, and says so.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    train, rated, assumed = _count_images(settings)
    plans = plan_search(settings, train, rated, processes)
    space = settings.make_space()
    throughput, source = _throughput(throughput, device)
    rate = throughput * 1e12 / 2 * processes * 3600  # multiply-adds an hour
    total = total_madds(plans)
    if as_json:
        about = {"settings": settings.to_json(), "processes": processes, "train_images": train, "rated_images": rated}
        about |= {"architectures": space.count(), "images_assumed": assumed}
        about |= {"blocks": [dataclasses.asdict(plan) for plan in plans]}
        about |= {"madds": total, "tflops": throughput, "tflops_source": source, "hours": total / rate}
        console.print_json(about)
        return
    print(f"{space.name}: {space.count():,} architectures, {space.num_blocks} blocks, {_trained(settings)}")
    if options := options_in_words(space):
        print(textwrap.fill(f"with {options}", 80))
    images = "assumed, as of ImageNet" if assumed else settings.data
    print(f"{images}: {train:,} images to train on, {rated:,} to rate on, {settings.resolution} px")
    print(
        f"{settings.epochs} epoch{'s' * (settings.epochs > 1)} "
        f"{'in all' if settings.method == 'unnas' else 'a block'}, "
        f"{drawn_in_a_step(settings.method, settings.num_paths)} a step, "
        f"{settings.global_batch:,} images a step "
        f"= {processes} {'process' if processes == 1 else 'processes'} "
        f"x {settings.micro_batch} x {settings.accumulation(processes)}"
    )
    print(f"{_optimiser(settings)}\n")
    rated_things = "measured" if settings.method == "unnas" else "paths"
    header = ("block", "trained", rated_things, "steps", "GMAdds/step", "params", "memory", "hours")
    console.print_table([header, *(_row(settings, plan, rate) for plan in plans)])
    print(f"\nin all {total:.2e} multiply-adds: {_hours(total / rate)} hours")
    print(f"at {throughput:.3g} TFLOP/s a process, {source}")
    print("costs are means over legal architectures; memory is an estimate for one process")
    if assumed:
        missing = f"there is no {settings.data}" if settings.data else "no --data was given"
        print(f"{missing}, so {IMAGENET:,} images are assumed;\ntype --data FOLDER to count your own")


def _throughput(given: float | None, device: str) -> tuple[float, str]:
    """TFLOP/s of one process, and where the figure comes from."""
    if given is not None:
        return given, "as given"
    with Runtime.open(device) as runtime:
        if runtime.device.type != "cpu":
            return GPU_TFLOPS, "assumed of a GPU in bfloat16; for another: --throughput"
        x = torch.randn(16, 64, 28, 28).to(memory_format=torch.channels_last).requires_grad_()
        convolution = nn.Conv2d(64, 64, 3, padding=1)
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            convolution(x).sum().backward()
            seconds.append(time.perf_counter() - start)
    madds = 3 * x.numel() * convolution.weight[0].numel()  # a backward pass counts as two forward passes
    measured = 2 * madds / statistics.median(seconds) / 1e12
    return measured, (
        "measured with a convolution on this CPU;\n"
        f"small networks take several times as long; for a GPU: --throughput {GPU_TFLOPS:g}"
    )


def _count_images(settings: SearchSettings) -> tuple[int, int, bool]:
    """Images to train on and to rate on, and whether they are assumed; CIFAR's are known without a download."""
    if settings.data in CIFAR:
        train, held_out = CIFAR[settings.data]
        return train, held_out if settings.rating_part == "search-val" else train, False
    try:
        if not settings.data:
            raise UnknownDataError("no data")
        listed = Path(settings.search_val) if settings.search_val else None
        parts = ("search-train", settings.rating_part)
        train, rated = (len(open_images(settings.data, p, seed=settings.seed, search_val=listed)) for p in parts)
        return train, rated, False
    except UnknownDataError:
        if Path(settings.data).is_file():
            raise
        train = IMAGENET - MAX_SEARCH_VAL
        return train, MAX_SEARCH_VAL if settings.rating_part == "search-val" else train, True


def _trained(settings: SearchSettings) -> str:
    return "trained together" if settings.method == "unnas" else f"{settings.coverage} coverage"


def _optimiser(settings: SearchSettings) -> str:
    stated = f"{settings.learning_rate:g}"
    if settings.method in REFERENCE_BATCH:
        stated += f" ({settings.base_lr:g} at {REFERENCE_BATCH[settings.method]})"
    if settings.method == "bossnas":
        schedule = "" if settings.momentum_schedule == "constant" else "from "
        return f"LARS {stated}, EMA {schedule}{settings.target_momentum:g}"
    if settings.method == "dna":
        first = settings.learning_rate * FIRST_BLOCK_RATE
        return f"Adam {stated} ({first:g} in block 1), x {DECAY:g} every epoch; teacher {settings.teacher}"
    return f"SGD {stated}, momentum {settings.momentum:g}; rotation prediction"


def _row(settings: SearchSettings, plan: BlockPlan, rate: float) -> tuple[str, ...]:
    stages = 1 if plan.block is None else len(trained_entries(settings.make_space(), plan.block))
    hours = plan.stages * (plan.steps * plan.step_madds + plan.rating_madds) / rate
    return (
        "all" if plan.block is None else f"{plan.block + 1}",
        f"{plan.stages} of {stages}",
        "-".join(f"{number:,}" for number in dict.fromkeys(plan.paths)),
        f"{plan.steps:,}",
        f"{plan.step_madds / 1e9:,.{0 if plan.step_madds > 1e10 else 2}f}",
        f"{plan.params / 1e6:.1f} M",
        f"{plan.memory_bytes / 2**30:.2f} GiB",
        _hours(hours),
    )


def _hours(hours: float) -> str:
    """`0.0013`, `2.4` or `13,000`, to two digits."""
    return f"{float(f'{hours:.2g}'):,.0f}" if hours >= 10 else f"{hours:.2g}"
