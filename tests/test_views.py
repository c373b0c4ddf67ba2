"""Pairs of views: a pure function of seed, epoch and image, within the recipe's bounds, whoever draws them."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace

import pytest
import torch
from searching import SIDE, image_set
from torch.utils.data import get_worker_info
from torchvision.transforms import v2

from bossnet_zoo.errors import BossNetError
from bossnet_zoo.search.views import (
    BYOL_VIEWS,
    CIFAR_VIEWS,
    DIGIT_VIEWS,
    VIEWS,
    Blur,
    PlainDataset,
    ViewDataset,
    ViewLoader,
    ViewRecipe,
    augment_batch,
    image_transform,
)

IMAGES = image_set(count=12)
NOTHING = ViewRecipe(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip=0.0,
    jitter=0.0,
    grey=0.0,
    blur=0.0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
ALTERATIONS = {
    "crop": {"crop_scale": (0.2, 0.3)},
    "flip": {"flip": 1.0},
    "jitter": {"jitter": 1.0},
    "grey": {"grey": 1.0},
    "blur": {"blur": 1.0},
    "solarize": {"solarize": 1.0},
    "shift": {"shift": 1 / 8},
}


def loader(on_device: bool, *, workers: int = 0, pairs: int = 2, seed: int = 0) -> ViewLoader:
    return ViewLoader(IMAGES, BYOL_VIEWS, SIDE, pairs, seed, on_device, workers, torch.device("cpu"))


def draw(views: ViewLoader, epoch: int = 0, names=(0, 1, 2)) -> list[torch.Tensor]:
    return list(views.epoch(epoch, [list(range(4 * name, 4 * name + 4)) for name in names], list(names)))


def bytes_of(count: int = 4) -> torch.Tensor:
    return torch.stack([PlainDataset(IMAGES, SIDE)[0, index] for index in range(count)])


def augment(recipe: ViewRecipe, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment_batch(images, recipe, SIDE, torch.Generator().manual_seed(seed))


# --- a pure function of seed, epoch and image

both_ways = pytest.mark.parametrize("on_device", [False, True], ids=["workers", "device"])


@both_ways
def test_views_have_their_shape_and_all_differ(on_device):
    first, *_ = draw(loader(on_device))
    assert first.shape == (4, 4, 3, SIDE, SIDE)  # 2 pipelines x 2 pairs, 4 images
    assert first.dtype == torch.float32
    for index, view in enumerate(first):
        assert not any(torch.equal(view, other) for other in first[:index])


@both_ways
def test_views_depend_on_seed_and_epoch_alone(on_device):
    views = draw(loader(on_device))
    torch.manual_seed(5)
    random.seed(5)
    for again, other in zip(draw(loader(on_device)), views, strict=True):
        assert torch.equal(again, other)
    assert not torch.equal(draw(loader(on_device), epoch=1)[0], views[0])
    assert not torch.equal(draw(loader(on_device, seed=1))[0], views[0])


@both_ways
def test_views_do_not_depend_on_who_draws_them(on_device):
    """Two processes that share the micro-batches, or one that was interrupted, draw what one process draws."""
    views = draw(loader(on_device))
    even, odd = draw(loader(on_device), names=(0, 2)), draw(loader(on_device), names=(1,))
    for share, whole in zip([even[0], odd[0], even[1]], views, strict=True):
        assert torch.equal(share, whole)


@both_ways
def test_fixed_images_have_an_epoch_of_their_own(on_device):
    assert not torch.equal(draw(loader(on_device), epoch=-1)[0], draw(loader(on_device))[0])


@both_ways
def test_worker_processes_draw_the_same_views(on_device):
    assert get_worker_info() is None
    for there, here in zip(draw(loader(on_device, workers=1)), draw(loader(on_device)), strict=True):
        assert torch.equal(there, here)


def _with_process(views: torch.Tensor) -> tuple[torch.Tensor, int]:
    return views, os.getpid()


@both_ways
@pytest.mark.parametrize("workers", [0, 1])
def test_on_a_cpu_workers_also_do_what_is_done_with_the_views(on_device, workers):
    expected = draw(loader(on_device), names=(0, 1))
    made = list(loader(on_device, workers=workers).epoch(0, [[0, 1, 2, 3], [4, 5, 6, 7]], (0, 1), _with_process))
    assert all(torch.equal(views, plain) for (views, _), plain in zip(made, expected, strict=True))
    assert [process == os.getpid() for _, process in made] == [workers == 0] * 2


def _kill(views: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_is_one_sentence():
    with pytest.raises(BossNetError, match=r"loads images was killed.*type the command again"):
        list(loader(True, workers=1).epoch(0, [[0, 1]], (0,), _kill))


def _fail(views: torch.Tensor) -> None:
    raise RuntimeError("the shapes do not fit")


def test_an_error_within_a_worker_stays_what_it_is():
    with pytest.raises(RuntimeError, match="the shapes do not fit") as caught:
        list(loader(True, workers=1).epoch(0, [[0, 1]], (0,), _fail))
    assert not isinstance(caught.value, BossNetError)


def test_drawing_views_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    ViewDataset(IMAGES, BYOL_VIEWS, SIDE, 1, 0)[0, 0]
    assert (torch.rand(1), random.random()) == expected


# --- what a recipe does


def test_a_recipe_of_nothing_changes_nothing():
    images = bytes_of()
    torch.testing.assert_close(augment(NOTHING, images), images / 255, rtol=0, atol=1e-5)
    for index in range(4):
        view = image_transform(NOTHING, SIDE)(IMAGES.image(index))
        torch.testing.assert_close(view, images[index] / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_alteration_changes_the_image_in_both_ways(name):
    recipe, large = replace(NOTHING, **ALTERATIONS[name]), 128  # the blur is in proportion, and nothing at 32 pixels
    source = image_set(count=4, side=large)
    images = torch.stack([PlainDataset(source, large)[0, index] for index in range(4)])
    views = augment_batch(images, recipe, large, torch.Generator().manual_seed(0))
    assert (views - images / 255).abs().max() > 0.05
    torch.manual_seed(0)
    views = torch.stack([image_transform(recipe, large)(source.image(index)) for index in range(4)])
    assert (views - images / 255).abs().max() > 0.05


def test_flip_grey_and_solarize_are_arithmetic():
    images = bytes_of()
    plain = images / 255
    flipped = augment(replace(NOTHING, flip=1.0), images)
    torch.testing.assert_close(flipped, plain.flip(-1), rtol=0, atol=1e-5)
    luma = 0.299 * plain[:, 0] + 0.587 * plain[:, 1] + 0.114 * plain[:, 2]
    grey = augment(replace(NOTHING, grey=1.0), images)
    torch.testing.assert_close(grey, luma[:, None].expand(-1, 3, -1, -1), rtol=0, atol=1e-5)
    inverted = augment(replace(NOTHING, solarize=1.0), images)
    clear = (plain - 128 / 255).abs() > 1e-4
    expected = torch.where(plain >= 128 / 255, 1 - plain, plain)
    torch.testing.assert_close(inverted[clear], expected[clear], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [32, 224])
def test_the_blur_of_workers_is_that_of_torchvision(side):
    image = v2.functional.to_image(image_set(count=1, side=side).image(0))
    size, sigma = max(3, side // 10 // 2 * 2 + 1), 1.3
    blurred = Blur(size, (sigma, sigma))(image)
    expected = v2.functional.gaussian_blur(image, [size, size], [sigma, sigma])
    apart = (blurred.int() - expected.int()).abs()
    assert blurred.dtype == torch.uint8
    assert apart.max() <= 1  # of 256 levels, where rounding goes the other way
    assert apart.float().mean() < 1e-3
    assert (expected.int() - image.int()).abs().float().mean() > 1  # it is blurred at all


def test_normalisation_is_by_mean_and_deviation():
    recipe = replace(NOTHING, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = bytes_of() / 255
    expected = torch.stack(
        [(expected[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)])], 1
    )
    torch.testing.assert_close(augment(recipe, bytes_of()), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(image_transform(recipe, SIDE)(IMAGES.image(0)), expected[0], rtol=0, atol=1e-4)


def test_a_shift_moves_the_image_and_lets_black_in():
    images = torch.full((64, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    shifted = augment(replace(NOTHING, shift=1 / 8), images)
    columns = (shifted[:, 0] > 0.5).any(dim=1).sum(dim=1)
    assert columns.min() >= SIDE - SIDE // 8 - 1
    assert columns.min() < SIDE
    assert shifted.min() == 0


def test_each_image_of_a_batch_is_altered_on_its_own():
    same = bytes_of(1).expand(8, -1, -1, -1)
    views = augment(BYOL_VIEWS[0], same)
    assert all(not torch.allclose(views[0], view) for view in views[1:])


@pytest.mark.parametrize(("field", "low", "high"), [("flip", 0.4, 0.6), ("solarize", 0.1, 0.3)])
def test_alterations_are_as_frequent_as_the_recipe_says(field, low, high):
    images = bytes_of(1).expand(400, -1, -1, -1)
    views = augment(replace(NOTHING, **{field: (low + high) / 2}), images)
    altered = ((views - images / 255).abs().amax(dim=(1, 2, 3)) > 0.01).float().mean()
    assert low < altered < high


# --- the recipes


def test_byol_views_are_those_of_the_paper():
    first, second = BYOL_VIEWS
    assert (first.crop_scale, first.crop_ratio, first.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
    assert (first.grey, first.blur, first.solarize) == (0.2, 1.0, 0.0)
    assert second == replace(first, blur=0.1, solarize=0.2)


def test_digits_are_never_mirrored_and_cifar_is_shifted_by_four_pixels():
    assert all(recipe.flip == 0 for recipe in DIGIT_VIEWS)
    assert all((recipe.shift * 32, recipe.flip, recipe.jitter, recipe.blur) == (4, 0.5, 0, 0) for recipe in CIFAR_VIEWS)


@pytest.mark.parametrize("name", VIEWS)
def test_every_pair_of_pipelines_gives_finite_views_both_ways(name):
    for on_device in (False, True):
        views = ViewLoader(IMAGES, VIEWS[name], SIDE, 1, 0, on_device, 0, torch.device("cpu"))
        (batch,) = views.epoch(0, [[0, 1, 2]], [0])
        assert batch.shape == (len(VIEWS[name]), 3, 3, SIDE, SIDE)
        assert batch.isfinite().all()
        assert batch.std() > 0.1
