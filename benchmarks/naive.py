"""Training and rating written the obvious way: what the shortcuts of `bossnet_zoo.search` are compared with.

The authors' released code computes the frozen prefix anew for every path and for both networks, back-propagates into
it, and rates path by path, each time with prefix and BN statistics computed afresh. Both functions here do the same,
in as few lines as possible. Tests require equal losses and ratings; `bench_step.py` and `bench_rating.py` compare
times.

Shapes: P paths, B images, C channels, H x W pixels, D projected features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bossnet_zoo.search.bootstrapping import SiameseSupernet
from bossnet_zoo.search.prefix import FrozenPrefix
from bossnet_zoo.search.supernets import norms_of
from bossnet_zoo.spaces import Path


def run_prefix(prefix: FrozenPrefix, x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, C, H', W'), with gradient."""
    for block, path in zip(prefix.blocks, prefix.paths, strict=True):
        x = block(x, path)
    return x


def distance(a: Tensor, b: Tensor) -> Tensor:
    """(B, D), (B, D) -> (B,): 2 - 2 cos(a, b)."""
    return 2 - 2 * (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)


def naive_bootstrap(
    siamese: SiameseSupernet,
    prefix: FrozenPrefix,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    paths: Sequence[Path],
) -> float:
    """Forward and backward of a step; gradients flow through the prefix to the image.

    Args:
        first, second: for each path, its two views, (B, 3, H, W) each.

    Returns:
        The loss, mean over images and paths.
    """
    prefix.requires_grad_(True)
    first_target, second_target = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for x1, x2, path in zip(first, second, paths, strict=True):
            first_target = first_target + F.normalize(siamese.target(run_prefix(prefix, x1), path), dim=-1) / len(paths)
            second_target = second_target + F.normalize(siamese.target(run_prefix(prefix, x2), path), dim=-1) / len(
                paths
            )
    total = 0.0
    for x1, x2, path in zip(first, second, paths, strict=True):
        first_prediction = siamese.predict(run_prefix(prefix, x1), path)
        second_prediction = siamese.predict(run_prefix(prefix, x2), path)
        loss = (distance(first_prediction, second_target) + distance(second_prediction, first_target)).mean()
        loss.backward()
        total += loss.item()
    prefix.requires_grad_(False)
    return total / len(paths)


@torch.no_grad()
def naive_ratings(
    siamese: SiameseSupernet,
    prefix: FrozenPrefix,
    paths: Sequence[Path],
    calibration: Sequence[Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> dict[Path, float]:
    """Each path's distance to the population centre, path by path and batch by batch.

    Args:
        calibration: images for the BN statistics, (B, 3, H, W) each.
        batches: pairs of views of the held-out images.
    """
    totals, images = dict.fromkeys(paths, 0.0), 0
    for first, second in batches:
        first_centre, second_centre = torch.zeros(()), torch.zeros(())
        for path in paths:
            calibrate(siamese, siamese.target, prefix, path, calibration)
            first_centre = first_centre + F.normalize(siamese.target(run_prefix(prefix, first), path), dim=-1)
            second_centre = second_centre + F.normalize(siamese.target(run_prefix(prefix, second), path), dim=-1)
        for path in paths:
            calibrate(siamese, siamese.predict, prefix, path, calibration)
            distances = distance(siamese.predict(run_prefix(prefix, first), path), second_centre)
            distances += distance(siamese.predict(run_prefix(prefix, second), path), first_centre)
            totals[path] += distances.sum().item()
        images += len(first)
    return {path: total / images for path, total in totals.items()}


def calibrate(
    siamese: SiameseSupernet,
    network: Callable[[Tensor, Path], Tensor],
    prefix: FrozenPrefix,
    path: Path,
    calibration: Sequence[Tensor],
) -> None:
    """Give the BN layers of `network` on `path` their statistics, and leave everything in evaluation mode."""
    siamese.train()
    norms = norms_of(siamese)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # average over all batches
    for images in calibration:
        network(run_prefix(prefix, images), path)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    siamese.eval()
