"""What others get says where images and weights came from, and tells no path of the machine that it was made on."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporting import trained
from huggingface_hub import ModelCard
from PIL import Image
from tiny_training import FROZEN, fit, write_pictures

from bossnet_zoo.checkpoint import load_json, save_json
from bossnet_zoo.export.cards import published
from bossnet_zoo.export.hub import write_repository
from bossnet_zoo.export.onnx import read_onnx
from bossnet_zoo.export.pipeline import Request, export_network
from bossnet_zoo.export.provenance import beginning_of, public_name
from bossnet_zoo.export.report import Tolerance
from bossnet_zoo.runs import load_config

RANDOM = {"model": "hytra", "pretrained": False, "init": None, "data": "digits"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A user's folder: images of two classes, and two runs, of which the second began with the first."""
    home = tmp_path_factory.mktemp("jane")
    images = write_pictures(home / "secret" / "pets")
    first = fit(images, home / "runs" / "first", FROZEN)
    fit(images, home / "runs" / "second", FROZEN, init=first.weights)
    return home


@pytest.fixture(scope="module")
def repository(home) -> Path:
    write_repository(str(home / "runs" / "second"), "team/pets-net", home / "hub", onnx=True, license="mit")
    return home / "hub"


def begun(**changes) -> str:
    return beginning_of(RANDOM | changes, published()).text


def test_no_published_file_tells_a_path(home, repository):
    files = [file for file in repository.rglob("*") if file.is_file()]
    assert len(files) == 5
    for file in files:
        content = file.read_bytes()
        assert home.name.encode() not in content, file
        assert b"secret" not in content, file


def test_a_card_names_a_folder_of_images_by_its_end(repository):
    card = ModelCard.load(repository / "README.md")
    assert "trained on pets with bossnet-zoo" in card.content
    assert {result.dataset_type for result in card.data.eval_results} == {"pets"}


def test_a_card_of_two_classes_has_no_top5(repository):
    card = ModelCard.load(repository / "README.md")
    assert "top-5" not in card.content.lower()
    assert "\n| image size | top-1 |\n|---|---|\n| 32 | " in card.content
    assert [result.metric_name for result in card.data.eval_results] == ["Top-1 accuracy (%)"]


def test_a_card_says_what_the_run_began_with_and_where_its_settings_are(repository):
    text = (repository / "README.md").read_text()
    assert (
        "Training began with the weights of another run, trained on pets. That run began with random weights." in text
    )
    assert "the config.json of this repository is timm's description of the network" in text
    assert "is in the run's config.json" not in text
    assert "\n| licence | mit |\n" in text


def test_a_card_says_that_the_authors_weights_carry_no_licence(home, tmp_path):
    first = home / "runs" / "first" / "config.json"
    before = load_json(first)
    save_json(first, before | {"model": "resnet18", "pretrained": True})
    assert begun(init=str(first.parent / "best.safetensors")) == (
        "Training began with the weights of another run, trained on pets. That run began with the published weights of "
        "resnet18, whose licence is not known to this card."
    )
    save_json(first, before | {"model": "bossnet_t0", "pretrained": True})
    write_repository(str(home / "runs" / "second"), "team/pets-net", tmp_path, license="mit")
    save_json(first, before)
    text = (tmp_path / "README.md").read_text()
    assert "weights of bossnet_t0, the authors' release, which carries no licence of its own." in text
    assert "\n| licence | mit, as whoever trained it says; the authors' weights that it began with carry none" in text
    assert ModelCard.load(tmp_path / "README.md").data.license == "mit"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "bossnet_t0", "pretrained": True},
        {"model": "bossnet_t0.ema_in1k", "pretrained": True},
        {"init": "/home/jane/BossNet-T0-80_8.pth"},
    ],
)
def test_the_authors_release_is_known_by_its_name(changes):
    beginning = beginning_of(RANDOM | changes, published())
    assert beginning.is_release
    assert beginning.text.endswith("the authors' release, which carries no licence of its own.")
    assert "jane" not in beginning.text


@pytest.mark.parametrize(("file", "whose"), [("best.safetensors", "another run"), ("model.safetensors", "a file")])
def test_weights_whose_origin_is_gone_are_said_to_be_of_unknown_origin(file, whose):
    assert begun(init=f"/home/jane/secret/{file}") == (
        f"Training began with the weights of {whose}, {file}; what that began with, and its licence, are not known to "
        "this card."
    )


def test_runs_that_began_with_each_other_are_followed_once(home, tmp_path):
    config = load_config(home / "runs" / "first")
    for name, other in (("a", "b"), ("b", "a")):
        save_json(tmp_path / name / "config.json", config | {"init": str(tmp_path / other / "best.safetensors")})
        (tmp_path / name / "best.safetensors").touch()
    assert "are not known to this card" in begun(init=str(tmp_path / "a" / "best.safetensors"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *(
            (name, name)
            for name in ("digits", "digits:hard", "cifar10", "hf:pets", "hf:team/pets", "hf:team/pets:small")
        ),
        ("cifar100:/home/jane/data", "cifar100"),
        ("hf:/home/jane/pets", "pets"),
        ("/home/jane/pets/", "pets"),
        ("../jane/pets", "pets"),
        ("/home/jane/{000..012}.tar", "{000..012}.tar"),
        (".", "a folder of images"),
        ("..", "a folder of images"),
        ("/", "a folder of images"),
    ],
)
def test_names_of_images(data, name):
    assert public_name(data) == name


def test_an_int8_file_names_its_calibration_images_by_their_end(tmp_path):
    folder = tmp_path / "jane" / "pets"
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number,) * 3).save(folder / f"{number}.png")
    request = Request(
        precision="int8", input_size=32, calibration=str(folder), calibration_count=4, tolerance=Tolerance(None, 0.0)
    )
    (report,) = export_network(trained(), "net", tmp_path / "out", request)
    assert "calibrated on 4 images of pets" in read_onnx(report.file)[1].notes
    assert b"jane" not in b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
