"""What --help shows: an example that runs first, and nothing that a terminal of 80 columns would cut."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_cli import COMMANDS, EVERYTHING, run


def test_the_commands_of_the_search_are_there():
    assert {("search",), ("demo",), ("report",), ("extract",), ("solve",), ("rank",)} <= set(COMMANDS)


def help_of(monkeypatch, capfd, words: tuple[str, ...]) -> str:
    """What a terminal of 80 columns shows."""
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, notes = run(monkeypatch, capfd, *words, "--help")
    assert (code, notes) == (0, "")
    return printed


def example_in(text: str) -> list[str]:
    """The commands in the example that a help begins with, one a line."""
    example = re.match(r"Usage: [^\n]+\n\n  Example:\n((?:    [^\n]+\n)+)\n", text)
    assert example, f"no example in front of\n{text}"
    return textwrap.dedent(example[1]).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("words", EVERYTHING, ids=lambda words: " ".join(words) or "bossnet")
def test_every_help_begins_with_an_example_whose_options_exist(monkeypatch, capfd, words):
    typed = [shlex.split(line) for line in example_in(help_of(monkeypatch, capfd, words))]
    assert tuple(typed[-1][1 : 1 + len(words)]) == words  # lines before it make what it needs
    for program, *line in typed:
        if program == "python":
            continue
        assert program == "bossnet"
        name = next(name for name in COMMANDS if name == tuple(line[: len(name)]))
        parameters = COMMANDS[name].params
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in line if word.startswith("--")} <= known


@pytest.mark.parametrize("words", EVERYTHING, ids=lambda words: " ".join(words) or "bossnet")
def test_every_help_fits_a_terminal_and_cuts_nothing_short(monkeypatch, capfd, words):
    lines = help_of(monkeypatch, capfd, words).splitlines()
    assert max(map(len, lines)) <= 80
    listed = lines[lines.index("Commands:") :] if "Commands:" in lines else []
    assert not [line for line in listed if line.endswith("...")]
    assert not [line for line in lines if "range>" in line or "9223372036854775807" in line]


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in EVERYTHING if words != ("demo",)], ids=" ".join)
def test_examples_run_as_printed_in_an_empty_folder(monkeypatch, capfd, tmp_path, words):
    """All but the demo's, which tests/test_demo.py runs."""
    lines = [line for line in example_in(help_of(monkeypatch, capfd, words)) if line != "bossnet demo"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euc", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
