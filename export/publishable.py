"""What `bossnet publish` is given in place of a training run, and what to type instead."""

from __future__ import annotations

from pathlib import Path

from bossnet_zoo.errors import UsageError
from bossnet_zoo.fresh import is_fresh
from bossnet_zoo.runs import build_model, is_local, is_run

from .sessions import is_exported


def check_publishable(model: str) -> None:
    """Raise `UsageError` for what looks like a network to publish, and is none; what is, `write_repository` knows."""
    if is_exported(model):
        raise UsageError(f"{model} is an exported file; publish the run that it came from, and type --onnx to add one")
    folder = Path(model.removeprefix("local-dir:"))
    if is_run(folder) or not is_local(folder):
        return
    if is_fresh(build_model(f"local-dir:{folder}")):
        raise UsageError(
            f"{folder} was extracted from a search, and its classifier is fresh; train it, and publish that run: "
            f"bossnet train {folder} --data DATA --recipe bossnet-t --out RUN"
        )
    raise UsageError(f"{folder} is in the Hub's form already; send it with: hf upload ORG/NAME {folder}")
