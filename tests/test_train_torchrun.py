"""`torchrun ... -m bossnet_zoo train`, as typed: two processes on the CPU end where one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bossnet_zoo.checkpoint import load_json, read_jsonl

COMMAND = (
    "-m bossnet_zoo train test_bossnet_t --data digits --recipe bossnet-t --smoke --epochs 2 --image-size 32 "
    "--global-batch 64 --device-batch 32 --device cpu --out"
)


def train(launcher: list[str], out: Path) -> str:
    """What the training says on stderr."""
    command = [*launcher, *COMMAND.split(), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2"]
    said = train(torchrun, tmp_path / "two")
    assert "a step: 64 images = 2 x 1 x 32" in said
    assert said.count("a step:") == 1  # one process speaks for both
    assert "a step: 64 images = 1 x 2 x 32" in train([sys.executable], tmp_path / "one")
    two, one = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert len(two) == len(one) == 2
    assert load_json(tmp_path / "two" / "config.json")["runtime"] == "cpu, float32, 2 processes"
    for record, other in zip(two, one, strict=True):
        assert record["lr"] == other["lr"]
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert record["top1"] == pytest.approx(other["top1"], abs=1)  # percent: of 360 images
