"""UnNAS by rotation (Liu et al., arXiv 2003.12056), as BossNAS compares itself with it: the whole supernet at once.

Images are rotated by 0, 90, 180 and 270 degrees, and the supernet learns to tell which. Three extra stride-2
convolutions in front of it bring the images to an eighth of their size; in every step one architecture is sampled,
uniformly over the space, and trained (BossNAS, appendix A.2). An architecture is judged by its rotation accuracy on
held-out images, with BN statistics of its own; higher is better.

Ratings are of paths, and a network's accuracy is no sum, so they are its best additive account, the main effects:
a path's rating is the mean accuracy of the measured architectures that take it, minus (1 - 1 / number of blocks) times
the mean accuracy of all. The sum over an architecture's paths then estimates its accuracy. Measured are, for every
path of every block, a few architectures whose other paths are random; their own accuracies are kept beside the ratings.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from bossnet_zoo import console
from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Arch, Entry, Path, Space

from .prefix import Chain, Stage, chain_of
from .rating import calibrating
from .rating_table import RatingTable
from .shapes import block_input, block_without_data, trained_entry
from .stage import Setup, Training, rating_views
from .supernets import SupernetBlock, make_block, norms_of, trained_entries

REDUCING_WIDTHS = (16, 32, 64)  # channels of the three extra convolutions
ROTATIONS = 4


def rotate(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, H) -> all four rotations (4B, C, H, H), and by how many quarter turns (4B,)."""
    rotated = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(ROTATIONS)])
    return rotated, torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(images))


class RotationNetwork(nn.Module):
    """The extra convolutions, every block of the supernet, and a classifier of rotations for each of its ends.

    Blocks that are entered in different states share the weights of the layers that they have in common.

    Raises:
        UsageError: a space whose networks cannot be built for another number of input channels.
    """

    def __init__(self, space: Space):
        super().__init__()
        self.space = space
        if not hasattr(space, "in_chans"):
            raise UsageError(f"unnas needs a space with an option in_chans, which {space.name!r} does not have")
        self.reducing = nn.Sequential()
        channels = space.in_chans
        for width in REDUCING_WIDTHS:
            conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            self.reducing += nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            channels = width
        inner = behind_reduction(space)
        self.blocks = nn.ModuleDict()
        for block in range(space.num_blocks):
            made: list[SupernetBlock] = []
            for entry in trained_entries(space, block):
                supernet = make_block(inner, block, entry)
                for other in made:
                    supernet.share_with(other)
                made.append(supernet)
                self.blocks[Stage(block, entry).name(space)] = supernet
        self.classifiers = nn.ModuleDict(
            {space.entry_text(exit): nn.Linear(channels, ROTATIONS) for exit, channels in _exit_channels(space).items()}
        )

    def forward(self, x: Tensor, chain: Chain) -> Tensor:
        """(B, C, H, W) -> (B, 4): the logits of the architecture that `chain` describes."""
        x = self.reducing(x)
        for stage, path in chain:
            x = self.blocks[stage.name(self.space)](x, path)
        exit = self.space.exit(stage.block, stage.entry, path)
        return self.classifiers[self.space.entry_text(exit)](x.mean(dim=(2, 3)))

    def norms(self, chain: Chain) -> tuple[_BatchNorm, ...]:
        """The BN layers that an architecture uses."""
        norms = list(norms_of(self.reducing))
        for stage, path in chain:
            block = self.blocks[stage.name(self.space)]
            norms += [norm for index in range(-1, len(path)) for norm in block.norms(path, index)]  # type: ignore[operator]
        return tuple(norms)


def behind_reduction(space: Space) -> Space:
    """The space whose networks read what the extra convolutions give."""
    return replace(space, in_chans=REDUCING_WIDTHS[-1])  # type: ignore[type-var, call-arg]


def _exit_channels(space: Space) -> dict[Entry, int]:
    """Channels of the last feature map, by the state in which the last block ends."""
    last = space.num_blocks - 1
    channels: dict[Entry, int] = {}
    for entry in space.entries(last):
        for path in space.paths(last, entry):
            exit = space.exit(last, entry, path)
            if exit not in channels:
                trained = trained_entry(space, last, entry)
                x = block_input(space, last, trained, space.default_resolution)
                channels[exit] = block_without_data(space, last, trained)(x, path).shape[1]
    return channels


