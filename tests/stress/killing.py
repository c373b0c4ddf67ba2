"""Kills of a command at random moments, and what a run came to."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import warm
from safetensors import SafetensorError, safe_open

from bossnet_zoo.checkpoint import hash_tensors, load_state, load_weights, read_metadata
from bossnet_zoo.errors import BossNetError

_BY_THE_CLOCK = ("seconds", "images_per_second")  # what no two runs have in common


@dataclass(frozen=True)
class Chain:
    """A command that is killed, goes on, is killed again, ...

    Attributes:
        begin: its arguments on an empty folder.
        again: its arguments where a finished run is to be replaced.
        resume: its arguments where a run has begun.
        folder: of its output; it has begun as soon as a `config.json` is there.
    """

    begin: Sequence[object]
    again: Sequence[object]
    resume: Sequence[object]
    folder: Path

    def kill_often(
        self,
        kills: int,
        moment: random.Random,
        seconds: float,
        *,
        wrong_after_kill: Callable[[], str],
        wrong_at_end: Callable[[], str],
    ) -> list[str]:
        """Kill the command `kills` times, run after run, and let the last run end.

        Args:
            moment: where the moments come from.
            seconds: that the command takes undisturbed.
            wrong_after_kill, wrong_at_end: say what is not as it should be; '' for nothing.

        Returns:
            One text for each kill: what was lost by it, '' for nothing.
        """
        verdicts: list[str] = []
        arguments, pending, finished = self.begin, 0, 0
        while True:
            command = warm.Command(arguments, self.folder.parent)
            killed = len(verdicts) + pending < kills and kill_at_a_moment(command, self.folder, moment, seconds)
            outcome = command.wait()
            if killed and outcome.code == -9:
                if wrong := wrong_after_kill():
                    verdicts.append(f"after {' '.join(outcome.arguments[:3])}: {wrong}")
                else:
                    pending += 1
                begun = (self.folder / "config.json").exists()
                arguments = self.resume if begun else self.again if finished else self.begin
                continue
            wrong = wrong_at_end() if outcome.code == 0 else str(outcome)
            if wrong and not pending:
                return [*verdicts, wrong]
            verdicts += [wrong] * pending
            if len(verdicts) >= kills or outcome.code:
                return verdicts
            finished, pending, arguments = finished + 1, 0, self.again


def kill_at_a_moment(command: warm.Command, folder: Path, moment: random.Random, seconds: float) -> bool:
    """Kill after a random time, or while one of the next files is being written; False if the command ended before."""
    deadline = time.monotonic() + moment.uniform(0, 0.8) * seconds
    files_to_see = moment.randint(1, 5) if moment.random() < 0.5 else 0
    pause = moment.uniform(0, 0.002)
    seen: set[str] = set()
    while command.is_running():
        if files_to_see:
            seen |= set(temporary_files(folder))
        if len(seen) >= files_to_see > 0:
            time.sleep(pause)
            break
        if not files_to_see and time.monotonic() >= deadline:
            break
        time.sleep(0.0005 if files_to_see else 0.005)
    alive = command.is_running()
    command.kill()
    return alive


def temporary_files(folder: Path) -> list[str]:
    """Files below `folder` that have no final name yet, or lie in a folder that has none."""
    names = (file.relative_to(folder) for file in warm.files_below(folder))
    return [str(name) for name in names if any(_is_temporary(part) for part in name.parts)]


def _is_temporary(part: str) -> bool:
    return part.endswith(".tmp") or re.fullmatch(r"\.tmp\w{6}", part) is not None  # ours, and safetensors'


def broken_files(folder: Path) -> str:
    """The files with a final name that cannot be read to their end."""
    temporary = temporary_files(folder)
    files = (file for file in warm.files_below(folder) if str(file.relative_to(folder)) not in temporary)
    return ", ".join(file.name for file in files if not _is_whole(file))


def _is_whole(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                return all(weights.get_tensor(name) is not None for name in list(weights.keys()))
        elif file.suffix == ".pt":
            load_state(file)
    except (OSError, ValueError, SafetensorError, BossNetError):  # how each format says that a file ends too early
        return False
    return True


def content(folder: Path) -> dict[str, str]:
    """What a run came to, by file: hashes, or text without what depends on the clock."""
    found = {}
    for file in warm.files_below(folder):
        name = str(file.relative_to(folder))
        if "tensorboard" in file.parts:  # the figures of metrics.jsonl, under names that hold the time
            continue
        if file.name == "metrics.jsonl":
            found[name] = "\n".join(_timeless(line) for line in file.read_text(errors="replace").splitlines())
        elif file.suffix == ".json" and file.name != "config.json":
            found[name] = _timeless(file.read_text(errors="replace"))
        elif file.suffix == ".pt":
            found[name] = hash_values(load_state(file))
        elif file.suffix == ".safetensors":  # whose metadata stands in any order
            found[name] = f"{sorted(read_metadata(file).items())} {hash_tensors(load_weights(file))}"
        elif file.suffix == ".sha256":  # loading the state has compared the two; what stood there before is history
            found[name] = ""
        elif file.name != "config.json" and file.suffix != ".html":
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def hash_values(state: Any) -> str:
    """Of everything in a state but what depends on the clock."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in _BY_THE_CLOCK:
                    digest.update(repr(name).encode())
                    add(inner)
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} values".encode())
            for inner in value:
                add(inner)
        elif isinstance(value, torch.Tensor):
            digest.update(hash_tensors({"": value}).encode())
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


def _timeless(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:  # damaged, and not needed
        return text
    if isinstance(value, dict):
        value = {name: entry for name, entry in value.items() if name not in _BY_THE_CLOCK}
    return json.dumps(value)


def differences(expected: dict[str, str], folder: Path) -> str:
    """In which files a run differs from what it should have come to; '' where it does not."""
    found = content(folder)
    names = [name for name in sorted({**expected, **found}) if expected.get(name) != found.get(name)]
    return f"not as undisturbed: {', '.join(names)}" if names else ""
