"""Training: the recipe's arithmetic, where it begins, and what stops it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import ARCH, CPU, FROZEN, OPTIONS, TINY, fit

import bossnet_zoo.train as training
from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import BossNetError, CheckpointError, DataError, UsageError
from bossnet_zoo.runs import build_model, load_config, load_run, open_model
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.train import train

# --- the recipe's arithmetic


def test_the_arithmetic_of_a_step_is_printed(pictures, tmp_path, capsys):
    fit(pictures, tmp_path / "run", replace(TINY, epochs=1), device_batch=4)
    assert "a step: 8 images = 1 x 2 x 4 (processes x accumulation x images at once)" in capsys.readouterr().err


def test_dropout_and_drop_path_are_the_recipes(pictures, tmp_path, monkeypatch):
    seen = {}

    def build(name, **options):
        seen.update(options)
        return build_model(name, **options)

    monkeypatch.setattr(training, "build_model", build)
    fit(pictures, tmp_path / "run", replace(TINY, epochs=1, drop_rate=0.3))
    assert (seen["drop_rate"], seen["drop_path_rate"]) == (0.3, 0.1)


def test_bfloat16_trains_where_the_runtime_has_it(pictures, tmp_path):
    result = fit(pictures, tmp_path / "run", replace(TINY, epochs=1), Runtime(torch.device("cpu"), torch.bfloat16))
    assert load_file(result.weights)["conv1.weight"].dtype == torch.float32
    assert load_json(tmp_path / "run" / "config.json")["precision"] == "bfloat16"


def test_running_statistics_are_averaged_over_micro_batches(pictures, tmp_path):
    """A step moves them by the mean over its micro-batches, not by one after another."""
    plain = replace(
        TINY, epochs=1, mixup=0.0, cutmix=0.0, lr=0.0, warmup_epochs=0, min_lr=0.0, global_batch=24, repeats=1
    )
    fit(pictures, tmp_path / "one", plain, device_batch=24)
    fit(pictures, tmp_path / "four", plain, device_batch=6)
    one, four = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "four"))
    torch.testing.assert_close(one["bn1.running_mean"], four["bn1.running_mean"])  # a mean of means is the mean


# --- where training begins


def test_training_begins_with_a_file_of_weights(pictures, whole_run, tmp_path):
    start = whole_run / "last.safetensors"
    fit(pictures, tmp_path / "run", FROZEN, init=start)
    assert torch.equal(load_file(tmp_path / "run" / "last.safetensors")["fc.weight"], load_file(start)["fc.weight"])


def test_a_classifier_for_other_classes_begins_fresh_and_the_rest_does_not(whole_run, tmp_path, capsys):
    for name in ("red", "green", "blue"):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (36, 36), name).save(tmp_path / "colours" / name / f"{number}.png")
    start = whole_run / "last.safetensors"
    fit(tmp_path / "colours", tmp_path / "run", FROZEN, init=start)
    trained = load_file(tmp_path / "run" / "last.safetensors")
    assert trained["fc.weight"].shape[0] == 3
    assert torch.equal(trained["layer3.0.proj.0.weight"], load_file(start)["layer3.0.proj.0.weight"])
    assert "begin fresh: fc.weight, fc.bias" in capsys.readouterr().err


def test_training_begins_with_another_run(pictures, whole_run, tmp_path):
    train(str(whole_run), str(pictures), FROZEN, tmp_path / "run", CPU, tensorboard=False)
    trained, config = load_run(tmp_path / "run", "model")
    assert config["model_options"] == {"arch": ARCH, **OPTIONS}
    assert config["init"] == str(whole_run / "best.safetensors")
    assert torch.equal(trained.fc.weight, load_file(whole_run / "best.safetensors")["fc.weight"])


def test_training_begins_with_an_extracted_network_and_outlives_its_folder(pictures, whole_run, tmp_path):
    from timm.models._hub import save_config_for_hf

    source = tmp_path / "warm"
    source.mkdir()
    network, _ = load_run(whole_run, "model")
    (source / "model.safetensors").write_bytes((whole_run / "last.safetensors").read_bytes())
    save_config_for_hf(network, str(source / "config.json"), model_args={"arch": ARCH, **OPTIONS})
    assert torch.equal(open_model(str(source)).fc.weight, network.fc.weight)
    out, same = tmp_path / "run", tmp_path / "same"
    train(str(source), str(pictures), FROZEN, out, CPU, tensorboard=False)
    train(f"local-dir:{source}", str(pictures), FROZEN, same, CPU, pretrained=True, tensorboard=False)
    assert load_config(same) == load_config(out)
    shutil.rmtree(source)
    loaded, config = load_run(out, "model")
    assert config["model"] == "hytra"
    assert config["model_options"].items() >= {"arch": ARCH, **OPTIONS}.items()
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    resumed = {**training.arguments_of(config), "out": out, "runtime": CPU, "tensorboard": False}
    assert train(**resumed, resume=True).top1 == load_json(out / "summary.json")["top1"]


def test_weights_of_another_network_are_refused(pictures, whole_run, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit"):
        fit(pictures, tmp_path / "run", init=whole_run / "last.safetensors", model_options={"base_width": 8})
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_option_that_the_network_does_not_have_is_an_error(pictures, tmp_path):
    with pytest.raises(UsageError, match="bse_width"):
        fit(pictures, tmp_path / "run", model_options={"bse_width": 4})
    for option in ("num_classes", "pretrained"):
        with pytest.raises(UsageError, match=f"{option} is no option of a network that is to be trained"):
            fit(pictures, tmp_path / "run", model_options={option: 2})


# --- what stops it, and what does not


@pytest.mark.parametrize(("step", "good"), [(1, "no epoch was finished"), (4, r"last\.safetensors, of epoch 1")])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_last_good_checkpoint(
    pictures, tmp_path, monkeypatch, step, good
):
    calls = 0
    cross_entropy = training.F.cross_entropy

    def failing(logits, targets, **options):
        nonlocal calls
        calls += logits.requires_grad
        return cross_entropy(logits, targets, **options) * (torch.nan if calls == step + 1 else 1)

    monkeypatch.setattr(training.F, "cross_entropy", failing)
    place = f"epoch {step // 3 + 1}, step {step % 3 + 1} of 3: loss nan"
    with pytest.raises(BossNetError, match=rf"{place}.*{good}"):
        fit(pictures, tmp_path / "run")
    if step > 3:
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "last.safetensors").values())


def test_training_without_labels_is_an_error(tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="has no labels, and"):
        fit(tmp_path, tmp_path / "run")


def test_unreadable_images_are_counted_in_the_summary(pictures, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    (copy / "train" / "dark" / "3.png").write_text("no image")
    fit(copy, tmp_path / "run", replace(TINY, epochs=1, repeats=1))
    assert load_json(tmp_path / "run" / "summary.json")["unreadable_images"] == 1
    assert "3.png cannot be read as an image" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"^[^\n]*3\.png cannot be read as an image[^\n]*$"):
        fit(copy, tmp_path / "strict", replace(TINY, epochs=1, repeats=1), strict_images=True, workers=1)
