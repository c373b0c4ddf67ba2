"""Whole searches in every space: presets, coverage, convergence, and weights that become plain timm models."""

from __future__ import annotations

import contextlib
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from searching import CPU
from tiny_search import SPACE_OPTIONS, run_search, tiny_settings, write_images
from typer.testing import CliRunner

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.determinism import seeded
from bossnet_zoo.errors import UsageError
from bossnet_zoo.search import run as run_module
from bossnet_zoo.search.cli import app
from bossnet_zoo.search.extract import extract
from bossnet_zoo.search.prefix import chain_of, load_prefix
from bossnet_zoo.search.ranking import over_epochs
from bossnet_zoo.search.rating_table import read_ratings
from bossnet_zoo.search.run import open_setup, search, start_run
from bossnet_zoo.search.settings import METHODS, get_preset
from bossnet_zoo.search.stage import calibration_views
from bossnet_zoo.search.truth_table import TruthTable
from bossnet_zoo.search.views import VIEWS, augment_batch, image_transform

LAST = {"hytra": "layer4", "mbconv": "blocks.5", "nats": "cells"}  # behind it stands what no search trains


@pytest.mark.parametrize("name", SPACE_OPTIONS)
def test_a_search_ends_in_a_timm_model_that_computes_what_the_supernet_does(tmp_path, name):
    result = run_search(tmp_path, space=name)
    run, space = tmp_path / "run", result.table.make_space()
    best = result.best[0].arch
    assert load_json(run / "architectures.json")[0]["architecture"] == str(best)
    assert extract(run, None, tmp_path / "warm", CPU, num_classes=3) == str(best)
    model = timm.create_model(f"local-dir:{tmp_path / 'warm'}", pretrained=True).eval()
    images, features = torch.randn(2, 3, 32, 32), {}
    model.get_submodule(LAST[name]).register_forward_hook(lambda *call: features.update(last=call[2]))
    with torch.no_grad():
        assert model(images).shape == (2, 3)
    views = calibration_views(open_setup(run, CPU))
    prefix = load_prefix(space, chain_of(space, best), run / "blocks", views, CPU)
    assert torch.equal(features["last"], prefix(images))


# --- coverage


def test_full_coverage_trains_every_block_for_every_entry_and_scores_the_whole_space(tmp_path):
    options = {"block_layers": [1, 1, 1, 1], "base_width": 8, "default_resolution": 32}
    result = run_search(tmp_path, coverage="full", space_options=options, num_paths=1)
    space = result.table.make_space()
    table = read_ratings(tmp_path / "run" / "ratings.json")
    assert sum(len(tables) for tables in table.blocks) == 13
    assert len(list((tmp_path / "run" / "blocks").glob("*.safetensors"))) == 13
    assert table.meta["covered"] == table.coverage(space) == 1
    generator = random.Random(0)
    assert all(table.score(space, space.sample(generator)) is not None for _ in range(50))
    assert "the whole space" in (tmp_path / "run" / "report.html").read_text()


def test_greedy_coverage_says_which_part_of_the_space_it_scores(tmp_path):
    result = run_search(tmp_path)
    space, table = result.table.make_space(), read_ratings(tmp_path / "run" / "ratings.json")
    assert [len(tables) for tables in table.blocks] == [1, 1]
    scored = sum(
        table.score(space, space.join((first, second))) is not None
        for first in space.paths(0)
        for second in space.paths(1, space.exit(0, None, first))
    )
    assert table.meta["covered"] == scored / space.count()
    assert 0 < scored < space.count()


# --- convergence


