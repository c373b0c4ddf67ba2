"""Under torchrun, what is wrong in every process is said once, and what is wrong in one is said by that one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bossnet_zoo import cli, console

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]


def torchrun(*command: str) -> list[str]:
    """The sentences in which two processes end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode
    return [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--space", "hytar"), "error: unknown space 'hytar'; did you mean hytra?"),  # before they know of each other
        (("--epoch", "3"), "Error: No such option: --epoch"),  # what typer says
        pytest.param(("--data", "nowhere"), "error: data 'nowhere' is no folder", marks=pytest.mark.slow),
        pytest.param(("--data", "digits", "--out", "."), "error: . already holds", marks=pytest.mark.slow),  # in one
    ],
)
def test_a_wrong_request_is_refused_once(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    options = ("--preset", "demo", "--device", "cpu", "--micro-batch", "16")
    (said,) = torchrun("-m", "bossnet_zoo", "search", *options, *arguments)
    assert said.startswith(message)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


PROGRAM = """
from bossnet_zoo import cli
from bossnet_zoo.errors import DataError
from bossnet_zoo.runtime import Runtime

def work():
    with Runtime.open("cpu") as runtime:
        if runtime.rank == 1:
            raise DataError("this disk is damaged")
        runtime.barrier()

cli.whole_app = lambda: work
cli.main()
"""


@pytest.mark.slow
def test_an_error_of_one_process_is_said_by_that_process(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert "error: process 1 of 2: this disk is damaged" in torchrun(str(tmp_path / "program.py"))


def test_another_process_than_the_first_does_what_the_first_does(monkeypatch, capfd):
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        for words in (["space", "nats", "--json"], ["list", "nothing"], ["--version"]):
            monkeypatch.setattr(sys, "argv", ["bossnet", *words])
            monkeypatch.setattr(console, "let_first_process_speak", lambda: None)
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code
            told.append((words, code or 0, capfd.readouterr().out))
    assert told[:3] == told[3:]


@pytest.mark.parametrize(("rank", "waits", "prefix"), [("0", [], ""), ("1", [5.0], "process 1 of 2: ")])
def test_all_processes_but_the_first_wait_before_they_speak(monkeypatch, capfd, rank, waits, prefix):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr(console.time, "sleep", waited.append)
    monkeypatch.setattr(sys, "argv", ["bossnet", "space", "hytar"])
    console.let_first_process_speak.cache_clear()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, waited) == (2, waits)
    assert capfd.readouterr().err.startswith(f"error: {prefix}unknown space 'hytar'")
    console.let_first_process_speak()  # once is enough
    assert waited == waits
    console.let_first_process_speak.cache_clear()
