"""The demo, from the images to the exported network, with everything shortened but no step left out."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import onnxruntime
import pytest
from searching import CPU
from typer.testing import CliRunner

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.cli import whole_app
from bossnet_zoo.errors import UsageError
from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.search import demo
from bossnet_zoo.search.settings import DEMO

REFERENCE = "32ccc"  # the most expensive of three layers, so that every search finds something under its cost


@pytest.fixture
def shortened(monkeypatch):
    """Three layers instead of 16, 32 pixels, one epoch of everything; images, views and batches are the demo's own."""
    options = {**DEMO.space_options, "block_layers": [1, 2], "default_resolution": 32}
    settings = replace(DEMO, space_options=options, resolution=32, epochs=1, num_paths=2, rating_images=64, workers=1)
    recipe = replace(BOSSNET_T.smoke(), epochs=1, warmup_epochs=0, image_size=32)
    monkeypatch.setattr(demo, "DEMO", settings)
    monkeypatch.setattr(demo, "REFERENCE", REFERENCE)
    monkeypatch.setattr(type(BOSSNET_T), "smoke", lambda self: recipe)
    return settings


def test_the_demo_runs_from_end_to_end(shortened, tmp_path, capsys):
    out = tmp_path / "demo"
    page = demo.run_demo(out, CPU)
    told = load_json(out / "demo.json")
    space = shortened.make_space()
    assert told["data"] == {"name": "digits", "train": 1078, "search_val": 359, "test": 360, "classes": 10}
    found, reference = told["retrained"]
    assert reference["architecture"] == told["reference"] == REFERENCE
    assert found["architecture"] == load_json(out / "architectures.json")[0]["architecture"]
    assert space.cost(space.parse(found["architecture"])).madds <= told["budget_madds"]
    assert all(10 < network["top1"] <= 100 for network in told["retrained"])
    assert [parity["batch"] for parity in told["export"]["parity"]] == [1, 2, 8]
    assert all(parity["max_abs"] < 1e-4 for parity in told["export"]["parity"])
    session = onnxruntime.InferenceSession(told["export"]["file"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    steps = [record for record in read_jsonl(out / "metrics.jsonl") if record["kind"] == "step"]
    assert len(steps) == 2 * (told["data"]["train"] // DEMO.global_batch)
    text = html.unescape(re.sub("<[^>]+>", "", page.read_text()))
    assert found["architecture"] in text
    assert all(command in text for _, command in told["commands"])
    printed, notes = capsys.readouterr()
    again = dict(told["commands"])["Measure the network again"].split()[1:]
    assert json.loads(CliRunner().invoke(whole_app(), [*again, "--json"]).stdout)["top1"] == found["top1"]
    assert found["architecture"] in printed
    searched = "hytra: 48 architectures, with block_layers=[1,2], base_width=8, se=false, act_layer=relu"
    assert f"searched   {searched}" in printed
    assert f"searching {searched}" in " ".join(notes.split())
    assert printed.splitlines()[-1].startswith("next: bossnet ")
    assert all(f"{number}. " in notes for number in range(1, 6))


def test_a_folder_of_other_things_is_refused_before_anything_is_announced(tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"another --out"):
        demo.run_demo(tmp_path, CPU, overwrite=True)
    assert capsys.readouterr() == ("", "")
