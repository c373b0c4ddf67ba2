"""What stands in front of the block in training: the best path of every earlier block, frozen.

Frozen means evaluation mode, no gradient, no optimiser, and BN statistics of that very path. Nothing but the chosen
paths' modules is kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from bossnet_zoo.checkpoint import load_weights
from bossnet_zoo.errors import CheckpointError
from bossnet_zoo.models.weights import load_strictly
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Arch, Entry, Path, Space

from .rating import calibrating
from .rating_table import RatingTable
from .shapes import trained_entry
from .supernets import SupernetBlock, make_block


@dataclass(frozen=True)
class Stage:
    """One unit of training: a block, entered in one state."""

    block: int
    entry: Entry

    def name(self, space: Space) -> str:
        """`block1-any`, `block2-8`: names of files and of log records; blocks count from 1."""
        return f"block{self.block + 1}-{space.entry_text(self.entry)}"


Chain = tuple[tuple[Stage, Path], ...]  # one stage and its path per block, from the first


def stage_of(space: Space, block: int, entry: Entry) -> Stage:
    """The stage that trains `block` for networks that enter it in `entry`."""
    return Stage(block, trained_entry(space, block, entry))


def best_prefixes(space: Space, table: RatingTable, block: int) -> dict[Entry, Chain]:
    """For every state in which `block` can be entered, the best-rated chain of paths that ends there.

    Ratings of the blocks before `block` are added up; chains with an unrated path do not count. Ties go to the chain
    that comes first in the space's order.
    """
    sign = 1.0 if table.lower_is_better else -1.0
    best: dict[Entry, tuple[float, Chain]] = {None: (0.0, ())}
    for index in range(block):
        beginnings, best = best, {}
        for entry, (score, chain) in beginnings.items():
            for path in space.paths(index, entry):
                rating = table.rating(index, space.entry_text(entry), space.path_text(path))
                if rating is None:
                    continue
                total, end = score + sign * rating, space.exit(index, entry, path)
                if end not in best or total < best[end][0]:
                    best[end] = (total, (*chain, (stage_of(space, index, entry), path)))
    ordered = sorted(best.items(), key=lambda item: item[1][0])
    return {entry: chain for entry, (_, chain) in ordered}


def stages_of_block(space: Space, table: RatingTable, block: int, coverage: str) -> dict[Stage, Chain]:
    """The stages that train `block`, each with its prefix: the best chain of paths that leads to it.

    Args:
        table: ratings of all blocks before.
        coverage: `greedy` for the stage behind the best chain alone, `full` for every stage that a chain leads to.
    """
    stages: dict[Stage, Chain] = {}
    for entry, chain in best_prefixes(space, table, block).items():
        stages.setdefault(stage_of(space, block, entry), chain)
    return dict(list(stages.items())[:1]) if coverage == "greedy" else stages


def chain_of(space: Space, arch: Arch) -> Chain:
    """The stages and paths that an architecture goes through."""
    chain: list[tuple[Stage, Path]] = []
    entry: Entry = None
    for block, path in enumerate(space.split(arch)):
        chain.append((stage_of(space, block, entry), path))
        entry = space.exit(block, entry, path)
    return tuple(chain)


class FrozenPrefix(nn.Module):
    """(B, 3, H, W) -> (B, C, H', W') under no-grad: the chosen paths of the blocks before, one after the other."""

    def __init__(self, blocks: Sequence[SupernetBlock], paths: Sequence[Path], runtime: Runtime):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.paths, self.runtime = tuple(paths), runtime
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenPrefix:
        """Stays in evaluation mode, whatever mode is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with self.runtime.autocast():
            for block, path in zip(self.blocks, self.paths, strict=True):
                x = block(x, path)
        return x

    def of_pairs(self, views: Tensor) -> list[Tensor]:
        """(2 P, B, 3, H, W), all first views, then all second ones -> for each of P pairs (2 B, C, H', W')."""
        # One batch of both views is up to a third faster than one after the other, on a CPU; of more, slower again.
        pairs = views.unflatten(0, (2, -1)).transpose(0, 1)
        return [self(pair.flatten(0, 1).contiguous(memory_format=torch.channels_last)) for pair in pairs]


@torch.no_grad()
def calibrate_path(block: SupernetBlock, path: Path, batches: Sequence[Tensor], runtime: Runtime) -> None:
    """Give the BN layers of one path the statistics of `batches`, as `PathTree.calibrate` does for all paths."""
    block.eval()
    for index in range(-1, len(path)):
        with calibrating(block.norms(path, index)), runtime.autocast():
            batches = [block.root(x) if index < 0 else block.step(x, path, index) for x in batches]


def load_prefix(
    space: Space,
    chain: Chain,
    folder: FilePath,
    calibration: Sequence[Tensor],
    runtime: Runtime,
) -> FrozenPrefix:
    """The frozen prefix for a chain of stages, from the weights that each stage left in `folder`.

    Raises:
        CheckpointError: a stage's weights are missing or damaged.
    """
    blocks: list[SupernetBlock] = []
    for stage, path in chain:
        block = load_block(space, stage, folder).to(runtime.device)
        before = FrozenPrefix(blocks, [path for _, path in chain[: len(blocks)]], runtime)
        calibrate_path(block, path, [before(batch) for batch in calibration], runtime)
        block.restrict_to(path)
        blocks.append(block)
    return FrozenPrefix(blocks, [path for _, path in chain], runtime)


def load_block(space: Space, stage: Stage, folder: FilePath) -> SupernetBlock:
    """A trained block, as the search saved it. Raises `CheckpointError`."""
    path = folder / f"{stage.name(space)}.safetensors"
    block = make_block(space, stage.block, stage.entry)
    remedy = "bring the file back from a copy, or search again (--overwrite)"
    try:
        weights = load_weights(path)
    except CheckpointError as error:
        reason = str(error).partition(";")[0]
        raise CheckpointError(f"a finished block cannot be used: {reason}; {remedy}") from error
    try:
        load_strictly(block, weights, path)
    except CheckpointError as error:
        raise CheckpointError(
            f"a finished block cannot be used: {path} holds other weights than that block of this search has; {remedy}"
        ) from error
    return block
