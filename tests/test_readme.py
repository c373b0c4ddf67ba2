"""README holds: every command in it exists, every link leads somewhere, and, with `-m slow`, every block of it runs.

Blocks marked `bash` and `python`, and the lines behind `$` in those marked `console`, run one after the other in one
empty folder, as a reader would type them; Python that begins with `# NAME.py` is written to that file. What no test
machine has is stood in for, and `STAND_INS` says by what.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from test_cli import COMMANDS
from tiny_search import write_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAND_INS = {
    "IMAGENET": "imagenet",  # a folder of made-up images
    "--nproc-per-node 8": "--nproc-per-node 2",
}
ELSEWHERE = ("make ",)  # CI runs `make test`, tests/test_demo.py what `make demo` does


class Block(NamedTuple):
    """A fenced block of README."""

    language: str
    text: str
    line: int

    @property
    def script(self) -> str:
        """What a reader types, empty for blocks that show output or files."""
        if self.language == "console":
            return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))
        return self.text if self.language in ("bash", "python") else ""


def blocks() -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], README[: match.start()].count("\n") + 1) for match in found]


def commands() -> list[str]:
    """Every `bossnet ...` that README asks to type, in blocks and in the text."""
    shell = "\n".join(block.script for block in blocks() if block.language != "python").replace("\\\n", " ")
    typed = [line for line in shell.splitlines() if re.search(r"\bbossnet(_zoo)? ", line)]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return typed + re.findall(r"`([^`\n]*\bbossnet(?:_zoo)? [^`]*)`", prose)


def words_of(command: str) -> list[str]:
    """The words behind `bossnet`, or `-m bossnet_zoo`."""
    words = shlex.split(command, comments=True)
    start = next(index for index, word in enumerate(words) if word in ("bossnet", "bossnet_zoo"))
    return words[start + 1 :]


@pytest.mark.parametrize("command", commands())
def test_every_command_and_option_exists(command):
    words = words_of(command)
    if words[0].startswith("-"):  # bossnet --help
        return
    known = [name for name in COMMANDS if tuple(words[: len(name)]) == name]
    assert known, f"there is no {' '.join(words[:2])}"
    parameters = COMMANDS[known[0]].params
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if re.match(r"--\w", word)} <= options | {"--help"}


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)`|^\$ make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def test_every_link_and_picture_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)|src(?:set)?=\"([^\"]+)\"", README):
        path = "".join(target)
        assert path.startswith("https://") or (ROOT / path).exists(), path


@pytest.mark.slow
def test_every_block_runs(tmp_path):
    write_images(tmp_path / "imagenet", count=24, side=64)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TORCH_HOME": str(tmp_path / "torch"),
        "HF_HOME": str(tmp_path / "hf"),
    }
    _write_release(tmp_path / "torch")
    for block in blocks():
        script = block.script
        for words, stand_in in STAND_INS.items():
            script = script.replace(words, stand_in)
        script = "\n".join(line for line in script.splitlines() if not line.startswith(ELSEWHERE))
        if not script.strip():
            continue
        if file := re.match(r"# (\w+\.py)\b", script):
            (tmp_path / file[1]).write_text(script)
            continue
        command = ["python", "-c", script] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"README, line {block.line}:\n{script}\n{done.stdout}\n{done.stderr}"


def _write_release(cache: Path) -> None:
    """What a download of BossNet-T0's weights would have left, with random weights in it."""
    import timm
    import torch

    import bossnet_zoo  # noqa: F401

    model = timm.create_model("bossnet_t0")
    file = cache / "hub" / "checkpoints" / Path(model.pretrained_cfg["url"]).name
    file.parent.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "model_ema": model.state_dict()}, file)
