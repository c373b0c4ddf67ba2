"""What a search will cost, before it is started: `bossnet search --dry-run`.

Costs of a block are means over its legal paths, and over the states in which it may be entered: which of these a search
will meet is not known before. A backward pass counts as two forward passes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bossnet_zoo.determinism import seed_of
from bossnet_zoo.spaces import Arch, Entry, Space
from bossnet_zoo.spaces.space import halve

from .bootstrapping import Branch, make_mlp
from .counting import (
    BYTES,
    count_madds,
    count_parameters,
    path_madds,
    root_madds,
    saved_by_block,
    saved_bytes,
    tree_madds,
)
from .distillation import Student, Teacher, make_entry_adapter, teacher_without_data
from .prefix import Stage, chain_of
from .rotation import REDUCING_WIDTHS, ROTATIONS, RotationNetwork, architectures_to_measure, behind_reduction
from .settings import SearchSettings
from .shapes import META_BATCH, block_input, block_without_data, trained_entry
from .stage import check_num_paths
from .supernets import trained_entries
from .views import VIEWS

_FORWARD_AND_BACKWARD = 3
_SAMPLED = 256  # architectures that the mean cost of a whole network is taken over


@dataclass(frozen=True)
class BlockPlan:
    """What training and rating one block takes. A step is one optimiser step, over all processes.

    Attributes:
        block: index of the block; None for the whole supernet, which UnNAS trains at once.
        stages: how many times the block is trained, once for each entry.
        paths: fewest and most legal paths of one stage; of the whole supernet, the architectures that are measured.
        steps: optimiser steps of one stage.
        step_madds: multiply-accumulates of one step.
        rating_madds: multiply-accumulates of rating every path once.
        params: parameters trained in the largest stage, heads included.
        memory_bytes: estimated peak of one process: networks, gradients, optimiser, saved activations.
    """

    block: int | None
    stages: int
    paths: tuple[int, int]
    steps: int
    step_madds: int
    rating_madds: int
    params: int
    memory_bytes: int


def plan_search(settings: SearchSettings, num_train: int, num_rated: int, world_size: int = 1) -> list[BlockPlan]:
    """The plan, block by block.

    Args:
        num_train: images to train on.
        num_rated: held-out images.
        world_size: processes that share a step.

    Raises:
        UsageError: settings that do not fit the images or the processes; or a teacher that cannot teach.
    """
    settings.accumulation(world_size)
    settings.check_batch(num_train)
    space = settings.make_space()
    if settings.method != "unnas":
        check_num_paths(space, settings)
    planner = {"bossnas": _plan_bossnas, "dna": _plan_dna, "unnas": _plan_unnas}[settings.method]
    # Every image that is rated on, and every one behind the BN statistics, in a view of each pipeline.
    images = min(settings.rating_images or num_rated, num_rated) + settings.calibration_images
    views = images * len(VIEWS[settings.views])
    return planner(settings, space, settings.epochs * (num_train // settings.global_batch), views)


def total_madds(plans: Sequence[BlockPlan]) -> int:
    """Multiply-accumulates of the whole search."""
    return sum(plan.stages * (plan.steps * plan.step_madds + plan.rating_madds) for plan in plans)


def _stages(settings: SearchSettings, space: Space, block: int) -> int:
    return len(trained_entries(space, block)) if settings.coverage == "full" else 1


def _num_paths(space: Space, block: int) -> tuple[int, int]:
    numbers = [len(space.paths(block, entry)) for entry in space.entries(block)]
    return min(numbers), max(numbers)


# --- BossNAS


def _plan_bossnas(settings: SearchSettings, space: Space, steps: int, rated_views: int) -> list[BlockPlan]:
    before = 0.0  # mean MAdds of the blocks before, for one image
    plans = []
    for block in range(space.num_blocks):
        root = root_madds(space, block, settings.resolution)
        mean = path_madds(space, block, settings.resolution) + root
        tree = root + tree_madds(space, block, settings.resolution)
        views = 2 * (settings.num_paths if settings.own_views else 1)
        target_and_online = 1 + _FORWARD_AND_BACKWARD
        per_image = views * before + 2 * settings.num_paths * target_and_online * mean
        params, memory = _bossnas_memory(settings, space, block)
        plans.append(
            BlockPlan(
                block=block,
                stages=_stages(settings, space, block),
                paths=_num_paths(space, block),
                steps=steps,
                step_madds=round(per_image * settings.global_batch),
                rating_madds=round(rated_views * (before + 2 * tree)),
                params=params,
                memory_bytes=memory,
            )
        )
        before += mean
    return plans


def _bossnas_memory(settings: SearchSettings, space: Space, block: int) -> tuple[int, int]:
    """Parameters of the largest stage's online network, and the bytes that a process needs at its peak."""
    most = (0, 0)
    for entry in trained_entries(space, block):
        supernet = block_without_data(space, block, entry)
        with torch.device("meta"):
            branch = Branch(supernet, settings.hidden, settings.projection)
            predictor = make_mlp(settings.projection, settings.hidden, settings.projection)
        target = count_parameters(branch)
        online = target + count_parameters(predictor)
        saved = saved_by_block(supernet, space, block, entry, settings.resolution)
        # Weights, gradients and LARS momentum of the online network; the target; both views of one path's backward.
        peak = (3 * online + target) * BYTES + 2 * settings.micro_batch * saved
        most = max(most, (online, peak), key=lambda pair: pair[1])
    return most


