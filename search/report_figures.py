"""From a run's records to the figures of its report. Each function returns nothing where the run has no such data."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.spaces import NatsSpace, Space
from bossnet_zoo.spaces.nats import WIDTHS

from .plots import NARROW, WIDE, Curve, Mark, draw_architecture, draw_curves, draw_front, draw_ratings
from .rating import LEARNED
from .rating_table import ANY, RatingTable
from .run_record import Ratings, Record, RunRecord
from .solver import pareto
from .svg import Point

MAX_POINTS = 240  # of a curve; more than a figure has pixels for
CLOUD_SIZE = 600
TONES = 5


@dataclass(frozen=True)
class Panel:
    """A figure among others like it, with its title and a sentence below."""

    title: str
    figure: Markup
    caption: str = ""


@dataclass(frozen=True)
class RatedPath:
    """A row of the table of a block's best paths; `entry` is empty where the block has only one."""

    path: str
    rating: str
    entry: str
    chosen: bool


def architecture_figure(record: RunRecord, architecture: str | None) -> Markup | None:
    """The drawing of `architecture`, if it is one of a space that can be drawn."""
    if architecture is None:
        return None
    try:
        if (space := record.space) is None:
            return draw_architecture(architecture)
        arch = space.parse(architecture)
        widths = space.widths if isinstance(space, NatsSpace) else WIDTHS
        return draw_architecture(arch, [len(path) for path in space.split(arch)], widths)
    except ArchitectureError:
        return None


def _for_page_and_phone(draw: Callable[..., Markup], *values: Any, **options: Any) -> Markup:
    """A figure in two widths, of which the page shows the one that fits."""
    pictures = [draw(*values, **options, width=width) for width in (WIDE, NARROW)]
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(*pictures)


def number_format(values: Sequence[float]) -> Callable[[float], str]:
    """How to write `values` so that they can be told apart: with two digits more than their range has."""
    extent = max(values) - min(values)
    decimals = min(8, max(2, 3 - math.ceil(math.log10(extent)))) if extent else 4
    return lambda value: f"{value:.{decimals}f}"


# --- training the blocks


def loss_panels(record: RunRecord) -> list[Panel]:
    """The loss of each block while it was trained, a line for each scale or width at which it was entered."""
    panels = []
    together = record.config.get("method") == "unnas"
    for block in sorted({step["block"] for step in record.of_kind("step")}):
        runs = _by_entry([step for step in record.of_kind("step") if step["block"] == block])
        lines = {entry: _losses_over_epochs(steps) for entry, steps in runs.items()}
        curves, caption = _one_loss(*lines.values()) if len(lines) == 1 else _several_losses(lines)
        title = "Whole supernet" if together else f"Block {block + 1}"
        drawn = (f"{title}: loss over epochs", curves, "loss")
        figure = _for_page_and_phone(draw_curves, *drawn) if together else draw_curves(*drawn)
        panels.append(Panel(title, figure, caption))
    return panels


def _one_loss(line: list[Point]) -> tuple[list[Curve], str]:
    caption = f"{len(line)} steps, {line[0][1]:.2f} to {_mean([loss for _, loss in line[-10:]]):.2f}"
    return [Curve("", _thin(line), style="faint"), Curve("", _smoothed(line))], caption


def _several_losses(lines: dict[str, list[Point]]) -> tuple[list[Curve], str]:
    curves = [Curve(f"at {entry}", _smoothed(line), tone % TONES) for tone, (entry, line) in enumerate(lines.items())]
    return curves, f"entered in {len(lines)} ways, {sum(map(len, lines.values())):,} steps together"


