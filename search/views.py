"""Pairs of augmented views, from workers (torchvision, image by image) or on the device (a whole batch at once).

Views are a pure function of (seed, epoch, image, view), or on the device of (seed, epoch, micro-batch): whoever draws
them, in whatever process, and after however many interruptions, draws the same ones.

Shapes: V views of B images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bossnet_zoo.datasets import ImageSet
from bossnet_zoo.determinism import seed_of, seeded
from bossnet_zoo.loading import end_quietly, plain_errors


@dataclass(frozen=True)
class ViewRecipe:
    """How one of the two views is made. Probabilities are per image.

    Attributes:
        crop_scale: smallest and largest area of the random crop, as a fraction of the image.
        crop_ratio: smallest and largest aspect ratio of the crop.
        shift: if positive, the image is shifted instead of cropped, at most by this fraction of its side, and black
            moves in; 1/8 is the usual crop of CIFAR images padded by 4 pixels.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter, whose strengths are the next four.
        grey, blur, solarize: probabilities; the blur's sigma is 0.1 to 2 pixels at 224, in proportion elsewhere.
        mean, std: normalisation.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: float = 0.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    solarize: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


# BYOL, arXiv 2006.07733, appendix B.
BYOL_VIEWS = (ViewRecipe(), ViewRecipe(blur=0.1, solarize=0.2))
# Written digits: no flips (they change the class), crops that leave a digit readable.
_DIGIT = ViewRecipe(crop_scale=(0.5, 1.0), flip=0.0, saturation=0.0, hue=0.0, grey=0.0, blur=0.3)
DIGIT_VIEWS = (_DIGIT, replace(_DIGIT, blur=0.1, solarize=0.1))
# CIFAR in BossNAS (section 2.3): shift and flip, for both views.
_CIFAR = ViewRecipe(
    shift=1 / 8, jitter=0.0, grey=0.0, blur=0.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
CIFAR_VIEWS = (_CIFAR, _CIFAR)
# What supervised training sees, for methods that need no pairs (DNA, UnNAS).
CROP_VIEWS = (ViewRecipe(jitter=1.0, saturation=0.4, hue=0.0, grey=0.0, blur=0.0),)

VIEWS = {"byol": BYOL_VIEWS, "digits": DIGIT_VIEWS, "cifar": CIFAR_VIEWS, "crops": CROP_VIEWS}


# --- in workers


def image_transform(recipe: ViewRecipe, size: int) -> v2.Transform:
    """PIL image -> normalised (3, size, size), drawing from torch's global generator."""
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    kernel = _blur_kernel_size(size)
    sigma_scale = size / 224
    return v2.Compose(
        [
            *_image_crop(recipe, size),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.ToImage(),
            v2.RandomApply([jitter], recipe.jitter),
            v2.RandomGrayscale(recipe.grey),
            v2.RandomApply([Blur(kernel, (0.1 * sigma_scale, 2.0 * sigma_scale))], recipe.blur),
            v2.RandomSolarize(128, recipe.solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(recipe.mean, recipe.std),
        ]
    )


def _image_crop(recipe: ViewRecipe, size: int) -> list[v2.Transform]:
    bicubic = v2.InterpolationMode.BICUBIC
    if recipe.shift:
        return [
            v2.Resize(size, bicubic),
            v2.CenterCrop(size),
            v2.RandomCrop(size, padding=round(recipe.shift * size)),
        ]
    return [v2.RandomResizedCrop(size, recipe.crop_scale, recipe.crop_ratio, interpolation=bicubic, antialias=True)]


class Blur(v2.GaussianBlur):
    """torchvision's blur of a byte image, in two passes (see `gaussian_blur`)."""

    def transform(self, image: Tensor, params: dict[str, Any]) -> Tensor:
        sigma = torch.tensor(params["sigma"][:1])
        return gaussian_blur(image[None].float(), sigma, self.kernel_size[0])[0].round_().to(image.dtype)


class ViewDataset(Dataset):
    """Maps (epoch, index) to the views of one image, (V, 3, H, W), pipeline by pipeline."""

    def __init__(self, images: ImageSet, recipes: Sequence[ViewRecipe], size: int, pairs: int, seed: int):
        self.images, self.pairs, self.seed = images, pairs, seed
        self.transforms = [image_transform(recipe, size) for recipe in recipes]

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        image = self.images.image(index)
        with seeded(seed_of(self.seed, epoch, index)):
            return torch.stack([transform(image) for transform in self.transforms for _ in range(self.pairs)])


# --- on the device


class PlainDataset(Dataset):
    """Maps (epoch, index) to one image as bytes, (3, side, side): resized and centre-cropped, nothing random."""

    def __init__(self, images: ImageSet, side: int):
        self.images = images
        self.transform = v2.Compose(
            [v2.Resize(side, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(side), v2.PILToTensor()]
        )

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return self.transform(self.images.image(key[1]))


def augment_batch(images: Tensor, recipe: ViewRecipe, size: int, generator: torch.Generator) -> Tensor:
    """(B, 3, side, side) bytes -> (B, 3, size, size) normalised: the same recipe, drawn per image, a batch at a time.

    Differs from `image_transform` in two small ways: crops are resampled bilinearly, and hue is turned in YIQ space.
    """
    x = _crop(images.float() / 255, recipe, size, generator)
    x = _jitter(x, recipe, generator)
    if recipe.grey:
        x = torch.where(_chance(x, recipe.grey, generator), _luma(x), x)
    if recipe.blur:
        x = torch.where(_chance(x, recipe.blur, generator), _blur(x, generator), x)
    if recipe.solarize:
        x = torch.where(_chance(x, recipe.solarize, generator) & (x >= 128 / 255), 1 - x, x)
    mean = torch.tensor(recipe.mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(recipe.std, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) numbers between low and high."""
    return torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) * (high - low) + low


def _chance(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return _uniform(x, 0, 1, generator) < probability


def _crop(x: Tensor, recipe: ViewRecipe, size: int, generator: torch.Generator) -> Tensor:
    if recipe.shift:
        most = round(recipe.shift * size)
        left, top = (
            _uniform(x, -most, most + 1, generator).floor().clamp(max=most).flatten() * (2 / size) for _ in range(2)
        )
        width = height = torch.ones_like(left)
    else:
        area = _uniform(x, *recipe.crop_scale, generator).flatten()
        ratio = _uniform(x, math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1]), generator).exp().flatten()
        width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        left = _uniform(x, -1, 1, generator).flatten() * (1 - width)
        top = _uniform(x, -1, 1, generator).flatten() * (1 - height)
    mirror = torch.where(_uniform(x, 0, 1, generator).flatten() < recipe.flip, -1.0, 1.0)
    zero = torch.zeros_like(width)
    affine = torch.stack([width * mirror, zero, left, zero, height, top], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, [len(x), 3, size, size], align_corners=False)
    padding = "zeros" if recipe.shift else "reflection"
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=False)


def _luma(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def _jitter(x: Tensor, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    apply = _chance(x, recipe.jitter, generator)
    brightness, contrast, saturation = (
        _uniform(x, 1 - strength, 1 + strength, generator)
        for strength in (recipe.brightness, recipe.contrast, recipe.saturation)
    )
    y = (x * brightness).clamp(0, 1)
    mean = _luma(y).mean(dim=(1, 2, 3), keepdim=True)
    y = (mean + (y - mean) * contrast).clamp(0, 1)
    if recipe.saturation:
        grey = _luma(y)
        y = (grey + (y - grey) * saturation).clamp(0, 1)
    if recipe.hue:
        y = _turn_hue(y, _uniform(x, -recipe.hue, recipe.hue, generator)).clamp(0, 1)
    return torch.where(apply, y, x)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the chrominance plane by a fraction of a full turn, per image."""
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], device=x.device
    )
    angle = turns.flatten() * 2 * math.pi
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix, x)


def _blur_kernel_size(size: int) -> int:
    """Odd, a tenth of the image: 23 at 224 pixels, as in BYOL."""
    return max(3, size // 10 // 2 * 2 + 1)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    W = x.shape[-1]
    sigma = _uniform(x, 0.1 * W / 224, 2.0 * W / 224, generator).flatten()
    return gaussian_blur(x, sigma, _blur_kernel_size(W))


def gaussian_blur(x: Tensor, sigma: Tensor, size: int) -> Tensor:
    """(B, C, H, W) blurred, each image by its own sigma (B,), with a kernel of `size` pixels, along columns, then rows.

    One pass with the square kernel gives the same within rounding, and takes seven times as long at 224 pixels.
    """
    B, C, H, W = x.shape
    offsets = torch.arange(size, device=x.device) - size // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(C, dim=0)  # (B * C, size)
    y = F.pad(x.reshape(1, B * C, H, W), [size // 2] * 4, mode="reflect")
    y = F.conv2d(y, kernel[:, None, :, None], groups=B * C)
    y = F.conv2d(y, kernel[:, None, None, :], groups=B * C)
    return y.view(B, C, H, W)


# --- loading


def unchanged(views: Tensor) -> Tensor:
    """The views themselves."""
    return views


@dataclass(frozen=True)
class ViewLoader:
    """Micro-batches of views for one set of images.

    Attributes:
        images: where they come from.
        recipes: the pipelines, one of `VIEWS`; BossNAS needs two.
        size: pixels of a view.
        pairs: P, independent views of each pipeline per image.
        seed: decides the order of the images and every view.
        on_device: augment on the device instead of in workers.
        workers: processes that decode, and augment unless `on_device` on another device than the CPU.
        device: where the views are wanted.
    """

    images: ImageSet
    recipes: tuple[ViewRecipe, ...]
    size: int
    pairs: int
    seed: int
    on_device: bool
    workers: int
    device: torch.device

    def epoch(
        self,
        epoch: int,
        micro_batches: Sequence[Sequence[int]],
        names: Sequence[int],
        then: Callable[[Tensor], Any] = unchanged,
    ) -> Iterator[Any]:
        """For every micro-batch of image indices, its views (V, B, 3, size, size), on the device.

        V = pipelines * pairs: all views of the first pipeline, then those of the second.

        Args:
            epoch: number that the views depend on; a fixed one gives fixed views.
            micro_batches: indices into `images`.
            names: a number for each micro-batch, the same however many processes share the work.
            then: what is done to the views of a micro-batch without training anything; its result comes in their place.
        """
        batches = _MicroBatches(self, then)
        loader = DataLoader(
            batches,
            sampler=[(epoch, name, batch) for name, batch in zip(names, micro_batches, strict=True)],
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=end_quietly,
        )
        with plain_errors():
            for name, batch in zip(names, loader, strict=True):
                if not self.on_cpu:
                    batch = batch.to(self.device, non_blocking=True)
                    batch = then(self.augment(batch, epoch, name) if self.on_device else batch)
                yield batch

    @property
    def on_cpu(self) -> bool:
        """Whether the processes that load images can do all that is done to them."""
        return self.device.type == "cpu"

    def augment(self, images: Tensor, epoch: int, name: int) -> Tensor:
        """(B, 3, side, side) bytes of micro-batch `name` -> its views (V, B, 3, size, size), on the same device."""
        generator = torch.Generator(images.device).manual_seed(seed_of(self.seed, "device", epoch, name))
        views = [
            augment_batch(images, recipe, self.size, generator) for recipe in self.recipes for _ in range(self.pairs)
        ]
        return torch.stack(views)


class _MicroBatches(Dataset):
    """Maps (epoch, name, indices) to what workers make of a micro-batch.

    On a CPU that is everything up to `then`, whose result is given, done while the step before computes. Elsewhere it
    is what the device has not to do itself: views, or the bytes of which it makes them.
    """

    def __init__(self, loader: ViewLoader, then: Callable[[Tensor], Any]):
        self.loader, self.then = loader, then
        self.images: Dataset
        if loader.on_device:
            self.images = PlainDataset(loader.images, loader.size if loader.recipes[0].shift else loader.size * 8 // 7)
        else:
            self.images = ViewDataset(loader.images, loader.recipes, loader.size, loader.pairs, loader.seed)

    def __getitem__(self, key: tuple[int, int, Sequence[int]]) -> Any:
        epoch, name, indices = key
        batch = torch.stack([self.images[epoch, index] for index in indices])
        if not self.loader.on_device:
            batch = batch.transpose(0, 1)
        if not self.loader.on_cpu:
            return batch
        return self.then(self.loader.augment(batch, epoch, name) if self.loader.on_device else batch)
