"""A plan as `bossnet search --dry-run` prints it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from bossnet_zoo import console
from bossnet_zoo.datasets import MAX_SEARCH_VAL, open_images
from bossnet_zoo.errors import UnknownDataError

from .distillation import DECAY, FIRST_BLOCK_RATE
from .plan import BlockPlan, plan_search, total_madds
from .settings import REFERENCE_BATCH, SearchSettings, drawn_in_a_step
from .supernets import trained_entries

IMAGENET = 1_281_167  # images for training
CIFAR = {
    "cifar10": (25_000, 25_000),
    "cifar100": (50_000, 5_000),
}  # search-train and search-val, as NATS-Bench has them


def print_plan(settings: SearchSettings, throughput: float, as_json: bool = False) -> None:
    """What the search would do, block by block, and how long at `throughput` TFLOP/s a process.

    Raises:
        UsageError, DataError: what the search itself would refuse, except for images that are not there: then the plan
            is for as many as ImageNet has, and says so.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    train, rated, assumed = _count_images(settings)
    plans = plan_search(settings, train, rated, processes)
    space = settings.make_space()
    rate = throughput * 1e12 / 2 * processes * 3600  # multiply-adds an hour
    total = total_madds(plans)
    if as_json:
        about = {"settings": settings.to_json(), "processes": processes, "train_images": train, "rated_images": rated}
        about |= {"images_assumed": assumed, "blocks": [dataclasses.asdict(plan) for plan in plans]}
        console.print_json({**about, "madds": total, "tflops_assumed": throughput, "hours": total / rate})
        return
    print(f"{space.name}: {space.count():,} architectures, {space.num_blocks} blocks, {_trained(settings)}")
    source = "assumed, as of ImageNet" if assumed else settings.data
    print(f"{source}: {train:,} images to train on, {rated:,} to rate on, {settings.resolution} px")
    print(
        f"{settings.epochs} epochs {'in all' if settings.method == 'unnas' else 'a block'}, "
        f"{drawn_in_a_step(settings.method, settings.num_paths)} a step, "
        f"{settings.global_batch:,} images a step "
        f"= {processes} processes x {settings.micro_batch} x {settings.accumulation(processes)}"
    )
    print(f"{_optimiser(settings)}\n")
    rated_things = "measured" if settings.method == "unnas" else "paths"
    header = ("block", "trained", rated_things, "steps", "GMAdds/step", "params", "memory", "hours")
    console.print_table([header, *(_row(settings, plan, rate) for plan in plans)])
    hours = f"{total / rate:.2g} hours at {throughput:g} TFLOP/s per process (assumed)"
    print(f"\nin all {total:.2e} multiply-adds: {hours}")
    print("costs are means over legal architectures; memory is an estimate for one process")
    if assumed:
        missing = f"there is no {settings.data}" if settings.data else "no --data was given"
        print(f"{missing}, so {IMAGENET:,} images are assumed;\ntype --data FOLDER to count your own")


def _count_images(settings: SearchSettings) -> tuple[int, int, bool]:
    """Images to train on and to rate on, and whether they are assumed; CIFAR's are known without a download."""
    if settings.data in CIFAR:
        train, held_out = CIFAR[settings.data]
        return train, held_out if settings.rating_part == "search-val" else train, False
    try:
        if not settings.data:
            raise UnknownDataError("no data")
        train = len(open_images(settings.data, "search-train", seed=settings.seed))
        return train, len(open_images(settings.data, settings.rating_part, seed=settings.seed)), False
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
        f"{hours:.2g}",
    )
