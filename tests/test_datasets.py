"""Images by name or path: every kind of source, and its parts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from bossnet_zoo import datasets as bossnet_datasets
from bossnet_zoo.datasets import ImageSet, count_classes, open_images
from bossnet_zoo.errors import DataError, UsageError
from bossnet_zoo.image_sources import ArraySource


def picture(brightness: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (brightness, 0, 255 - brightness))


def save_pictures(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        picture(number).save(folder / f"{number:03}.png")


def red(image_set: ImageSet) -> list[int]:
    """The red value of every image, by which these tests tell them apart."""
    return [image_set.image(index).getpixel((0, 0))[0] for index in range(len(image_set))]


# --- parts


def test_digits_divide_into_the_documented_parts():
    parts = {part: open_images("digits", part) for part in ("search-train", "search-val", "train", "test", "all")}
    assert {part: len(images) for part, images in parts.items()} == {
        "search-train": 1078,
        "search-val": 359,
        "train": 1437,
        "test": 360,
        "all": 1797,
    }
    train, test = set(parts["train"].indices), set(parts["test"].indices)
    assert not train & test
    assert set(parts["search-train"].indices) | set(parts["search-val"].indices) == train
    assert not set(parts["search-train"].indices) & set(parts["search-val"].indices)


def test_test_images_keep_the_proportions_of_the_classes():
    counts = np.bincount(open_images("digits", "test").require_labels("this test"))
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_the_seed_draws_search_val_and_never_moves_a_test_image():
    first, again, other = (open_images("digits", "search-val", seed=seed).indices for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not set(other) & set(open_images("digits", "test").indices)
    assert np.array_equal(open_images("digits", "test", seed=1).indices, open_images("digits", "test").indices)


def test_digits_are_rgb_images_with_their_labels():
    images = open_images("digits", "all")
    image = images.image(0)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert images.labels is not None
    assert images.labels[:4] == [0, 1, 2, 3]
    assert images.class_names == tuple("0123456789")
    assert np.asarray(image)[24:40, 24:40].mean() < np.asarray(image)[16:24, 16:48].mean()  # a zero has a hole


def test_hard_digits_are_small_and_noisy_and_half_of_them_are_for_testing():
    train, test = open_images("digits:hard", "train"), open_images("digits:hard", "test")
    assert (len(train), len(test)) == (898, 899)
    assert train.image(0).size == (8, 8)
    originals = load_digits()
    clear = originals.images / 16 * 255
    noisy = train.source.images[:60]
    nearest = np.square(noisy[:, None] - clear).sum((2, 3)).argmin(1)
    assert len(set(nearest)) > 55  # nearly every image has an original of its own behind it
    assert np.mean(originals.target[nearest] == train.labels[:60]) > 0.85
    grey = (clear[nearest] > 100) & (clear[nearest] < 155)  # where clipping takes little of the noise away
    assert 70 < (noisy - clear[nearest])[grey].std() < 95
    assert np.bincount(test.require_labels("this test")).min() > 70
    assert np.array_equal(train.source.images, open_images("digits:hard", "train").source.images)  # fixed noise


def test_search_val_is_capped_at_the_size_of_imagenet_nas_val(monkeypatch):
    monkeypatch.setattr(bossnet_datasets, "MAX_SEARCH_VAL", 50)
    assert len(open_images("digits", "search-val")) == 50
    assert len(open_images("digits", "search-train")) == 1387


# --- folders


def test_a_tree_of_train_and_val_is_used_as_divided(tmp_path):
    save_pictures(tmp_path / "train" / "cat", 3)
    save_pictures(tmp_path / "train" / "dog", 2, first=10)
    save_pictures(tmp_path / "val" / "dog", 2, first=20)
    train, test = open_images(str(tmp_path), "train"), open_images(str(tmp_path), "test")
    assert (red(train), train.labels, train.class_names) == ([0, 1, 2, 10, 11], [0, 0, 0, 1, 1], ("cat", "dog"))
    assert (red(test), test.labels) == ([20, 21], [1, 1])  # numbered as in training, though there is no cat


def test_a_class_that_training_lacks_is_an_error(tmp_path):
    save_pictures(tmp_path / "train" / "cat", 1)
    save_pictures(tmp_path / "val" / "bird", 1)
    with pytest.raises(DataError, match="bird"):
        open_images(str(tmp_path), "test")


def test_a_flat_folder_is_divided_aloud(tmp_path, capsys):
    save_pictures(tmp_path / "train", 10)  # pictures of trains
    save_pictures(tmp_path / "bus", 10, first=100)
    train = open_images(str(tmp_path), "train")
    test = open_images(str(tmp_path), "test")
    assert train.class_names == ("bus", "train")
    assert (len(train), len(test)) == (16, 4)
    assert test.labels == [0, 0, 1, 1]
    assert not set(red(train)) & set(red(test))
    assert "4 of its 20 are now" in capsys.readouterr().err
    assert len(open_images(str(tmp_path), "all")) == 20


def test_a_folder_of_test_images_alone_can_be_evaluated_but_not_trained_on(tmp_path):
    save_pictures(tmp_path / "val" / "cat", 2)
    assert len(open_images(str(tmp_path), "test")) == 2
    with pytest.raises(DataError, match="for testing alone"):
        open_images(str(tmp_path), "train")
    with pytest.raises(UsageError, match="its parts are: search-train"):
        open_images(str(tmp_path), "all")


def test_an_unlabelled_folder_serves_where_no_labels_are_needed(tmp_path):
    save_pictures(tmp_path, 8)
    images = open_images(str(tmp_path), "search-train")
    assert images.labels is None
    assert images.class_names is None
    assert len(images) == 6
    assert len(open_images(str(tmp_path), "search-val")) == 2  # none is kept for a test that cannot be
    image, label = images.with_transform(lambda image: image.size)[0]
    assert (image, label) == ((6, 5), -1)
    with pytest.raises(DataError, match=r"has no labels, and training needs them; put the images into one folder per"):
        images.require_labels("training")


def test_a_csv_names_files_and_labels(tmp_path):
    save_pictures(tmp_path / "files", 4)
    (tmp_path / "labels.csv").write_text(
        "file,label\nfiles/000.png,10\nfiles/001.png,9\nfiles/002.png,10\nfiles/003.png,2\n"
    )
    images = open_images(str(tmp_path), "all")
    assert images.class_names == ("2", "9", "10")
    assert images.labels == [2, 1, 2, 0]


def test_csvs_of_train_and_test_share_their_classes(tmp_path):
    save_pictures(tmp_path, 3)
    (tmp_path / "train.csv").write_text("000.png,dog\n001.png,cat\n")
    (tmp_path / "test.csv").write_text("002.png,dog\n")
    assert open_images(str(tmp_path), "train").labels == [1, 0]
    assert open_images(str(tmp_path), "test").labels == [1]


def test_a_csv_is_read_by_the_names_of_its_columns(tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    rows = "".join(f"train,{number % 2},{number}.png\n" for number in range(4))
    (tmp_path / "labels.csv").write_text(f"split,Label,filename\n{rows}")
    images = open_images(str(tmp_path), "all")
    assert (red(images), images.labels, images.class_names) == ([0, 1, 2, 3], [0, 1, 0, 1], ("0", "1"))


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path):
    save_pictures(tmp_path / "cat", 3)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert len(open_images(str(tmp_path), "all")) == 3


def test_a_csv_row_without_a_label_is_an_error(tmp_path):
    (tmp_path / "labels.csv").write_text("a.png,cat\nb.png\n")
    with pytest.raises(DataError, match=r"b\.png has no label"):
        open_images(str(tmp_path), "train")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"has no images for part train; allowed: digits"):
        open_images(str(tmp_path), "train")


@pytest.mark.parametrize("source", ["no/such/folder", "imagenet", "hf:"])
def test_an_unknown_source_says_what_is_allowed(source):
    with pytest.raises(UsageError, match=r"no folder and no known name; allowed: digits, digits:hard, cifar10"):
        open_images(source, "train")


def test_an_unknown_part_says_what_is_allowed():
    with pytest.raises(UsageError, match="allowed: search-train, search-val, train, test, all"):
        open_images("digits", "validation")


@pytest.mark.parametrize("classes", [["cat"], ["cat", "dog"]])
def test_images_of_one_class_alone_are_nothing_to_train_on(tmp_path, classes):
    for name in classes:
        save_pictures(tmp_path / name, 5)
    train, test = (open_images(str(tmp_path), part) for part in ("train", "test"))
    if len(classes) > 1:
        assert count_classes(train, test) == 2
        return
    with pytest.raises(DataError, match=r"of one class, so there is nothing to learn; put the images into one folder"):
        count_classes(train, test)


# --- Hub datasets, CIFAR


def test_a_csv_can_be_given_itself(tmp_path):
    for number in range(5):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "some.csv").write_text("".join(f"{number}.png,{number % 2}\n" for number in (4, 2, 1)))
    (tmp_path / "others.csv").write_text("0.png,x\n")
    images = open_images(str(tmp_path / "some.csv"), "all")
    assert (red(images), images.labels) == ([4, 2, 1], [0, 0, 1])


def test_images_beside_class_folders_are_counted(tmp_path, capfd):
    for name in "ab":
        save_pictures(tmp_path / name, 3)
    save_pictures(tmp_path, 4)
    assert len(open_images(str(tmp_path), "all")) == 6
    assert "so 4 images beside them are left out" in " ".join(capfd.readouterr().err.split())


def test_a_class_without_images_is_named(tmp_path, capfd):
    for name in "abc":
        (tmp_path / name).mkdir()
    picture(1).save(tmp_path / "a" / "1.png")
    picture(2).save(tmp_path / "c" / "2.png")
    assert open_images(str(tmp_path), "all").labels == [0, 2]
    assert "1 classes have no images" in " ".join(capfd.readouterr().err.split())


def test_hub_datasets_are_opened_through_their_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 3), ("test", 2)):
        save_pictures(tmp_path / "pets" / split / "cat", count)
        save_pictures(tmp_path / "pets" / split / "dog", count, first=100)
    train = open_images(f"hf:{tmp_path}/pets", "train")
    assert (red(train), train.labels, train.class_names) == (
        [0, 1, 2, 100, 101, 102],
        [0, 0, 0, 1, 1, 1],
        ("cat", "dog"),
    )
    assert len(open_images(f"hf:{tmp_path}/pets", "test")) == 4
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "train.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"^dataset hf:.*zipped could not be opened: .*$"):
        open_images(f"hf:{tmp_path}/zipped", "train")


def fake_cifar(monkeypatch, labels: int) -> None:
    """CIFAR's sizes without CIFAR's images."""

    def cifar(name, root, train):
        count = 50_000 if train else 10_000
        return ArraySource(name, np.zeros((count, 1, 1), np.uint8), [i % labels for i in range(count)], None)

    monkeypatch.setattr("bossnet_zoo.image_sources.cifar", cifar)


@pytest.mark.parametrize(
    ("name", "sizes"), [("cifar10", (25_000, 25_000, 50_000, 10_000)), ("cifar100", (50_000, 5_000, 50_000, 5_000))]
)
def test_cifar_is_divided_as_in_nats_bench(tmp_path, monkeypatch, capsys, name, sizes):
    fake_cifar(monkeypatch, labels=10)
    parts = [open_images(f"{name}:{tmp_path}", part) for part in ("search-train", "search-val", "train", "test")]
    assert tuple(len(part) for part in parts) == sizes
    first, second = (parts[0], parts[1]) if name == "cifar10" else (parts[1], parts[3])
    assert not set(first.indices) & set(second.indices)
    assert "of NATS-Bench in" in capsys.readouterr().err


def test_the_split_files_of_nats_bench_are_used_where_they_are(tmp_path, monkeypatch):
    fake_cifar(monkeypatch, labels=10)
    (tmp_path / "cifar-split.txt").write_text('{"train": ["int", ["5", "0"]], "valid": ["int", ["1", "2", "3"]]}')
    (tmp_path / "cifar100-test-split.txt").write_text('{"xvalid": ["int", ["4"]], "xtest": ["int", ["9", "8"]]}')
    assert open_images(f"cifar10:{tmp_path}", "search-train").indices.tolist() == [0, 5]
    assert open_images(f"cifar10:{tmp_path}", "search-val").indices.tolist() == [1, 2, 3]
    assert open_images(f"cifar100:{tmp_path}", "search-val").indices.tolist() == [4]
    assert open_images(f"cifar100:{tmp_path}", "test").indices.tolist() == [8, 9]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_split_file_says_how_cifar_was_divided_and_keeps_it(tmp_path, monkeypatch, name):
    fake_cifar(monkeypatch, labels=10)
    data, kept = f"{name}:{tmp_path}", tmp_path / "split.json"
    parts = ("search-train", "search-val")
    drawn = [open_images(data, part, split_file=kept).indices.tolist() for part in parts]
    file = "cifar-split.txt" if name == "cifar10" else "cifar100-test-split.txt"
    assert json.loads(kept.read_text())["drawn"] == f"halves at random (seed 0), without NATS-Bench's {file}"
    halves = {"train": ["int", ["5", "0"]], "valid": ["int", ["1"]], "xvalid": ["int", ["1"]], "xtest": ["int", ["2"]]}
    (tmp_path / file).write_text(json.dumps(halves))  # fetched while a search was running
    assert [open_images(data, part, split_file=kept).indices.tolist() for part in parts] == drawn
    open_images(data, "search-val", split_file=tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text())["drawn"] == f"as in NATS-Bench's {file}"
    again = [open_images(data, part, split_file=tmp_path / "new.json").indices.tolist() for part in parts]
    assert again == [[0, 5] if name == "cifar10" else list(range(50_000)), [1]]


def test_cifar_is_read_as_torchvision_stores_it(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    batch = {"data": np.full((2, 3072), 7, np.uint8), "labels": [3, 8]}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (base / name).write_bytes(pickle.dumps(batch))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    images = open_images(f"cifar10:{tmp_path}", "train")
    assert (len(images), images.labels[:2], images.class_names) == (10, [3, 8], tuple("abcdefghij"))
    assert images.image(0).getpixel((0, 0)) == (7, 7, 7)


# --- keys


def test_the_random_numbers_of_a_transform_follow_the_key():
    dataset = open_images("digits", "test").with_transform(lambda image: (torch.rand(1).item(), np.random.rand()))
    before = torch.get_rng_state()
    first = dataset[(0, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert dataset[(1, 1, 2)][0] == first[0]
    assert dataset[(0, 1, 3)][0] != first[0]
    batch = next(iter(DataLoader(dataset, sampler=[(0, 1, 2), (0, 1, 3)], batch_size=1, num_workers=1)))
    assert batch[0][0].item() == first[0][0]


def test_targets_can_be_made_from_labels():
    dataset = open_images("digits", "all").with_transform(lambda image: 0, target=lambda label: 10 * label)
    assert [dataset[index][1] for index in range(3)] == [0, 10, 20]
