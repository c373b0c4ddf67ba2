"""Whole searches small enough for a test: made-up images, settings to search on them, and what interrupts a search."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from searching import CPU
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bossnet_zoo import checkpoint
from bossnet_zoo.checkpoint import read_jsonl
from bossnet_zoo.search.run import SearchResult, search, start_run
from bossnet_zoo.search.settings import SearchSettings, get_preset

RUN_FILES = {
    "architectures.json",
    "blocks",
    "config.json",
    "metrics.jsonl",
    "ratings.json",
    "report.html",
    "split.json",
    "tensorboard",
}
SPACE_OPTIONS: dict[str, dict[str, Any]] = {
    "hytra": {"block_layers": [1, 2], "base_width": 8, "default_resolution": 32},
    "mbconv": {"block_layers": [1, 1, 1, 1, 1], "width": 0.25, "default_resolution": 32},
    "nats": {"widths": [8, 16], "default_resolution": 16},
}


def write_images(folder: Path, count: int = 19, side: int = 32) -> Path:
    """A folder of smooth random colour images without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder


def tiny_settings(data: Path, space: str = "hytra", method: str = "bossnas", **changes: Any) -> SearchSettings:
    """The demo's settings in miniature; `changes` override them."""
    small: dict[str, Any] = {
        "data": str(data),
        "space_options": SPACE_OPTIONS[space],
        "resolution": SPACE_OPTIONS[space]["default_resolution"],
        "epochs": 1,
        "global_batch": 8,
        "micro_batch": 4,
        "hidden": 16,
        "projection": 8,
        "calibration_images": 8,
        "workers": 0,  # starting one takes longer than what it would do
        "rating_images": 4,
    }
    if method == "bossnas":
        small["num_paths"] = 2
    if method == "dna":
        small |= {"teacher": "test_resnet", "teacher_pretrained": False}
    return get_preset("demo", space, method, **{**small, **changes})


def run_search(folder: Path, **changes: Any) -> SearchResult:
    """A finished search in `folder/run` on made-up images in `folder/images`."""
    settings = tiny_settings(write_images(folder / "images"), **changes)
    start_run(folder / "run", settings, CPU)
    return search(settings, folder / "run", CPU)


def untimed(run: Path) -> list[dict]:
    records = read_jsonl(run / "metrics.jsonl")
    return [{key: r[key] for key in r if key not in ("seconds", "images_per_second")} for r in records]


def shown(run: Path) -> dict[str, dict[str, dict[int, float]]]:
    """What TensorBoard shows of a search but its speed: by stage and figure, the values by step."""
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for folder in (run / "tensorboard").iterdir():
        board = EventAccumulator(str(folder)).Reload()
        names = set(board.Tags()["scalars"]) - {"images_per_second"}
        figures[folder.name] = {name: {event.step: event.value for event in board.Scalars(name)} for name in names}
    return figures


def assert_same_search(run: Path, expected: Path) -> None:
    """Ratings, architectures, weights and log are equal to the bit."""
    for name in ("ratings.json", "architectures.json", "split.json"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    blocks = sorted(file.name for file in (expected / "blocks").iterdir())
    assert sorted(file.name for file in (run / "blocks").iterdir()) == blocks
    for name in blocks:
        tensors, others = load_file(run / "blocks" / name), load_file(expected / "blocks" / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
    assert untimed(run) == untimed(expected)
    assert shown(run) == shown(expected)
    assert {file.name for file in run.iterdir()} == RUN_FILES


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, so nothing is cleaned up but what the system would."""


def wait_for_another_second() -> None:
    """TensorBoard orders the files of a run by the second in which they were begun."""
    time.sleep(1 - time.time() % 1)


def run_until_killed(settings: SearchSettings, out: Path, monkeypatch, number: int, when: str) -> bool:
    """Search, and die before or after the given number of files got their names. Whether it came to that."""
    replacements, rename = 0, os.replace

    def renaming(source, target):
        nonlocal replacements
        replacements += 1
        if replacements == number and when == "before":
            leftover = Path(target).with_name(Path(source).name.replace(".tmp", "0.tmp"))
            leftover.write_bytes(Path(source).read_bytes())  # kill -9 leaves the temporary file
            raise Killed
        rename(source, target)
        if replacements == number and when == "after":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", renaming)
        try:
            search(settings, out, CPU)
        except Killed:
            wait_for_another_second()
            return True
    return False
