"""Which images a search is judged by: kept in a file that is compared with its checksum, or listed by the user."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searching import CPU
from tiny_search import tiny_settings, write_images

from bossnet_zoo import console
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import CheckpointError, DataError, UsageError
from bossnet_zoo.image_sources import ArraySource
from bossnet_zoo.search.run import search, start_run


def parts(data: str, **options) -> list[list[int]]:
    return [open_images(data, part, **options).indices.tolist() for part in ("search-train", "search-val")]


# --- kept


def test_a_split_file_keeps_the_images_of_search_val(tmp_path):
    path = tmp_path / "split.json"
    drawn = parts("digits", seed=3, split_file=path)
    stored = json.loads(path.read_text())
    assert stored["search_val"] == drawn[1]
    assert (stored["search_train"], stored["drawn"], stored["images"]) == (None, "at random, seed 3", 1437)
    assert parts("digits", seed=3, split_file=path) == drawn
    assert sorted(drawn[0] + drawn[1]) == open_images("digits", "train").indices.tolist()


def test_a_split_file_of_other_images_is_refused(tmp_path):
    path = tmp_path / "split.json"
    parts("digits", split_file=path)
    with pytest.raises(DataError, match=r"is of digits with seed 0, not of digits with seed 1; bring back this run's"):
        parts("digits", seed=1, split_file=path)
    with pytest.raises(DataError, match=r"is for 1,437 images, digits:hard now has 898"):
        parts("digits:hard", split_file=path)


@pytest.mark.parametrize("edit", ["an image more", "an image less", "another image", "no checksum"])
def test_a_split_file_that_was_edited_is_refused(tmp_path, edit):
    path = tmp_path / "split.json"
    (_, chosen) = parts("digits", split_file=path)
    stored = json.loads(path.read_text())
    if edit == "no checksum":
        del stored["sha256"]
    else:
        others = [image for image in range(10) if image not in chosen][:1]
        stored["search_val"] = chosen[edit != "an image more" :] + (others if edit != "an image less" else [])
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"split\.json is not as it was written: .*; bring back a copy, or start"):
        parts("digits", split_file=path)
    path.write_text(json.dumps({"images": 3}))
    with pytest.raises(CheckpointError, match=r"split file .* is damaged, or was edited to what it cannot be"):
        parts("digits", split_file=path)


@pytest.mark.parametrize("there", [True, False])
def test_the_report_says_how_cifar_was_divided(tmp_path, monkeypatch, there):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(
        "bossnet_zoo.image_sources.cifar", lambda name, root, train: ArraySource(name, pixels, [0] * 60, None)
    )
    if there:
        halves = {"train": ["int", [*map(str, range(30))]], "valid": ["int", [*map(str, range(30, 60))]]}
        (tmp_path / "cifar-split.txt").write_text(json.dumps(halves))
    settings = tiny_settings(Path(f"cifar10:{tmp_path}"), "nats")
    start_run(tmp_path / "run", settings, CPU)
    table = search(settings, tmp_path / "run", CPU).table
    drawn = "as in NATS-Bench's" if there else "halves at random (seed 0), without NATS-Bench's"
    assert table.meta["split"]["drawn"] == f"{drawn} cifar-split.txt"
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert f"30 to learn from, 4 to rate on, divided {drawn} cifar-split.txt" in page


# --- listed


@pytest.fixture
def classes(tmp_path):
    """Twelve images of two classes, four of which have the names of others, and two for testing."""
    root = tmp_path / "images"
    for folder, names in (("train/cat", "abcdef"), ("train/dog", "defghi"), ("val/cat", "x"), ("val/dog", "y")):
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8)).save(root / folder / f"{name} 1.png")
    return root


@pytest.mark.parametrize(
    "lines",
    [["cat/a 1.png", "dog/d 1.png"], ["cat/a 1.png 0", "dog/d 1.png 1"], ["a 1.png", "train/dog/d 1.png"], ["6", "0"]],
    ids=["paths", "with labels", "other folders", "positions"],
)
def test_images_to_be_judged_by_can_be_listed(tmp_path, classes, lines):
    (tmp_path / "nas_val.txt").write_text("\n".join([*lines, "", lines[0]]) + "\n")
    kept = tmp_path / "split.json"
    listed = tmp_path / "nas_val.txt"
    expected = [[1, 2, 3, 4, 5, 7, 8, 9, 10, 11], [0, 6]]
    assert parts(str(classes), search_val=listed, split_file=kept) == expected
    assert json.loads(kept.read_text())["drawn"] == f"as {listed} lists them"
    listed.unlink()
    assert parts(str(classes), search_val=listed, split_file=kept) == expected  # once kept, it is needed no more


def test_the_split_of_another_search_is_a_list(tmp_path, classes):
    drawn = parts(str(classes), seed=5, split_file=tmp_path / "split.json")
    assert parts(str(classes), seed=6, search_val=tmp_path / "split.json") == drawn


def test_a_split_written_under_another_name_of_the_data_is_told(tmp_path, classes, capfd):
    drawn = parts(str(classes), seed=5, split_file=tmp_path / "split.json")
    (tmp_path / "moved").symlink_to(classes)
    console.note_once.cache_clear()
    assert parts(str(tmp_path / "moved"), search_val=tmp_path / "split.json") == drawn
    assert f"was written for {classes}; its positions are taken" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("cat/z 1.png", r"lists 'cat/z 1\.png', which is no image of .*; each line is the path of a training image"),
        ("d 1.png", r"lists 'd 1\.png', by which .* has several images; name its folder"),
        ("x 1.png", "which is no image of"),
        ("12", r"lists '12', which is none of the 12 images of .* that are for training"),
        ("", "lists no images"),
        ('{"search_val": 3}', "was edited to what it cannot be"),
        ('{"images": 3}', r"list\.txt is JSON without search_val, so no split\.json of a search; each line is"),
        ("6\n6", r"list\.txt lists 1 different image of .*, and rating needs 2; add others"),
        (
            '{"data": "digits", "images": 1437, "search_val": [1, 2]}',
            r"divides the 1437 images of digits, not the 12 of",
        ),
    ],
    ids=["unknown", "ambiguous", "for testing", "too large", "empty", "no list", "no split", "twice", "other data"],
)
def test_an_index_file_of_something_else_is_one_sentence(tmp_path, classes, lines, message):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises((UsageError, CheckpointError), match=message) as error:
        parts(str(classes), search_val=tmp_path / "list.txt")
    assert "\n" not in str(error.value)


def test_positions_serve_where_images_have_no_paths(tmp_path, monkeypatch):
    listed = tmp_path / "list.txt"
    listed.write_text("9\n5\n")
    train = open_images("digits", "train").indices
    if not np.isin([5, 9], train).all():
        listed.write_text(f"{train[3]}\n{train[2]}\n")
    assert len(parts("digits", search_val=listed)[1]) == 2
    kept = open_images("digits", "test").indices[0]
    listed.write_text(f"{kept}\n")
    with pytest.raises(UsageError, match="images of digits that are for training"):
        parts("digits", search_val=listed)
    listed.write_text("a.png\n")
    with pytest.raises(UsageError, match="the images of digits have no paths, only positions"):
        parts("digits", search_val=listed)
    monkeypatch.setenv("BOSSNET_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        parts(str(write_images(tmp_path / "flat")), search_val=tmp_path / "nowhere.txt")
