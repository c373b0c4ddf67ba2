"""Training recipes: everything that decides a result except network, images and seed.

A recipe is a frozen value; a variant is `dataclasses.replace(BOSSNET_T, epochs=100)`. Learning rates are stated at
`lr_batch` images and scale linearly with `global_batch`. How a recipe is carried out is in `train.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from .checkpoint import check_fields
from .errors import UsageError, unknown


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        name: of the recipe this one is or was made from.
        epochs, global_batch: passes over the images; images per optimiser step, over all processes and accumulation.
        image_size: pixels of a side, in training and testing.
        optimizer, optimizer_options: timm's name of the optimiser; options besides rate and weight decay.
        lr, lr_batch: peak learning rate with `lr_batch` images per step.
        schedule: `cosine` to `min_lr`, or `step`: times `decay_rate` every `decay_epochs`.
        warmup_epochs, warmup_lr: linear rise at the beginning, and its first value.
        layer_decay: factor of the learning rate from each group of layers to the one before; 1 for the same everywhere.
        weight_decay: of all parameters but biases and those of normalisation.
        clip_grad: largest norm of the gradient; 0 for any.
        ema_decay, ema_warmup: moving average of the weights; whether it is short-sighted in the first steps.
        auto_augment: timm's string; '' for none.
        crop_scale: smallest part of an image's area that a training crop may show.
        flip: probability of a horizontal flip.
        random_erasing: probability of erasing a rectangle.
        repeats: augmented copies of an image among an epoch's samples (repeated augmentation); 1 for none.
        mixup, cutmix: alpha of the Beta distribution of the mixing ratio; 0 for none.
        label_smoothing: probability mass spread over all classes.
        drop_rate, drop_path: dropout in front of the classifier, and stochastic depth (drop-connect) of the last layer.
        crop_pct: part of a test image's side that the centre crop shows; 0 for the network's own.
    """

    name: str
    epochs: int
    global_batch: int
    image_size: int
    optimizer: str
    lr: float
    lr_batch: int
    weight_decay: float
    ema_decay: float
    optimizer_options: tuple[tuple[str, float], ...] = ()
    schedule: str = "cosine"
    min_lr: float = 0.0
    decay_rate: float = 1.0
    decay_epochs: float = 1.0
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    layer_decay: float = 1.0
    clip_grad: float = 0.0
    ema_warmup: bool = False
    auto_augment: str = ""
    crop_scale: float = 0.08
    flip: float = 0.5
    random_erasing: float = 0.0
    repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_rate: float = 0.0
    drop_path: float = 0.0
    crop_pct: float = 0.0

    def __post_init__(self) -> None:
        for field in ("epochs", "global_batch", "image_size", "repeats"):
            if getattr(self, field) < 1:
                raise UsageError(f"recipe {self.name}: {field} is {getattr(self, field)}; it must be at least 1")
        if self.schedule not in ("cosine", "step"):
            raise unknown("schedule", self.schedule, ("cosine", "step"))

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, at this recipe's batch."""
        return self.lr * self.global_batch / self.lr_batch

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels become distributions."""
        return self.mixup > 0 or self.cutmix > 0

    def smoke(self) -> Recipe:
        """The same in small, for 64-pixel digits on a CPU: a minute shows whether everything works, and learns."""
        return replace(self, **_SMOKE[self.name])

    def with_epochs(self, epochs: int) -> Recipe:
        """The same in another number of epochs; warm-up takes a quarter of them at most."""
        return replace(self, epochs=epochs, warmup_epochs=min(self.warmup_epochs, epochs // 4))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run's config.json."""
        return dataclasses.asdict(self) | {"optimizer_options": dict(self.optimizer_options)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_json`. Raises `UsageError` where a value is missing, or is none that it can be."""
        values = dict(values) | {"optimizer_options": tuple(values["optimizer_options"].items())}
        check_fields(cls, values, "a recipe")
        return cls(**values)


# BossNet-T, after DeiT (Touvron et al., arXiv 2012.12877, table 9), as in BossNAS, appendix B.
#   torchrun --nproc-per-node 8 -m bossnet_zoo train bossnet_t0 --data IMAGENET --recipe bossnet-t --out runs/t0
# Expected: 80.8 % top-1 at 224 pixels (the authors' released weights; not rerun by us).
# GPU hours: 3 x 3.44 G multiply-adds an image make 4.0e18 in all, 90 hours of a GPU that does 12.5e12 a second.
BOSSNET_T = Recipe(
    name="bossnet-t",
    epochs=300,
    global_batch=1024,
    image_size=224,
    optimizer="adamw",
    lr=1e-3,
    lr_batch=1024,
    min_lr=1e-5,
    warmup_epochs=5,
    warmup_lr=1e-6,
    weight_decay=0.05,
    ema_decay=0.99996,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    repeats=3,
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
    drop_path=0.1,
)

# BossNet-M, after EfficientNet (Tan and Le, arXiv 1905.11946, section 5.2), as in BossNAS, appendix B.
#   torchrun --nproc-per-node 8 -m bossnet_zoo train bossnet_m2 --data IMAGENET --recipe bossnet-m --out runs/m2
# Expected: 77.4 % top-1 at 224 pixels (the paper; 76.2 % for bossnet_m1; not rerun by us).
# GPU hours: 3 x 0.40 G multiply-adds an image make 5.4e17 in all, 50 hours of a GPU that does 3e12 a second, as
# depth-wise convolutions wait for memory more than for arithmetic.
BOSSNET_M = Recipe(
    name="bossnet-m",
    epochs=350,
    global_batch=4096,
    image_size=224,
    optimizer="rmsproptf",
    optimizer_options=(("momentum", 0.9), ("alpha", 0.9), ("eps", 1e-3)),
    lr=0.256,
    lr_batch=4096,
    schedule="step",
    decay_rate=0.97,
    decay_epochs=2.4,
    warmup_epochs=5,
    warmup_lr=1e-6,
    weight_decay=1e-5,
    ema_decay=0.9999,
    auto_augment="v0",
    label_smoothing=0.1,
    drop_rate=0.2,
    drop_path=0.2,
)

# Fine-tuning from pretrained weights: layers near the image keep what they know (layer-wise decay, as in BEiT,
# Bao et al., arXiv 2106.08254, appendix), few epochs, mild augmentation.
#   bossnet train bossnet_t0 --pretrained --data FOLDER --recipe finetune --out runs/mine
# Expected: depends on the images.
# GPU hours: 100,000 images for 20 epochs make 2.1e16 multiply-adds, half an hour of a GPU that does 12.5e12 a second.
FINETUNE = Recipe(
    name="finetune",
    epochs=20,
    global_batch=128,
    image_size=224,
    optimizer="adamw",
    lr=1e-3,
    lr_batch=256,
    min_lr=1e-6,
    warmup_epochs=2,
    warmup_lr=1e-6,
    weight_decay=0.05,
    layer_decay=0.8,
    clip_grad=1.0,
    ema_decay=0.9998,
    ema_warmup=True,
    auto_augment="rand-m5-mstd0.5-inc1",
    crop_scale=0.35,
    label_smoothing=0.1,
    drop_path=0.1,
)

# What `smoke()` changes. Digits are 8 x 8 originals whose meaning a flip or a tight crop destroys, and a short run has
# no time for strong mixing; the rest is size.
_SMOKE: dict[str, dict[str, Any]] = {
    "bossnet-t": {
        "epochs": 8,
        "global_batch": 32,
        "image_size": 64,
        "lr_batch": 32,
        "lr": 4e-3,
        "warmup_epochs": 2,
        "ema_decay": 0.98,
        "ema_warmup": True,
        "auto_augment": "rand-m3-n1-mstd0.5-inc1",
        "crop_scale": 0.7,
        "flip": 0.0,
        "random_erasing": 0.1,
        "repeats": 1,
        "mixup": 0.1,
        "cutmix": 0.1,
        "drop_path": 0.0,
        "crop_pct": 1.0,
    },
    "bossnet-m": {
        "epochs": 8,
        "global_batch": 32,
        "image_size": 64,
        "lr_batch": 32,
        "lr": 0.016,
        "decay_rate": 0.8,
        "decay_epochs": 1.0,
        "warmup_epochs": 2,
        "ema_decay": 0.98,
        "ema_warmup": True,
        "auto_augment": "",
        "crop_scale": 0.7,
        "flip": 0.0,
        "drop_rate": 0.0,
        "drop_path": 0.0,
        "crop_pct": 1.0,
    },
    "finetune": {
        "epochs": 6,
        "global_batch": 16,
        "lr_batch": 16,
        "image_size": 64,
        "warmup_epochs": 1,
        "ema_decay": 0.98,
        "crop_scale": 0.7,
        "flip": 0.0,
        "drop_path": 0.0,
        "crop_pct": 1.0,
    },
}

RECIPES = {recipe.name: recipe for recipe in (BOSSNET_T, BOSSNET_M, FINETUNE)}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `UsageError`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
