"""A search from start to end, in a run directory from which it can be resumed.

config.json          settings, version, device; a resumed run must have the same settings
split.json           which images of the source the paths are rated on
metrics.jsonl        one record per step, per epoch and per intermediate rating
blocks/*.safetensors the online network of every finished stage
ratings.json         ratings of the finished stages
state-*.pt           the stage in training after its last two epochs; gone when the search is finished
architectures.json   the best architectures, best first
report.html          all of it on one page
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

import torch

from bossnet_zoo import __version__, console
from bossnet_zoo.checkpoint import load_json, load_state, read_jsonl, save_json, save_state, save_text, save_weights
from bossnet_zoo.datasets import ImageSet, open_images
from bossnet_zoo.errors import BossNetError, CheckpointError, UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path, Space

from .prefix import Chain, Stage, load_prefix, stages_of_block
from .rating_table import RatingTable, read_ratings
from .report import write_report
from .settings import SearchSettings
from .solver import Solution, solve
from .stage import BlockTraining, Setup, calibration_views

FORMAT = 1
KEPT_STATES = 2  # the last one, and the one before in case it is damaged
TOP = 10  # architectures listed in architectures.json


@dataclass(frozen=True)
class SearchResult:
    """What a finished search leaves.

    Attributes:
        out: the run directory.
        table: ratings of every trained stage.
        best: the best architectures, best first.
    """

    out: FilePath
    table: RatingTable
    best: list[Solution]


def search(
    settings: SearchSettings,
    out: FilePath,
    runtime: Runtime,
    *,
    max_madds: int | None = None,
    max_params: int | None = None,
) -> SearchResult:
    """Train the supernet block by block, rate every path, solve for the best architectures.

    Finished stages and epochs found in `out` are taken over, so the same call starts, resumes and repeats a search.

    Args:
        settings: what to do; stored in `out`.
        out: the run directory, made if need be (see `start_run` and `resume_settings`).
        runtime: device, precision and processes.
        max_madds, max_params: bounds on the architectures listed.

    Raises:
        UsageError: settings that do not fit the images or the processes.
        BossNetError: a non-finite loss, a full disk.
    """
    setup = _setup(settings, out, runtime)
    table = _load_table(setup)
    calibration = calibration_views(setup)
    for block in range(setup.space.num_blocks):
        for stage, chain in stages_of_block(setup.space, table, block, settings.coverage).items():
            if setup.space.entry_text(stage.entry) not in table.blocks[block]:
                table = _run_stage(setup, stage, chain, calibration, table)
    best = solve(setup.space, table, max_madds=max_madds, max_params=max_params, top=TOP)
    if runtime.is_main:
        save_json(out / "architectures.json", [solution.to_json() for solution in best])
        for state in out.glob("state-*"):
            state.unlink()
        write_report(out)
    runtime.barrier()
    return SearchResult(out, table, best)


# --- the run directory


def start_run(
    out: FilePath, settings: SearchSettings, runtime: Runtime, preset: str = "", overwrite: bool = False
) -> None:
    """Make a run directory for a new search.

    Raises:
        UsageError: `out` already holds something, and `overwrite` is not set or it is no run.
    """
    if runtime.is_main:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            is_run = (out / "config.json").exists()
            if not (overwrite and is_run):
                hint = f"--resume {out} to go on with it, --overwrite to replace it, or " if is_run else ""
                raise UsageError(
                    f"{out} already holds {'a run' if is_run else 'other files'}; type {hint}another --out"
                )
            _remove(out)
        config = {
            "format": FORMAT,
            "version": __version__,
            "method": settings.method,
            "preset": preset,
            "space": settings.space,
            "space_options": dict(settings.space_options),
            "data": settings.data,
            "seed": settings.seed,
            "runtime": runtime.description,
            "torch": torch.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings.to_json(),
        }
        save_json(out / "config.json", config)
    runtime.barrier()


def read_config(run: FilePath) -> dict[str, Any]:
    """The configuration of a search's run directory.

    Raises:
        UsageError: `run` is none.
    """
    if not (run / "config.json").exists():
        raise UsageError(
            f"{run} is no run directory: it has no config.json; start one with: bossnet search --out {run}"
        )
    config = load_json(run / "config.json", "run configuration")
    if not isinstance(config, dict) or config.get("format") != FORMAT or "settings" not in config:
        raise UsageError(f"{run / 'config.json'} is no configuration of a search that this version can read")
    return config


def resume_settings(run: FilePath, asked: Mapping[str, Any] | None = None) -> SearchSettings:
    """The settings of the search in `run`.

    Args:
        asked: settings the user gave again; they must be the run's own.

    Raises:
        UsageError: `run` is no search, or was started with other settings.
    """
    settings = SearchSettings.from_json(read_config(run)["settings"])
    for name, value in (asked or {}).items():
        own = getattr(settings, name)
        if name == "space_options":
            value = {**own, **value}
        if own != value:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{run} was started with {option} {own}, not {value}; leave it out to resume, or choose another --out"
            )
    return settings


def _remove(run: FilePath) -> None:
    """Empty a run directory of the files that a search (or the demo around it) writes."""
    import shutil

    for entry in run.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


# --- stages


def _setup(settings: SearchSettings, out: FilePath, runtime: Runtime) -> Setup:
    def images(part: str) -> ImageSet:
        return open_images(settings.data, part, seed=settings.seed, split_file=out / "split.json")

    if runtime.is_main:
        images("search-val")  # draws the split and writes it, once
    runtime.barrier()
    setup = Setup(settings, settings.make_space(), images("search-train"), images(settings.rating_part), runtime, out)
    settings.accumulation(runtime.world_size)
    if not setup.steps_per_epoch:
        raise UsageError(
            f"{settings.data} has {len(setup.train_images)} images to search on, less than one global batch of "
            f"{settings.global_batch}; type a smaller --global-batch and --micro-batch"
        )
    return setup


def _load_table(setup: Setup) -> RatingTable:
    """Ratings of the stages finished so far; an empty table at the start."""
    file = setup.out / "ratings.json"
    if file.exists():
        table = read_ratings(file)
        table.check(setup.space)
        return table
    settings = setup.settings
    meta = {
        "space_options": dict(settings.space_options),
        "method": settings.method,
        "data": settings.data,
        "seed": settings.seed,
        "coverage": settings.coverage,
        "split": {"search_train": len(setup.train_images), "rated_on": len(setup.rating_images)},
    }
    return RatingTable(settings.space, tuple({} for _ in range(setup.space.num_blocks)), meta=meta)


def _run_stage(
    setup: Setup, stage: Stage, chain: Chain, calibration: list[torch.Tensor], table: RatingTable
) -> RatingTable:
    """Train and rate one stage, going on from its last finished epoch; returns the table with its ratings."""
    settings, space, name = setup.settings, setup.space, stage.name(setup.space)
    prefix = load_prefix(space, chain, setup.out / "blocks", calibration, setup.runtime)
    training = BlockTraining(setup, stage, prefix)
    state = _latest_state(setup.out, name)
    if state is not None:
        training.load_state_dict(state)
        console.note(f"{name}: going on after epoch {training.epoch} of {settings.epochs}")
    if setup.runtime.is_main:
        _forget_after(setup, stage, training.epoch)
    while training.epoch < settings.epochs:
        loss = training.train_epoch()
        if settings.rating_every and training.epoch % settings.rating_every == 0 and training.epoch < settings.epochs:
            _log_ratings(setup, stage, training.epoch, training.rate(calibration, settings.rating_images))
        if setup.runtime.is_main:
            _save(setup.out, training)
            console.note(f"{name}: epoch {training.epoch}/{settings.epochs}, loss {loss:.4f}")
    ratings = training.rate(calibration, settings.rating_images)
    _log_ratings(setup, stage, training.epoch, ratings)
    entry = space.entry_text(stage.entry)
    block = {**table.blocks[stage.block], entry: {space.path_text(path): rating for path, rating in ratings.items()}}
    table = replace(table, blocks=(*table.blocks[: stage.block], block, *table.blocks[stage.block + 1 :]))
    if setup.runtime.is_main:
        save_weights(setup.out / "blocks" / f"{name}.safetensors", training.siamese.online.block.state_dict())
        table.write(setup.out / "ratings.json")
        best = min(ratings, key=lambda path: ratings[path])
        console.note(f"{name}: {len(ratings)} paths rated, best {space.path_text(best)} at {ratings[best]:.4f}")
    setup.runtime.barrier()
    return table


def _log_ratings(setup: Setup, stage: Stage, epoch: int, ratings: Mapping[Path, float]) -> None:
    by_text = {setup.space.path_text(path): rating for path, rating in ratings.items()}
    setup.log(stage, kind="rating", epoch=epoch, ratings=by_text)


def _save(out: FilePath, training: BlockTraining) -> None:
    """Write the state after an epoch, and remove those before the last two."""
    state = training.state_dict()
    save_state(out / f"state-{state['stage']}-epoch{training.epoch:04d}.pt", state)
    for old in _states(out)[KEPT_STATES:]:
        old.with_name(old.name + ".sha256").unlink(missing_ok=True)
        old.unlink()


def _states(out: FilePath) -> list[FilePath]:
    """Saved states, newest first."""
    return sorted(out.glob("state-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _latest_state(out: FilePath, stage: str) -> dict[str, Any] | None:
    """The newest undamaged state of a stage; None where it has none."""
    for path in _states(out):
        if not path.name.startswith(f"state-{stage}-epoch"):
            continue
        try:
            return load_state(path)
        except CheckpointError as error:
            console.note(f"{error}; trying the state before it")
    return None


def _forget_after(setup: Setup, stage: Stage, epoch: int) -> None:
    """Remove this stage's log records of epochs that will be trained again."""
    file = setup.out / "metrics.jsonl"
    if not file.exists():
        return
    import json

    entry = setup.space.entry_text(stage.entry)

    def keep(record: Mapping[str, Any]) -> bool:
        if (record["block"], record["entry"]) != (stage.block, entry):
            return True
        return record["epoch"] < epoch or (
            record["kind"] == "rating" and record["epoch"] == epoch < setup.settings.epochs
        )

    records = [json.dumps(record) for record in read_jsonl(file) if keep(record)]
    save_text(file, "".join(record + "\n" for record in records))


def open_setup(run: FilePath, runtime: Runtime) -> Setup:
    """What the stages of the search in `run` share. Raises `UsageError` if `run` is no search."""
    return _setup(resume_settings(run), run, runtime)


def search_progress(run: FilePath) -> tuple[Space, RatingTable]:
    """Space and ratings of a search, finished or not.

    Raises:
        UsageError: `run` is no search.
        BossNetError: no block is finished yet.
    """
    settings = resume_settings(run)
    if not (run / "ratings.json").exists():
        raise BossNetError(f"{run} has no ratings yet; finish the search with: bossnet search --resume {run}")
    return settings.make_space(), read_ratings(run / "ratings.json")
