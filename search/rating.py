"""Rating every path of a block by its distance to the population centre (BossNAS, section 3.3).

On held-out images the centre is the mean, over all paths of the block, of the normalised target projections; a path is
the better the nearer its online predictions are to the centre. Every path is judged with BN statistics of its own.

Paths that begin alike share work. The paths of a block form a tree, one layer a level; a node's feature map and its BN
statistics depend on nothing but the nodes above it, so both are computed once for all the paths below. That is exact:
`benchmarks/bench_rating.py` holds the path-by-path loop it is compared with.

Shapes: B images, D projected features, P paths of the block.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path

from .bootstrapping import SiameseSupernet, distance, population_centre
from .supernets import SupernetBlock, norms_of

LEARNED = 1.05  # a block has learned to tell images apart if another image's target is that much farther away
Statistics = list[tuple[Tensor, Tensor]]  # mean and variance of every BN layer at a node


class BlockRatings(NamedTuple):
    """The ratings of a block's paths, and what they would be if the block could not tell images apart.

    Attributes:
        ratings: each path's mean distance to its target; lower is better.
        elsewhere: the mean distance, over all paths, to the target of *another* image; images that are alone in their
            batch do not count. Nothing is trained or chosen by it. Where it is no larger than the ratings, every image
            is given the same answer: the block has learned nothing, and its ratings are noise.
    """

    ratings: dict[Path, float]
    elsewhere: float

    @property
    def mean(self) -> float:
        """The mean rating of all paths."""
        return sum(self.ratings.values()) / len(self.ratings)


class RatingSums:
    """Distances of all paths summed over images in float64, so that the order of the batches does not matter."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        # Then: distances to other images, how many these are; number of images.
        self._sums = torch.zeros(len(self.paths) + 3, dtype=torch.float64)

    def add(self, distances: dict[Path, Tensor], elsewhere: dict[Path, Tensor] | None) -> None:
        """Add a batch: for every path its distances (B,) to the images' own targets, and to other images', if any."""
        self._sums[:-3] += torch.stack([distances[path] for path in self.paths]).cpu().double().sum(1)
        if elsewhere is not None:
            self._sums[-3] += torch.stack([elsewhere[path] for path in self.paths]).cpu().double().mean(0).sum()
            self._sums[-2] += len(elsewhere[self.paths[0]])
        self._sums[-1] += len(distances[self.paths[0]])

    def finish(self, runtime: Runtime, views: int = 1) -> BlockRatings:
        """The ratings of all processes' images together, the sum of the distances of their `views`.

        Raises:
            ValueError: no process has seen an image, or none has seen two together.
        """
        runtime.sum_(self._sums)
        *_, elsewhere, compared, images = self._sums.tolist()
        if not images:
            raise ValueError("no held-out images to rate the paths on")
        if not compared:
            raise ValueError("every held-out image is alone in its batch, with no other one to compare it with")
        ratings = (self._sums[:-3] * views / images).tolist()
        return BlockRatings(dict(zip(self.paths, ratings, strict=True)), elsewhere * views / compared)


def targets_of_others(targets: Tensor, images: int) -> Tensor | None:
    """For each image of a batch its neighbour's target: (V * B, D), all first views, then all second ones.

    None where the batch is one image alone: the neighbour of its one view would be the other view of itself.
    """
    return targets.roll(1, 0) if images > 1 else None


