"""Training: the same weights whatever happens to the process, the recipe's arithmetic, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import bossnet_zoo.train as training
from bossnet_zoo import recipe_parts, training_run
from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import BossNetError, CheckpointError, DataError, UsageError
from bossnet_zoo.evaluate import measure_accuracy
from bossnet_zoo.loading import Plan
from bossnet_zoo.recipes import BOSSNET_M, BOSSNET_T, FINETUNE
from bossnet_zoo.runs import build_model, load_run, open_model
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.train import train
from bossnet_zoo.training_run import State

ARCH, OPTIONS = "4c-8c-16a", {"base_width": 4}
CPU = Runtime(torch.device("cpu"))
# Everything random in BossNet-T stays on: repeated augmentation, RandAugment, erasing, Mixup, CutMix, drop-path.
TINY = replace(BOSSNET_T, epochs=2, warmup_epochs=1, global_batch=8, image_size=32, lr=0.05, ema_decay=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 24 pictures to train on, and 8 to test on."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (36, 36), (40 + 150 * label, 10 * number, 99)).save(
                    root / part / name / f"{number}.png"
                )
    return root


def fit(folder: Path, out: Path, recipe=TINY, runtime=CPU, **options):
    options = {"tensorboard": False, "model_options": OPTIONS, **options}
    return train(ARCH, str(folder), recipe, out, runtime, **options)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(folder, out, save_every=2)
    return out


def assert_same_weights(first: Path, second: Path) -> None:
    for name in training_run.WEIGHTS.values():
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), f"{name}: {key}"


# --- killed and resumed


class Killed(BaseException):
    """Stands for the end of the process: everything in memory is lost."""


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("train_step", 2),  # in the first epoch, before any state was saved
        ("train_step", 4),  # in the first epoch, one step after a state was saved
        ("train_step", 5),  # between epochs
        ("train_step", 6),  # in the second epoch
        ("append_jsonl", 2),  # between an epoch's weights and its record
        ("State.save", 4),  # between an epoch's record and its state
    ],
)
def test_a_killed_run_resumes_to_the_same_weights_to_the_bit(folder, whole, tmp_path, monkeypatch, place, call):
    calls = 0
    owner = training_run.State if place == "State.save" else training
    name = place.removeprefix("State.")
    original = getattr(owner, name)

    def killing(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(Killed):
            fit(folder, out, save_every=2)
    result = fit(folder, out, save_every=2, resume=True)
    assert_same_weights(whole, out)
    timed = ("seconds", "images_per_second")
    records, expected = (
        [
            {key: value for key, value in record.items() if key not in timed}
            for record in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (out, whole)
    )
    assert records == expected
    assert result.top1 == load_json(whole / "summary.json")["top1"]


SCRIPT = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from bossnet_zoo import training_run
from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.train import train

folder, out, kill_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
recipe = replace(BOSSNET_T, epochs=2, warmup_epochs=1, global_batch=8, image_size=32, lr=0.05, ema_decay=0.9)
saves, save = 0, training_run.State.save

def save_and_die(self, path):
    global saves
    save(self, path)
    saves += 1
    if saves == kill_at:
        os.kill(os.getpid(), 9)

training_run.State.save = save_and_die
with Runtime.open("cpu") as runtime:
    train("4c-8c-16a", folder, recipe, out, runtime, model_options={"base_width": 4}, save_every=2,
          device_batch=4 if runtime.world_size > 1 else None, tensorboard=False)
"""


def start(folder: Path, out: Path, kill_at: int = 0, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(out), str(kill_at)], env=environment)


def test_kill_9_within_an_epoch_then_resume_gives_the_same_weights(folder, whole, tmp_path):
    out = tmp_path / "run"
    assert start(folder, out, kill_at=1).wait(timeout=120) == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    fit(folder, out, save_every=2, resume=True)
    assert_same_weights(whole, out)


