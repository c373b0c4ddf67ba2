"""What a search keeps in memory: the block in training and the chosen paths before it, however long it runs."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bench_memory
import pytest
from searching import CPU, SETTINGS, make_setup, tiny_prefix
from tiny_search import tiny_settings, write_images
from torch import Tensor, nn

from bossnet_zoo.search.counting import count_parameters
from bossnet_zoo.search.prefix import Stage
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.stage import BlockTraining, calibration_views

THREE_BLOCKS = {"block_layers": [1, 1, 1], "base_width": 8, "default_resolution": 32}


def living(kind: type[Tensor] = Tensor) -> Iterator[Tensor]:
    gc.collect()
    return (thing for thing in gc.get_objects() if type(thing) is kind)


def test_a_search_holds_the_block_in_training_and_the_chosen_paths_before_it(tmp_path, monkeypatch):
    elsewhere = list(living(nn.Parameter))
    others = {id(parameter) for parameter in elsewhere}  # no new one is given such an id
    held: dict[str, tuple[int, int, int]] = {}
    train_epoch = BlockTraining.train_epoch

    def train_and_look(training):
        loss = train_epoch(training)
        everything = sum(p.numel() for p in living(nn.Parameter) if id(p) not in others)
        held[training.name] = everything, count_parameters(training.siamese), count_parameters(training.prefix)
        return loss

    monkeypatch.setattr(BlockTraining, "train_epoch", train_and_look)
    settings = tiny_settings(write_images(tmp_path / "images"), space_options=THREE_BLOCKS)
    start_run(tmp_path / "run", settings, CPU)
    best = search(settings, tmp_path / "run", CPU).best[0].arch
    assert [everything for everything, _, _ in held.values()] == [block + paths for _, block, paths in held.values()]
    space = settings.make_space()
    stem = 7 * 7 * 3 * 8 + 2 * 8
    before, entry, expected = 0, None, []
    for block, path in enumerate(space.split(best)):
        expected.append(before)
        before += space.path_cost(block, entry, path, 32).params + (block == 0) * stem
        entry = space.exit(block, entry, path)
    assert [paths for _, _, paths in held.values()] == expected


def test_at_full_width_a_search_holds_less_than_a_third_of_both_networks():
    whole, held = bench_memory.count_held(bench_memory.PAPER)
    assert whole == pytest.approx(1.8e9, rel=0.05)
    assert max(held) < whole / 3


def test_nothing_piles_up_from_epoch_to_epoch(tmp_path):
    space = SETTINGS.make_space()
    settings = replace(SETTINGS, num_paths=len(space.paths(1, 3)))  # every path has a momentum after the first step
    training = BlockTraining(make_setup(tmp_path, settings), Stage(1, 3), tiny_prefix(tmp_path, "32c"))
    calibration = calibration_views(training.setup)
    counts = []
    for _ in range(3):
        training.train_epoch()
        training.rate(calibration)
        training.state_dict()
        sizes = [tensor.nbytes for tensor in living()]
        counts.append((len(sizes), sum(sizes)))
    assert counts[0] == counts[1] == counts[2]


LONG_RUN = Path(__file__).parents[1] / "benchmarks" / "bench_memory.py"


@pytest.mark.slow
def test_the_process_of_a_long_run_does_not_grow():
    command = [sys.executable, str(LONG_RUN), "--base-width", "16", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # 0: the bars hold
    measured = found["measured"]
    assert measured["grown_mib"] < measured["growth_bar_mib"]
    assert measured["stage_mib"] < measured["all_blocks_mib"] / 2
