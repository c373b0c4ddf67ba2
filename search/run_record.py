"""What a search left in its run directory, read back for the report: as much of it as there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.spaces import Space, space_names

from .rating_table import RatingTable, read_ratings

Record = dict[str, Any]
Ratings = Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """A run directory, finished or not.

    Attributes:
        folder: where it is.
        config: config.json: space, data, method, settings, seed, version.
        metrics: metrics.jsonl: steps, epochs and ratings, in order of time.
        table: ratings.json, whose blocks are empty as long as they are not rated.
        architectures: architectures.json, best first.
        demo: demo.json, if `bossnet demo` made this run.
        ranking: ranking.json, if `bossnet rank` compared these ratings with true accuracies.
        trainings: epochs of the networks trained below the folder, by the name of theirs.
    """

    folder: Path
    config: Record
    metrics: list[Record]
    table: RatingTable | None
    architectures: list[Record]
    demo: Record
    ranking: Record
    trainings: Mapping[str, list[Record]]

    @cached_property
    def space(self) -> Space | None:
        """The space that was searched; None for one that this package does not know."""
        if self.config["space"] not in space_names():
            return None
        described = self.table or RatingTable(self.config["space"], (), meta=self.config)
        return described.make_space()

    @cached_property
    def finished_table(self) -> RatingTable | None:
        """The ratings, once every block of a known space has them."""
        if self.space is None or self.table is None or len(self.table.blocks) != self.space.num_blocks:
            return None
        return self.table if all(any(entries.values()) for entries in self.table.blocks) else None

    @property
    def lower_is_better(self) -> bool:
        return self.table.lower_is_better if self.table else True

    @property
    def architecture(self) -> str | None:
        """The architecture that the search found, once it has."""
        return self.demo.get("architecture") or next((row["architecture"] for row in self.architectures), None)

    def of_kind(self, kind: str) -> Iterator[Record]:
        return (record for record in self.metrics if record.get("kind") == kind)

    @cached_property
    def block_ratings(self) -> dict[int, dict[str, Ratings]]:
        """Ratings by block and entry: the final ones, and the latest of a stage that is still in training."""
        ratings: dict[int, dict[str, Ratings]] = {}
        for record in self.of_kind("rating"):
            ratings.setdefault(record["block"], {})[record["entry"]] = record["ratings"]
        for block, entries in enumerate(self.table.blocks if self.table else ()):
            for entry, paths in entries.items():
                ratings.setdefault(block, {})[entry] = paths
        return ratings

    @property
    def num_rated(self) -> int:
        """Paths with a rating, over all blocks and entries."""
        return sum(len(paths) for entries in self.block_ratings.values() for paths in entries.values())


def read_run(folder: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        UsageError: the folder is no run directory of a search.
        BossNetError: one of its files is damaged, or its ratings are of another search.
    """
    if not (folder / "config.json").is_file():
        what = "holds no config.json, so it is not the run directory of a search" if folder.is_dir() else "is no folder"
        raise UsageError(f"{folder} {what}; give the folder that bossnet search or bossnet demo wrote (--out)")
    config = load_json(folder / "config.json", "run configuration")
    if not isinstance(config, dict) or not isinstance(config.get("space"), str):
        raise UsageError(f"{folder} is not the run directory of a search: its config.json names no space")
    ratings = folder / "ratings.json"
    table = read_ratings(ratings) if ratings.exists() else None
    if table is not None:
        table.check_config(config, ratings)
    return RunRecord(
        folder=folder,
        config=config,
        metrics=read_jsonl(folder / "metrics.jsonl"),
        table=table,
        architectures=_read_architectures(folder / "architectures.json"),
        demo=_read_object(folder / "demo.json", ("architecture", "reference", "retrained")),
        ranking=_read_object(folder / "ranking.json", ("n", "points", "baselines", "kendall")),
        trainings=_trainings(folder),
    )


def _read_architectures(path: Path) -> list[Record]:
    rows = load_json(path) if path.exists() else []
    keys = {"architecture", "score", "madds", "params"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise BossNetError(f"{path} is no list of architectures with {', '.join(sorted(keys))}; {_DAMAGED}")
    return rows


def _read_object(path: Path, keys: Sequence[str]) -> Record:
    """A JSON object that must have `keys`; empty where the file does not exist."""
    if not path.exists():
        return {}
    content = load_json(path)
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise BossNetError(f"{path} is no JSON object with {', '.join(keys)}; {_DAMAGED}")
    return content


_DAMAGED = "it may be damaged: remove it, and the report will do without"


def _trainings(folder: Path) -> dict[str, list[Record]]:
    """The epochs of every training below `folder`, at most two levels down, by name of its folder."""
    files = sorted([*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")])
    epochs = {
        file.parent.name: [record for record in read_jsonl(file) if record.get("kind") == "epoch" and "top1" in record]
        for file in files
    }
    return {name: records for name, records in epochs.items() if records}