# --- DNA


def _plan_dna(settings: SearchSettings, space: Space, steps: int, rated_views: int) -> list[BlockPlan]:
    network = teacher_without_data(settings)
    with torch.device("meta"):
        teachers = [Teacher(network, block, space.num_blocks, settings) for block in range(space.num_blocks)]
        images = torch.empty(META_BATCH, 3, settings.resolution, settings.resolution)
    plans = []
    for block, teacher in enumerate(teachers):
        asking = count_madds(teacher, images)
        entering = _entering_madds(settings, space, block, teacher)
        root = root_madds(space, block, settings.resolution)
        student = entering + root + path_madds(space, block, settings.resolution)
        tree = entering + root + tree_madds(space, block, settings.resolution)
        per_view = asking + settings.num_paths * _FORWARD_AND_BACKWARD * student
        params, memory = _dna_memory(settings, space, block, teacher)
        plans.append(
            BlockPlan(
                block=block,
                stages=_stages(settings, space, block),
                paths=_num_paths(space, block),
                steps=steps,
                step_madds=round(per_view * settings.global_batch * len(VIEWS[settings.views])),
                rating_madds=round(rated_views * (asking + tree)),
                params=params,
                memory_bytes=memory,
            )
        )
    return plans


def _entering_madds(settings: SearchSettings, space: Space, block: int, teacher: Teacher) -> float:
    """Of the adapter between the teacher's features and the block, for one image; mean over entries and paths."""
    if not block:
        return 0.0
    entries = space.entries(block)
    numbers = [len(space.paths(block, entry)) for entry in entries]
    shapes = [
        block_input(space, block, trained_entry(space, block, entry), settings.resolution).shape for entry in entries
    ]
    pixels = sum(number * shape[1:].numel() for number, shape in zip(numbers, shapes, strict=True)) / sum(numbers)
    return teacher.in_channels * pixels


def _dna_memory(settings: SearchSettings, space: Space, block: int, teacher: Teacher) -> tuple[int, int]:
    """Parameters trained in the largest stage, and the bytes that a process needs at its peak."""
    images, most = settings.micro_batch * len(VIEWS[settings.views]), (0, 0)
    for entry in trained_entries(space, block):
        with torch.device("meta"):
            adapter = make_entry_adapter(settings, space, block, entry, teacher)
            supernet = block_without_data(space, block, entry)
            student = Student(supernet, adapter, teacher.out_channels, settings.projection)
        trained = count_parameters(student, trainable=True)
        saved = saved_by_block(supernet, space, block, entry, settings.resolution)
        # Weights, gradients and Adam's two moments; the teacher; one path's backward.
        peak = (4 * trained + count_parameters(teacher)) * BYTES + images * saved
        most = max(most, (trained, peak), key=lambda pair: pair[1])
    return most


# --- UnNAS


def _plan_unnas(settings: SearchSettings, space: Space, steps: int, rated_views: int) -> list[BlockPlan]:
    with torch.device("meta"):
        network = RotationNetwork(space)
        image = torch.empty(META_BATCH, 3, settings.resolution, settings.resolution)
    generator = random.Random(seed_of(settings.seed, "planned architectures"))
    archs = [space.sample(generator) for _ in range(_SAMPLED)]
    costs = _layers_madds(space, archs, settings.resolution)
    mean = _front_madds(network, image) + sum(costs) / len(costs)
    costliest = chain_of(space, archs[max(range(len(costs)), key=lambda index: costs[index])])
    generator = random.Random(seed_of(settings.seed, "measured architectures"))  # the same as in training
    measured = len(architectures_to_measure(space, settings.rated_per_path, generator))
    views, params = len(VIEWS[settings.views]), count_parameters(network)
    # Weights, gradients and momentum; what the costliest network keeps of four rotations of every view.
    images = settings.micro_batch * views * ROTATIONS
    memory = 3 * params * BYTES + images * saved_bytes(network, image, costliest)
    return [
        BlockPlan(
            block=None,
            stages=1,
            paths=(measured, measured),
            steps=steps,
            step_madds=round(settings.global_batch * views * ROTATIONS * _FORWARD_AND_BACKWARD * mean),
            rating_madds=round(rated_views * ROTATIONS * measured * mean),
            params=params,
            memory_bytes=memory,
        )
    ]


def _layers_madds(space: Space, archs: Sequence[Arch], resolution: int) -> list[int]:
    """For one image, of each architecture's choice layers behind the extra convolutions."""
    inner = behind_reduction(space)
    for _ in REDUCING_WIDTHS:
        resolution = halve(resolution)
    costs = []
    for arch in archs:
        entry: Entry = None
        cost = 0
        for block, path in enumerate(space.split(arch)):
            cost += inner.path_cost(block, entry, path, resolution).madds
            entry = space.exit(block, entry, path)
        costs.append(cost)
    return costs


def _front_madds(network: RotationNetwork, image: Tensor) -> int:
    """For one image, of the extra convolutions and the stem."""
    first = network.blocks[Stage(0, trained_entries(network.space, 0)[0]).name(network.space)]
    return count_madds(lambda x: first.root(network.reducing(x)), image)  # type: ignore[operator]
