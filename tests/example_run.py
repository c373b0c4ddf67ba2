"""An invented run directory, complete as `bossnet demo` leaves one. Seeded; no figure in it was ever measured."""

from __future__ import annotations

import math
import random
from pathlib import Path

from bossnet_zoo.checkpoint import append_jsonl, load_json, save_json
from bossnet_zoo.search.ranking import epochs_of_search, keep_for_report, rank
from bossnet_zoo.search.rating_table import RatingTable, read_ratings
from bossnet_zoo.search.solver import solve
from bossnet_zoo.search.truth_table import TruthTable
from bossnet_zoo.spaces import get_space

SPACE_OPTIONS = {
    "hytra": {"base_width": 8, "num_classes": 10, "default_resolution": 64},
    "mbconv": {"num_classes": 10},
    "nats": {},
}
META = {"method": "bossnas", "split": {"search_train": 1077, "rated_on": 180}}
REFERENCE = "4ccc-8cccc-16cccccc-32ccc"


def make_search(
    folder: Path, space_name: str = "hytra", *, blocks: int | None = None, full: bool = False, steps: int = 40
) -> Path:
    """What `bossnet search` leaves.

    Args:
        folder: the run directory to make.
        blocks: how many blocks are finished; all of them by default.
        full: rate blocks for every entry, not only for the one at which the best path before ends.
        steps: optimiser steps of a block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = SPACE_OPTIONS[space_name]
    space = get_space(space_name, **options)
    save_json(folder / "config.json", make_config(space_name, options))
    generator = random.Random(7)
    tables: list[dict] = [{} for _ in range(space.num_blocks)]
    state = None
    for block in range(space.num_blocks if blocks is None else blocks):
        for entry in space.entries(block) if full else [state]:
            ratings = {space.path_text(path): generator.gauss(1, 0.1) for path in space.paths(block, entry)}
            tables[block][space.entry_text(entry)] = ratings
            write_metrics(folder / "metrics.jsonl", block, space.entry_text(entry), ratings, steps, generator)
        ratings = tables[block][space.entry_text(state)]
        state = space.exit(block, state, space.parse_path(block, min(ratings, key=ratings.__getitem__)))
    table = RatingTable(space.name, tuple(tables), meta={**META, "space_options": options})
    table.write(folder / "ratings.json")
    if all(tables):
        save_json(folder / "architectures.json", [solution.to_json() for solution in solve(space, table, top=5)])
    return folder


def make_config(space_name: str, options: dict) -> dict:
    settings = {"epochs": 4, "num_paths": 4, "global_batch": 64, "resolution": 64, "coverage": "greedy", "base_lr": 4.8}
    return {
        "format": 1,
        "version": "0.0.0-example",
        "space": space_name,
        "space_options": options,
        "data": "digits",
        "method": "bossnas",
        "preset": "demo",
        "settings": settings,
        "seed": 3,
        "runtime": "cpu, float32, 1 process",
    }


def write_metrics(file: Path, block: int, entry: str, ratings: dict, steps: int, generator: random.Random) -> None:
    """Four epochs of falling losses, each followed by ratings that come ever nearer to the final ones."""
    here = {"block": block, "entry": entry}
    for epoch in range(4):
        for step in range(steps // 4):
            progress = (epoch * steps / 4 + step) / steps
            loss = 1.1 + 2.4 * math.exp(-4 * progress) + generator.gauss(0, 0.08)
            record = {
                "epoch": epoch,
                "step": step,
                "loss": loss,
                "lr": 0.1,
                "momentum": 0.99,
                "paths": list(ratings)[:4],
            }
            append_jsonl(file, {"kind": "step", **here, **record})
        append_jsonl(
            file, {"kind": "epoch", **here, "epoch": epoch, "loss": loss, "seconds": 5.0, "images_per_second": 200.0}
        )
        noise = 0.1 * (3 - epoch)  # none in the end
        noisy = {path: rating + generator.gauss(0, noise) for path, rating in ratings.items()}
        append_jsonl(file, {"kind": "rating", **here, "epoch": epoch + 1, "ratings": noisy, "elsewhere": 1.25})


def add_ranking(run: Path, *, architectures: int = 40) -> None:
    """What `bossnet rank` adds: accuracies that agree with the scores, more or less."""
    table = read_ratings(run / "ratings.json")
    space, generator = table.make_space(), random.Random(5)
    scores: dict[str, float] = {}
    while len(scores) < architectures:
        arch = space.sample(generator)
        score = table.score(space, arch)
        if score is not None:
            scores[str(arch)] = score
    accuracy = {arch: 90 - 5 * score + generator.gauss(0, 0.7) for arch, score in scores.items()}
    truth = TruthTable(space.name, accuracy)
    ranking = rank(space, table, truth, resamples=50)
    keep_for_report(run, ranking, truth, epochs_of_search(run, space, table, truth))


def make_demo(folder: Path) -> Path:
    """A search, and everything that `bossnet demo` adds to it."""
    make_search(folder)
    space = get_space("hytra", **SPACE_OPTIONS["hytra"])
    found = load_json(folder / "architectures.json")[0]
    reference = space.cost(space.parse(REFERENCE))
    networks = [
        {"name": "found", "architecture": found["architecture"], "top1": 97.5, "params": found["params"],
         "madds": found["madds"], "seconds": 61.0},
        {"name": "reference", "architecture": REFERENCE, "top1": 96.25, "params": reference.params,
         "madds": reference.madds, "seconds": 58.0},
    ]  # fmt: skip
    for network in networks:
        training = folder / "retrain" / network["name"]
        training.mkdir(parents=True)
        for epoch in range(12):
            top1 = network["top1"] * (1 - 0.8 * math.exp(-(epoch + 1) / 2.5))
            record = {
                "kind": "epoch",
                "epoch": epoch,
                "train_loss": 1.0,
                "top1": top1,
                "top5": 99.0,
                "ema_top1": 0.97 * top1,
            }
            append_jsonl(training / "metrics.jsonl", record)
    save_json(
        folder / "demo.json",
        {
            "data": {"name": "digits", "train": 1257, "search_val": 180, "test": 360, "classes": 10},
            "budget_madds": round(1.05 * found["madds"]),
            "architecture": found["architecture"],
            "reference": REFERENCE,
            "retrained": networks,
            "export": {
                "file": "model.onnx",
                "bytes": 1_912_345,
                "parity": [
                    {"batch": batch, "max_abs": 3e-6 * batch, "max_rel": 1e-5, "top1_agreement": 1.0}
                    for batch in (1, 2, 8)
                ],
            },
            "commands": [["Predict an image", "bossnet predict runs/demo/model.onnx digit.png"]],
            "seconds": {"search": 112.0, "retrain": 119.0, "export": 9.0},
        },
    )
    return folder