def _by_entry(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by entry, in order of step. A step repeated after an interruption counts once, as it was last."""
    unique = {(record["entry"], record["epoch"], record.get("step", 0)): record for record in records}
    groups: dict[str, list[Record]] = {}
    for (entry, _, _), record in sorted(unique.items(), key=lambda item: item[0][1:]):
        groups.setdefault(entry, []).append(record)
    return groups


def _losses_over_epochs(steps: Sequence[Record]) -> list[Point]:
    per_epoch = len(steps) / len({step["epoch"] for step in steps})
    return [((index + 1) / per_epoch, step["loss"]) for index, step in enumerate(steps)]


def _thin(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MAX_POINTS` of the points, the last among them."""
    stride = -(-len(points) // MAX_POINTS)
    return tuple(points[::-1][::stride][::-1])


def _smoothed(points: Sequence[Point], windows: int = 30) -> tuple[Point, ...]:
    """Means over at most `windows` stretches of equal length."""
    size = -(-len(points) // windows)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((_mean([x for x, _ in stretch]), _mean([y for _, y in stretch])) for stretch in stretches)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- ratings


def rating_panels(record: RunRecord) -> list[tuple[Panel, list[RatedPath]]]:
    """All ratings of each block, and its best paths."""
    chosen = _chosen_paths(record)
    panels = []
    for block, entries in sorted(record.block_ratings.items()):
        title = f"Block {block + 1}"
        figure = draw_ratings(
            f"{title}: ratings",
            entries,
            space=record.config["space"],
            chosen=chosen.get(block),
            lower_is_better=record.lower_is_better,
        )
        caption = f"{sum(map(len, entries.values()))} paths rated{_learned(record, block)}"
        panels.append((Panel(title, figure, caption), _best_paths(entries, chosen.get(block), record.lower_is_better)))
    return panels


def _learned(record: RunRecord, block: int) -> str:
    """The mean rating beside that towards other images (`BlockRatings.elsewhere`), for each stage of the block."""
    told = _by_entry([rating for rating in record.of_kind("rating") if rating["block"] == block])
    last = {entry: ratings[-1] for entry, ratings in told.items() if "elsewhere" in ratings[-1]}
    texts = []
    for entry, rating in last.items():
        own, elsewhere = _mean(list(rating["ratings"].values())), rating["elsewhere"]
        doubt = "" if elsewhere >= LEARNED * own else " (says little)"
        where = f"entered at {entry}: " if len(last) > 1 else ""
        texts.append(f"; {where}mean {own:.3f}, towards other images {elsewhere:.3f}{doubt}")
    compared = "; each entry has a population centre of its own, so ratings compare within one" if len(last) > 1 else ""
    return "".join(texts) + compared


def _chosen_paths(record: RunRecord) -> dict[int, tuple[str, str]]:
    """By block, the entry under which the found architecture's path is rated, and that path."""
    space, ratings = record.space, record.block_ratings
    if space is None or record.architecture is None:
        return {}
    chosen, state = {}, None
    for block, path in enumerate(space.split(space.parse(record.architecture))):
        entry, text = space.entry_text(state), space.path_text(path)
        chosen[block] = (entry if text in ratings.get(block, {}).get(entry, {}) else ANY, text)
        state = space.exit(block, state, path)
    return chosen


def _best_paths(
    entries: dict[str, Ratings], chosen: tuple[str, str] | None, lower_is_better: bool, number: int = 3
) -> list[RatedPath]:
    """The best `number` paths, and the chosen one if it is not among them."""
    rows = [
        (rating, path, entry, (entry, path) == chosen)
        for entry, ratings in entries.items()
        for path, rating in ratings.items()
    ]
    rows.sort(key=lambda row: (row[0] if lower_is_better else -row[0], row[1]))
    write = number_format(min(([*rated.values()] for rated in entries.values() if rated), key=np.ptp))
    best = rows[:number] + [row for row in rows[number:] if row[3]]
    return [
        RatedPath(path, write(rating), entry if len(entries) > 1 else "", taken) for rating, path, entry, taken in best
    ]


def convergence_figure(record: RunRecord) -> Markup | None:
    """Rank correlation (Kendall's tau-b) of intermediate ratings with the final ones of their block (figure 7).

    Of a block that was trained for several entries, it is that of the entry at which the found architecture enters it.
    """
    chosen = _chosen_paths(record)
    curves: list[Curve] = []
    for block in sorted({rating["block"] for rating in record.of_kind("rating")}):
        by_entry = _by_entry([rating for rating in record.of_kind("rating") if rating["block"] == block])
        entry = chosen[block][0] if block in chosen else ANY
        points = _agreement(by_entry.get(entry, next(iter(by_entry.values()))))
        if len(points) > 1:
            curves.append(Curve(f"block {block + 1}", points, len(curves) % TONES))
    if not curves:
        return None
    return _for_page_and_phone(draw_curves, "Rank correlation with the final ratings", curves, "Kendall tau")


def _agreement(ratings: Sequence[Record]) -> tuple[Point, ...]:
    if len(ratings) < 2:
        return ()
    from scipy.stats import kendalltau  # a second, and few reports need it

    final = ratings[-1]["ratings"]
    points = []
    for record in ratings[:-1]:
        shared = [path for path in final if path in record["ratings"]]
        tau = kendalltau([record["ratings"][path] for path in shared], [final[path] for path in shared]).statistic
        if tau == tau:  # undefined where all ratings are equal
            points.append((float(record["epoch"]), float(tau)))
    return tuple(points)


# --- choosing


def front_figure(record: RunRecord) -> Markup | None:
    """The Pareto front of the rated space, with the found architecture, its reference and the budget."""
    space, table = record.space, record.finished_table
    if space is None or table is None:
        return None
    front = [Mark(s.cost.madds, s.score, f"{s.arch}: {s.score:.4f}") for s in pareto(space, table)]
    names = {record.architecture: "chosen", record.demo.get("reference"): "reference"}
    named = []
    for text, label in names.items():
        arch = space.parse(text) if text else None
        score = table.score(space, arch) if arch else None
        if arch is not None and score is not None:
            madds = space.cost(arch).madds
            named.append(Mark(madds, score, f"{text}: {score:.4f}", label, tone=0 if label == "chosen" else 1))
    return _for_page_and_phone(
        draw_front,
        front,
        _cloud(space, table),
        named,
        budget=record.demo.get("budget_madds"),
        lower_is_better=table.lower_is_better,
    )


def _cloud(space: Space, table: RatingTable) -> list[Point]:
    """Cost and score of random architectures of the space, as far as they are rated."""
    generator = random.Random(0)
    sample = dict.fromkeys(space.sample(generator) for _ in range(4 * CLOUD_SIZE))
    rated = [(arch, score) for arch in sample if (score := table.score(space, arch)) is not None]
    return [(space.cost(arch).madds, score) for arch, score in rated[:CLOUD_SIZE]]


# --- retraining


def accuracy_figure(record: RunRecord) -> Markup | None:
    """Test accuracy over epochs of the networks trained in this run; dashed, that of their averaged weights."""
    curves = []
    for tone, (name, epochs) in enumerate(_ordered_trainings(record)):
        tone %= TONES
        curves.append(Curve(name, tuple((e["epoch"] + 1, e["top1"]) for e in epochs), tone))
        averaged = tuple((e["epoch"] + 1, e["ema_top1"]) for e in epochs if e.get("ema_top1") is not None)
        if averaged:
            curves.append(Curve("", averaged, tone, "dashed"))
    return _for_page_and_phone(draw_curves, "Test accuracy over epochs", curves, "top-1 %") if curves else None


def _ordered_trainings(record: RunRecord) -> list[tuple[str, list[Record]]]:
    """Trainings in the order of the demo's table, then by name."""
    order = [network["name"] for network in record.demo.get("retrained", [])]
    known = [(name, record.trainings[name]) for name in order if name in record.trainings]
    return known + [(name, epochs) for name, epochs in record.trainings.items() if name not in order]
