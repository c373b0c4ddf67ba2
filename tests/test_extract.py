"""From a finished search to a plain timm model with the weights and BN statistics of its path."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from searching import CPU, pixels
from tiny_search import run_search

from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import ArchitectureError, CheckpointError, UsageError
from bossnet_zoo.search.extract import best_architecture, extract, inherit
from bossnet_zoo.search.prefix import chain_of, load_prefix
from bossnet_zoo.search.run import open_setup, search_progress
from bossnet_zoo.search.stage import calibration_views


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("search")
    run_search(root, space_options={"block_layers": [1, 1], "base_width": 8, "default_resolution": 32})
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
