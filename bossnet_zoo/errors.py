"""Errors a user can cause, and therefore repair.

Each message says what was given, what is allowed and what to type next. The
command line prints it in one line, without a traceback, and ends with the
class's exit code: 2 for a wrong request, 1 for a failure while carrying it out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BossNetError(Exception):
    """Something went wrong that the user can understand and act on."""

    exit_code = 1


class UsageError(BossNetError, ValueError):
    """The request itself cannot be carried out: a wrong name, value or combination."""

    exit_code = 2


class RemediableError(BossNetError):
    """A failure for which different commands have different remedies.

    Attributes:
        what: the message without its remedy.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what


class DownloadError(RemediableError):
    """Weights that could not be downloaded.

    Attributes:
        cache: the folder in which a copy of the file is found without a connection.
    """

    def __init__(self, what: str, remedy: str, cache: str) -> None:
        super().__init__(what, remedy)
        self.cache = cache


class StoppedError(BossNetError):
    """Ctrl-C; the message says how to go on."""

    exit_code = 130  # as shells have it


class NoWeightsError(UsageError):
    """Trained weights of a network for which none are published.

    Attributes:
        recipe: with which `bossnet train` trains such a network.
    """

    def __init__(self, message: str, recipe: str) -> None:
        super().__init__(message)
        self.recipe = recipe


class ArchitectureError(UsageError):
    """An architecture, or one of its paths, that lies outside its search space."""


class UnknownDataError(UsageError):
    """Data that is no known name and no folder."""


class DataError(BossNetError):
    """Images or labels that cannot be used."""


class CheckpointError(BossNetError):
    """A file of weights or of training state that cannot be used."""


class DamagedFileError(CheckpointError):
    """A file of weights that was cut short or changed, so that a fresh copy of it may be of use."""


def unknown(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """A `UsageError` for a misspelt name, with the nearest known ones.

    >>> str(unknown("space", "hytar", ["hytra", "mbconv"]))
    "unknown space 'hytar'; did you mean hytra? known: hytra, mbconv"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    message = f"unknown {kind} {given!r}"
    if near:
        message += f"; did you mean {' or '.join(near)}?"
    more = [f"known: {', '.join(names)}"] if len(names) <= 12 else []
    more += [hint] if hint else []
    return UsageError(f"{message}{' ' if near else '; '}{'; '.join(more)}" if more else message)


def require_at_least(**values: tuple[float, float]) -> None:
    """Raise `UsageError` for a value, given as (value, least value), that is below its least value.

    >>> require_at_least(base_width=(8, 1))
    """
    for name, (value, least) in values.items():
        if not value >= least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