def test_two_processes_train_the_same_network_as_one(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [start(folder, tmp_path / "two", RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    fit(folder, tmp_path / "one", device_batch=4)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name, tensor in one.items():
        if name.endswith("num_batches_tracked"):  # counts micro-batches of a process; nothing reads it
            continue
        torch.testing.assert_close(
            tensor, two[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    losses = [
        [record["train_loss"] for record in read_jsonl(tmp_path / run / "metrics.jsonl")] for run in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- a run's folder


def test_a_run_is_overwritten_only_when_asked(folder, whole, tmp_path):
    before = (whole / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run; continue it with --resume .*, or begin anew with --overwrite"):
        fit(folder, whole)
    assert (whole / "last.safetensors").read_bytes() == before
    out = tmp_path / "run"
    one_epoch = replace(TINY, epochs=1)
    fit(folder, out, one_epoch)
    fit(folder, out, one_epoch, overwrite=True, seed=1)
    assert load_json(out / "config.json")["seed"] == 1
    assert len(read_jsonl(out / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": replace(TINY, epochs=3)}, r"recipe\.epochs was 2, now 3"),
        ({"seed": 5}, "seed was 0, now 5"),
        ({"model_options": {"base_width": 8}}, r"model_options\.base_width was 4, now 8"),
        ({"device_batch": 4}, "device_batch was 8, now 4"),
    ],
)
def test_resuming_with_other_settings_is_an_error(folder, whole, change, named):
    with pytest.raises(UsageError, match=named):
        fit(folder, whole, resume=True, **change)


def test_resuming_what_is_no_run_is_an_error(folder, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        fit(folder, tmp_path / "none", resume=True)


def test_resuming_from_a_damaged_state_is_an_error(folder, tmp_path):
    out = tmp_path / "run"
    fit(folder, out, replace(TINY, epochs=1))
    content = bytearray((out / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        fit(folder, out, replace(TINY, epochs=1), resume=True)


def test_a_state_has_its_checksum_even_if_the_program_dies_between_the_two(tmp_path, monkeypatch):
    from bossnet_zoo import checkpoint

    path = tmp_path / "state.pt"
    checkpoint.save_state(path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            checkpoint.save_state(path, {"step": 2})
    assert checkpoint.load_state(path) == {"step": 1}
    checkpoint.save_state(path, {"step": 3})
    assert checkpoint.load_state(path) == {"step": 3}


def test_a_finished_run_can_be_loaded_by_name_and_measures_the_same(folder, whole):
    network, config = load_run(whole, "ema")
    assert config["architecture"] == ARCH
    assert config["class_names"] == ["dark", "light"]
    assert network.pretrained_cfg["input_size"] == [3, 32, 32]
    assert network.pretrained_cfg["label_names"] == ["dark", "light"]
    last = read_jsonl(whole / "metrics.jsonl")[-1]
    for kind, top1 in (("ema", last["ema_top1"]), ("model", last["top1"])):
        images = open_images(str(folder), "test")
        accuracy = measure_accuracy(open_model(str(whole), kind), images, config["preprocessing"], CPU)
        assert accuracy.top1 == pytest.approx(top1)


def test_weights_say_what_they_are(whole):
    with safe_open(whole / "best.safetensors", "pt") as file:
        about = file.metadata()
    best = load_json(whole / "summary.json")
    assert about["weights"] in ("ema", "model")
    assert float(about["top1"]) == pytest.approx(best["best_top1"], abs=1e-3)
    assert int(about["epoch"]) == best["best_epoch"]
    raw, ema = (load_file(whole / name) for name in ("last.safetensors", "last_ema.safetensors"))
    assert not torch.equal(raw["conv1.weight"], ema["conv1.weight"])


def test_epochs_without_a_test_change_nothing_but_what_is_known(folder, whole, tmp_path):
    result = fit(folder, tmp_path / "run", test_every=TINY.epochs)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert ["top1" in record for record in records] == [False] * (TINY.epochs - 1) + [True]
    assert result.best_epoch == TINY.epochs - 1
    for name in ("last.safetensors", "last_ema.safetensors"):
        found, expected = (load_file(run / name) for run in (tmp_path / "run", whole))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    with safe_open(whole / "last.safetensors", "pt") as file:
        assert float(file.metadata()["top1"]) == pytest.approx(result.top1, abs=1e-3)


def test_a_run_that_has_no_weights_yet_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_step", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        fit(folder, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has not finished an epoch"):
        load_run(tmp_path / "run")


def test_metrics_go_to_tensorboard_too(folder, tmp_path):
    fit(folder, tmp_path / "run", replace(TINY, epochs=1), tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_missing_tensorboard_is_said_aloud(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert training_run.open_board(tmp_path, 0) is None
    assert 'pip install "bossnet-zoo[tensorboard]"' in capsys.readouterr().err


# --- losses that are not finite


@pytest.mark.parametrize(("step", "good"), [(1, "no epoch was finished"), (4, r"last\.safetensors, of epoch 0")])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_last_good_checkpoint(
    folder, tmp_path, monkeypatch, step, good
):
    calls = 0
    cross_entropy = training.F.cross_entropy

    def failing(logits, targets, **options):
        nonlocal calls
        calls += logits.requires_grad
        return cross_entropy(logits, targets, **options) * (torch.nan if calls == step + 1 else 1)

    monkeypatch.setattr(training.F, "cross_entropy", failing)
    place = f"epoch {step // 3}, step {step % 3} of 3: loss nan"
    with pytest.raises(BossNetError, match=rf"{place}.*{good}"):
        fit(folder, tmp_path / "run")
    if step > 3:
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "last.safetensors").values())


# --- the plan of an epoch


def plan(world_size: int = 1, rank: int = 0, **changes) -> Plan:
    values = {"num_images": 50, "repeats": 1, "seed": 0, "global_batch": 16, "device_batch": 4, **changes}
    return Plan(world_size=world_size, rank=rank, **values)


def test_accumulation_is_derived_from_the_global_batch():
    recipe = replace(BOSSNET_T, global_batch=1024)
    eight = Plan.make(10_000, recipe, 0, replace(CPU, world_size=8))
    one = Plan.make(10_000, recipe, 0, CPU)
    small = Plan.make(10_000, recipe, 0, CPU, limit=100)
    assert (eight.device_batch, eight.accumulation) == (128, 1)
    assert (one.device_batch, one.accumulation) == (128, 8)
    assert (small.device_batch, small.accumulation) == (64, 16)


def test_the_arithmetic_of_a_step_is_printed(folder, tmp_path, capsys):
    fit(folder, tmp_path / "run", replace(TINY, epochs=1), device_batch=4)
    assert "a step: 8 images = 1 x 2 x 4 (processes x accumulation x images at once)" in capsys.readouterr().err


def test_mixing_needs_even_micro_batches():
    assert Plan.make(100, replace(BOSSNET_T, global_batch=30), 0, CPU, limit=15).device_batch == 10
    with pytest.raises(UsageError, match="in even batches of at most 15 images"):
        Plan.make(100, replace(BOSSNET_T, global_batch=15), 0, CPU, limit=15)


def test_too_few_images_for_one_step_are_an_error():
    with pytest.raises(UsageError, match=r"a global batch of 1024 needs 1024 images, there are 20; --global-batch N"):
        Plan.make(20, BOSSNET_T, 0, CPU)


def test_processes_share_the_micro_batches_of_one():
    alone = plan().micro_batches(epoch=3)
    both = [plan(2, rank).micro_batches(epoch=3) for rank in range(2)]
    assert len(alone) == 3 * 4
    assert [batch for pair in zip(*both, strict=True) for batch in pair] == alone


def test_every_epoch_has_its_own_order_and_no_sample_shares_its_key():
    first, second = (plan().micro_batches(epoch) for epoch in (0, 1))
    items = [item for batch in first for item in batch]
    assert len({index for index, *_ in items}) == len(items) == 48
    assert len({tuple(key) for _, *key in items}) == 48
    assert [item[0] for batch in second for item in batch] != [item[0] for item in items]
    assert [item for batch in plan(seed=1).micro_batches(0) for item in batch] != items


def test_an_epoch_continues_where_it_was_left():
    assert plan().micro_batches(epoch=0, first_step=2) == plan().micro_batches(epoch=0)[8:]


def test_repeated_augmentation_shows_fewer_images_in_several_ways():
    items = [item for batch in plan(repeats=3).micro_batches(0) for item in batch]
    assert len(items) == 48
    assert len({index for index, *_ in items}) == 16
    assert len({tuple(key) for _, *key in items}) == 48


# --- recipes in timm's terms


def rates(recipe, steps_per_epoch: int, steps: list[int]) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.peak_lr)
    schedule = recipe_parts.schedule(recipe, optimizer, steps_per_epoch)
    found = []
    for step in steps:
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_cosine_schedule_is_plain_arithmetic():
    import math

    found = rates(BOSSNET_T, 10, [0, 25, 50, 1500, 2999])
    cosine = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 3000)) / 2 for step in (50, 1500, 2999)]
    assert found == pytest.approx([1e-6, 1e-6 + 25 / 50 * (1e-3 - 1e-6), *cosine])


def test_the_step_schedule_falls_by_three_percent_every_2_4_epochs():
    found = rates(BOSSNET_M, 10, [50, 71, 72, 95, 96])
    assert found == pytest.approx([0.256 * 0.97**power for power in (2, 2, 3, 3, 4)])


@pytest.mark.parametrize("recipe", [BOSSNET_T, BOSSNET_M, FINETUNE], ids=lambda recipe: recipe.name)
def test_biases_and_normalisation_have_no_weight_decay(recipe):
    network = build_model("test_bossnet_t", num_classes=2)
    groups = recipe_parts.optimizer(recipe, network).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert set(decay) == {id(parameter) for parameter in network.parameters()}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else recipe.weight_decay), name


def test_finetuning_learns_slower_near_the_image():
    network = build_model("test_bossnet_t", num_classes=2)
    optimizer = recipe_parts.optimizer(FINETUNE, network)
    recipe_parts.schedule(FINETUNE, optimizer, 10).step_update(20)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    stem, middle, head = (
        rate[id(p)] for p in (network.conv1.weight, network.layer3[0].conv1.weight, network.fc.weight)
    )
    assert stem < middle < head
    assert middle / stem > FINETUNE.layer_decay**-2


@pytest.mark.parametrize("recipe", [BOSSNET_T, BOSSNET_M, FINETUNE], ids=lambda recipe: recipe.name)
def test_augmentation_works_at_every_magnitude(recipe):
    preprocessing = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = recipe_parts.train_transform(recipe, preprocessing)
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    posterizing = [op for step in transform.transforms for op in recipe_parts._operations(step) if "Poster" in op.name]
    assert posterizing
    for operation in posterizing:
        operation.prob, operation.magnitude_std = 1.0, 0
        for operation.magnitude in (0, 5, 10):
            assert operation(image).size == (16, 16)


def test_dropout_and_drop_path_are_the_recipes(folder, tmp_path, monkeypatch):
    seen = {}

    def build(name, **options):
        seen.update(options)
        return build_model(name, **options)

    monkeypatch.setattr(training, "build_model", build)
    fit(folder, tmp_path / "run", replace(TINY, epochs=1, drop_rate=0.3))
    assert (seen["drop_rate"], seen["drop_path_rate"]) == (0.3, 0.1)


def test_bfloat16_trains_where_the_runtime_has_it(folder, tmp_path):
    result = fit(folder, tmp_path / "run", replace(TINY, epochs=1), Runtime(torch.device("cpu"), torch.bfloat16))
    assert load_file(result.weights)["conv1.weight"].dtype == torch.float32
    assert load_json(tmp_path / "run" / "config.json")["precision"] == "bfloat16"


def test_running_statistics_are_averaged_over_micro_batches(folder, tmp_path):
    """A step moves them by the mean over its micro-batches, not by one after another."""
    plain = replace(
        TINY, epochs=1, mixup=0.0, cutmix=0.0, lr=0.0, warmup_epochs=0, min_lr=0.0, global_batch=24, repeats=1
    )
    fit(folder, tmp_path / "one", plain, device_batch=24)
    fit(folder, tmp_path / "four", plain, device_batch=6)
    one, four = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "four"))
    torch.testing.assert_close(one["bn1.running_mean"], four["bn1.running_mean"])  # a mean of means is the mean


# --- where training begins, and on what


def test_training_begins_with_a_file_of_weights(folder, whole, tmp_path):
    start = whole / "last.safetensors"
    frozen = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_epochs=0)
    fit(folder, tmp_path / "run", frozen, init=start)
    assert torch.equal(load_file(tmp_path / "run" / "last.safetensors")["fc.weight"], load_file(start)["fc.weight"])


def test_a_classifier_for_other_classes_begins_fresh_and_the_rest_does_not(whole, tmp_path, capsys):
    for name in ("red", "green", "blue"):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (36, 36), name).save(tmp_path / "colours" / name / f"{number}.png")
    frozen = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_epochs=0)
    start = whole / "last.safetensors"
    fit(tmp_path / "colours", tmp_path / "run", frozen, init=start)
    trained = load_file(tmp_path / "run" / "last.safetensors")
    assert trained["fc.weight"].shape[0] == 3
    assert torch.equal(trained["layer3.0.proj.0.weight"], load_file(start)["layer3.0.proj.0.weight"])
    assert "begin fresh: fc.weight, fc.bias" in capsys.readouterr().err


