"""What networks of a supernet compute and keep in memory, counted on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.spaces import Entry, Path, Space

from .shapes import META_BATCH, block_input, block_without_data
from .supernets import SupernetBlock, trained_entries

BYTES = 4  # of a float32


def count_madds(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-accumulates of `function(*inputs)` for one image, where the first input is a batch of `META_BATCH`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() // 2 // META_BATCH


def root_madds(space: Space, block: int, resolution: int) -> int:
    """Of what stands in front of the block's first layer, for one image: the stem, or nothing."""
    entry = trained_entries(space, block)[0]
    return count_madds(block_without_data(space, block, entry).root, block_input(space, block, entry, resolution))


def path_madds(space: Space, block: int, resolution: int) -> float:
    """For one image, the mean over the block's entries and legal paths, without the root."""
    costs = [
        space.path_cost(block, entry, path, resolution).madds
        for entry in space.entries(block)
        for path in space.paths(block, entry)
    ]
    return sum(costs) / len(costs)


def tree_madds(space: Space, block: int, resolution: int) -> float:
    """For one image, the mean over the entries of walking all paths as a tree: each beginning counts once."""
    entries = space.entries(block)
    total = 0
    for entry in entries:
        nodes = {path[: depth + 1] for path in space.paths(block, entry) for depth in range(len(path))}
        for node in nodes:
            parent = space.path_cost(block, entry, node[:-1], resolution).madds if len(node) > 1 else 0
            total += space.path_cost(block, entry, node, resolution).madds - parent
    return total / len(entries)


def saved_bytes(network: nn.Module, *inputs: Any) -> int:
    """Bytes that autograd keeps for one image, where the first input is a batch of `META_BATCH`; without parameters."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(*inputs)
    del output
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values()) // META_BATCH


def saved_by_block(block: SupernetBlock, space: Space, index: int, entry: Entry, resolution: int) -> int:
    """Bytes that autograd keeps for one image on the block's costliest path."""
    paths = space.paths(index, entry)
    heaviest: Path = max(paths, key=lambda path: space.path_cost(index, entry, path, resolution).madds)
    return saved_bytes(block, block_input(space, index, entry, resolution), heaviest)


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Of a module, all or only those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
