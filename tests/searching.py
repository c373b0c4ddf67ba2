"""What the tests of `bossnet_zoo.search` share: a tiny space, networks whose every part matters, made-up images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.checkpoint import save_weights
from bossnet_zoo.datasets import ImageSet
from bossnet_zoo.image_sources import ArraySource
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.bootstrapping import SiameseSupernet
from bossnet_zoo.search.prefix import FrozenPrefix, Stage, load_prefix
from bossnet_zoo.search.settings import DEMO, SearchSettings
from bossnet_zoo.search.stage import Setup
from bossnet_zoo.search.supernets import SupernetBlock, make_block
from bossnet_zoo.spaces import Entry, HyTraSpace

CPU = Runtime(torch.device("cpu"))
SIDE = 32
SPACE_OPTIONS = {
    "block_layers": (1, 2),
    "base_width": 8,
    "se": False,
    "act_layer": "relu",
    "num_classes": 4,
    "default_resolution": SIDE,
}
SPACE = HyTraSpace(**SPACE_OPTIONS)
SETTINGS = replace(
    DEMO,
    space_options=SPACE_OPTIONS,
    resolution=SIDE,
    epochs=2,
    num_paths=3,
    global_batch=8,
    micro_batch=4,
    hidden=16,
    projection=8,
    calibration_images=8,
    workers=0,
)


def enliven(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BN layer its own scale and statistics: zero-initialised branches would hide a fault."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            nn.init.uniform_(child.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(child.bias, std=0.1, generator=generator)
            nn.init.normal_(child.running_mean, std=0.1, generator=generator)
            nn.init.uniform_(child.running_var, 0.5, 1.5, generator=generator)
    return module


def lively_block(block: int = 0, entry: Entry = None, space: HyTraSpace = SPACE) -> SupernetBlock:
    torch.manual_seed(10 + block)
    made = make_block(space, block, entry)
    enliven(made)
    return made


def lively_siamese(block: int = 0, entry: Entry = None, space: HyTraSpace = SPACE) -> SiameseSupernet:
    """A siamese supernet whose two networks differ, as they do after some steps."""
    siamese = SiameseSupernet(lively_block(block, entry, space), hidden=16, out_features=8)
    enliven(siamese.online)
    enliven(siamese.predictor)
    siamese.target.load_state_dict(siamese.online.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in siamese.target.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return siamese.train()


def pixels(batch: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """(batch, 3, side, side) normally distributed numbers."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def image_set(count: int = 24, side: int = SIDE, part: str = "search-train", seed: int = 0) -> ImageSet:
    """Smooth random colour images without labels."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = np.kron(coarse, np.ones((1, side // 4, side // 4, 1), np.uint8))
    return ImageSet("made-up", part, ArraySource("made-up", images, None, None), np.arange(count))


def make_setup(out: Path, settings: SearchSettings = SETTINGS, runtime: Runtime = CPU) -> Setup:
    """What a search of the tiny space on made-up images shares."""
    rated = image_set(10, part="search-val", seed=1)
    return Setup(settings, settings.make_space(), image_set(), rated, runtime, out)


def tiny_prefix(folder: Path, path_text: str = "8c", space: HyTraSpace = SPACE) -> FrozenPrefix:
    """A frozen first block with that path, loaded from `folder` as a search does."""
    stage, path = Stage(0, None), space.parse_path(0, path_text)
    save_weights(folder / f"{stage.name(space)}.safetensors", lively_block(space=space).state_dict())
    return load_prefix(space, ((stage, path),), folder, [pixels(4, 50), pixels(4, 51)], CPU)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimiser updates, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
