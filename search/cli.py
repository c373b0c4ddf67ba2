"""Commands of `bossnet_zoo.search`, mounted by `bossnet_zoo.cli`. Heavy imports happen inside commands."""

from __future__ import annotations

import typer

app = typer.Typer()
