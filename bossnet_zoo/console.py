"""What the user sees: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

results = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress bars; results and errors still appear."""
    notes.quiet = quiet


def note(message: str) -> None:
    """One line for the person watching, on stderr."""
    notes.print(message, markup=False)


@functools.cache
def note_once(message: str) -> None:
    """A note that need not be read twice, however often there is reason for it."""
    note(message)


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
