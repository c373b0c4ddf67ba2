"""Ratings that nothing was trained for: the solver takes as long for these."""

from __future__ import annotations

import random

from bossnet_zoo.search.rating_table import RatingTable
from bossnet_zoo.spaces import Space


def draw_ratings(space: Space, seed: int = 0) -> RatingTable:
    """Normally distributed ratings of every path, of its own from every entry."""
    generator = random.Random(seed)
    blocks = tuple(
        {
            space.entry_text(entry): {
                space.path_text(path): generator.gauss(0, 1) for path in space.paths(block, entry)
            }
            for entry in space.entries(block)
        }
        for block in range(space.num_blocks)
    )
    return RatingTable(space.name, blocks)
