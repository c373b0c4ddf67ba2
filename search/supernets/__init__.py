"""Weight-sharing networks, block by block, one module for each search space."""

from __future__ import annotations

from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Entry, HyTraSpace, Space

from .block import SupernetBlock, norms_of
from .hytra import HyTraBlock

__all__ = ["HyTraBlock", "SupernetBlock", "make_block", "norms_of", "trained_entries"]


def make_block(space: Space, block: int, entry: Entry) -> SupernetBlock:
    """The supernet block of a space, freshly initialised.

    Raises:
        UsageError: there is no supernet for this space.
    """
    if isinstance(space, HyTraSpace):
        assert entry is None or isinstance(entry, int)
        return HyTraBlock(space, block, entry)
    raise UsageError(f"there is no supernet for the space {space.name!r}; known: hytra")


def trained_entries(space: Space, block: int) -> tuple[Entry, ...]:
    """The entries of a block for which a supernet block of its own is trained: every scale in HyTra, else just one."""
    return space.entries(block) if isinstance(space, HyTraSpace) else (None,)
