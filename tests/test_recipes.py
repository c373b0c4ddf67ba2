"""Recipes are the values of the paper, frozen, and each has a size that runs in a minute."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bossnet_zoo import recipes
from bossnet_zoo.errors import UsageError
from bossnet_zoo.recipes import BOSSNET_M, BOSSNET_T, FINETUNE, RECIPES, get_recipe


def test_bossnet_t_follows_deit():
    expected = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "lr_batch": 1024,
        "global_batch": 1024,
        "schedule": "cosine",
        "min_lr": 1e-5,
        "warmup_epochs": 5,
        "warmup_lr": 1e-6,
        "epochs": 300,
        "weight_decay": 0.05,
        "ema_decay": 0.99996,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "random_erasing": 0.25,
        "drop_path": 0.1,
        "repeats": 3,
        "image_size": 224,
    }
    assert {name: getattr(BOSSNET_T, name) for name in expected} == expected


def test_bossnet_m_follows_efficientnet():
    expected = {
        "optimizer": "rmsproptf",
        "lr": 0.256,
        "lr_batch": 4096,
        "schedule": "step",
        "decay_rate": 0.97,
        "decay_epochs": 2.4,
        "weight_decay": 1e-5,
        "drop_rate": 0.2,
        "drop_path": 0.2,
        "label_smoothing": 0.1,
        "ema_decay": 0.9999,
        "epochs": 350,
        "auto_augment": "v0",
        "mixup": 0.0,
        "image_size": 224,
    }
    assert {name: getattr(BOSSNET_M, name) for name in expected} == expected
    assert dict(BOSSNET_M.optimizer_options)["momentum"] == 0.9


def test_finetuning_is_short_and_spares_the_layers_near_the_image():
    assert FINETUNE.layer_decay < 1
    assert FINETUNE.epochs <= 30


def test_the_learning_rate_scales_linearly_with_the_batch():
    assert BOSSNET_T.peak_lr == pytest.approx(1e-3)
    assert dataclasses.replace(BOSSNET_T, global_batch=256).peak_lr == pytest.approx(2.5e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_smoke_size_that_keeps_its_character(name):
    recipe = get_recipe(name)
    smoke = recipe.smoke()
    assert smoke.epochs <= 20
    assert smoke.image_size <= 64
    for field in (
        "name",
        "optimizer",
        "optimizer_options",
        "schedule",
        "weight_decay",
        "layer_decay",
        "label_smoothing",
    ):
        assert getattr(smoke, field) == getattr(recipe, field)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_frozen_and_plain_json(name):
    recipe = get_recipe(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1
    assert hash(recipe) == hash(dataclasses.replace(recipe))
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_opens_with_source_command_and_expectation(name):
    text = Path(recipes.__file__).read_text(encoding="utf-8")
    constant = name.upper().replace("-", "_") + " = Recipe("
    opening = text[: text.index(constant)].rpartition("\n\n")[2]
    assert "arXiv" in opening
    assert f"--recipe {name}" in opening
    assert "Expected" in opening
    assert "GPU" in opening


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown recipe 'bosnet-t'; did you mean bossnet-t"):
        get_recipe("bosnet-t")


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("global_batch", -1), ("schedule", "linear")])
def test_impossible_values_cannot_be_made(field, value):
    with pytest.raises(UsageError):
        dataclasses.replace(BOSSNET_T, **{field: value})


def test_another_number_of_epochs_leaves_time_after_warm_up():
    assert (BOSSNET_T.with_epochs(100).epochs, BOSSNET_T.with_epochs(100).warmup_epochs) == (100, 5)
    assert BOSSNET_T.with_epochs(8).warmup_epochs == 2
    assert BOSSNET_T.with_epochs(3).warmup_epochs == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json(name):
    recipe = get_recipe(name).smoke()
    assert recipes.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