def test_training_begins_with_another_run(folder, whole, tmp_path):
    frozen = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_epochs=0)
    train(str(whole), str(folder), frozen, tmp_path / "run", CPU, tensorboard=False)
    trained, config = load_run(tmp_path / "run", "model")
    assert config["model_options"] == {"arch": ARCH, **OPTIONS}
    assert config["init"] == str(whole / "best.safetensors")
    assert torch.equal(trained.fc.weight, load_file(whole / "best.safetensors")["fc.weight"])


def test_training_begins_with_an_extracted_network_and_outlives_its_folder(folder, whole, tmp_path):
    from timm.models._hub import save_config_for_hf

    source = tmp_path / "warm"
    source.mkdir()
    network, _ = load_run(whole, "model")
    (source / "model.safetensors").write_bytes((whole / "last.safetensors").read_bytes())
    save_config_for_hf(network, str(source / "config.json"), model_args={"arch": ARCH, **OPTIONS})
    frozen = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_epochs=0)
    out = tmp_path / "run"
    options = {"pretrained": True, "tensorboard": False}
    train(f"local-dir:{source}", str(folder), frozen, out, CPU, **options)
    shutil.rmtree(source)
    loaded, config = load_run(out, "model")
    assert config["model"] == "hytra"
    assert config["model_options"].items() >= {"arch": ARCH, **OPTIONS}.items()
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    resumed = {**training.arguments_of(config), "out": out, "runtime": CPU, "tensorboard": False}
    assert train(**resumed, resume=True).top1 == load_json(out / "summary.json")["top1"]


def test_weights_of_another_network_are_refused(folder, whole, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit"):
        fit(folder, tmp_path / "run", init=whole / "last.safetensors", model_options={"base_width": 8})
    assert not (tmp_path / "run" / "config.json").exists()


def test_training_without_labels_is_an_error(tmp_path):
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="has no labels, and"):
        fit(tmp_path, tmp_path / "run")


def test_unreadable_images_are_counted_in_the_summary(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "train" / "dark" / "3.png").write_text("no image")
    fit(copy, tmp_path / "run", replace(TINY, epochs=1, repeats=1))
    assert load_json(tmp_path / "run" / "summary.json")["unreadable_images"] == 1
    assert "3.png cannot be read as an image" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"^[^\n]*3\.png cannot be read as an image[^\n]*$"):
        fit(copy, tmp_path / "strict", replace(TINY, epochs=1, repeats=1), strict_images=True, workers=1)


def test_an_option_that_the_network_does_not_have_is_an_error(folder, tmp_path):
    with pytest.raises(UsageError, match="bse_width"):
        fit(folder, tmp_path / "run", model_options={"bse_width": 4})


def test_the_state_covers_everything_that_changes(folder, tmp_path):
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
