"""Ensemble bootstrapping: one block's self-supervised training objective (BossNAS, section 3.2).

An *online* network (block, projector, predictor) learns to predict what a *target* network (block and projector, the
exponential moving average of the online one, without gradient) makes of another view of the same image. The target of
every path is the mean over all P paths of the step, so that no path is trained towards its own peculiarities.

Shapes: P paths, B images, C channels, H x W pixels, D projected features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path

from .supernets import SupernetBlock


def make_mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Projector or predictor: linear, BN, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out_features),
    )


class Branch(nn.Module):
    """Block and projector: (B, C, H, W) -> (B, D)."""

    def __init__(self, block: SupernetBlock, hidden: int, out_features: int):
        super().__init__()
        self.block = block
        self.projector = make_mlp(block.num_features, hidden, out_features)

    def forward(self, x: Tensor, path: Path) -> Tensor:
        return self.projector(self.block.adapt(self.block(x, path), path))


class SiameseSupernet(nn.Module):
    """Online and target network of one block.

    Args:
        block: the weight-sharing block, of any space.
        hidden: hidden width of projector and predictor; 4096 in the paper.
        out_features: D; 256 in the paper.
    """

    def __init__(self, block: SupernetBlock, hidden: int = 4096, out_features: int = 256):
        super().__init__()
        self.online = Branch(block, hidden, out_features)
        self.predictor = make_mlp(out_features, hidden, out_features)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def predict(self, x: Tensor, path: Path) -> Tensor:
        """(B, C, H, W) -> (B, D): the online network's prediction of the target's projection."""
        return self.predictor(self.online(x, path))

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * online, for every weight of block, adapters and projector."""
        target: list[Tensor] = list(self.target.parameters())
        online: list[Tensor] = list(self.online.parameters())
        torch._foreach_lerp_(target, online, 1.0 - momentum)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """(B, D), (B, D) -> (B,): 2 - 2 cos(a, b), in float32; 0 for equal directions, 4 for opposite ones."""
    return 2.0 - 2.0 * F.cosine_similarity(a.float(), b.float(), dim=-1)


def population_centre(projections: Sequence[Tensor]) -> Tensor:
    """P tensors (B, D) -> (B, D): the mean of the paths' L2-normalised projections."""
    return torch.stack([F.normalize(projection.float(), dim=-1) for projection in projections]).mean(0)


def bootstrap(
    siamese: SiameseSupernet,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    paths: Sequence[Path],
    runtime: Runtime,
    *,
    ensemble: bool = True,
    share: float = 1.0,
) -> float:
    """Forward and backward of one micro-batch; gradients add up in the online network.

    Args:
        siamese: the block in training.
        first, second: for each path, its two views as the frozen prefix gave them, (B, C, H, W) each.
        paths: the P paths of the step.
        ensemble: regress the mean target of all paths; if not, each path its own (the paper's ablation).
        share: weight of this micro-batch in the step's gradient.

    Returns:
        The loss, mean over images and paths: between 0 and 8.
    """
    with torch.no_grad(), runtime.autocast():
        first_targets = [siamese.target(x, path) for x, path in zip(first, paths, strict=True)]
        second_targets = [siamese.target(x, path) for x, path in zip(second, paths, strict=True)]
        if ensemble:
            first_targets = [population_centre(first_targets)] * len(paths)
            second_targets = [population_centre(second_targets)] * len(paths)
    path_losses: list[Tensor] = []
    for index, path in enumerate(paths):
        with runtime.autocast():
            first_prediction = siamese.predict(first[index], path)
            second_prediction = siamese.predict(second[index], path)
        losses = distance(first_prediction, second_targets[index]) + distance(second_prediction, first_targets[index])
        loss = losses.mean()
        (loss * share).backward()
        path_losses.append(loss.detach())
    return sum(torch.stack(path_losses).tolist()) / len(paths)  # read once, as reading waits for the GPU


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Optimiser groups for LARS: BN and bias parameters have neither decay nor adaptation.

    They are told apart by the type of the module they belong to, never by name: a zero-initialised BN gamma has norm 0,
    and with adaptation its local rate would be exactly 0 for ever.
    """
    adapted: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_plain = isinstance(child, _BatchNorm) or name == "bias"
                (plain if is_plain else adapted).append(parameter)
    together = {id(parameter) for parameter in adapted + plain}
    assert together == {id(p) for p in module.parameters() if p.requires_grad}
    assert len(together) == len(adapted) + len(plain)
    return [
        {"params": adapted, "weight_decay": weight_decay, "always_adapt": True},
        {"params": plain, "weight_decay": 0.0, "always_adapt": False},
    ]


def target_momentum(step: int, num_steps: int, base: float) -> float:
    """EMA momentum at `step`: from `base` to 1 by cosine (BYOL, arXiv 2006.07733, appendix J)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step / num_steps) + 1.0) / 2.0
