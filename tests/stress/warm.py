"""`bossnet` commands as processes of their own, forked from one that has imported torch already.

Starting Python and torch takes seconds, and the stress tests run some thousand commands. Each is still a process that
runs `bossnet_zoo.cli.main`, as the console script does, and a SIGKILL hits the process that does the work.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRELOADED = (
    "bossnet_zoo.train",
    "bossnet_zoo.evaluate",
    "bossnet_zoo.search.run",
    "bossnet_zoo.search.truth",
    "bossnet_zoo.search.ranking",
    "bossnet_zoo.search.cli",
    "bossnet_zoo.export.cli",
    "bossnet_zoo.export.hub",
    "bossnet_zoo.export.sessions",
    "sklearn.datasets",
    "sklearn.model_selection",
    "onnxscript",
    "onnxruntime",
)
SEARCH = (  # a whole one, in seconds
    "search --preset demo --space nats --space-option widths=[8,16] --num-paths 2 --epochs 2 --global-batch 8 "
    "--micro-batch 4 --calibration-images 8 --rating-images 4 --device cpu"
)
_forking = multiprocessing.get_context("forkserver")
_numbers = itertools.count()


def preload() -> None:
    """Say what the process to fork from imports; it starts with the first command, in the environment of then."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_DISABLE_TELEMETRY="1")
    _forking.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: the signal that ended it), and what it printed."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def is_sentence(self) -> bool:
        """Whether it failed as a command should: exit code 1, 2 or 3, and one line `error: ...`, the last one."""
        lines = self.err.rstrip().splitlines()
        return (
            self.code in (1, 2, 3)
            and "Traceback" not in self.err
            and bool(lines)
            and (lines[-1].startswith("error: ") or self._is_usage)
        )

    @property
    def _is_usage(self) -> bool:  # typer's own refusals of what is no command line
        return self.code == 2 and self.err.lstrip().startswith("Usage: ") and "\nError: " in self.err

    def __str__(self) -> str:
        text = " | ".join(line for line in re.split(r"[\r\n]+", self.err.strip()) if line)
        return f"exit code {self.code}: {text[-700:] or self.out[-300:]} (bossnet {' '.join(self.arguments)})"


class Command:
    """A command that runs.

    Args:
        arguments: as typed after `bossnet`.
        folder: where its output is kept, and where it runs.
        environment: additional variables.
        file_limit: bytes beyond which no file of the process can grow, as on a full disk.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        file_limit: int | None = None,
    ):
        self.arguments = tuple(map(str, arguments))
        folder.mkdir(parents=True, exist_ok=True)
        number = next(_numbers)
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        wanted = (self.arguments, folder, self._out, self._err, dict(environment or {}), file_limit)
        self._process = _forking.Process(target=_run, args=wanted)
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float = 120) -> Outcome:
        """Wait for the end. Raises `TimeoutError`, after killing it."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self.kill()
            self._process.join()
            raise TimeoutError(f"bossnet {' '.join(self.arguments)} did not end in {timeout:g} s")
        self._process.close()
        printed = []
        for file in (self._out, self._err):  # neither exists if it was killed before it began
            printed.append(file.read_text(encoding="utf-8", errors="replace") if file.exists() else "")
            file.unlink(missing_ok=True)
        return Outcome(self.arguments, code, *printed)


def run(arguments: Sequence[object], folder: Path, timeout: float = 120, **options: object) -> Outcome:
    """A command from start to end; `options` as for `Command`."""
    return Command(arguments, folder, **options).wait(timeout)  # type: ignore[arg-type]


def _run(
    arguments: Sequence[str], folder: Path, out: Path, err: Path, environment: Mapping[str, str], limit: int | None
) -> None:
    """In the new process: become the command."""
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.update(environment)
    # A process that was forked by a server starts its own ones by such servers too, each of which imports torch anew
    # and outlives a SIGKILL of its parent. A command that a user types forks its loading processes.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(folder)
    sys.argv = ["bossnet", *arguments]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    from bossnet_zoo.cli import main

    main()


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order; files that vanish meanwhile are left out."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))
