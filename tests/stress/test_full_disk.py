"""Disks that fill up during a checkpoint, an export or a report: a sentence, and nothing half-written or lost.

Every disk is a tmpfs of its own, too small for what is written to it; that is known from a run on a large one.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mutations
import pytest
import warm
from killing import broken_files, content, differences, temporary_files
from warm import SEARCH

pytestmark = pytest.mark.stress
LARGE, PAGE = 64 << 20, 4096
SIZES = 8  # of disks, for each command

TRAIN = "train test_bossnet_t --recipe bossnet-t --smoke --epochs 2 --global-batch 16 --image-size 32 --save-every 1"
TRUTH = (
    "truth --space nats --space-option widths=[8,16] --sample 2 --recipe bossnet-m --smoke --epochs 1 "
    "--global-batch 16 --image-size 8 --device cpu"
)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes in `folder`; calling what is given changes its size."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk of a size of its own cannot be mounted here: {done.stderr.strip()}")

    folder.mkdir(exist_ok=True)
    mount(f"size={size}")
    try:
        yield lambda other: mount(f"remount,size={other}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def used(folder: Path) -> int:
    """Bytes on a disk, in whole pages."""
    total, _, free = shutil.disk_usage(folder)
    return total - free


def most_used(command: warm.Command, folder: Path) -> int:
    """The most bytes that were on a disk while a command ran, as often as one can look."""
    most = 0
    while command.is_running():
        most = max(most, used(folder))
    return max(most, used(folder))


def sizes(smallest: int, largest: int) -> list[int]:
    """From a disk that is full already, but for a page, to one on which the last files just do not fit."""
    step = max(PAGE, (largest - smallest) // SIZES // PAGE * PAGE)
    return list(range(smallest + PAGE, largest, step))[:SIZES] or [smallest + PAGE]


@pytest.mark.parametrize("line", [SEARCH, TRAIN, TRUTH], ids=["search", "train", "truth"])
def test_a_disk_that_fills_up_while_a_run_is_saved(line, tmp_path, images, labelled, tally):
    """The run stops with a sentence, and once there is space it goes on to the end that it would have come to."""
    command, *options = line.split()
    options += ["--data", str(images if command == "search" else labelled)]
    with disk(tmp_path / "disk", LARGE):
        run = tmp_path / "disk" / "run"
        largest = most_used(warm.Command([command, *options, "--out", run], tmp_path), tmp_path / "disk")
        expected = content(run)
    assert expected
    with tally("full disks during a checkpoint, an export or a report") as counts:
        for size in sizes(0, largest):
            with disk(tmp_path / "disk", size) as resize:
                run = tmp_path / "disk" / "run"
                stopped = warm.run([command, *options, "--out", run], tmp_path)
                wrong = _wrong(stopped, tmp_path / "disk")
                resize(LARGE)
                again = (
                    ["--resume", run, "--device", "cpu"] if (run / "config.json").exists() else [*options, "--out", run]
                )
                ended = warm.run([command, *again], tmp_path)
                wrong = wrong or (str(ended) if ended.code else differences(expected, run))
                counts.count(not wrong, f"{size} of {largest} bytes: {wrong}")


@pytest.mark.parametrize(
    "line",
    [
        "export {0}/trained --onnx --out {0}/out",
        "publish {0}/trained --repo team/x --onnx --dry-run --out {0}/out",
        "eval {0}/trained --out {0}/out",
        "report {0}/searched",
        "rank --ratings {0}/searched/ratings.json --truth {0}/searched/truth.json",
        "extract {0}/searched --out {0}/out --device cpu",
    ],
    ids=lambda line: line.split()[0],
)
def test_a_disk_that_fills_up_while_a_result_is_written(line, tmp_path, trained, searched, tally):
    """What lay there is as it was; the same command does it once there is space."""

    def fill(folder: Path) -> list[str]:
        shutil.copytree(trained, folder / "trained")
        shutil.copytree(searched, folder / "searched")
        return line.format(folder).split()

    with disk(tmp_path / "disk", LARGE):
        arguments = fill(tmp_path / "disk")
        before = used(tmp_path / "disk")
        command = warm.Command(arguments, tmp_path)
        largest = most_used(command, tmp_path / "disk")
        assert command.wait().code == 0
        expected = content(tmp_path / "disk")
    with tally("full disks during a checkpoint, an export or a report") as counts:
        for size in sizes(before, largest):
            with disk(tmp_path / "disk", LARGE) as resize:
                arguments = fill(tmp_path / "disk")
                older = mutations.snapshot(tmp_path / "disk")
                resize(size)
                stopped = warm.run(arguments, tmp_path)
                changed = [file for file, was in older.items() if (tmp_path / "disk" / file).read_bytes() != was]
                wrong = _wrong(stopped, tmp_path / "disk")
                if stopped.code and changed:
                    wrong += f"; changed: {changed}"
                resize(LARGE)
                ended = warm.run(arguments, tmp_path) if stopped.code else stopped
                wrong = wrong or (str(ended) if ended.code else differences(expected, tmp_path / "disk"))
                counts.count(not wrong, f"{size} of {largest} bytes: {wrong}")


def _wrong(outcome: warm.Outcome, folder: Path) -> str:
    """What is not as it should be after a command that had too little space, or just enough; '' for nothing."""
    if outcome.code and not outcome.is_sentence:
        return str(outcome)
    left = temporary_files(folder)
    return f"left over: {left}" if left else broken_files(folder)
