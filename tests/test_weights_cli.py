"""`bossnet eval` and `bossnet predict` of a name or an architecture with weights from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from tiny_training import ARCH, OPTIONS
from typer.testing import CliRunner

from bossnet_zoo import cli
from bossnet_zoo.checkpoint import load_json, save_weights
from bossnet_zoo.errors import CheckpointError

GIVEN = tuple(word for name, value in OPTIONS.items() for word in ("--option", f"{name}={value}"))


def run(*arguments: str | Path) -> str:
    """What a command prints on stdout; its error is raised."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--device", "cpu"])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_an_architecture_with_a_file_measures_as_the_run_of_that_file(whole_run, pictures, tmp_path, kind):
    file = whole_run / {"model": "last.safetensors", "ema": "last_ema.safetensors"}[kind]
    size = load_json(whole_run / "config.json")["preprocessing"]["input_size"][-1]
    where = ("--data", pictures, "--out", tmp_path, "--json")
    own = json.loads(run("eval", whole_run, "--weights", kind, *where))
    found = json.loads(run("eval", ARCH, "--weights", file, *GIVEN, "--input-size", size, *where))
    assert found["images"] == 8
    assert found["img_size"] == size
    assert (found["top1"], found["loss"]) == (own["top1"], pytest.approx(own["loss"], rel=1e-5))
    assert load_json(tmp_path / "eval.json")["weights"] == str(file)


def test_weights_of_another_architecture_are_refused(whole_run, pictures, tmp_path):
    with pytest.raises(CheckpointError, match=r"last.safetensors does not fit HyTra 4c-8c "):
        run("eval", "4c-8c", "--weights", whole_run / "last.safetensors", *GIVEN, "--data", pictures, "--out", tmp_path)


@pytest.fixture
def dogs_and_fish(tmp_path) -> Path:
    """Weights that find in every image first a golden retriever, class 207 of ImageNet, then a goldfish, class 1."""
    state = timm.create_model("test_bossnet_t").state_dict()
    state["fc.weight"].zero_()
    state["fc.bias"].zero_()
    state["fc.bias"][torch.tensor([207, 1])] = torch.tensor([12.0, 11.0])
    save_weights(tmp_path / "weights.safetensors", state)
    return tmp_path / "weights.safetensors"


def test_classes_of_imagenet_have_names(dogs_and_fish, tmp_path):
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "animal.png")
    command = ("predict", "test_bossnet_t", tmp_path / "animal.png", "--weights", dogs_and_fish, "--top", "2")
    assert run(*command).splitlines() == [  # exp(12) and exp(11) of exp(12) + exp(11) + 998
        str(tmp_path / "animal.png"),
        "   72.78 %  golden retriever",
        "   26.77 %  goldfish, Carassius auratus",
    ]
    answer = json.loads(run(*command, "--json"))
    assert [entry["name"] for entry in answer[0]["classes"]] == ["golden retriever", "goldfish, Carassius auratus"]
