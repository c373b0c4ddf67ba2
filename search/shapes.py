"""What a block of a supernet is given and how large it is, found out on tensors without data."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bossnet_zoo.spaces import Entry, Path, Space

from .supernets import SupernetBlock, make_block, trained_entries

META_BATCH = 2  # images of a batch without data; BN in training mode refuses a single one on a 1 x 1 map


def trained_entry(space: Space, block: int, entry: Entry) -> Entry:
    """The entry of the supernet block that serves networks entering `block` in `entry`."""
    return entry if entry in trained_entries(space, block) else None


@functools.cache
def block_without_data(space: Space, block: int, entry: Entry) -> SupernetBlock:
    """The supernet block on the meta device: shapes, but neither memory nor arithmetic."""
    with torch.device("meta"):
        return make_block(space, block, entry)


@functools.cache
def block_input(space: Space, block: int, entry: Entry, resolution: int) -> Tensor:
    """(2, C, H, W): what the block is given, the output of the blocks before, as a tensor without data.

    Where the same block serves several entries (NATS-Bench), it is the last one's, which is the widest.
    """
    if block == 0:
        return torch.empty(META_BATCH, 3, resolution, resolution, device="meta")
    before, path = _path_to(space, block, entry)
    x = block_input(space, block - 1, before, resolution)
    with torch.no_grad():
        return block_without_data(space, block - 1, trained_entry(space, block - 1, before))(x, path)


def _path_to(space: Space, block: int, entry: Entry) -> tuple[Entry, Path]:
    """Some legal path through the block before `block` that leads to `entry`, and the path's own entry."""
    for before in space.entries(block - 1):
        for path in reversed(space.paths(block - 1, before)):
            if entry is None or space.exit(block - 1, before, path) == entry:
                return before, path
    raise AssertionError(f"no path leads to entry {entry} of block {block}")
