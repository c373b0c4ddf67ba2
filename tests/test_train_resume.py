"""Training that is killed and resumed, or shared by two processes, ends in the weights of one that was not."""

from __future__ import annotations

import shutil
import signal
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TINY, Killed, assert_same_weights, fit, start

import bossnet_zoo.train as training
from bossnet_zoo import training_run
from bossnet_zoo.checkpoint import load_json, load_state, read_jsonl
from bossnet_zoo.errors import CheckpointError, UsageError


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
def test_a_killed_run_resumes_to_the_same_weights_to_the_bit(pictures, whole_run, tmp_path, monkeypatch, place, call):
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
            fit(pictures, out, save_every=2)
    result = fit(pictures, out, save_every=2, resume=True)
    assert_same_weights(whole_run, out)
    timed = ("seconds", "images_per_second")
    records, expected = (
        [
            {key: value for key, value in record.items() if key not in timed}
            for record in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (out, whole_run)
    )
    assert records == expected
    assert result.top1 == load_json(whole_run / "summary.json")["top1"]


@pytest.mark.parametrize("kill_at", [1, 2], ids=["within an epoch", "between epochs"])
def test_kill_9_then_resume_gives_the_same_weights(pictures, whole_run, tmp_path, kill_at):
    out = tmp_path / "run"
    assert start(pictures, out, kill_at).wait(timeout=120) == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    state = load_state(out / "state.pt")
    assert (state["epoch"], state["step"]) == [(0, 2), (1, 0)][kill_at - 1]
    fit(pictures, out, save_every=2, resume=True)
    assert_same_weights(whole_run, out)


def test_two_processes_train_the_same_network_as_one(pictures, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [start(pictures, tmp_path / "two", RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    fit(pictures, tmp_path / "one", device_batch=4)
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


# --- what cannot be resumed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": replace(TINY, epochs=3)}, r"recipe\.epochs was 2, now 3"),
        ({"seed": 5}, "seed was 0, now 5"),
        ({"model_options": {"base_width": 8}}, r"model_options\.base_width was 4, now 8"),
        ({"device_batch": 4}, "device_batch was 8, now 4"),
    ],
)
def test_resuming_with_other_settings_is_an_error(pictures, whole_run, change, named):
    with pytest.raises(UsageError, match=named):
        fit(pictures, whole_run, resume=True, **change)


def test_resuming_what_is_no_run_is_an_error(pictures, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        fit(pictures, tmp_path / "none", resume=True)


def test_a_damaged_state_is_an_error_whose_remedy_works(pictures, tmp_path):
    out = tmp_path / "run"
    fit(pictures, out, replace(TINY, epochs=1))
    shutil.copytree(out, tmp_path / "whole")
    content = bytearray((out / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged.*remove it, and --resume begins at the first epoch"):
        fit(pictures, out, replace(TINY, epochs=1), resume=True)
    (out / "state.pt").unlink()
    fit(pictures, out, replace(TINY, epochs=1), resume=True)
    assert_same_weights(tmp_path / "whole", out)
    assert [record["epoch"] for record in read_jsonl(out / "metrics.jsonl")] == [0]
