"""What a path that leads to no training run is instead, and what to type about it."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import load_json
from .errors import BossNetError, UsageError

BEST = "best.safetensors"  # of a training run


def no_run(path: Path, remedy: str) -> UsageError:
    """That a folder is no training run; what it is, or which of those in it are runs; and what to do, else `remedy`."""
    if is_search(path):
        return UsageError(f"{path} is a search; type bossnet extract {path} --out FOLDER, and give that folder")
    within = [file.parent for file in sorted([*path.glob("*/config.json"), *path.glob("*/*/config.json")])]
    runs = [f"{folder}" for folder in within if (folder / BEST).exists()]
    holds = f", but holds {' and '.join(runs[:3])}" if runs else ""
    return UsageError(f"{path} is no training run{holds}; {remedy}")


def is_search(folder: Path) -> bool:
    """Whether `bossnet search` wrote the config.json of a folder."""
    file = folder / "config.json"
    try:
        config = load_json(file) if file.is_file() else None
    except BossNetError:
        return False
    return isinstance(config, dict) and isinstance(config.get("settings"), dict) and "method" in config["settings"]
