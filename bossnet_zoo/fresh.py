"""Networks whose classifier no training has seen, as `bossnet extract` writes them: known wherever they are opened."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import console

FRESH_NOTE = "its classifier is fresh, so its answers are random"  # among the notes of timm's pretrained_cfg


def mark_fresh(model: nn.Module) -> None:
    """Note it where timm keeps it: in the `pretrained_cfg`, which `save_local` writes."""
    cfg: Any = model.pretrained_cfg
    cfg["notes"] = (*(cfg.get("notes") or ()), FRESH_NOTE)


def is_fresh(model: nn.Module) -> bool:
    """Whether the classifier is as initialised, as far as the network knows."""
    cfg: Any = getattr(model, "pretrained_cfg", {})
    return FRESH_NOTE in (cfg.get("notes") or ())


def warn_of_fresh(model: nn.Module, name: str) -> None:
    """Say on stderr that the answers of a network, opened as `name`, mean nothing yet."""
    if is_fresh(model):
        folder = name.removeprefix("local-dir:")
        remedy = f"train it: bossnet train {folder} --data DATA --recipe bossnet-t --out {folder}-trained"
        console.note(f"{name}: {FRESH_NOTE}; {remedy}")
