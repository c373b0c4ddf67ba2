"""What timm makes of a recipe is what the recipe says."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import nn

from bossnet_zoo import recipe_parts
from bossnet_zoo.recipes import BOSSNET_M, BOSSNET_T, FINETUNE
from bossnet_zoo.runs import build_model


def rates(recipe, steps_per_epoch: int, steps: list[int]) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.peak_lr)
    schedule = recipe_parts.schedule(recipe, optimizer, steps_per_epoch)
    found = []
    for step in steps:
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_cosine_schedule_is_plain_arithmetic():

    found = rates(BOSSNET_T, 10, [0, 25, 50, 1500, 2999])
    cosine = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 3000)) / 2 for step in (50, 1500, 2999)]
    assert found == pytest.approx([1e-6, 1e-6 + 25 / 50 * (1e-3 - 1e-6), *cosine])


def test_the_step_schedule_falls_by_three_percent_every_2_4_epochs():
    found = rates(BOSSNET_M, 10, [50, 71, 72, 95, 96])
    assert found == pytest.approx([0.256 * 0.97**power for power in (2, 2, 3, 3, 4)])


@pytest.mark.parametrize("recipe", [BOSSNET_T, BOSSNET_M, FINETUNE], ids=lambda recipe: recipe.name)
def test_biases_and_normalisation_have_no_weight_decay(recipe):
    network = build_model("test_bossnet_t", num_classes=2)
    groups = recipe_parts.optimizer(recipe, network).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert set(decay) == {id(parameter) for parameter in network.parameters()}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else recipe.weight_decay), name


def test_finetuning_learns_slower_near_the_image():
    network = build_model("test_bossnet_t", num_classes=2)
    optimizer = recipe_parts.optimizer(FINETUNE, network)
    recipe_parts.schedule(FINETUNE, optimizer, 10).step_update(20)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    stem, middle, head = (
        rate[id(p)] for p in (network.conv1.weight, network.layer3[0].conv1.weight, network.fc.weight)
    )
    assert stem < middle < head
    assert middle / stem > FINETUNE.layer_decay**-2


@pytest.mark.parametrize("recipe", [BOSSNET_T, BOSSNET_M, FINETUNE], ids=lambda recipe: recipe.name)
def test_augmentation_works_at_every_magnitude(recipe):
    preprocessing = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = recipe_parts.train_transform(recipe, preprocessing)
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    posterizing = [op for step in transform.transforms for op in recipe_parts._operations(step) if "Poster" in op.name]
    assert posterizing
    for operation in posterizing:
        operation.prob, operation.magnitude_std = 1.0, 0
        for operation.magnitude in (0, 5, 10):
            assert operation(image).size == (16, 16)
