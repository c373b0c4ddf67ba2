"""What a training run leaves in its folder, and how it is opened again."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import ARCH, CPU, OPTIONS, TINY, Killed, fit

import bossnet_zoo.train as training
from bossnet_zoo import checkpoint, recipe_parts, runs, training_run
from bossnet_zoo.checkpoint import load_json, read_jsonl, read_metadata
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import CheckpointError, UsageError
from bossnet_zoo.evaluate import measure_accuracy
from bossnet_zoo.runs import build_model, load_run, open_model
from bossnet_zoo.training_run import State, open_folder


def test_a_run_is_overwritten_only_when_asked(pictures, whole_run, tmp_path):
    before = (whole_run / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run; continue it with --resume .*, or begin anew with --overwrite"):
        fit(pictures, whole_run)
    assert (whole_run / "last.safetensors").read_bytes() == before
    out = tmp_path / "run"
    one_epoch = replace(TINY, epochs=1)
    fit(pictures, out, one_epoch)
    fit(pictures, out, one_epoch, overwrite=True, seed=1)
    assert load_json(out / "config.json")["seed"] == 1
    assert len(read_jsonl(out / "metrics.jsonl")) == 1


def test_a_finished_run_can_be_loaded_by_name_and_measures_the_same(pictures, whole_run):
    network, config = load_run(whole_run, "ema")
    assert config["architecture"] == ARCH
    assert config["class_names"] == ["dark", "light"]
    assert network.pretrained_cfg["input_size"] == [3, 32, 32]
    assert network.pretrained_cfg["label_names"] == ["dark", "light"]
    last = read_jsonl(whole_run / "metrics.jsonl")[-1]
    for kind, top1 in (("ema", last["ema_top1"]), ("model", last["top1"])):
        images = open_images(str(pictures), "test")
        accuracy = measure_accuracy(open_model(str(whole_run), kind), images, config["preprocessing"], CPU)
        assert accuracy.top1 == pytest.approx(top1)


def test_weights_say_what_they_are(whole_run):
    with safe_open(whole_run / "best.safetensors", "pt") as file:
        about = file.metadata()
    best = load_json(whole_run / "summary.json")
    assert about["weights"] in ("ema", "model")
    assert float(about["top1"]) == pytest.approx(best["best_top1"], abs=1e-3)
    assert int(about["epoch"]) == best["best_epoch"]
    raw, ema = (load_file(whole_run / name) for name in ("last.safetensors", "last_ema.safetensors"))
    assert not torch.equal(raw["conv1.weight"], ema["conv1.weight"])


def test_weights_under_the_name_of_others_are_refused(whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    (run / "last.safetensors").replace(run / "best.safetensors")
    with pytest.raises(CheckpointError, match=r"best\.safetensors holds what the run wrote as last\.safetensors"):
        load_run(run)
    shutil.copy(run / "last_ema.safetensors", run / "mine.safetensors")  # a name of one's own is no claim
    load_run(run / "mine.safetensors")


def test_resuming_compares_the_best_weights_with_the_state(pictures, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    best = run / "best.safetensors"
    fit(pictures, run, resume=True)  # as they are
    weights, about = load_file(best), read_metadata(best)
    checkpoint.save_weights(best, weights, {**about, "epoch": "7"})
    with pytest.raises(CheckpointError, match="which the run's state remembers"):
        fit(pictures, run, resume=True)
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        fit(pictures, run, resume=True)
    best.unlink()
    fit(pictures, run, resume=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", [0.5, 0.5]), ("std", [1, 0, 1]), ("std", [10**400] * 3), ("input_size", [3, 0, 8]), ("crop_pct", 0)],
)
def test_preprocessing_that_cannot_be_is_refused(whole_run, tmp_path, name, value):
    config = load_json(whole_run / "config.json")
    config["preprocessing"][name] = value
    checkpoint.save_json(tmp_path / "config.json", config)
    with pytest.raises(UsageError, match=f"preprocessing: {name} is .*, which .*cannot be"):
        load_run(tmp_path)


def test_a_local_network_without_weights_is_one_sentence(tmp_path):
    checkpoint.save_json(tmp_path / "config.json", {"architecture": "test_bossnet_t"})
    with pytest.raises(
        CheckpointError, match=r"has no file of weights; model\.safetensors belongs beside config\.json"
    ):
        open_model(f"local-dir:{tmp_path}")


def test_a_hub_network_that_names_files_elsewhere_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Invalid filename '../../evil':\ncannot contain a '..' path segment")

    monkeypatch.setattr(runs, "create_model", refuse)
    with pytest.raises(
        CheckpointError, match=r"hf-hub:team/x cannot be opened, .*: Invalid filename '../../evil': cannot"
    ):
        open_model("hf-hub:team/x")


def test_epochs_without_a_test_change_nothing_but_what_is_known(pictures, whole_run, tmp_path):
    result = fit(pictures, tmp_path / "run", test_every=TINY.epochs)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert ["top1" in record for record in records] == [False] * (TINY.epochs - 1) + [True]
    assert result.best_epoch == TINY.epochs - 1
    for name in ("last.safetensors", "last_ema.safetensors"):
        found, expected = (load_file(run / name) for run in (tmp_path / "run", whole_run))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    with safe_open(whole_run / "last.safetensors", "pt") as file:
        assert float(file.metadata()["top1"]) == pytest.approx(result.top1, abs=1e-3)


def test_a_run_that_has_no_weights_yet_says_so(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_step", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        fit(pictures, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has not finished an epoch"):
        load_run(tmp_path / "run")


def test_metrics_go_to_tensorboard_too(pictures, tmp_path):
    out = tmp_path / "run"
    fit(pictures, out, tensorboard=True)
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    records = read_jsonl(out / "metrics.jsonl")
    for name in ("train_loss", "top1", "ema_top1", "lr"):
        written = [(event.step, event.value) for event in board.Scalars(name)]
        assert written == [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in records]


def test_a_missing_tensorboard_is_said_aloud(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert training_run.open_board(tmp_path / "tensorboard", 0) is None
    assert 'pip install "bossnet-zoo[tensorboard]"' in capsys.readouterr().err


# --- the state


def test_the_state_covers_everything_that_changes(pictures, tmp_path):
    network = build_model(ARCH, num_classes=2, **OPTIONS)
    state = State(network, recipe_parts.moving_average(TINY, network), recipe_parts.optimizer(TINY, network), epoch=3)
    state.last = {"top1": 1.5}
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    state.optimizer.step()
    state.save(tmp_path / "state.pt")
    other = build_model(ARCH, num_classes=2, **OPTIONS)
    loaded = State(other, recipe_parts.moving_average(TINY, other), recipe_parts.optimizer(TINY, other))
    loaded.load(tmp_path / "state.pt")
    assert (loaded.epoch, loaded.last) == (3, {"top1": 1.5})
    for mine, theirs in ((network, other), (state.ema.module, loaded.ema.module)):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    moments = [[s["exp_avg"] for s in each.optimizer.state.values()] for each in (state, loaded)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert json.dumps(loaded.last)


def test_a_state_has_its_checksum_even_if_the_program_dies_between_the_two(tmp_path, monkeypatch):

    path = tmp_path / "state.pt"
    checkpoint.save_state(path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            checkpoint.save_state(path, {"step": 2})
    assert checkpoint.load_state(path) == {"step": 1}
    checkpoint.save_state(path, {"step": 3})
    assert checkpoint.load_state(path) == {"step": 3}


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="holds other files, and no run"):
        open_folder(tmp_path, {}, resume=False, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]
    with pytest.raises(UsageError, match="cannot be made a folder"):
        open_folder(tmp_path / "photo.png" / "run", {}, resume=False, overwrite=False)
