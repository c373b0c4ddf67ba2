"""WebDataset shards: read by index, divided by folders or names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from test_datasets import picture, red

from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import DataError, UsageError
from bossnet_zoo.shards import expand_shards


def write_shard(path: Path, numbers: range, labels: bool = True) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            members = [(f"{number:04}.png", buffer.getvalue())]
            if labels:
                members.append((f"{number:04}.cls", str(number % 3).encode()))
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_shards_are_read_by_index(tmp_path):
    write_shard(tmp_path / "00.tar", range(4))
    write_shard(tmp_path / "01.tar", range(4, 6))
    images = open_images(f"{tmp_path}/{{00..01}}.tar", "all")
    assert red(images) == [0, 1, 2, 3, 4, 5]
    assert images.labels == [0, 1, 2, 0, 1, 2]


def test_shards_that_webdataset_wrote_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"a/{number:03}", "png": picture(number), "cls": 2 - number})
    images = open_images(f"{tmp_path}/0.tar", "all")
    assert (red(images), images.labels) == ([0, 1, 2], [2, 1, 0])


def test_shards_in_a_tree_are_used_as_divided(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    write_shard(tmp_path / "train" / "00.tar", range(4))
    write_shard(tmp_path / "test" / "00.tar", range(4, 6))
    assert red(open_images(str(tmp_path), "test")) == [4, 5]


def test_shards_in_one_folder_are_divided_by_their_names(tmp_path):
    for name, numbers in (("net-train-00", range(4)), ("net-train-01", range(4, 6)), ("net-val-00", range(6, 8))):
        write_shard(tmp_path / f"{name}.tar", numbers)
    assert red(open_images(str(tmp_path), "train")) == [0, 1, 2, 3, 4, 5]
    assert red(open_images(str(tmp_path), "test")) == [6, 7]
    write_shard(tmp_path / "more.tar", range(8, 10))  # of neither side
    assert len(open_images(str(tmp_path), "all")) == 10


def test_shards_without_labels_are_unlabelled(tmp_path):
    write_shard(tmp_path / "00.tar", range(4), labels=False)
    assert open_images(f"{tmp_path}/*.tar", "all").labels is None


def test_shard_patterns_expand_in_order():
    assert expand_shards("a/{008..011}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]


def test_missing_and_damaged_shards_are_errors(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        open_images(f"{tmp_path}/{{0..1}}.tar", "all")
    (tmp_path / "0.tar").write_bytes(b"no tar file, whatever its name says" * 50)
    with pytest.raises(DataError, match="cannot be read"):
        open_images(f"{tmp_path}/0.tar", "all")


def test_a_label_of_a_shard_is_a_number(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.png", b"x"), ("a.cls", b"cat")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"a.cls in .*0.tar holds b'cat'; a label is the number of a class"):
        open_images(str(tmp_path), "all")
