"""Every setting of a search, as one frozen value, and the presets it starts from.

Sources: BossNAS (arXiv 2103.12424), section 4 and appendix A.2, and BYOL (arXiv 2006.07733) for what BossNAS takes
over from it; for the methods it is compared with, DNA (arXiv 1911.13053), section 4.1, and UnNAS (arXiv 2003.12056),
section 4.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bossnet_zoo.errors import UsageError, unknown
from bossnet_zoo.spaces import Space, get_space
from bossnet_zoo.spaces.hytra import STRIDES

REFERENCE_BATCH = {"bossnas": 4096, "unnas": 32}  # images a step at which `base_lr` is stated; Adam's is not scaled


@dataclass(frozen=True)
class SearchSettings:
    """What a search does. Stored in the run directory; a resumed run must have the same.

    Attributes:
        method: `bossnas`, `dna` or `unnas`; some of the settings below matter to some methods alone, see `OPTIONS_OF`.
        space, space_options: the search space and the fields of its dataclass.
        data: a source of images, see `bossnet_zoo.datasets.open_images`. Labels are never read.
        search_val: an index file that lists the held-out images (see `bossnet_zoo.splits`); empty to draw them.
        views: the augmentation pipelines, one of `views.VIEWS`.
        seed: decides everything that is random.
        resolution: pixels of a view.
        epochs, warmup_epochs: training of each block (UnNAS: of the whole supernet).
        num_paths: P, paths sampled in a step.
        global_batch: images of a step, over all processes and micro-batches.
        micro_batch: images that a process takes at once; BN statistics are taken over these.
        base_lr: learning rate, at `REFERENCE_BATCH` images a step and scaled linearly where the method has one.
        weight_decay, momentum: of the optimiser: LARS, Adam (without momentum) or SGD.
        target_momentum: of the moving average, at the start or throughout.
        momentum_schedule: `cosine` raises it to 1 in the course of a block's training; `constant` leaves it.
        hidden, projection: widths of projector and predictor; DNA compares features of width `projection`.
        ensemble: train every path towards the mean target of the step's paths; if not, towards its own.
        path_sampling: `uniform` over the legal paths, or `fair`: each candidate of a layer once per group of paths.
        own_views: each path sees its own pair of views.
        coverage: `greedy` trains a block for the scale at which the best earlier path ends; `full` for every scale.
        calibration_images: images behind the BN statistics of ratings and frozen blocks.
        rating_images: held-out images that paths are rated on; None for all.
        rating_part: `search-val` (held out) or `search-train`.
        rating_every: rate also every so many epochs, for the convergence plot; 0 for never.
        teacher: DNA's: a timm name, or the folder of a training run.
        teacher_pretrained: whether the teacher has its published weights, or is random.
        rated_per_path: UnNAS's: architectures through each path whose accuracy is measured.
        augment: `workers` or `device`.
        workers: processes that load images.
        threads: of the computation on a CPU, in each process; None for PyTorch's own choice.
        compile: run the candidate operations compiled while they are trained.
        max_madds, max_params: bounds on the architectures that the search lists in the end.
    """

    method: Literal["bossnas", "dna", "unnas"] = "bossnas"
    space: str = "hytra"
    space_options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    search_val: str = ""
    views: Literal["byol", "digits", "cifar", "crops"] = "byol"
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
    momentum_schedule: Literal["cosine", "constant"] = "cosine"
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
    teacher: str = ""
    teacher_pretrained: bool = True
    rated_per_path: int = 4
    augment: Literal["workers", "device"] = "workers"
    workers: int = 4
    threads: int | None = None
    compile: bool = False
    max_madds: int | None = None
    max_params: int | None = None

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.base_lr < math.inf:
            raise UsageError(f"base_lr is {self.base_lr}; it must be positive and finite")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}; it must be at least 0 and less than 1")
        if not 0 <= self.target_momentum <= 1:
            raise UsageError(f"target_momentum is {self.target_momentum}; it must be between 0 and 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.space == "hytra" and self.resolution < STRIDES[-1]:
            raise UsageError(
                f"resolution is {self.resolution}; hytra's last stride is {STRIDES[-1]}, so it must be at least that"
            )
        if self.method == "bossnas" and self.views == "crops":
            raise UsageError(
                "views 'crops' give one view of an image, and bossnas needs two; allowed: byol, digits, cifar"
            )
        if self.method == "dna" and not self.teacher:
            raise UsageError("dna needs a teacher: type --teacher resnet50, or the folder that bossnet train wrote")

    @property
    def learning_rate(self) -> float:
        reference = REFERENCE_BATCH.get(self.method)
        return self.base_lr * self.global_batch / reference if reference else self.base_lr

    def make_space(self) -> Space:
        return get_space(self.space, **self.space_options)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches that each process takes in a step.

        Raises:
            UsageError: the global batch is no multiple of what all processes take at once.
        """
        at_once = self.micro_batch * world_size
        if self.global_batch % at_once:
            fitting = f"--global-batch {self.global_batch // at_once * at_once}"
            if self.global_batch < at_once:
                fitting = f"--micro-batch {max(self.global_batch // world_size, 2)} too"
            raise UsageError(
                f"a global batch of {self.global_batch} images is no multiple of {world_size} "
                f"process{'es' * (world_size > 1)} x {self.micro_batch} images; type {fitting}"
            )
        return self.global_batch // at_once

    def check_batch(self, num_images: int) -> None:
        """Raise `UsageError` where there are fewer images to train on than a step takes."""
        if num_images < self.global_batch:
            raise UsageError(
                f"{self.data} has {num_images} images to search on, less than one global batch of "
                f"{self.global_batch}; type a smaller --global-batch and --micro-batch, or --preset demo"
            )

    def check_rated(self, num_images: int) -> None:
        """Raise `UsageError` where there is but one image to rate paths on: no other one to tell it from."""
        if num_images < 2:
            raise UsageError(f"{self.data} has {num_images} image to rate paths on, which takes 2; add more images")

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