@contextlib.contextmanager
def calibrating(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, the BN layers normalise with batch statistics and average these over all the batches they see.

    Momentum and mode are restored on leaving; the averages stay.
    """
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)


class PathTree:
    """All paths of a block as a tree that carries BN statistics, and the head behind each path.

    A batch goes through the whole tree before the next one does: memory is one batch's, at one node per layer.

    Args:
        block: the weight-sharing block, in evaluation mode.
        head: modules behind `block.adapt`: the projector, or projector and predictor.
        paths: the paths to walk.
    """

    def __init__(self, block: SupernetBlock, head: Sequence[nn.Module], paths: Sequence[Path], runtime: Runtime):
        self.block, self.head, self.paths, self.runtime = block, nn.Sequential(*head), list(paths), runtime
        self.statistics: dict[Path, Statistics] = {}  # by the choices from the block's start to the node
        self.norms = functools.cache(block.norms)  # every batch passes every node: looking them up is a tenth of it
        self.head_norms = norms_of(self.head)
        self.children: dict[Path, list[Path]] = {}
        for path in self.paths:
            for depth in range(len(path)):
                siblings = self.children.setdefault(path[:depth], [])
                if path[: depth + 1] not in siblings:
                    siblings.append(path[: depth + 1])

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Compute every node's BN statistics, means over `batches` of calibration images behind the frozen prefix."""
        self.statistics.clear()
        for batch in batches:
            for _ in self._walk(batch, calibrate=True):
                pass
        for statistics in self.statistics.values():
            for mean, variance in statistics:
                mean /= len(batches)
                variance /= len(batches)

    def outputs(self, batch: Tensor) -> Iterator[tuple[Path, Tensor]]:
        """For every path, the head's output (B, D) for a batch that has gone through the frozen prefix."""
        return self._walk(batch, calibrate=False)

    @torch.no_grad()
    def _walk(self, batch: Tensor, *, calibrate: bool) -> Iterator[tuple[Path, Tensor]]:
        with self._node((), self.norms((), -1), calibrate):
            root = self.block.root(batch)
        for path, features in self._descend((), root, calibrate):
            norms = (*self.norms(path, len(path)), *self.head_norms)
            with self._node((*path, "head"), norms, calibrate):
                output = self.head(self.block.adapt(features, path))
            yield path, output.float()

    def _descend(self, node: Path, x: Tensor, calibrate: bool) -> Iterator[tuple[Path, Tensor]]:
        for child in self.children[node]:
            index = len(child) - 1
            with self._node(child, self.norms(child, index), calibrate):
                output = self.block.step(x, child, index)
            if child in self.children:
                yield from self._descend(child, output, calibrate)
            else:
                yield child, output

    @contextlib.contextmanager
    def _node(self, node: Path, norms: Sequence[_BatchNorm], calibrate: bool) -> Iterator[None]:
        """Inside, the BN layers of a node have its statistics, or those of the batch, which are added up."""
        if calibrate:
            with calibrating(norms), self.runtime.autocast():
                yield
            self._add_statistics(node, norms)
            return
        for norm, (mean, variance) in zip(norms, self.statistics[node], strict=True):
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
        with self.runtime.autocast():
            yield

    def _add_statistics(self, node: Path, norms: Sequence[_BatchNorm]) -> None:
        seen = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
        if node in self.statistics:
            for (mean, variance), (batch_mean, batch_variance) in zip(self.statistics[node], seen, strict=True):
                mean += batch_mean
                variance += batch_variance
        else:
            self.statistics[node] = seen


def rate_paths(
    siamese: SiameseSupernet,
    paths: Sequence[Path],
    calibration: Sequence[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> BlockRatings:
    """Each path's distance to the population centre; lower is better, between 0 and 8.

    Args:
        siamese: the trained block; left as it was but for its BN layers' running statistics.
        paths: all paths of the block.
        calibration: batches for the BN statistics, from both view pipelines, through the frozen prefix. Every process
            has the same ones.
        batches: this process's share of the held-out images: pairs of views, through the frozen prefix.

    Raises:
        ValueError: `batches` is empty on every process, or every batch is a single image.
    """
    was_training = siamese.training
    siamese.eval()
    target = PathTree(siamese.target.block, [siamese.target.projector], paths, runtime)
    online = PathTree(siamese.online.block, [siamese.online.projector, siamese.predictor], paths, runtime)
    target.calibrate(calibration)
    online.calibrate(calibration)
    sums = RatingSums(paths)
    for first, second in batches:
        views = torch.cat([first, second])
        centre = population_centre([projection for _, projection in target.outputs(views)])
        swapped = torch.cat([centre[len(first) :], centre[: len(first)]])
        others = targets_of_others(swapped, len(first))
        distances, elsewhere = {}, {}
        for path, prediction in online.outputs(views):
            distances[path] = distance(prediction, swapped)
            if others is not None:
                elsewhere[path] = distance(prediction, others)
        sums.add(distances, elsewhere or None)
    siamese.train(was_training)
    return sums.finish(runtime, views=2)
