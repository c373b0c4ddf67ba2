"""What timm makes of a recipe: augmentation, mixing, optimiser, schedule and moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from .recipes import Recipe


def train_transform(recipe: Recipe, preprocessing: Mapping[str, Any]) -> Any:
    """The augmentation, then normalisation: PIL image -> (C, H, W)."""
    return create_transform(
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
