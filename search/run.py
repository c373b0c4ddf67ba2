"""A search from start to end, in a run directory from which it can be resumed.

config.json          settings, version, device; a resumed run must have the same settings
split.json           which images of the source are learned from, and which ones the paths are rated on
metrics.jsonl        one record per step, per epoch and per intermediate rating
tensorboard/STAGE    the same figures, where TensorBoard is installed
blocks/*.safetensors the online network of every finished stage
ratings.json         ratings of the finished stages
state-*.pt           the stage in training after its last two epochs; gone when the search is finished
architectures.json   the best architectures, best first
report.html          all of it on one page

A resumed search goes on from config.json, split.json and ratings.json, so each carries a checksum of what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

import torch

from bossnet_zoo import __version__, console
from bossnet_zoo.checkpoint import (
    SEAL,
    check_seal,
    load_json,
    read_jsonl,
    remove_leftovers,
    save_json,
    save_text,
    save_weights,
    sealed,
    sha256,
)
from bossnet_zoo.datasets import ImageSet, open_images
from bossnet_zoo.errors import BossNetError, CheckpointError, UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path, Space, describe_in_words, program_for

from .compiling import check_compiler, uncompiled
from .distillation import DistillationTraining, check_teacher, open_teacher
from .prefix import Chain, FrozenPrefix, Stage, load_prefix, stages_of_block
from .rating import LEARNED, BlockRatings
from .rating_table import ANEW, RatingTable, ratings_from_json, read_ratings
from .report import write_report
from .rotation import RotationTraining, rate_by_marginals
from .run_folder import FORMAT, check_processes, empty_folder, read_config, resume_settings
from .settings import SearchSettings
from .solver import Solution, solve
from .stage import BlockTraining, Setup, Training, calibration_views, check_num_paths
from .states import load_stage, remove_states, save_stage
from .supernets import trained_entries

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


def search(settings: SearchSettings, out: FilePath, runtime: Runtime) -> SearchResult:
    """Train the supernet block by block, rate every path, solve for the best architectures.

    Finished stages and epochs found in `out` are taken over, so the same call starts, resumes and repeats a search.

    Args:
        settings: what to do; stored in `out`.
        out: the run directory, made if need be (see `start_run` and `resume_settings`).
        runtime: device, precision and processes.

    Raises:
        UsageError: settings that do not fit the images or the processes, or bounds that nothing meets.
        BossNetError: a non-finite loss, a full disk.
    """
    if runtime.is_main:
        remove_leftovers(out)
    _check_shared(out, runtime, sha256(out / "config.json") if (out / "config.json").exists() else "")
    setup = _setup(settings, out, runtime)
    table = _load_table(setup)
    if runtime.is_main:
        console.note(f"searching {describe_in_words(setup.space)}; by {settings.method}, {settings.data}")
    with runtime.threads(settings.threads):
        table = _train_supernet(setup, table) if settings.method == "unnas" else _train_blocks(setup, table)
    table = replace(table, meta={**table.meta, "covered": table.coverage(setup.space)})
    if runtime.is_main:
        table.write(out / "ratings.json")
    try:
        best = solve(setup.space, table, max_madds=settings.max_madds, max_params=settings.max_params, top=TOP)
    except UsageError as error:
        command = f"{program_for(settings.space)} solve --ratings {out / 'ratings.json'}"
        raise UsageError(f"{error}, with: {command}") from error
    if runtime.is_main:
        save_json(out / "architectures.json", [solution.to_json() for solution in best])
        remove_states(out)
        write_report(out)
    runtime.barrier()
    return SearchResult(out, table, best)


# --- the run directory


def start_run(
    out: FilePath, settings: SearchSettings, runtime: Runtime, preset: str = "", overwrite: bool = False
) -> None:
    """Make a run directory for a new search; nothing is written, or removed, unless the search can begin.

    Raises:
        UsageError: `out` already holds something, and `overwrite` is not set or it is no search's run; or settings
            that do not fit the images or the processes.
        DataError: images that cannot be used.
        BossNetError: a teacher whose weights cannot be fetched.
    """
    _open(settings, out, runtime, split_file=None)
    if settings.method == "dna":
        open_teacher(settings)  # fetched, and kept by the library that fetches it
    if runtime.is_main:
        empty_folder(out, overwrite)
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
        save_json(out / "config.json", sealed(config))
    runtime.barrier()


def _check_shared(out: FilePath, runtime: Runtime, seen: str) -> None:
    """Raise `UsageError` where another process does not see in `out` what the first one does."""
    by_rank = runtime.gather(seen)
    for rank, other in enumerate(by_rank):
        if other != by_rank[0]:
            raise UsageError(
                f"process {rank} finds something else in {out} than process 0 does; on several machines, give a "
                "folder as --out that all of them share"
            )


# --- stages


def _setup(settings: SearchSettings, out: FilePath, runtime: Runtime) -> Setup:
    split_file = out / "split.json"
    if runtime.is_main:
        _images(settings, "search-val", split_file)  # drawn and written, once
    runtime.barrier()
    return _open(settings, out, runtime, split_file)


def _open(settings: SearchSettings, out: FilePath, runtime: Runtime, split_file: FilePath | None) -> Setup:
    """What the stages share; raises `UsageError` or `DataError` where settings, images and processes do not fit."""
    train, rated = (_images(settings, part, split_file) for part in ("search-train", settings.rating_part))
    setup = Setup(settings, settings.make_space(), train, rated, runtime, out)
    check_processes(settings, out if split_file else None, runtime)
    if settings.method != "unnas":
        check_num_paths(setup.space, settings)
    settings.check_batch(len(setup.train_images))
    settings.check_rated(len(setup.rating_images))
    _check_bounds(settings, setup.space)
    if settings.method == "dna":
        check_teacher(settings, setup.space.num_blocks)
    if settings.compile:
        check_compiler(runtime)
    return setup


def _images(settings: SearchSettings, part: str, split_file: FilePath | None) -> ImageSet:
    listed = FilePath(settings.search_val) if settings.search_val else None
    return open_images(settings.data, part, seed=settings.seed, split_file=split_file, search_val=listed)


def _check_bounds(settings: SearchSettings, space: Space) -> None:
    """Raise `UsageError` where no architecture of the whole space meets the bounds, as if all were rated alike."""
    if settings.max_madds is not None or settings.max_params is not None:
        blocks = tuple(
            {
                space.entry_text(entry): {space.path_text(path): 0.0 for path in space.paths(block, entry)}
                for entry in trained_entries(space, block)
            }
            for block in range(space.num_blocks)
        )
        table = RatingTable(settings.space, blocks)
        solve(space, table, max_madds=settings.max_madds, max_params=settings.max_params)


def _load_table(setup: Setup) -> RatingTable:
    """Ratings of the stages finished so far; an empty table at the start.

    Raises:
        BossNetError: they are another search's, or were edited or damaged since.
    """
    settings, split = setup.settings, load_json(setup.out / "split.json", "split file")
    drawn = {"drawn": split["drawn"], SEAL: split[SEAL]}
    rated_on = min(len(setup.rating_images), settings.rating_images or len(setup.rating_images))
    meta = {
        "space_options": dict(settings.space_options),
        "method": settings.method,
        "data": settings.data,
        "seed": settings.seed,
        "coverage": settings.coverage,
        "split": {"search_train": len(setup.train_images), "rated_on": rated_on, **drawn},
    }
    file = setup.out / "ratings.json"
    if file.exists():
        stored = load_json(file, "ratings file", ANEW)
        try:
            table = ratings_from_json(stored, str(file))
            table.check_origin({"space": settings.space, **meta}, file)
            table.check(setup.space)
        except UsageError as error:
            raise CheckpointError(f"{str(error).partition(';')[0]}; {ANEW}") from error
        check_seal(stored, file, ANEW)
        return table
    return RatingTable(settings.space, tuple({} for _ in range(setup.space.num_blocks)), meta=meta)


def _train_blocks(setup: Setup, table: RatingTable) -> RatingTable:
    """Train and rate block by block, for one entry of each or for every one."""
    calibration = calibration_views(setup)
    for block in range(setup.space.num_blocks):
        for stage, chain in stages_of_block(setup.space, table, block, setup.settings.coverage).items():
            if setup.space.entry_text(stage.entry) not in table.blocks[block]:
                table = _run_stage(setup, stage, chain, calibration, table)
    return table


def _run_stage(
    setup: Setup, stage: Stage, chain: Chain, calibration: list[torch.Tensor], table: RatingTable
) -> RatingTable:
    """Train and rate one stage, going on from its last finished epoch; returns the table with its ratings."""
    space, limit = setup.space, setup.settings.rating_images
    training: BlockTraining | DistillationTraining
    if setup.settings.method == "dna":
        training = DistillationTraining(setup, stage, calibration)
    else:
        training = BlockTraining(setup, stage, _load_prefix(setup, chain, calibration))

    def rate() -> BlockRatings:
        with uncompiled(setup.settings.compile):
            rated = training.rate(calibration, limit)
        texts = _by_text(space, rated.ratings)
        setup.log(stage, "rating", epoch=training.epoch, ratings=texts, elsewhere=rated.elsewhere)
        training.show(best_rating=min(texts.values()), mean_rating=rated.mean, elsewhere=rated.elsewhere)
        return rated

    _train(setup, training, rate)
    rated = rate()
    ratings = rated.ratings
    training.close()
    block = {**table.blocks[stage.block], space.entry_text(stage.entry): _by_text(space, ratings)}
    table = replace(table, blocks=(*table.blocks[: stage.block], block, *table.blocks[stage.block + 1 :]))
    if setup.runtime.is_main:
        save_weights(setup.out / "blocks" / f"{training.name}.safetensors", training.block.state_dict())
        table.write(setup.out / "ratings.json")
        best = min(ratings, key=lambda path: ratings[path])
        console.note(
            f"{training.name}: {len(ratings)} paths rated, best {space.path_text(best)} at {ratings[best]:.4f}; "
            f"mean {rated.mean:.4f}, towards other images {rated.elsewhere:.4f}"
        )
        if rated.elsewhere < LEARNED * rated.mean:
            target = " or a lower --target-momentum" if setup.settings.method == "bossnas" else ""
            console.note(
                f"{training.name}: these ratings say little, since its supernet hardly tells one image from another; "
                f"search anew with more --epochs, a higher --base-lr{target}"
            )
    setup.runtime.barrier()
    return table


def _train_supernet(setup: Setup, table: RatingTable) -> RatingTable:
    """UnNAS: train the whole supernet at once, then measure architectures; returns the table with the ratings."""
    if all(table.blocks):
        return table
    training, calibration = RotationTraining(setup), calibration_views(setup)

    def rate() -> RatingTable:
        if setup.runtime.is_main:
            console.note("supernet: measuring architectures, each with BN statistics of its own")
        with uncompiled(setup.settings.compile):
            measured = training.measure(calibration, setup.settings.rating_images)
        rated = rate_by_marginals(setup.space, table, measured)
        for block, tables in enumerate(rated.blocks):
            for entry in trained_entries(setup.space, block):
                ratings = tables[setup.space.entry_text(entry)]
                setup.log(Stage(block, entry), "rating", epoch=training.epoch, ratings=ratings)
        training.show(best_accuracy=max(measured.values()), mean_accuracy=sum(measured.values()) / len(measured))
        return rated

    _train(setup, training, rate)
    table = rate()
    training.close()
    if setup.runtime.is_main:
        table.write(setup.out / "ratings.json")
    setup.runtime.barrier()
    return table


def _train(setup: Setup, training: Training, rate: Callable[[], object]) -> None:
    """All epochs that are still to be trained, each followed by its state, and some by ratings."""
    settings = setup.settings
    state = load_stage(setup.out, training.name, aloud=setup.runtime.is_main)
    if state is not None:
        training.load_state_dict(state)
    _check_shared(setup.out, setup.runtime, f"{training.name} after epoch {training.epoch}")
    if setup.runtime.is_main:
        if training.epoch:
            console.note(f"{training.name}: going on after epoch {training.epoch} of {settings.epochs}")
        _forget_after(setup, training)
    training.show_in(setup.out / "tensorboard")
    while training.epoch < settings.epochs:
        loss = training.train_epoch()
        if settings.rating_every and training.epoch % settings.rating_every == 0 and training.epoch < settings.epochs:
            rate()
        if setup.runtime.is_main:
            save_stage(setup.out, training.name, training.epoch, training.state_dict())
            console.note(f"{training.name}: epoch {training.epoch}/{settings.epochs}, loss {loss:.4f}")


def _load_prefix(setup: Setup, chain: Chain, calibration: list[torch.Tensor]) -> FrozenPrefix:
    return load_prefix(setup.space, chain, setup.out / "blocks", calibration, setup.runtime)


def _by_text(space: Space, ratings: Mapping[Path, float]) -> dict[str, float]:
    return {space.path_text(path): rating for path, rating in ratings.items()}


def _forget_after(setup: Setup, training: Training) -> None:
    """Remove the log records of epochs that will be trained again."""
    file, epoch = setup.out / "metrics.jsonl", training.epoch
    own = (training.stage.block, setup.space.entry_text(training.stage.entry))

    def keep(record: Mapping[str, Any]) -> bool:
        if setup.settings.method != "unnas" and (record["block"], record["entry"]) != own:
            return True
        return record["epoch"] < epoch or (
            record["kind"] == "rating" and record["epoch"] == epoch < setup.settings.epochs
        )

    records = [record for record in read_jsonl(file) if keep(record)]
    here = [record for record in records if (record["block"], record["entry"]) == own and record["kind"] == "epoch"]
    if len(here) < epoch:
        console.note(f"{file} has lost records of {training.name}: its curves are short, its ratings are right")
    if file.exists():
        save_text(file, "".join(json.dumps(record) + "\n" for record in records))


def open_setup(run: FilePath, runtime: Runtime) -> Setup:
    """What the stages of the search in `run` share. Raises `UsageError` if `run` is no search."""
    return _setup(resume_settings(run), run, runtime)


def search_progress(run: FilePath) -> tuple[Space, RatingTable]:
    """Space and ratings of a search, finished or not.

    Raises:
        UsageError: `run` is no search.
        BossNetError: no block is finished yet, or the ratings are of another search.
    """
    settings, file = resume_settings(run), run / "ratings.json"
    if not file.exists():
        command = f"{program_for(settings.space)} search --resume {run}"
        raise BossNetError(f"{run} has no ratings yet; finish the search with: {command}")
    table = read_ratings(file)
    table.check_config(read_config(run), file)
    return settings.make_space(), table