def test_ratings_of_every_epoch_give_a_curve_of_rank_correlation(tmp_path):
    result = run_search(tmp_path, epochs=3, rating_every=1, space="nats")
    space = result.table.make_space()
    records = [record for record in read_jsonl(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "rating"]
    assert sorted({record["epoch"] for record in records}) == [1, 2, 3]
    archs = [str(space.sample(random.Random(seed))) for seed in range(8)]
    truth = TruthTable("nats", {text: result.table.score(space, space.parse(text)) for text in archs})
    curve = over_epochs(space, result.table, records, truth)
    assert [point["epoch"] for point in curve] == [1, 2, 3]
    assert curve[-1]["kendall"] == pytest.approx(-1)  # the truth here is the final score, of which less is better


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_search_by_any_method_ends_in_the_same_ratings(tmp_path, monkeypatch, method):
    settings = tiny_settings(write_images(tmp_path / "images"), method=method, epochs=2)
    for name in ("whole", "interrupted"):
        start_run(tmp_path / name, settings, CPU)
    whole = search(settings, tmp_path / "whole", CPU)
    save = run_module.save_stage

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    interruptions = 0
    monkeypatch.setattr(run_module, "save_stage", save_and_stop)
    while not (tmp_path / "interrupted" / "architectures.json").exists():
        with contextlib.suppress(KeyboardInterrupt):
            search(settings, tmp_path / "interrupted", CPU)
            continue
        interruptions += 1
    assert interruptions == 2 if method == "unnas" else interruptions == 4
    assert read_ratings(tmp_path / "interrupted" / "ratings.json") == whole.table
    seconds = ("seconds", "images_per_second")
    logs = [
        [{key: record[key] for key in record if key not in seconds} for record in read_jsonl(run / "metrics.jsonl")]
        for run in (tmp_path / "whole", tmp_path / "interrupted")
    ]
    assert logs[0] == logs[1]


def test_a_search_in_bfloat16_keeps_its_weights_and_rates_about_as_in_float32(tmp_path):
    """The same draws in both, so that nothing but the arithmetic differs."""
    settings = tiny_settings(write_images(tmp_path / "images"), epochs=1)
    ratings = {}
    for dtype in (torch.float32, torch.bfloat16):
        runtime, out = replace(CPU, amp_dtype=dtype), tmp_path / str(dtype)
        start_run(out, settings, runtime)
        table = search(settings, out, runtime).table
        ratings[dtype] = np.array(list(table.blocks[0]["any"].values()))
        stored = load_file(out / "blocks" / "block1-any.safetensors").values()
        assert {tensor.dtype for tensor in stored if tensor.is_floating_point()} == {torch.float32}
        assert all(np.isfinite(record["loss"]) for record in read_jsonl(out / "metrics.jsonl") if "loss" in record)
    difference = np.abs(ratings[torch.bfloat16] - ratings[torch.float32])
    assert 0 < difference.max() < 0.5  # of 8; a bfloat16 has three digits
    assert np.ptp(ratings[torch.float32]) > 0


# --- presets


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACE_OPTIONS)
def test_every_space_and_method_has_a_preset_that_fits_it(space, method):
    teacher = {"teacher": "test_resnet"} if method == "dna" else {}
    for name in ("paper", "demo"):
        settings = get_preset(name, space, method, **teacher)
        assert (settings.space, settings.method) == (space, method)
        assert settings.accumulation(1) >= 1
        assert len(VIEWS[settings.views]) == 2 or method != "bossnas"
        made = settings.make_space()
        assert made.default_resolution == settings.resolution
        assert method == "unnas" or all(
            len(made.paths(block, entry)) >= settings.num_paths
            for block in range(made.num_blocks)
            for entry in made.entries(block)
        )


def test_the_papers_cifar_search_is_as_the_paper_says():
    settings = get_preset("paper", "nats")
    assert (settings.epochs, settings.resolution, settings.global_batch, settings.learning_rate) == (30, 32, 4096, 4.8)
    assert settings.make_space().block_layers == (2, 2, 1)
    first, second = VIEWS[settings.views]
    assert (first.shift * 32, first.flip, first.jitter, first.blur, first.grey) == (4, 0.5, 0, 0, 0)
    assert first == second
    assert get_preset("paper", "nats", data="cifar100").make_space().block_layers == (2, 1, 2)
    chosen = get_preset("paper", "nats", data="cifar100", space_options={"dataset": "cifar10"})
    assert chosen.make_space().block_layers == (2, 2, 1)


