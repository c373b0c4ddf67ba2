"""A search that is interrupted, by whatever and whenever, resumes to the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from searching import CPU
from tiny_search import assert_same_search, run_until_killed, wait_for_another_second

from bossnet_zoo.checkpoint import read_jsonl
from bossnet_zoo.search.run import resume_settings, search, start_run
from bossnet_zoo.search.states import load_stage, save_stage, state_file

stress = pytest.mark.stress


# Files in order: split; per epoch a checksum and a state; block weights; ratings; the same for block 2; ratings again,
# architectures and report. A few moments by default, all of them with -m stress.
MOMENTS = [(4, "before"), (6, "after"), (9, "before")]
ALL_MOMENTS = [(number, when) for number in range(1, 17) for when in ("before", "after")]


@pytest.mark.parametrize(
    ("number", "when"),
    [
        pytest.param(*moment, marks=[] if moment in MOMENTS else stress, id=f"{moment[1]} file {moment[0]}")
        for moment in ALL_MOMENTS
    ],
)
def test_a_killed_search_resumes_to_the_same_bits(search_settings, whole_search, tmp_path, monkeypatch, number, when):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    assert run_until_killed(search_settings, out, monkeypatch, number, when)
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole_search)


def test_a_search_killed_before_it_had_a_configuration_can_be_begun_again(search_settings, tmp_path):
    (tmp_path / ".config.json.0a1b2c3d.tmp").write_text("{")
    start_run(tmp_path, search_settings, CPU)
    assert resume_settings(tmp_path) == search_settings


SCRIPT = """
import sys
from pathlib import Path
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.run import resume_settings, search
run = Path(sys.argv[1])
with Runtime.open("cpu") as runtime:
    search(resume_settings(run), run, runtime)
"""


def start_process(out: Path, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=environment)


def kill_after(process: subprocess.Popen, out: Path, records: int) -> None:
    """kill -9 as soon as the log has that many records."""
    deadline = time.monotonic() + 120
    while len(read_jsonl(out / "metrics.jsonl")) < records:
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for_another_second()


def test_kill_9_of_a_process_then_resume_gives_the_same_bits(search_settings, whole_search, tmp_path):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    kill_after(start_process(out), out, records=8)  # in the second block, or just before
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole_search)


@stress
@pytest.mark.parametrize("seed", range(5))
def test_kill_9_again_and_again_at_random_moments(search_settings, whole_search, tmp_path, seed):
    generator, out = random.Random(seed), tmp_path / "run"
    start_run(out, search_settings, CPU)
    for _ in range(3):
        process = start_process(out)
        time.sleep(generator.uniform(2, 8))
        process.kill()
        process.wait()
    assert start_process(out).wait() == 0
    assert_same_search(out, whole_search)


@pytest.mark.parametrize("damage", ["cut", *(pytest.param(kind, marks=stress) for kind in ("flipped", "no checksum"))])
def test_a_damaged_state_is_named_and_the_one_before_it_used(
    search_settings, whole_search, tmp_path, monkeypatch, capsys, damage
):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    assert run_until_killed(search_settings, out, monkeypatch, 5, "after")  # both epochs of block 1 are saved
    newest = state_file(out, "block1-any", 2)
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    capsys.readouterr()
    assert load_stage(out, "block1-any")["epoch"] == 1
    said = capsys.readouterr().err
    assert newest.name in said
    assert "going back to the state before it" in said
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole_search)


def test_the_last_two_states_of_the_stage_in_training_are_kept(tmp_path):
    for epoch in range(1, 13):
        save_stage(tmp_path, "block1-any", epoch, {"epoch": epoch})
    assert load_stage(tmp_path, "block1-any") == {"epoch": 12}
    kept = {f"state-block1-any-epoch00{epoch}.pt{suffix}" for epoch in (11, 12) for suffix in ("", ".sha256")}
    assert {file.name for file in tmp_path.iterdir()} == kept
    os.utime(state_file(tmp_path, "block1-any", 11))  # as after a copy of the folder: age is no measure
    assert load_stage(tmp_path, "block1-any") == {"epoch": 12}
    save_stage(tmp_path, "block2-8", 1, {"epoch": 1})
    assert len(list(tmp_path.iterdir())) == 2
    assert load_stage(tmp_path, "block1-any") is None


def test_a_finished_search_can_be_resumed_and_stays_as_it_is(search_settings, whole_search, tmp_path):
    before = {file: file.read_bytes() for file in whole_search.rglob("*") if file.is_file() and file.suffix != ".html"}
    search(resume_settings(whole_search), whole_search, CPU)
    assert {file: file.read_bytes() for file in before} == before
