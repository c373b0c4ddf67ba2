"""The data pipeline: images per second for the eight views of a step, `python benchmarks/bench_data.py [--json]`.

A step of BossNAS gives every image P = 4 pairs of views, from two pipelines. They are made in workers, image by image
(torchvision), or a batch at a time of images that workers have decoded (`--augment device`): on the device, and where
that is the CPU, by the workers too. Measured is the time from asking for the first batch to having the last, workers'
start included, for handwritten digits (views of 64 pixels) and for JPEG files of 500 x 375 pixels, ImageNet's usual
size (views of 224 pixels). What is in the files is generated: coarse blotches under noise, about as large as a
photograph when compressed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from PIL import Image

from bossnet_zoo.datasets import ImageSet, open_images
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.views import VIEWS, ViewLoader

PAIRS = 4
BATCH = 32
MODES = {"workers": False, "device": True}


@dataclass(frozen=True)
class Source:
    """What is read.

    Attributes:
        views: pipelines, a key of `VIEWS`.
        resolution: pixels of a view.
    """

    name: str
    images: ImageSet
    views: str
    resolution: int


def write_photographs(folder: Path, number: int) -> None:
    """Write so many JPEG files of 500 x 375 pixels, of about 100 kB each, as ImageNet's."""
    generator = np.random.default_rng(0)
    for index in range(number):
        blotches = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blotches.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = pixels + generator.normal(0, 20, pixels.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg", quality=90)


def images_per_second(source: Source, mode: str, batches: int, workers: int, runtime: Runtime) -> float:
    """Wall-clock rate of a loader from its start to its end."""
    recipes, on_device = VIEWS[source.views], MODES[mode]
    loader = ViewLoader(
        source.images, recipes, source.resolution, PAIRS, 0, on_device=on_device, workers=workers, device=runtime.device
    )

    def load(number: int) -> None:
        order = [index % len(source.images) for index in range(number * BATCH)]
        chunks = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for views in loader.epoch(0, chunks, range(number)):
            assert views.shape[:2] == (len(recipes) * PAIRS, BATCH)
        runtime.synchronize()

    load(1)  # the first convolution sets up its kernels, the first reading fills the disk's cache
    started = time.perf_counter()
    load(batches)
    return batches * BATCH / (time.perf_counter() - started)


def run(device: str, workers: int, digit_batches: int, photograph_batches: int) -> dict[str, Any]:
    """Images per second of both sources in both modes."""
    runtime = Runtime.open(device)
    rates: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), 2 * BATCH)
        digits = Source("digits", open_images("digits", "train"), "digits", 64)
        photographs = Source("photographs", open_images(folder, "all"), "byol", 224)
        for source, batches in ((digits, digit_batches), (photographs, photograph_batches)):
            rates[source.name] = {mode: images_per_second(source, mode, batches, workers, runtime) for mode in MODES}
    return {
        "what": f"images per second, {2 * PAIRS} views each",
        "settings": {"device": runtime.description, "workers": workers, "batch": BATCH, "pairs": PAIRS},
        "machine": machine.describe(),
        "images_per_second": rates,
        "device_to_workers": {name: rate["device"] / rate["workers"] for name, rate in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="where views are wanted, and made in mode `device`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch in the main process")
    parser.add_argument("--digit-batches", type=int, default=32, help=f"of {BATCH} images")
    parser.add_argument("--photograph-batches", type=int, default=8, help=f"of {BATCH} images")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = run(arguments.device, arguments.workers, arguments.digit_batches, arguments.photograph_batches)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, rates in result["images_per_second"].items():
        for mode, rate in rates.items():
            print(f"{rate:8.1f} images/s  {name}, views made in {mode}")
        print(f"{result['device_to_workers'][name]:8.2f}x  {name}, device to workers")


if __name__ == "__main__":
    main()