def drawn_in_a_step(method: str, num_paths: int) -> str:
    """What a step trains, as plans and reports say it."""
    if method == "unnas":
        return "1 architecture in 4 rotations"
    return f"{num_paths} path{'s' if num_paths > 1 else ''}"


_AT_LEAST = {
    **dict.fromkeys(("epochs", "num_paths", "global_batch", "hidden", "projection"), 1),
    "resolution": 8,  # views are padded, turned and cropped; HyTra needs more still
    **dict.fromkeys(("micro_batch", "calibration_images"), 2),  # a single image has no batch statistics
    "rating_images": 2,  # and no other image to tell it from
    **dict.fromkeys(("rated_per_path", "threads", "max_madds", "max_params"), 1),
    **dict.fromkeys(("warmup_epochs", "weight_decay", "rating_every", "workers"), 0),
}
CHOICES: dict[str, tuple[str, ...]] = {  # of the settings that are one of a few names
    name: typing.get_args(kind)
    for name, kind in typing.get_type_hints(SearchSettings).items()
    if typing.get_origin(kind) is Literal
}
METHODS = CHOICES["method"]

# Settings that some methods do not have.
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "num_paths": ("bossnas", "dna"),
    "momentum": ("bossnas", "unnas"),
    "target_momentum": ("bossnas",),
    "momentum_schedule": ("bossnas",),
    "hidden": ("bossnas",),
    "projection": ("bossnas", "dna"),
    "ensemble": ("bossnas",),
    "path_sampling": ("bossnas", "dna"),
    "own_views": ("bossnas",),
    "coverage": ("bossnas", "dna"),
    "teacher": ("dna",),
    "teacher_pretrained": ("dna",),
    "rated_per_path": ("unnas",),
}


def check_options(method: str, names: Iterable[str]) -> None:
    """Raise `UsageError` for a setting that the method does not have."""
    for name in names:
        methods = OPTIONS_OF.get(name, METHODS)
        if method not in methods:
            raise UsageError(
                f"--{name.replace('_', '-')} is an option of {' and '.join(methods)}, not of {method}; leave it out"
            )


