"""The command line: thin commands that parse, call one function and print. Heavy imports happen inside commands."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Annotated

import typer

from . import __version__, console
from .errors import BossNetError

app = typer.Typer(
    name="bossnet",
    help="Search, train and ship hybrid CNN-transformer image networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bossnet-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    console.set_quiet(quiet)


def print_json(value: object) -> None:
    """The one document of a command called with `--json`."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line. Users' mistakes end in one sentence and exit code 1 or 2, other errors in a traceback."""
    from .export.cli import app as export_app
    from .search.cli import app as search_app

    app.add_typer(search_app)
    app.add_typer(export_app)
    try:
        app()
    except BossNetError as error:
        if os.environ.get("BOSSNET_TRACEBACK"):
            traceback.print_exc()
        console.notes.quiet = False
        console.notes.print(f"error: {error}", markup=False, style="bold red")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `bossnet list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
