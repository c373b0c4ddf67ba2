"""500 made-up bad images and folders: each is read, replaced and counted, or refused in a sentence."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import mutations
import numpy as np
import pytest
from PIL import Image

from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import BossNetError

pytestmark = pytest.mark.stress
IMAGES, FOLDERS = 400, 100
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "F", "LA")


def picture(chance: random.Random) -> tuple[bytes, str]:
    """A whole image of some format and mode, and its suffix."""
    while True:
        form, mode = chance.choice(FORMATS), chance.choice(MODES)
        side = chance.choice((1, 2, 7, 40))
        stream = io.BytesIO()
        try:
            image = Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8))
            (image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(
                stream, form
            )
        except (OSError, ValueError):
            continue  # a format that has no such mode
        return stream.getvalue(), {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower())


def bad_image(chance: random.Random) -> tuple[bytes, str]:
    content, suffix = picture(chance)
    kind = chance.choice(("truncate", "zero", "flip", "suffix", "text", "noise", "huge", "whole"))
    if kind in ("truncate", "zero", "flip"):
        content = getattr(mutations, kind)(content, chance)
    elif kind == "suffix":
        suffix = chance.choice(("png", "jpg", "bmp", "webp", "tiff"))
    elif kind == "text":
        content = chance.choice((b"", b"<html>404</html>", "é".encode() * 9, b"\0" * 999, b"version https://git-lfs"))
    elif kind == "noise":
        content = chance.randbytes(chance.randrange(2000))
    elif kind == "huge":  # a header that promises 60,000 x 60,000 pixels
        content, suffix = b"P6 60000 60000 255\n" + chance.randbytes(50), "ppm"
    return content, suffix


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
def test_bad_images(tmp_path, capsys, tally):
    with tally("bad images and folders") as counts:
        for number in range(IMAGES):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            Image.new("RGB", (8, 8), "red").save(folder / "good.png")
            content, suffix = bad_image(random.Random(number))
            (folder / f"bad.{suffix}").write_bytes(content)
            images = open_images(str(folder), "all")  # in the order of names: the bad one first
            first, second = images.image(0), images.image(1)
            replaced = np.array_equal(np.asarray(first), np.asarray(second))
            counts.count(
                first.mode == second.mode == "RGB"
                and second.getpixel((0, 0)) == (255, 0, 0)
                and images.num_unreadable == int(replaced),
                f"image {number}: {suffix}, {content[:30]!r}",
            )
            said = capsys.readouterr().err
            counts.lost += [f"image {number} was not named: {said}"] * (replaced and f"bad.{suffix}" not in said)


def bad_folder(root: Path, chance: random.Random) -> None:
    """Something that is not quite a data set."""

    def image(name: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(chance)[0])

    kind = chance.choice(("empty", "csv", "classes", "nested", "shard", "links", "names", "train only", "file"))
    root.mkdir()
    if kind == "csv":
        image("a.png")
        rows = (
            "a.png,cat",
            "",
            ",",
            "a.png",
            "missing.png,dog",
            "../../etc/passwd,x",
            "\0",
            "ß.png,\xff",
            '"a.png,cat',
        )
        text = "\n".join(chance.choices(rows, k=chance.randrange(5)))
        (root / chance.choice(("train.csv", "x.csv"))).write_text(text, chance.choice(("utf-8", "utf-16", "latin-1")))
    elif kind == "classes":
        for name in chance.sample(("train/a/1.png", "val/b/1.png", "val/1.png", "test/a/x.txt", "train/1.png"), 3):
            image(name)
    elif kind == "nested":
        image("/".join("abcdefgh"[: chance.randrange(1, 8)]) + "/1.png")
    elif kind == "shard":
        with tarfile.open(root / "0.tar", "w") as tar:
            for name, content in (("a.png", picture(chance)[0]), ("a.cls", chance.choice((b"0", b"x", b"", b"-5")))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        damage = getattr(mutations, chance.choice(("truncate", "zero", "flip")))
        (root / "0.tar").write_bytes(damage((root / "0.tar").read_bytes(), chance))
    elif kind == "links":
        os.symlink(root / "missing.png", root / "a.png")
        os.symlink(root / "loop.png", root / "loop.png")
    elif kind == "names":
        for name in ("a\nb.png", "é" * 60 + ".png", "-rf.png", " .png", ".png"):
            image(name)
    elif kind == "train only":
        image("train/1.png")
    elif kind == "file":
        image("a.png/b.png")  # a folder with the name of an image


@pytest.mark.filterwarnings("ignore")
def test_bad_folders(tmp_path, tally):
    with tally("bad images and folders") as counts:
        for number in range(FOLDERS):
            root = tmp_path / f"{number}"
            bad_folder(root, random.Random(number))
            for part in ("all", "train", "test", "search-val"):
                try:
                    images = open_images(str(root), part)
                    images.image(0)
                    images.require_labels("training")
                except BossNetError as error:
                    if "\n" in str(error).replace("a\nb.png", "") or not str(error):
                        counts.lost.append(f"folder {number}, {part}: {error}")
                except Exception as error:
                    counts.lost.append(f"folder {number}, {part}: {error!r}")
            counts.tried += 1
