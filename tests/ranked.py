"""Made-up ratings and true accuracies of NATS-Bench's space."""

from __future__ import annotations

import random

from bossnet_zoo.search.rating_table import RatingTable
from bossnet_zoo.search.truth_table import TruthTable
from bossnet_zoo.spaces import NatsSpace

SPACE = NatsSpace()


def make_table(seed: int = 0, **fields) -> RatingTable:
    """Ratings of all paths, the same from every entry."""
    generator = random.Random(seed)
    paths = [{SPACE.path_text(path): generator.gauss(0, 1) for path in SPACE.paths(block, 8)} for block in range(3)]
    return RatingTable("nats", tuple({"any": ratings} for ratings in paths), **fields)


def make_truth(accuracy, number: int = 40, seed: int = 1) -> TruthTable:
    """True accuracies of some architectures, from a function of the architecture."""
    generator = random.Random(seed)
    archs = {SPACE.sample(generator) for _ in range(number)}
    return TruthTable("nats", {str(arch): accuracy(arch) for arch in archs})