# --- presets: the paper's settings, and a miniature of them for a minute or two on two CPU cores

# ImageNet: 8 GPUs x 64 images x 8 micro-batches; HyTra's operations with ReLU and without squeeze-excite.
PAPER = SearchSettings(space_options={"se": False, "act_layer": "relu"})
# The demo trains a block for 132 steps, not 6,000. In so few, at the paper's rate scaled down to 32 images (0.04) and
# with a target that remembers 100 steps, a supernet learns nothing: another image's target is as near as its own
# (`BlockRatings.elsewhere`). So the rate is 4.8 as it stands, and the target remembers 10 steps.
DEMO = replace(
    PAPER,
    space_options={"base_width": 8, "se": False, "act_layer": "relu", "num_classes": 10, "default_resolution": 64},
    data="digits",
    views="digits",
    resolution=64,
    epochs=4,
    global_batch=32,
    micro_batch=32,
    base_lr=4.8 * 4096 / 32,
    target_momentum=0.9,
    hidden=256,
    projection=64,
    calibration_images=128,
    augment="device",
    workers=1,
    threads=1,
)

# What other spaces change; CIFAR: 4 GPUs x 256 images x 4 micro-batches.
_SPACES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "mbconv": {"space_options": {"se": False}},
        "nats": {
            "space_options": {"dataset": "cifar10"},
            "data": "cifar10",
            "views": "cifar",
            "resolution": 32,
            "epochs": 30,
            "micro_batch": 256,
        },
    },
    "demo": {
        "mbconv": {
            "space_options": {
                "block_layers": [2, 2, 2, 2, 2],
                "se": False,
                "width": 0.25,
                "num_classes": 10,
                "default_resolution": 32,
            },
            "resolution": 32,
        },
        "nats": {"space_options": {"widths": [8, 16, 24, 32], "default_resolution": 16}, "resolution": 16},
    },
}
# What other methods change. DNA: 8 GPUs x 64 images; rates of Adam and SGD and their decay as the authors have them.
_DNA = {"num_paths": 1, "base_lr": 0.005, "weight_decay": 1e-4, "warmup_epochs": 0}
_UNNAS = {"num_paths": 1, "base_lr": 0.05, "weight_decay": 3e-5, "warmup_epochs": 0}
_METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "dna": {**_DNA, "teacher": "resnet50", "views": "crops", "global_batch": 512},
        "unnas": {**_UNNAS, "views": "crops", "epochs": 2, "global_batch": 256, "micro_batch": 32},
    },
    "demo": {
        "dna": _DNA,
        "unnas": {**_UNNAS, "rating_images": 64, "rated_per_path": 1},
    },
}
_BASES = {"paper": PAPER, "demo": DEMO}


def get_preset(name: str, space: str = "hytra", method: str = "bossnas", **asked: Any) -> SearchSettings:
    """The settings of a preset, `paper` or `demo`, for a space and a method.

    For other images than digits the demo takes the paper's views.

    Args:
        asked: settings that differ from the preset's; `space_options` are added to its own.

    Raises:
        UsageError: an unknown preset, space or method, or settings that are impossible.
    """
    if name not in _BASES:
        raise unknown("preset", name, _BASES)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    base = _BASES[name]
    changes = {} if space == base.space else {"space": space, "space_options": {}, **_SPACES[name].get(space, {})}
    changes |= {"method": method, **_METHODS[name].get(method, {})}
    options = dict(changes.get("space_options", base.space_options))
    if space == "nats" and str(asked.get("data", "")).startswith("cifar100"):
        options["dataset"] = "cifar100"
    options |= asked.pop("space_options", {})
    if name == "demo" and asked.get("data", base.data) != base.data:  # its views are made for digits
        asked = {"views": get_preset("paper", space, method).views, **asked}
    settings = replace(base, **{**changes, "space_options": options, **asked})
    settings.make_space()
    return settings
