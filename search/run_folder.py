"""The folder of a search: what it was started with, what may be replaced in it, and by what."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bossnet_zoo.checkpoint import check_fields, check_seal, is_leftover, load_json, make_folder, reading
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.spaces import program_for

from .settings import SearchSettings

if TYPE_CHECKING:
    from bossnet_zoo.runtime import Runtime

FORMAT = 1
WRITTEN = (  # by a search, `bossnet rank` and the demo, besides config.json
    *("split.json", "metrics.jsonl", "tensorboard", "blocks", "ratings.json", "state-*", ".*.tmp"),
    *("architectures.json", "report.html", "ranking.*", "demo.json", "retrain", "export"),
)


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a search's run directory.

    Raises:
        UsageError: `run` is none.
    """
    if run.is_file():
        raise UsageError(f"{run} is a file; give the folder that bossnet search or bossnet demo wrote (--out)")
    if not (run / "config.json").exists():
        raise UsageError(
            f"{run} is no run directory: it has no config.json; start one with: bossnet search --out {run}"
        )
    config = load_json(run / "config.json", "run configuration")
    if not isinstance(config, dict) or config.get("format") != FORMAT or "settings" not in config:
        raise UsageError(
            f"{run / 'config.json'} is no configuration of a search that this version can read; "
            "bring it back from a copy, or start a new search with another --out"
        )
    return config


def resume_settings(run: Path, asked: Mapping[str, Any] | None = None) -> SearchSettings:
    """The settings of the search in `run`.

    Args:
        asked: settings the user gave again; they must be the run's own.

    Raises:
        UsageError: `run` is no search, or was started with other settings.
        CheckpointError: its configuration is not as it was written.
    """
    config, file = read_config(run), run / "config.json"
    check_fields(SearchSettings, config["settings"], f"{file}: settings")
    with reading(file, "run configuration"):
        settings = SearchSettings.from_json(config["settings"])
    check_seal(config, file, "bring back a copy, or start a new search with another --out")
    for name, value in (asked or {}).items():
        own = getattr(settings, name)
        if name == "space_options":
            value = {**own, **value}
        if own != value:
            option = "--" + name.replace("_", "-")
            remedy = "leave it out to resume, or choose another --out"
            if name in ("max_madds", "max_params"):
                solve = f"{program_for(settings.space)} solve --ratings {run / 'ratings.json'}"
                remedy = f"leave it out to resume; its ratings take any: {solve}"
            raise UsageError(f"{run} was started with {option} {own}, not {value}; {remedy}")
    return settings


def check_processes(settings: SearchSettings, begun_in: Path | None, runtime: Runtime) -> None:
    """Raise `UsageError` where so many processes cannot share a batch; of a run, which has its settings, on how many.

    Args:
        begun_in: the run that is to be resumed, if it is not a new one.
    """
    try:
        settings.accumulation(runtime.world_size)
    except UsageError:
        told = read_config(begun_in).get("runtime", "") if begun_in else ""
        begun, now = (str(text).rpartition(", ")[2] for text in (told, runtime.description))
        if begun in ("", now):
            raise
        raise UsageError(
            f"{begun_in} was begun on {begun}, and its batches of {settings.global_batch} images cannot be shared by "
            f"{now}; resume it on {begun}, with: torchrun --nproc-per-node {begun.partition(' ')[0]} -m bossnet_zoo "
            f"search --resume {begun_in}"
        ) from None


def check_folder(out: Path, overwrite: bool) -> None:
    """Make sure that a new search may be written to `out`.

    Raises:
        UsageError: it already holds something, and `overwrite` is not set or it is no search's run; or it lies where
            there can be no folder.
    """
    for parent in (out, *out.parents):
        if parent.exists():
            if not parent.is_dir():
                given = "" if parent == out else f"{out} cannot be made a folder, for "
                raise UsageError(f"{given}{parent} is a file; type another --out")
            break
    if _is_empty(out):
        return
    is_run = _is_run(out)
    if not (overwrite and is_run):
        hint = f"bossnet search --resume {out} to go on with it, --overwrite to replace it, or " if is_run else ""
        raise UsageError(f"{out} already holds {'a run' if is_run else 'other files'}; type {hint}another --out")


def empty_folder(out: Path, overwrite: bool) -> None:
    """Make the folder of a new search, without what an earlier one left. Raises `UsageError` as `check_folder` does."""
    check_folder(out, overwrite)
    if not _is_empty(out):
        _remove(out)
    make_folder(out)


def _is_empty(out: Path) -> bool:
    return not out.exists() or (out.is_dir() and all(map(is_leftover, out.iterdir())))


def _is_run(folder: Path) -> bool:
    """Whether `folder` is the run directory of a search."""
    try:
        read_config(folder)
    except BossNetError:
        return False
    return True


def _remove(run: Path) -> None:
    """Remove what a search, and the commands around it, write to its directory; other files stay.

    The configuration goes last: as long as it is there, the rest can be removed by the same command.
    """
    for name in WRITTEN:
        for entry in run.glob(name):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    (run / "config.json").unlink()
