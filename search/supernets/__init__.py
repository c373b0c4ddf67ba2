"""Weight-sharing networks, block by block, one module for each search space."""

from __future__ import annotations

import functools

from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Entry, HyTraSpace, MBConvSpace, NatsSpace, Space

from .block import SupernetBlock, norms_of, state_under
from .hytra import HyTraBlock
from .mbconv import MBConvBlock
from .nats import NatsBlock

__all__ = [
    "HyTraBlock",
    "MBConvBlock",
    "NatsBlock",
    "SupernetBlock",
    "make_block",
    "norms_of",
    "one_for_all",
    "state_under",
    "trained_entries",
]


@functools.singledispatch
def make_block(space: Space, block: int, entry: Entry) -> SupernetBlock:
    """The supernet block of a space, freshly initialised.

    A space of your own joins with `make_block.register(MySpace, MyBlock)`.

    Args:
        space: the search space.
        block: index of the block.
        entry: the state in which the block is entered, one of `trained_entries`.

    Raises:
        UsageError: there is no supernet for this space.
    """
    raise UsageError(
        f"there is no supernet for the space {space.name!r}; known: hytra, mbconv, nats; "
        "add one of your own with make_block.register(MySpace, MyBlock)"
    )


make_block.register(HyTraSpace, HyTraBlock)
make_block.register(MBConvSpace, MBConvBlock)
make_block.register(NatsSpace, NatsBlock)


@functools.singledispatch
def trained_entries(space: Space, block: int) -> tuple[Entry, ...]:
    """The entries of a block for which a supernet block of its own is trained: by default every one.

    In NATS-Bench one block, entry None, serves all, for its layers take any number of channels. So may that of a space
    of your own: `trained_entries.register(MySpace, one_for_all)`.
    """
    return space.entries(block)


def one_for_all(space: Space, block: int) -> tuple[Entry, ...]:
    """`trained_entries` of a space whose supernet blocks each serve every entry."""
    return (None,)


trained_entries.register(NatsSpace, one_for_all)