@pytest.mark.parametrize("place", ["workers", "device"])
def test_cifar_views_are_shifted_over_black_by_whole_pixels_and_mirrored_half_the_time(place):
    recipe = replace(VIEWS["cifar"][0], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if place == "workers":
        transform = image_transform(recipe, 32)
        with seeded(0):
            views = torch.stack([transform(Image.fromarray(pixels)) for _ in range(60)])
    else:
        views = augment_batch(image.repeat(60, 1, 1, 1), recipe, 32, torch.Generator().manual_seed(0))
    padded = F.pad(image / 255, (4, 4, 4, 4))
    crops = {(dx, dy): padded[:, dy : dy + 32, dx : dx + 32] for dx in range(9) for dy in range(9)}
    seen = [
        (shift, mirrored)
        for view in views
        for shift, crop in crops.items()
        for mirrored in (False, True)
        if torch.allclose(view, crop.flip(2) if mirrored else crop, atol=2e-3)
    ]
    assert len(seen) == 60
    assert {dx for (dx, _), _ in seen} == {dy for (_, dy), _ in seen} == set(range(9))
    assert 15 < sum(mirrored for _, mirrored in seen) < 45


def test_the_other_methods_train_as_their_authors_do():
    dna, unnas = get_preset("paper", method="dna"), get_preset("paper", method="unnas")
    assert (dna.teacher, dna.teacher_pretrained, dna.epochs, dna.learning_rate) == ("resnet50", True, 20, 0.005)
    assert (unnas.epochs, unnas.num_paths, unnas.learning_rate) == (2, 1, 0.05 * unnas.global_batch / 32)


def test_bossnas_needs_two_views_and_enough_paths(tmp_path):
    with pytest.raises(UsageError, match="one view of an image, and bossnas needs two"):
        get_preset("demo", views="crops")
    settings = tiny_settings(write_images(tmp_path / "images"), "nats", num_paths=4)
    with pytest.raises(UsageError, match="block3-any has 2 paths, fewer than 4"):
        start_run(tmp_path / "run", settings, CPU)


# --- the command line


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["search", *arguments])


@pytest.mark.parametrize(
    ("space", "count", "blocks"), [("mbconv", "1,048,576", 5), ("nats", "1,024", 3), ("hytra", "2,818,103", 4)]
)
@pytest.mark.parametrize(
    ("method", "optimiser"),
    [("bossnas", "LARS 4.8 (614.4 at 4096)"), ("dna", "teacher test_resnet"), ("unnas", "SGD 0.05 (0.05 at 32)")],
)
def test_every_space_and_method_can_be_planned(space, count, blocks, method, optimiser):
    options = ["--teacher", "test_resnet"] if method == "dna" else []
    if space == "hytra" and method != "bossnas":  # whose every block takes a second
        options += ["--space-option", "block_layers=[1,2]"]
        count, blocks = "48", 2
    result = invoke("--space", space, "--method", method, *options, "--preset", "demo", "--dry-run")
    assert result.exit_code == 0, result.exception
    assert f"{space}: {count} architectures, {blocks} blocks" in result.stdout
    assert optimiser in result.stdout
    rows = re.findall(r"^(\d|all) +1 of \d ", result.stdout, re.MULTILINE)
    assert rows == (["all"] if method == "unnas" else [f"{block + 1}" for block in range(blocks)])
    assert all(len(line) <= 110 for line in result.stdout.splitlines())


def test_options_of_the_space_are_given_by_name():
    result = invoke("--space", "nats", "--space-option", "widths=[8,16,24,32,40]", "--preset", "demo", "--dry-run")
    assert "3,125 architectures" in result.stdout
    changed = "with widths=[8,16,24,32,40], default_resolution=16 (32,768 architectures without options) "
    assert changed in result.stdout.replace("\n", " ")
    result = invoke("--space", "nats", "--space-option", "width=[8]", "--preset", "demo", "--dry-run")
    assert isinstance(result.exception, UsageError)
    assert "did you mean widths" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "unnas", "--ensemble"], "--ensemble is an option of bossnas, not of unnas"),
        (["--method", "byol"], "unknown method 'byol'"),
        (["--method", "dna"], "needs a teacher"),
    ],
)
def test_a_wrong_request_is_refused(arguments, message):
    result = invoke("--preset", "demo", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
