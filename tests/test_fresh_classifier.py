"""An extracted network's classifier knows nothing yet, and whatever opens the network says so; searches are no runs."""

from __future__ import annotations

import json

import pytest
import timm
from PIL import Image
from searching import CPU
from typer.testing import CliRunner

from bossnet_zoo.checkpoint import save_weights
from bossnet_zoo.cli_evaluate import app as evaluate_app
from bossnet_zoo.errors import UsageError
from bossnet_zoo.export.cli import app as export_app
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import read_onnx
from bossnet_zoo.fresh import FRESH_NOTE, is_fresh
from bossnet_zoo.runs import find_origin, open_model
from bossnet_zoo.search.extract import extract


@pytest.fixture(scope="module")
def extracted(whole_search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extracted") / "warm"
    extract(whole_search, None, folder, CPU, num_classes=5)
    return folder


def run(*arguments: object):
    app = export_app if arguments[0] in ("export", "publish") else evaluate_app
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result


def test_timm_opens_the_folder_with_the_fact_noted(extracted):
    assert is_fresh(timm.create_model(f"local-dir:{extracted}", pretrained=True))
    assert not is_fresh(timm.create_model("test_bossnet_t"))


def test_weights_of_ones_own_make_the_note_untrue(extracted, tmp_path):
    save_weights(tmp_path / "a.safetensors", open_model(str(extracted)).state_dict())
    assert not is_fresh(open_model(str(extracted), str(tmp_path / "a.safetensors")))
    name, options, _ = find_origin(str(extracted))  # with which a training begins
    assert not is_fresh(timm.create_model(name, **options))


@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_predict_says_that_the_answers_are_random(extracted, tmp_path, form):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    model = form.format(extracted)
    said = " ".join(run("predict", model, tmp_path / "a.png", "--device", "cpu").stderr.split())
    assert f"{model}: {FRESH_NOTE}; train it: bossnet train {extracted} --data DATA" in said


def test_export_says_so_and_so_does_its_file(extracted, tmp_path):
    assert FRESH_NOTE in " ".join(run("export", extracted, "--out", tmp_path).stderr.split())
    assert read_onnx(tmp_path / "warm.onnx")[1].notes == (FRESH_NOTE,)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    said = run("predict", tmp_path / "warm.onnx", tmp_path / "a.png", "--device", "cpu").stderr
    assert FRESH_NOTE in " ".join(said.split())


def test_a_trained_network_has_no_such_note(whole_run):
    assert Metadata.of(open_model(str(whole_run))).notes == ()


@pytest.mark.parametrize("command", ["export", "predict", "eval"])
def test_a_search_is_no_network_and_says_how_to_get_one(whole_search, tmp_path, command):
    more = {"export": ("--out", tmp_path), "predict": ("a.png",), "eval": ("--data", "digits", "--out", tmp_path)}
    with pytest.raises(UsageError, match=rf"run is a search; type bossnet extract {whole_search} --out FOLDER"):
        run(command, whole_search, *more[command])


def test_publish_says_what_to_do_with_what_is_no_run(extracted, tmp_path):
    with pytest.raises(UsageError, match=r"its classifier is fresh; train it, and publish that run: bossnet train"):
        run("publish", extracted, "--repo", "team/net", "--dry-run", "--out", tmp_path / "hub")
    with pytest.raises(UsageError, match=r"net.onnx is an exported file; publish the run .* --onnx"):
        run("publish", "net.onnx", "--repo", "team/net", "--dry-run", "--out", tmp_path / "hub")
    known = tmp_path / "known"
    known.mkdir()
    for file in extracted.iterdir():
        (known / file.name).write_bytes(file.read_bytes())
    config = json.loads((known / "config.json").read_text())
    del config["pretrained_cfg"]["notes"]
    (known / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=rf"is in the Hub's form already; send it with: hf upload ORG/NAME {known}"):
        run("publish", known, "--repo", "team/net", "--dry-run", "--out", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
