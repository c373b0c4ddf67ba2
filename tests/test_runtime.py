"""Device, precision and processes in one value, whose collective operations do nothing in a single process."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from searching import CPU

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.runtime import Runtime


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_on_a_cpu_is_float32_and_the_main_one():
    with Runtime.open("cpu") as runtime:
        assert runtime == CPU
        assert runtime.is_main
        assert runtime.description == "cpu, float32, 1 process"


def test_auto_takes_the_gpu_only_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Runtime.open().device.type == "cpu"


def test_a_runtime_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CPU.rank = 1


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [
        ("gpu", "auto", "unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:N, mps"),
        ("cpu", "half", "unknown precision 'half'; allowed: auto, float32, bfloat16"),
    ],
)
def test_unknown_names_say_what_is_allowed(device, precision, said):
    with pytest.raises(UsageError) as error:
        Runtime.open(device, precision)
    assert str(error.value) == said


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device 'cuda' is not available here; type --device auto or --device cpu"):
        Runtime.open("cuda")


def test_autocast_is_on_for_bfloat16_alone():
    matrix = torch.ones(2, 2)
    with CPU.autocast():
        assert (matrix @ matrix).dtype == torch.float32
    assert isinstance(CPU.autocast(), contextlib.nullcontext)
    with Runtime.open("cpu", "bfloat16").autocast():
        assert (matrix @ matrix).dtype == torch.bfloat16


def test_collective_operations_of_one_process_do_nothing():
    tensor = torch.tensor([1.0, 2.0])
    CPU.average_([tensor])
    assert CPU.sum_(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    assert CPU.gather("value") == ["value"]
    assert CPU.broadcast("value") == "value"
    CPU.barrier()
    assert list(CPU.shard(3)) == [0, 1, 2]


@pytest.mark.parametrize("num_items", [0, 1, 7, 8])
def test_shares_are_disjoint_and_complete(num_items):
    shares = [dataclasses.replace(CPU, rank=rank, world_size=3).shard(num_items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(num_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_lost_connection_to_another_process_is_a_sentence():
    runtime = Runtime(torch.device("cpu"), rank=1, world_size=2)
    with pytest.raises(BossNetError, match=r"process 1 of 2 stopped, for another one has ended.*--resume"), runtime:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:29500")
    with pytest.raises(RuntimeError, match="shapes"), runtime:
        raise RuntimeError("shapes do not fit")


def test_threads_are_limited_for_a_while_and_given_back():
    before = torch.get_num_threads()
    for asked, expected in ((before + 1, before + 1), (None, before)):
        with Runtime.open("cpu").threads(asked):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == before
