"""Images prepared for an exported network, in batches: to calibrate INT8 with and to compare on."""

from __future__ import annotations

import numpy as np
from timm.data import create_transform

from bossnet_zoo.datasets import ImageSet, open_images
from bossnet_zoo.errors import DataError, UsageError

from .metadata import Metadata

BATCH = 16  # images that are quantised and compared at once, unless the batch is fixed


def image_batches(images: ImageSet, metadata: Metadata, count: int, batch: int | None = None) -> list[np.ndarray]:
    """Images spread over a set, as an exported graph takes them.

    Args:
        images: labels are not read.
        metadata: size and normalisation; whether the graph takes normalised float32 (B, C, H, W) or uint8 (B, H, W, C).
        count: how many, at most.
        batch: images in each array; a fixed batch leaves out what does not fill one.
    """
    transform = create_transform(**metadata.data_config, normalize=not metadata.pixels)
    size = batch or BATCH
    count = min(count, len(images))
    if batch is not None:
        count -= count % batch
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    prepared = []
    for start in range(0, count, size):
        array = np.stack([transform(images.image(int(index))).numpy() for index in chosen[start : start + size]])
        prepared.append(np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if metadata.pixels else array)
    return prepared


def calibration_batches(
    source: str, metadata: Metadata, count: int, batch: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches to calibrate with, from a source's training images, and as many to compare on, from its test images.

    Raises:
        UsageError: an unknown source.
        DataError: no images.
    """
    try:
        parts = [open_images(source, part) for part in ("train", "test")]
    except (DataError, UsageError) as error:
        raise type(error)(
            f"--calib: {error}; its images for training calibrate, those for testing (a fifth where none are set "
            "apart) are compared on"
        ) from error
    calibration, comparison = (image_batches(images, metadata, count, batch) for images in parts)
    return calibration, comparison
