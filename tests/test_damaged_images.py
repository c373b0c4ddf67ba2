"""Images that cannot be read, or are of an unusual kind: named, counted, replaced or converted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_datasets import red, save_pictures
from torch.utils.data import DataLoader

from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import DataError


@pytest.fixture
def damaged(tmp_path):
    """Five images; the third is cut short and the fourth is text."""
    save_pictures(tmp_path / "cat", 3)
    save_pictures(tmp_path / "dog", 2, first=50)
    whole = (tmp_path / "cat" / "002.png").read_bytes()
    (tmp_path / "cat" / "002.png").write_bytes(whole[:50])
    (tmp_path / "dog" / "050.png").write_text("no image")
    return tmp_path


def test_an_unreadable_image_is_named_once_counted_and_replaced_by_the_next(damaged, capsys):
    images = open_images(str(damaged), "all")
    assert [images.load(index)[1] for index in range(5)] == [0, 0, 1, 1, 1]
    assert red(images) == [0, 1, 51, 51, 51]
    notes = capsys.readouterr().err
    assert notes.count("002.png cannot be read as an image") == 1
    assert notes.count("050.png cannot be read as an image") == 1
    assert images.num_unreadable == 2


def test_many_unreadable_images_are_only_counted(tmp_path, capsys):
    save_pictures(tmp_path / "cat", 30)
    for number in range(1, 30):
        (tmp_path / "cat" / f"{number:03}.png").write_text("no image")
    images = open_images(str(tmp_path), "all")
    red(images)
    assert images.num_unreadable == 29
    notes = capsys.readouterr().err
    assert notes.count("cannot be read as an image") == 10
    assert "further ones are only counted" in " ".join(notes.split())


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_is_scaled(dtype, tmp_path):
    values = np.array([[0, 256 * 77, 65535]], dtype)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert [open_images(str(tmp_path), "all").image(0).getpixel((x, 0)) for x in range(3)] == [
        (0, 0, 0),
        (77, 77, 77),
        (255, 255, 255),
    ]


def test_an_unreadable_image_is_an_error_under_strict(damaged):
    images = open_images(str(damaged), "all", strict=True)
    with pytest.raises(DataError, match=r"002\.png cannot be read as an image.*leave out --strict-images"):
        images.image(2)


def test_workers_count_unreadable_images_for_everybody(damaged):
    images = open_images(str(damaged), "all")
    dataset = images.with_transform(lambda image: torch.tensor(image.size))
    batches = list(DataLoader(dataset, batch_size=5, num_workers=1))
    assert len(batches[0][0]) == 5
    assert images.num_unreadable == 2


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match="none of its 1 images can be read"):
        open_images(str(tmp_path), "all").image(0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    assert open_images(str(tmp_path), "all").image(0).mode == "RGB"


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path):
    Image.new("P", (4, 4)).save(tmp_path / "a.png", transparency=b"\x00\x01")
    assert open_images(str(tmp_path), "all").image(0).mode == "RGB"
