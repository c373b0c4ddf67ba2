"""What timm makes of a recipe: augmentation, mixing, optimiser, schedule and moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps
from timm.data import AutoAugment, Mixup, RandAugment, create_transform
from timm.data.auto_augment import AugmentOp
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from .recipes import Recipe


def train_transform(recipe: Recipe, preprocessing: Mapping[str, Any]) -> Any:
    """The augmentation, then normalisation: PIL image -> (C, H, W)."""
    transform = create_transform(
        input_size=preprocessing["input_size"],
        is_training=True,
        scale=(recipe.crop_scale, 1.0),
        hflip=recipe.flip,
        color_jitter=0.0,
        auto_augment=recipe.auto_augment or None,
        interpolation=preprocessing["interpolation"],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
    for step in transform.transforms:
        for operation in _operations(step):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return transform


def _operations(step: Any) -> list[AugmentOp]:
    if isinstance(step, RandAugment):
        return list(step.ops)
    return [operation for policy in step.policy for operation in policy] if isinstance(step, AutoAugment) else []


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest `bits` bits of every channel.

    timm asks for 0 bits at the greatest magnitude: a black image, until Pillow 13 made it an error.
    """
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)


def mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """Mixup and CutMix of a batch, which smooth its labels too; None where the recipe mixes nothing."""
    if not recipe.mixes:
        return None
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)


def optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The optimiser, without weight decay on biases and normalisation."""
    options: dict[str, Any] = dict(recipe.optimizer_options)
    layer_decay = recipe.layer_decay if recipe.layer_decay < 1 else None
    return create_optimizer_v2(
        model,
        recipe.optimizer,
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        layer_decay=layer_decay,
        **options,
    )


def schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int) -> Any:
    """timm's schedule of the learning rate, whose `step_update(n)` sets the rate of step `n`."""
    return create_scheduler_v2(
        optimizer,
        recipe.schedule,
        num_epochs=recipe.epochs,
        min_lr=recipe.min_lr,
        decay_rate=recipe.decay_rate,
        decay_epochs=recipe.decay_epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.warmup_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )[0]


def moving_average(recipe: Recipe, model: nn.Module) -> ModelEmaV3:
    """The moving average of all weights and BN statistics."""
    return ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
