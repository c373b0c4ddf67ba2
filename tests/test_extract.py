"""From a finished search to a plain timm model with the weights and BN statistics of its path."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from searching import CPU, pixels
from tiny_search import tiny_settings, write_images
from typer.testing import CliRunner

from bossnet_zoo import cli
from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import ArchitectureError, CheckpointError, UsageError
from bossnet_zoo.search import extract as extraction
from bossnet_zoo.search.cli import app as search_app
from bossnet_zoo.search.extract import best_architecture, extract, inherit, training_command
from bossnet_zoo.search.prefix import chain_of, load_prefix
from bossnet_zoo.search.run import open_setup, search, search_progress, start_run
from bossnet_zoo.search.stage import calibration_views


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A search on labelled images."""
    root = tmp_path_factory.mktemp("search")
    for label in ("cat", "dog"):
        write_images(root / "images" / label, count=24)
    options = {"block_layers": [1, 1], "base_width": 8, "default_resolution": 32}
    settings = tiny_settings(root / "images", space_options=options)
    start_run(root / "run", settings, CPU, "demo")
    search(settings, root / "run", CPU)
    return root / "run"


def test_the_best_architecture_inherits_the_function_of_its_path(run):
    space, _ = search_progress(run)
    network = inherit(run, None, CPU, num_classes=5).eval()
    assert str(network.arch) == best_architecture(run) == load_json(run / "architectures.json")[0]["architecture"]
    chain = chain_of(space, space.parse(str(network.arch)))
    prefix = load_prefix(space, chain, run / "blocks", calibration_views(open_setup(run, CPU)), CPU)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_features(pixels(2)), prefix(pixels(2)), rtol=1e-4, atol=1e-5)
        assert network(pixels(2)).shape == (2, 5)


def test_the_extracted_folder_loads_as_a_timm_model_without_the_search(run, tmp_path):
    text = extract(run, None, tmp_path / "model", CPU, num_classes=5)
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert str(loaded.arch) == text
    expected = inherit(run, None, CPU, num_classes=5).eval()
    with torch.no_grad():
        images = pixels(2)
        torch.testing.assert_close(loaded.forward_features(images), expected.forward_features(images))


def test_the_extracted_network_wants_images_of_the_size_that_it_was_trained_at(run, tmp_path):
    extract(run, None, tmp_path / "net", CPU)
    model = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)


def test_no_code_of_the_search_is_needed_to_load_it(run, tmp_path):
    extract(run, None, tmp_path / "model", CPU, num_classes=5)
    program = """
import sys, timm, bossnet_zoo
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True)
print(type(model).__name__, model.num_classes, any(name.startswith("bossnet_zoo.search") for name in sys.modules))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["HyTra", "5", "False"]


def test_the_printed_command_trains_from_the_inherited_weights(run, tmp_path, monkeypatch):
    """As printed: with the options of the space, the pixels of the search and its images."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(search_app, ["extract", str(run), "--out", "my nets/warm", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    command = shlex.split(re.search(r"^next: bossnet (.*?)$", done.stderr, re.MULTILINE)[1])
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    config = load_json(Path("my nets/warm-trained/config.json"))
    assert config["init"] == "my nets/warm/model.safetensors"
    assert config["model_options"]["base_width"] == 8
    assert config["preprocessing"]["input_size"] == [3, 32, 32]


def test_the_printed_command_fits_the_search(run, monkeypatch):
    def printed(**changes):
        settings = replace(tiny_settings(run.parent / "images"), **changes)
        monkeypatch.setattr(extraction, "resume_settings", lambda _: settings)
        monkeypatch.setattr(extraction, "read_config", lambda _: {"preset": "paper"})
        return training_command(run, Path("warm"))

    images = run.parent / "images"
    start = "bossnet train warm --data"
    end = "--out warm-trained"
    assert printed(resolution=224) == f"{start} {images} --recipe bossnet-t {end}"
    assert printed(space="nats", resolution=32) == f"{start} {images} --recipe bossnet-m --image-size 32 {end}"
    unlabelled = str(images / "cat")
    assert printed(data=unlabelled, resolution=224) == f"{start} LABELLED_IMAGES --recipe bossnet-t {end}"


def test_an_output_that_holds_files_is_not_touched(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds files; choose another --out"):
        extract(run, None, tmp_path, CPU)
    with pytest.raises(UsageError, match="already holds files; choose another --out"):
        extract(run, None, tmp_path / "notes.txt", CPU)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_illegal_architecture_is_named(run):
    with pytest.raises(ArchitectureError, match="the stride jumps from 4 to 16"):
        inherit(run, "4c-16c", CPU)
    with pytest.raises(ArchitectureError, match="has 3 layers; this space has 2"):
        inherit(run, "4ccc", CPU)


def test_an_architecture_that_the_search_did_not_train_says_how_to(run):
    space, table = search_progress(run)
    (trained,) = table.blocks[1]
    untrained = next(
        str(space.join((first, second)))
        for first in space.paths(0)
        if space.entry_text(space.exit(0, None, first)) != trained
        for second in space.paths(1, space.exit(0, None, first))
    )
    with pytest.raises(UsageError, match=r"did not train block2-\d+, which .* needs; search with --coverage full"):
        inherit(run, untrained, CPU)


def test_an_unfinished_search_says_how_to_finish_it(run, tmp_path):
    for name in ("config.json", "ratings.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(CheckpointError, match="is not finished; go on with: bossnet search --resume"):
        inherit(tmp_path, None, CPU)
    with pytest.raises(UsageError, match="is no run directory"):
        inherit(tmp_path / "none", None, CPU)
