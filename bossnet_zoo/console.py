"""What the user sees: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

results = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)
WAIT_FOR_FIRST = 5.0  # seconds; torchrun looks after its processes ten times a second
_documents: TextIO | None = None  # where `print_json` writes, within `only_json`


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress bars; results and errors still appear."""
    notes.quiet = quiet


def note(message: str) -> None:
    """One line for the person watching, on stderr."""
    notes.print(message, markup=False)


@functools.cache
def note_once(message: str) -> None:
    """A note that need not be read twice, however often and in however many processes there is reason for it."""
    if is_first_process():
        note(message)


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Within it stdout belongs to `print_json`; whatever else is printed, by libraries too, goes to stderr."""
    global _documents
    _documents = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _documents = None


@functools.cache
def let_first_process_speak() -> None:
    """Wait a while, once, unless this is the first process of a distributed run on its machine.

    What is wrong with a request is wrong in every process, and need be said once. As soon as the first one has ended in
    an error, torchrun ends the others, which wait here with theirs; an error of one process alone is said late.
    """
    if not is_first_process():
        time.sleep(WAIT_FOR_FIRST)


def is_first_process() -> bool:
    """Whether this process is the first of a distributed run on its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def error(message: str) -> None:
    """The sentence that a command ends with, on stderr, however quiet it is; once for all processes on a machine."""
    let_first_process_speak()
    if not (is_first_process() or message.startswith("process ")):
        message = f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: {message}"
    notes.quiet = False
    notes.print(f"error: {message}", markup=False, style="bold red")


def print_json(value: object) -> None:
    """The one document of a command called with `--json`."""
    print(json.dumps(value, indent=2, ensure_ascii=False), file=_documents or sys.stdout)


@contextlib.contextmanager
def working_on(what: str) -> Iterator[None]:
    """Say what takes its time, as long as it does; silent where stderr is no terminal."""
    if sys.stderr.isatty() and not notes.quiet:
        with notes.status(what):
            yield
    else:
        yield


def track(items: Iterable[Item], description: str, total: int, *, show: bool = True) -> Iterator[Item]:
    """Yield `items` behind a progress bar with the time left; silent where stderr is no terminal."""
    if not (show and sys.stderr.isatty() and not notes.quiet):
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of equally many cells on stdout: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