class RotationTraining(Training):
    """UnNAS: the whole supernet in training, one architecture a step."""

    def __init__(self, setup: Setup):
        torch.manual_seed(seed_of(setup.settings.seed, "init"))
        self.supernet = RotationNetwork(setup.space)
        super().__init__(setup, Stage(0, None), self.supernet)
        self.name = "supernet"

    def make_optimizer(self) -> Optimizer:
        settings = self.setup.settings
        return SGD(
            self.supernet.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def blocks(self) -> Iterator[tuple[SupernetBlock, Sequence[Path]]]:
        space = self.setup.space
        for block in range(space.num_blocks):
            for entry in trained_entries(space, block):
                name = Stage(block, entry).name(space)
                yield self.supernet.blocks[name], space.paths(block, entry)  # type: ignore[misc]

    def draw(self, generator: random.Random) -> list[Arch]:
        return [self.setup.space.sample(generator)]

    def text(self, drawn: Arch) -> str:
        return str(drawn)

    def backward(self, views: Tensor, drawn: Sequence[Arch], share: float) -> float:
        images, turns = rotate(views.flatten(0, 1))
        with self.setup.runtime.autocast():
            logits = self.supernet(images, chain_of(self.setup.space, drawn[0]))
        loss = F.cross_entropy(logits.float(), turns)
        (loss * share).backward()
        return loss.item()

    def measure(self, calibration: Sequence[Tensor], limit: int | None = None) -> dict[Arch, float]:
        """Rotation accuracy of the architectures that ratings are made from, the same on every process."""
        setup = self.setup
        generator = random.Random(seed_of(setup.settings.seed, "measured architectures"))
        archs = architectures_to_measure(setup.space, setup.settings.rated_per_path, generator)
        batches = (view for views in rating_views(setup, limit) for view in views)
        return measure_accuracies(self.supernet, archs, calibration, batches, setup.runtime)


@torch.no_grad()
def measure_accuracies(
    network: RotationNetwork, archs: Sequence[Arch], calibration: Sequence[Tensor], batches: Any, runtime: Runtime
) -> dict[Arch, float]:
    """Rotation accuracy (0 to 1) of each architecture, with its own BN statistics.

    Args:
        calibration: batches for the BN statistics; every process has the same.
        batches: this process's share of the held-out images. Each is read once, whatever the number of architectures.
    """
    network.eval()
    chains = [chain_of(network.space, arch) for arch in archs]
    statistics = []
    for chain in console.track(chains, "BN statistics", len(chains), show=runtime.is_main):
        norms = network.norms(chain)
        with calibrating(norms), runtime.autocast():
            for images in calibration:
                network(rotate(images)[0], chain)
        statistics.append([(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms])  # type: ignore[union-attr]
    right = torch.zeros(len(archs) + 1, dtype=torch.float64)  # and, last, the number of rotated images
    for batch in batches:
        images, turns = rotate(batch)
        counts = []
        for chain, stored in zip(chains, statistics, strict=True):
            for norm, (mean, variance) in zip(network.norms(chain), stored, strict=True):
                norm.running_mean.copy_(mean)  # type: ignore[union-attr]
                norm.running_var.copy_(variance)  # type: ignore[union-attr]
            with runtime.autocast():
                counts.append((network(images, chain).argmax(1) == turns).sum())
        right += torch.stack([*counts, torch.tensor(len(turns), device=turns.device)]).cpu()
    runtime.sum_(right)
    network.train()
    accuracies = (right[:-1] / right[-1]).tolist()
    return dict(zip(archs, accuracies, strict=True))


# --- from architectures to paths


def architectures_to_measure(space: Space, per_path: int, generator: random.Random) -> list[Arch]:
    """For every path of every trained entry, `per_path` architectures through it, their other paths drawn uniformly."""
    archs: dict[Arch, None] = {}
    for block in range(space.num_blocks):
        for entry in trained_entries(space, block):
            for path in space.paths(block, entry):
                for _ in range(per_path):
                    before = _draw_before(space, block, entry, generator)
                    if before is not None:
                        archs[_complete(space, block, entry, (*before, path), generator)] = None
    return list(archs)


def _draw_before(space: Space, block: int, entry: Entry, generator: random.Random) -> tuple[Path, ...] | None:
    """Random paths of the blocks before `block` that lead to `entry` (to anywhere, where it is None)."""
    if block == 0:
        return ()
    options = [
        (before, path)
        for before in space.entries(block - 1)
        for path in space.paths(block - 1, before)
        if entry is None or space.exit(block - 1, before, path) == entry
    ]
    while options:  # an entry that no path leads to is drawn no second time
        before, path = options.pop(generator.randrange(len(options)))
        paths = _draw_before(space, block - 1, before, generator)
        if paths is not None:
            return (*paths, path)
    return None


def _complete(space: Space, block: int, entry: Entry, paths: tuple[Path, ...], generator: random.Random) -> Arch:
    """The architecture that begins with `paths`, up to `block`; the paths after it are random."""
    state: Entry = None
    for index in range(space.num_blocks):
        if index >= len(paths):
            paths = (*paths, generator.choice(space.paths(index, state)))
        state = space.exit(index, state, paths[index])
    return space.join(paths)


def rate_by_marginals(space: Space, table: RatingTable, accuracies: Mapping[Arch, float]) -> RatingTable:
    """The table with every path's main effect on accuracy as its rating, and the measured accuracies in its `meta`."""
    through: list[dict[str, dict[str, list[float]]]] = [{} for _ in range(space.num_blocks)]
    for arch, accuracy in accuracies.items():
        for stage, path in chain_of(space, arch):
            entries = through[stage.block].setdefault(space.entry_text(stage.entry), {})
            entries.setdefault(space.path_text(path), []).append(accuracy)
    common = sum(accuracies.values()) / len(accuracies) * (1 - 1 / space.num_blocks)
    blocks = tuple(
        {
            entry: {path: sum(values) / len(values) - common for path, values in paths.items()}
            for entry, paths in entries.items()
        }
        for entries in through
    )
    measured = {str(arch): accuracy for arch, accuracy in accuracies.items()}
    return replace(table, blocks=blocks, lower_is_better=False, meta={**table.meta, "measured": measured})
