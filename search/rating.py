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
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path

from .bootstrapping import SiameseSupernet, distance, population_centre
from .supernets import SupernetBlock, norms_of

Statistics = list[tuple[Tensor, Tensor]]  # mean and variance of every BN layer at a node


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

    Args:
        block: the weight-sharing block, in evaluation mode.
        head: modules behind `block.adapt`: the projector, or projector and predictor.
        paths: the paths to walk.
    """

    def __init__(self, block: SupernetBlock, head: Sequence[nn.Module], paths: Sequence[Path], runtime: Runtime):
        self.block, self.head, self.paths, self.runtime = block, nn.Sequential(*head), list(paths), runtime
        self.statistics: dict[Path, Statistics] = {}  # by the choices from the block's start to the node
        self.children: dict[Path, list[Path]] = {}
        for path in self.paths:
            for depth in range(len(path)):
                siblings = self.children.setdefault(path[:depth], [])
                if path[: depth + 1] not in siblings:
                    siblings.append(path[: depth + 1])

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Compute every node's BN statistics on the outputs of the frozen prefix for the calibration images."""
        norms = self.block.norms((), -1)
        with calibrating(norms), self.runtime.autocast():
            roots = [self.block.root(batch) for batch in batches]
        self.statistics[()] = _read(norms)
        for path, features in self._descend((), roots, calibrate=True):
            norms = self._leaf_norms(path)
            with calibrating(norms), self.runtime.autocast():
                for batch in features:
                    self.head(self.block.adapt(batch, path))
            self.statistics[(*path, "head")] = _read(norms)

    @torch.no_grad()
    def outputs(self, batch: Tensor) -> Iterator[tuple[Path, Tensor]]:
        """For every path, the head's output (B, D) for a batch that has gone through the frozen prefix."""
        _write(self.block.norms((), -1), self.statistics[()])
        with self.runtime.autocast():
            root = self.block.root(batch)
        for path, features in self._descend((), [root], calibrate=False):
            _write(self._leaf_norms(path), self.statistics[(*path, "head")])
            with self.runtime.autocast():
                yield path, self.head(self.block.adapt(features[0], path)).float()

    def _descend(self, node: Path, features: list[Tensor], *, calibrate: bool) -> Iterator[tuple[Path, list[Tensor]]]:
        for child in self.children[node]:
            index = len(child) - 1
            norms = self.block.norms(child, index)
            if calibrate:
                with calibrating(norms), self.runtime.autocast():
                    outputs = [self.block.step(x, child, index) for x in features]
                self.statistics[child] = _read(norms)
            else:
                _write(norms, self.statistics[child])
                with self.runtime.autocast():
                    outputs = [self.block.step(x, child, index) for x in features]
            if child in self.children:
                yield from self._descend(child, outputs, calibrate=calibrate)
            else:
                yield child, outputs

    def _leaf_norms(self, path: Path) -> tuple[_BatchNorm, ...]:
        return (*self.block.norms(path, len(path)), *norms_of(self.head))


def _read(norms: Sequence[_BatchNorm]) -> Statistics:
    return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]


def _write(norms: Sequence[_BatchNorm], statistics: Statistics) -> None:
    for norm, (mean, variance) in zip(norms, statistics, strict=True):
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]


def rate_paths(
    siamese: SiameseSupernet,
    paths: Sequence[Path],
    calibration: Sequence[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> dict[Path, float]:
    """Each path's distance to the population centre; lower is better, between 0 and 8.

    Args:
        siamese: the trained block; left as it was but for its BN layers' running statistics.
        paths: all paths of the block.
        calibration: batches for the BN statistics, from both view pipelines, through the frozen prefix. Every process
            has the same ones.
        batches: this process's share of the held-out images: pairs of views, through the frozen prefix.

    Raises:
        ValueError: `batches` is empty on every process.
    """
    was_training = siamese.training
    siamese.eval()
    target = PathTree(siamese.target.block, [siamese.target.projector], paths, runtime)
    online = PathTree(siamese.online.block, [siamese.online.projector, siamese.predictor], paths, runtime)
    target.calibrate(calibration)
    online.calibrate(calibration)
    # Sums over images, then their number: float64, so that the order of the batches does not matter.
    position = {path: index for index, path in enumerate(paths)}
    totals = torch.zeros(len(paths) + 1, dtype=torch.float64, device=runtime.device)
    for first, second in batches:
        views = torch.cat([first, second])
        centre = population_centre([projection for _, projection in target.outputs(views)])
        swapped = torch.cat([centre[len(first) :], centre[: len(first)]])
        for path, prediction in online.outputs(views):
            totals[position[path]] += distance(prediction, swapped).double().sum()
        totals[-1] += len(first)
    runtime.sum_(totals)
    siamese.train(was_training)
    if totals[-1] == 0:
        raise ValueError("no held-out images to rate the paths on")
    ratings = (totals[:-1] / totals[-1]).tolist()
    return dict(zip(paths, ratings, strict=True))
