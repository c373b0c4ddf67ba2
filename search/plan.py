"""What a search will cost, before it is started: `bossnet search --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.spaces import Entry, Path, Space

from .bootstrapping import SiameseSupernet
from .settings import SearchSettings
from .shapes import META_BATCH, block_input, block_without_data
from .supernets import SupernetBlock, trained_entries

BYTES = 4  # of a float32


@dataclass(frozen=True)
class BlockPlan:
    """What training and rating one block takes. A step is one optimiser step, over all processes.

    Attributes:
        block: index of the block.
        stages: how many times the block is trained, once for each entry.
        paths: fewest and most legal paths of one stage.
        steps: optimiser steps of one stage.
        step_madds: multiply-accumulates of one step; backward passes count double.
        rating_madds: multiply-accumulates of rating every path once.
        params: parameters of the largest stage's online network with its heads.
        memory_bytes: estimated peak of one process: both networks, gradients, optimiser, saved activations.
    """

    block: int
    stages: int
    paths: tuple[int, int]
    steps: int
    step_madds: int
    rating_madds: int
    params: int
    memory_bytes: int


def plan_search(settings: SearchSettings, num_train: int, num_rated: int, world_size: int = 1) -> list[BlockPlan]:
    """The plan, block by block.

    Costs of a block are means over its legal paths, and over the scales at which it may be entered: which of these a
    search will meet is not known before.

    Args:
        num_train: images to train on.
        num_rated: held-out images.
        world_size: processes that share a step.

    Raises:
        UsageError: a batch that does not fit the processes.
    """
    settings.accumulation(world_size)
    space, steps_per_epoch = settings.make_space(), num_train // settings.global_batch
    images = min(settings.rating_images or num_rated, num_rated) + settings.calibration_images
    before = 0.0  # mean MAdds of the blocks before, for one image
    plans = []
    for block in range(space.num_blocks):
        entries = space.entries(block)
        paths = [space.paths(block, entry) for entry in entries]
        costs = [
            space.path_cost(block, entry, path, settings.resolution).madds
            for entry, legal in zip(entries, paths, strict=True)
            for path in legal
        ]
        root = _root_madds(space, block, settings)
        mean = sum(costs) / len(costs) + root
        views = 2 * (settings.num_paths if settings.own_views else 1)
        per_image = views * before + 2 * settings.num_paths * 4 * mean  # target 1; online 1, and 2 backward
        params, memory = _memory(space, block, settings)
        plans.append(
            BlockPlan(
                block=block,
                stages=len(trained_entries(space, block)) if settings.coverage == "full" else 1,
                paths=(min(map(len, paths)), max(map(len, paths))),
                steps=settings.epochs * steps_per_epoch,
                step_madds=round(per_image * settings.global_batch),
                rating_madds=round(2 * images * (before + 2 * (root + _tree_madds(space, block, settings)))),
                params=params,
                memory_bytes=memory,
            )
        )
        before += mean
    return plans


def total_madds(plans: Sequence[BlockPlan]) -> int:
    """Multiply-accumulates of the whole search."""
    return sum(plan.stages * (plan.steps * plan.step_madds + plan.rating_madds) for plan in plans)


def _root_madds(space: Space, block: int, settings: SearchSettings) -> int:
    """What stands in front of the block's first layer, for one image: the stem, or nothing."""
    entry = trained_entries(space, block)[0]
    x = block_input(space, block, entry, settings.resolution)
    with FlopCounterMode(display=False) as counter:
        block_without_data(space, block, entry).root(x)
    return counter.get_total_flops() // 2 // META_BATCH


def _tree_madds(space: Space, block: int, settings: SearchSettings) -> float:
    """Mean over the entries of the MAdds of walking all paths as a tree: each beginning counts once."""
    entries = space.entries(block)
    total = 0
    for entry in entries:
        nodes = {path[: depth + 1] for path in space.paths(block, entry) for depth in range(len(path))}
        for node in nodes:
            parent = space.path_cost(block, entry, node[:-1], settings.resolution).madds if len(node) > 1 else 0
            total += space.path_cost(block, entry, node, settings.resolution).madds - parent
    return total / len(entries)


def _memory(space: Space, block: int, settings: SearchSettings) -> tuple[int, int]:
    """Parameters of the largest stage's online network, and the bytes that a process needs at its peak."""
    most = (0, 0)
    for entry in trained_entries(space, block):
        with torch.device("meta"):
            siamese = SiameseSupernet(block_without_data(space, block, entry), settings.hidden, settings.projection)
        online = sum(parameter.numel() for _, parameter in siamese.trainable_parameters())
        target = sum(parameter.numel() for parameter in siamese.target.parameters())
        saved = _saved_bytes(siamese.online.block, space, block, entry, settings)
        # Weights, gradients and LARS momentum of the online network; the target; both views of one path's backward.
        peak = (3 * online + target) * BYTES + 2 * settings.micro_batch * saved
        most = max(most, (online, peak), key=lambda pair: pair[1])
    return most


def _saved_bytes(block: SupernetBlock, space: Space, index: int, entry: Entry, settings: SearchSettings) -> int:
    """Bytes that autograd keeps for one image on the path that keeps most, counted on tensors without data."""
    paths = space.paths(index, entry)
    heaviest: Path = max(paths, key=lambda path: space.path_cost(index, entry, path, settings.resolution).madds)
    x = block_input(space, index, entry, settings.resolution)
    kept: dict[int, int] = {}
    parameters = {id(parameter) for parameter in block.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in parameters and not isinstance(tensor, nn.Parameter):
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = block(x, heaviest)
    del output
    return sum(kept.values()) // META_BATCH
