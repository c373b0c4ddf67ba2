"""The plan of an epoch: which images each process takes in each step, whatever their number."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from tiny_training import CPU

from bossnet_zoo.errors import UsageError
from bossnet_zoo.loading import Plan, end_quietly
from bossnet_zoo.recipes import BOSSNET_T


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


def test_a_batch_that_cannot_be_divided_names_the_nearest_one_below():
    for batch, processes, nearest in ((31, 1, 30), (33, 2, 32)):
        with pytest.raises(UsageError, match=f"choose for instance --global-batch {nearest}$"):
            Plan.make(100, replace(BOSSNET_T, global_batch=batch), 0, replace(CPU, world_size=processes))


def test_mixing_needs_even_micro_batches():
    assert Plan.make(100, replace(BOSSNET_T, global_batch=30), 0, CPU, limit=15).device_batch == 10
    with pytest.raises(UsageError, match="in even batches of at most 15 images"):
        Plan.make(100, replace(BOSSNET_T, global_batch=15), 0, CPU, limit=15)


def test_a_batch_of_one_image_has_no_statistics():
    with pytest.raises(UsageError, match=r"leaves a process less than two images.*choose --global-batch 2 or more"):
        Plan.make(100, replace(BOSSNET_T, global_batch=1), 0, CPU)


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


def test_a_worker_reports_every_error_but_broken_connections(monkeypatch):
    """Its tensors are fetched over a socket, which breaks when the process that it works for is interrupted."""
    reported = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: reported.append(kind))
    end_quietly(0)
    for error in (ConnectionResetError(), BrokenPipeError(), OSError(), ValueError()):
        sys.excepthook(type(error), error, None)
    assert reported == [OSError, ValueError]
