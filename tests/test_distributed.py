"""Two processes with half of the micro-batches each: the same paths, and the figures of one, within float error."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from searching import CPU
from tiny_search import tiny_settings, write_images

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.errors import UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search import run as run_module
from bossnet_zoo.search.run import search, start_run

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.errors import UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search import run as run_module
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.settings import SearchSettings

settings, out = SearchSettings.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
with Runtime.open("cpu") as runtime:
    rank = runtime.rank
    floats, doubles = torch.tensor([1.0 + rank, 4.0]), torch.tensor([[2.0 * rank]], dtype=torch.float64)
    runtime.average_([floats, doubles])
    seen = {
        "average": [floats.tolist(), doubles.tolist()],
        "sum": runtime.sum_(torch.tensor([1.0, float(rank)])).tolist(),
        "gather": runtime.gather({"rank": rank}),
        "broadcast": runtime.broadcast(f"from {rank}"),
        "shard": list(runtime.shard(5)),
        "main": runtime.is_main,
        "description": runtime.description,
    }
    start_run(out, settings, runtime)
    result = search(settings, out, runtime)
    seen["best"] = str(result.best[0].arch)
    seen["blocks"] = [dict(entries) for entries in result.table.blocks]
    (out.parent / f"rank{rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folder with the same search by one process (`one`) and by two (`two`), and what each of the two saw."""
    root = tmp_path_factory.mktemp("distributed")
    settings = tiny_settings(
        write_images(root / "images"),
        space_options={"block_layers": [1, 1], "base_width": 8, "default_resolution": 32},
        epochs=2,
        rating_images=None,  # 4 images, then 1 alone: shares of different sizes
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(settings.to_json()), str(root / "two")]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    start_run(root / "one", settings, CPU)
    search(settings, root / "one", CPU)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return root


def records(run: Path, kind: str) -> list[dict]:
    return [record for record in read_jsonl(run / "metrics.jsonl") if record["kind"] == kind]


def test_collective_operations(runs):
    seen = [load_json(runs / f"rank{rank}.json") for rank in range(2)]
    for rank in range(2):
        assert seen[rank]["average"] == [[1.5, 4.0], [[1.0]]]
        assert seen[rank]["sum"] == [2.0, 1.0]
        assert seen[rank]["gather"] == [{"rank": 0}, {"rank": 1}]
        assert seen[rank]["broadcast"] == "from 0"
        assert seen[rank]["description"] == "cpu, float32, 2 processes"
    assert [seen[rank]["shard"] for rank in range(2)] == [[0, 2, 4], [1, 3]]
    assert [seen[rank]["main"] for rank in range(2)] == [True, False]


def test_every_process_ends_with_the_same_ratings_and_architecture(runs):
    first, second = (load_json(runs / f"rank{rank}.json") for rank in range(2))
    assert first["best"] == second["best"] == load_json(runs / "two" / "architectures.json")[0]["architecture"]
    written = [block["entries"] for block in load_json(runs / "two" / "ratings.json")["blocks"]]
    assert first["blocks"] == second["blocks"] == written


def test_two_processes_draw_the_paths_of_one(runs):
    paths = [[step["paths"] for step in records(runs / run, "step")] for run in ("one", "two")]
    assert paths[0] == paths[1]
    assert len(paths[0]) == 2 * 2 * (14 // 8)


def test_two_processes_have_the_losses_of_one(runs):
    one, two = ([step["loss"] for step in records(runs / run, "step")] for run in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-4)
    assert len(set(one)) == len(one)
    rates, others = ([step["lr"] for step in records(runs / run, "step")] for run in ("one", "two"))
    assert rates == others


def test_two_processes_rate_and_choose_as_one(runs):
    one, two = (load_json(runs / run / "ratings.json")["blocks"] for run in ("one", "two"))
    for block, other in zip(one, two, strict=True):
        assert block["entries"].keys() == other["entries"].keys()
        for entry, ratings in block["entries"].items():
            assert other["entries"][entry] == pytest.approx(ratings, rel=1e-3)
    best, other = (load_json(runs / run / "architectures.json")[0]["architecture"] for run in ("one", "two"))
    assert best == other


def test_two_processes_end_with_the_weights_of_one(runs):
    files = sorted(file.name for file in (runs / "one" / "blocks").iterdir())
    for file in files:
        one, two = (load_file(runs / run / "blocks" / file) for run in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("seen", [["a", "a"], ["a", ""]])
def test_machines_that_do_not_share_a_folder_are_noticed(tmp_path, monkeypatch, seen):
    monkeypatch.setattr(Runtime, "gather", lambda self, value: seen)
    context = contextlib.nullcontext()
    if seen[1] != seen[0]:
        context = pytest.raises(UsageError, match=r"process 1 finds something else in .* give a folder as --out that")
    with context:
        run_module._check_shared(tmp_path, CPU, "a")
