"""Whole searches small enough for a test: a folder of made-up images, and the settings to search on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from searching import CPU

from bossnet_zoo.search.run import SearchResult, search, start_run
from bossnet_zoo.search.settings import SearchSettings, get_preset

SPACE_OPTIONS: dict[str, dict[str, Any]] = {
    "hytra": {"block_layers": [1, 2], "base_width": 8, "default_resolution": 32},
    "mbconv": {"block_layers": [1, 1, 1, 1, 1], "width": 0.25, "default_resolution": 32},
    "nats": {"widths": [8, 16], "default_resolution": 16},
}


def write_images(folder: Path, count: int = 24, side: int = 32) -> Path:
    """A folder of smooth random colour images without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder


def tiny_settings(data: Path, space: str = "hytra", method: str = "bossnas", **changes: Any) -> SearchSettings:
    """The demo's settings in miniature; `changes` override them."""
    small: dict[str, Any] = {
        "data": str(data),
        "space_options": SPACE_OPTIONS[space],
        "resolution": SPACE_OPTIONS[space]["default_resolution"],
        "epochs": 1,
        "global_batch": 8,
        "micro_batch": 4,
        "hidden": 16,
        "projection": 8,
        "calibration_images": 8,
        "rating_images": 4,
    }
    if method == "bossnas":
        small["num_paths"] = 2
    if method == "dna":
        small |= {"teacher": "test_resnet", "teacher_pretrained": False}
    return get_preset("demo", space, method, **{**small, **changes})


def run_search(folder: Path, **changes: Any) -> SearchResult:
    """A finished search in `folder/run` on made-up images in `folder/images`."""
    settings = tiny_settings(write_images(folder / "images"), **changes)
    start_run(folder / "run", settings, CPU)
    return search(settings, folder / "run", CPU)
