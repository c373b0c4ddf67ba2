"""One of two processes is dropped in the middle of a step: the other stops with a sentence, and does not wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.stress
TRAIN = (
    "train test_bossnet_t --data digits --recipe bossnet-t --smoke --epochs 50 --image-size 32 --global-batch 32 "
    "--save-every 1 --device cpu"
)
SEARCH = (
    "search --preset demo --space nats --space-option widths=[8,16] --num-paths 2 --epochs 50 --global-batch 8 "
    "--micro-batch 4 --calibration-images 8 --rating-images 4 --device cpu"
)
STEPPED = {TRAIN: "state.pt", SEARCH: "metrics.jsonl"}  # written after the first step, so the second is on its way


@pytest.mark.parametrize("dropped", [0, 1])
@pytest.mark.parametrize(
    ("line", "number"), [(TRAIN, signal.SIGKILL), (TRAIN, signal.SIGTERM), (SEARCH, signal.SIGKILL)]
)
def test_the_other_process_stops_with_a_sentence(line, number, dropped, tmp_path, tally):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bossnet_zoo", *line.split(), "--out", str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / STEPPED[line]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[dropped].send_signal(number)
    start = time.monotonic()
    said = processes[1 - dropped].communicate(timeout=120)[1]
    seconds = time.monotonic() - start
    processes[dropped].communicate(timeout=60)
    last = said.rstrip().splitlines()[-1]
    with tally("one of two processes dropped in mid-step: the other stops within a minute") as counts:
        stopped = processes[1 - dropped].returncode == 1 and "Traceback" not in said and seconds < 60
        counts.count(stopped and "error: process" in said, f"after {seconds:.0f} s: {last}")
