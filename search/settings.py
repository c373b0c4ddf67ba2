"""Every setting of a search, as one frozen value, and the two presets it starts from.

Sources: BossNAS (arXiv 2103.12424), section 4 and appendix A.2, and BYOL (arXiv 2006.07733) for what BossNAS takes
over from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bossnet_zoo.errors import UsageError, unknown
from bossnet_zoo.spaces import Space, get_space

REFERENCE_BATCH = 4096  # images a step at which `base_lr` is stated


@dataclass(frozen=True)
class SearchSettings:
    """What a search does. Stored in the run directory; a resumed run must have the same.

    Attributes:
        space, space_options: the search space and the fields of its dataclass.
        data: a source of images, see `bossnet_zoo.datasets.open_images`. Labels are never read.
        views: `byol` or `digits`, the pair of augmentation pipelines.
        seed: decides everything that is random.
        resolution: pixels of a view.
        epochs, warmup_epochs: training of each block.
        num_paths: P, paths sampled in a step.
        global_batch: images of a step, over all processes and micro-batches.
        micro_batch: images that a process takes at once; BN statistics are taken over these.
        base_lr: LARS rate at 4096 images a step; scaled linearly.
        weight_decay, momentum: of LARS.
        target_momentum: of the moving average at the start; it ends at 1.
        hidden, projection: widths of projector and predictor.
        ensemble: train every path towards the mean target of the step's paths; if not, towards its own.
        path_sampling: `uniform` over the legal paths, or `fair`: each candidate of a layer once per group of paths.
        own_views: each path sees its own pair of views.
        coverage: `greedy` trains a block for the scale at which the best earlier path ends; `full` for every scale.
        calibration_images: images behind the BN statistics of ratings and frozen blocks.
        rating_images: held-out images that paths are rated on; None for all.
        rating_part: `search-val` (held out) or `search-train`.
        rating_every: rate also every so many epochs, for the convergence plot; 0 for never.
        augment: `workers` or `device`.
        workers: processes that load images.
    """

    space: str = "hytra"
    space_options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    views: Literal["byol", "digits"] = "byol"
    seed: int = 0
    resolution: int = 224
    epochs: int = 20
    warmup_epochs: int = 1
    num_paths: int = 4
    global_batch: int = 4096
    micro_batch: int = 64
    base_lr: float = 4.8
    weight_decay: float = 1e-6
    momentum: float = 0.9
    target_momentum: float = 0.99
    hidden: int = 4096
    projection: int = 256
    ensemble: bool = True
    path_sampling: Literal["uniform", "fair"] = "uniform"
    own_views: bool = True
    coverage: Literal["greedy", "full"] = "greedy"
    calibration_images: int = 1024
    rating_images: int | None = None
    rating_part: Literal["search-val", "search-train"] = "search-val"
    rating_every: int = 0
    augment: Literal["workers", "device"] = "workers"
    workers: int = 4

    def __post_init__(self) -> None:
        for name in ("epochs", "num_paths", "global_batch", "micro_batch", "resolution", "calibration_images"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")

    @property
    def learning_rate(self) -> float:
        return self.base_lr * self.global_batch / REFERENCE_BATCH

    def make_space(self) -> Space:
        return get_space(self.space, **self.space_options)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each process takes in a step.

        Raises:
            UsageError: the global batch is no multiple of what all processes take at once.
        """
        at_once = self.micro_batch * world_size
        if self.global_batch % at_once:
            raise UsageError(
                f"a global batch of {self.global_batch} images is no multiple of {world_size} processes x "
                f"{self.micro_batch} images; type --global-batch {max(self.global_batch // at_once, 1) * at_once}"
            )
        return self.global_batch // at_once

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchSettings:
        """The settings that `to_json` wrote. Raises `UsageError` on names of another version."""
        known = {f.name for f in dataclasses.fields(cls)}
        foreign = sorted(set(values) - known)
        if foreign:
            raise UsageError(f"settings {', '.join(foreign)} are not known to this version of bossnet-zoo")
        return cls(**values)


_CHOICES: dict[str, tuple[str, ...]] = {
    "views": ("byol", "digits"),
    "path_sampling": ("uniform", "fair"),
    "coverage": ("greedy", "full"),
    "rating_part": ("search-val", "search-train"),
    "augment": ("workers", "device"),
}

# The paper's search on ImageNet: 8 GPUs x 64 images x 8 micro-batches; operations with ReLU and without squeeze-excite.
PAPER = SearchSettings(space_options={"se": False, "act_layer": "relu"})

# The same search in miniature: an eighth of the width, 64 pixels, a minute or two on two CPU cores.
DEMO = replace(
    PAPER,
    space_options={"base_width": 8, "se": False, "act_layer": "relu", "num_classes": 10, "default_resolution": 64},
    data="digits",
    views="digits",
    resolution=64,
    epochs=6,
    global_batch=64,
    micro_batch=64,
    hidden=256,
    projection=64,
    calibration_images=128,
    augment="device",
    workers=0,
)

PRESETS = {"paper": PAPER, "demo": DEMO}


def get_preset(name: str) -> SearchSettings:
    """`paper` or `demo`. Raises `UsageError` for another name."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
