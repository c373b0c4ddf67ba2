"""SIGKILL at seeded random moments of search, train, truth and publish, again and again, then the end: the same bytes.

The undisturbed runs are made by `python -m bossnet_zoo`, started as a user does.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from hub_server import Hub
from killing import Chain, broken_files, content, differences

pytestmark = pytest.mark.stress
KILLS = 10  # of each chain; three chains of each command

SEARCH = "search --preset demo --epochs 2 --global-batch 8 --micro-batch 4 --calibration-images 8 --rating-images 4"
TRAIN = "--smoke --epochs 3 --global-batch 16 --image-size 32 --save-every 1 --recipe"
TRUTH = "truth --space nats --smoke --epochs 2 --global-batch 16 --image-size 8"
HYTRA = "--space-option block_layers=[1,2] --space-option base_width=8 --space-option default_resolution=32"
CHAINS = (
    f"{SEARCH} --space hytra --num-paths 2 --resolution 32 --rating-every 1 {HYTRA}",
    f"{SEARCH} --space mbconv --method dna --teacher test_resnet --no-teacher-pretrained "
    "--space-option block_layers=[1,1,1,1,1]",
    f"{SEARCH} --space nats --method unnas --space-option widths=[8,16]",
    f"train test_bossnet_t {TRAIN} bossnet-t",
    f"train 8:8:16:8:8 {TRAIN} bossnet-m",
    f"train test_bossnet_m {TRAIN} finetune",
    f"{TRUTH} --space-option widths=[8,16] --sample 3 --recipe bossnet-m",
    f"{TRUTH} --space-option widths=[8,16] --sample 2 --seeds 2 --recipe bossnet-m",
    f"{TRUTH} --space-option widths=[8,24] --sample 3 --weights ema --recipe bossnet-t",
)


@pytest.mark.parametrize("line", CHAINS, ids=lambda line: " ".join(line.split()[:2]))
def test_a_killed_run_resumes_to_the_same_bytes(line, tmp_path, images, labelled, tally):
    command, *options = line.split()
    options += ["--data", str(images if command == "search" else labelled), "--device", "cpu"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    _undisturbed([command, *options, "--out", whole])
    expected = content(whole)
    begin = [command, *options, "--out", folder]
    chain = Chain(begin, [*begin, "--overwrite"], [command, "--resume", folder, "--device", "cpu"], folder)
    timed = [command, *options, "--out", tmp_path / "timed"]
    start = time.monotonic()
    assert warm.run(timed, tmp_path).code == 0
    seconds = time.monotonic() - start

    with tally(f"SIGKILL of `bossnet {command}`, then `--resume`") as counts:
        for verdict in chain.kill_often(
            KILLS,
            random.Random(line),
            seconds,
            wrong_after_kill=lambda: broken_files(folder),
            wrong_at_end=lambda: differences(expected, folder),
        ):
            counts.count(not verdict, verdict)


@pytest.mark.parametrize("number", range(3))
def test_a_killed_publication_leaves_the_old_commit_or_the_new_one(number, tmp_path, trained, hub: Hub, tally):
    repo, folder, whole = f"team/killed-{number}", tmp_path / "run", tmp_path / "whole"
    options = ["--repo", repo, *(["--onnx"] if number == 2 else [])]
    _undisturbed(["publish", trained, *options, "--dry-run", "--out", whole])
    expected = content(whole)
    sent = {name: file.read_bytes() for name, file in _published(whole).items()}
    begin = ["publish", trained, *options, "--out", folder]

    def wrong_after_kill() -> str:
        if hub.files.get(repo, {}) not in ({}, sent):
            return f"{repo} holds half a commit: {sorted(hub.files[repo])}"
        return broken_files(folder)

    def wrong_at_end() -> str:
        wrong = differences(expected, folder) or ("" if hub.files.pop(repo) == sent else f"{repo} has other bytes")
        hub.large.clear()  # the next run sends everything again
        return wrong

    with tally("SIGKILL of `bossnet publish`, then once more") as counts:
        for verdict in Chain(begin, begin, begin, folder).kill_often(
            KILLS,
            random.Random(repo),
            seconds=12 if number == 2 else 1,
            wrong_after_kill=wrong_after_kill,
            wrong_at_end=wrong_at_end,
        ):
            counts.count(not verdict, verdict)


def _published(folder: Path) -> dict[str, Path]:
    """Files by their path in the repository; the record of the comparison with PyTorch stays at home."""
    names = {str(file.relative_to(folder)): file for file in warm.files_below(folder)}
    return {name: file for name, file in names.items() if not name.endswith(".onnx.json")}


def _undisturbed(arguments: list[object]) -> None:
    command = [sys.executable, "-m", "bossnet_zoo", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
