"""The report of a search: one HTML page that needs nothing else, neither network nor script.

It shows what the run directory holds and leaves out what is not there (yet), so it can be written at any moment of a
search. The page is `report.html` beside this file; what it says is gathered here, its figures in `report_figures`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from bossnet_zoo import __version__
from bossnet_zoo.checkpoint import reading, save_text
from bossnet_zoo.commands import parse_amount
from bossnet_zoo.drawing import KINDS, diagram
from bossnet_zoo.errors import ArchitectureError, UsageError
from bossnet_zoo.spaces import options_in_words, program_for, space_names

from . import report_figures as figures
from .report_ranking import draw_epochs, draw_intervals, draw_points, rank_rows
from .run_record import RunRecord, read_run
from .settings import drawn_in_a_step
from .solver import pareto
from .svg import FIGURE_STYLE, PALETTE, standalone

SPACES = {"hytra": "HyTra", "mbconv": "MBConv", "nats": "NATS-Bench S_S"}
METHODS = {
    "bossnas": "BossNAS: each block learns without labels, by ensemble bootstrapping",
    "dna": "DNA: each block imitates a supervised teacher's features",
    "unnas": "UnNAS: the network learns to tell how images were rotated",
}
TRAINED = {
    "bossnas": "Blocks are trained one after the other, those before them frozen.",
    "dna": "Each block is trained by itself, between features of the teacher.",
    "unnas": "All blocks are trained at once.",
}


RATING_IS = {
    "bossnas": "the distance to the centre of all paths",
    "dna": "how far its features are from the teacher's, on average",
    "unnas": "what it adds to the share of rotations recognised, on average over the architectures through it",
}


class Card(NamedTuple):
    """A headline figure: what, how much, and a remark."""

    label: str
    value: str
    note: str = ""


def require_space(run: Path) -> None:
    """Raise `UsageError` where the search's space is not known here, so that its page would say less than it does."""
    space = read_run(run).config["space"]
    if space not in space_names():
        raise UsageError(f"space {space!r} is not known here; type: {program_for(space)} report {run}")


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from whatever the run has brought about so far.

    Raises:
        UsageError: the folder is no run directory of a search.
        BossNetError: a file of the run is damaged, or the page could not be written.
    """
    run = Path(run)
    record = read_run(run)
    with reading(run, "the search in", "what its files say must be as the search wrote it"):
        page = render_report(record)
    save_text(run / "report.html", page)
    return run / "report.html"


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Write the architecture found and the ratings of every block as SVG files, for a README or a slide.

    Raises:
        UsageError: the folder is no run directory of a search.
        BossNetError: a file of the run is damaged, or one could not be written.
    """
    record = read_run(Path(run))
    pictures = {"architecture": figures.architecture_figure(record, record.architecture)}
    pictures |= {panel.title.lower().replace(" ", "-"): panel.figure for panel, _ in figures.rating_panels(record)}
    written = []
    for name, picture in pictures.items():
        if picture is not None:
            save_text(folder / f"{name}.svg", standalone(picture))
            written.append(folder / f"{name}.svg")
    return written


def render_report(record: RunRecord) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        colored=partial(colored, space=record.config["space"]),
        count=format_count,
        percent=format_percent,
        duration=format_duration,
        size=format_size,
    )
    found = record.architecture
    reference = record.demo.get("reference")
    return environment.get_template("report.html").render(
        record=record,
        version=record.config.get("version", __version__),
        style=Markup(PALETTE + FIGURE_STYLE),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        lede=_lede(record),
        found=found,
        drawing=figures.architecture_figure(record, found),
        kinds=KINDS.get(record.config["space"], ()),
        reference=reference,
        reference_drawing=figures.architecture_figure(record, reference),
        cards=list(_cards(record)),
        facts=_facts(record),
        losses=figures.loss_panels(record),
        trained=TRAINED.get(record.config.get("method", ""), ""),
        rating_is=RATING_IS.get(record.config.get("method", ""), RATING_IS["bossnas"]),
        ratings=figures.rating_panels(record),
        convergence=figures.convergence_figure(record),
        front=figures.front_figure(record),
        write_score=figures.number_format([row["score"] for row in record.architectures] or [0.0]),
        rank_rows=rank_rows(record.ranking) if record.ranking else [],
        rank_figures=_rank_figures(record),
        accuracies=figures.accuracy_figure(record),
        coverage=_coverage_text(record),
        retrained=record.demo.get("retrained", []),
        exported=record.demo.get("export"),
        seconds=record.demo.get("seconds", {}),
        commands=_commands(record),
        settings=record.config.get("settings", {}),
    )


# --- what the page says


def _lede(record: RunRecord) -> str:
    """The whole story in a sentence."""
    space = _space_name(record)
    if record.architecture is None:
        of_all = f" of {record.space.num_blocks}" if record.space else ""
        return f"{len(record.block_ratings)}{of_all} blocks of {space} are rated so far. This page shows what there is."
    among = "architectures"
    if record.space and record.finished_table:  # greedy coverage rates part of the space, and chooses among that part
        rated = round(record.finished_table.coverage(record.space) * record.space.count())
        among = f"{rated:,} rated architectures (all: {record.space.count():,})"
    learned = ", learned from images without labels" if record.config.get("method") in ("bossnas", "unnas") else ""
    return f"Chosen among the {among} of {space} by the ratings of {record.num_rated:,} paths{learned}."


def _space_name(record: RunRecord) -> str:
    """`HyTra`; with options that leave fewer architectures `NATS-Bench S_S narrowed by options`."""
    name = str(record.config["space"])
    narrowed = record.space is not None and "without options" in options_in_words(record.space)
    return SPACES.get(name, name) + (" narrowed by options" if narrowed else "")


def _coverage_text(record: RunRecord) -> str:
    """How much of the space has a score, once every block is rated."""
    if record.finished_table is None or record.space is None:
        return ""
    coverage = record.finished_table.coverage(record.space)
    return "the whole space" if coverage == 1 else f"{100 * coverage:.3g}% of the space"


def _cards(record: RunRecord) -> Iterator[Card]:
    networks = {network["architecture"]: network for network in record.demo.get("retrained", [])}
    found, reference = networks.get(record.architecture), networks.get(record.demo.get("reference"))
    best = next((row for row in record.architectures if row["architecture"] == record.architecture), None)
    beside = {name: f"reference {write(reference[name])}" for name, write in _WRITERS.items()} if reference else {}
    pixels = f"of one image of {record.space.default_resolution} px" if record.space else "of one image"
    if found:
        yield Card("Test accuracy", format_percent(found["top1"]), beside.get("top1", "retrained from scratch"))
    if best:
        yield Card("Multiply-adds", format_count(best["madds"]), beside.get("madds", pixels))
        yield Card("Parameters", format_count(best["params"]), beside.get("params", "trainable"))
    if coverage := _coverage_text(record):
        yield Card("Paths rated", f"{record.num_rated:,}", f"{coverage} scored")
    if parity := record.demo.get("export", {}).get("parity"):
        batches = ", ".join(str(row["batch"]) for row in parity)
        yield Card("ONNX difference", f"{max(row['max_abs'] for row in parity):.1e}", f"at most, at batch {batches}")
    if seconds := record.demo.get("seconds"):
        yield Card("Time", format_duration(sum(seconds.values())), "to search and to retrain both")


def _facts(record: RunRecord) -> dict[str, str]:
    """What was searched, descriptions by term; what is not known is empty."""
    config = record.config
    coverage = _coverage_text(record)
    ratings = f"{record.num_rated:,} paths" if record.num_rated else ""
    return {
        "Space": _space_fact(record),
        "Options of the space": options_in_words(record.space) if record.space else "",
        "Method": _method_fact(config),
        "Images": _images_fact(record),
        "Labels": "not used to search, only to retrain" if record.demo.get("data") else "",
        "Training": _training_fact(config.get("settings", {})),
        "Ratings": f"{ratings}, enough to score {coverage}" if coverage else ratings,
        "Seed": str(config.get("seed", "")),
        "Device": config.get("runtime", ""),
    }


def _method_fact(config: dict[str, Any]) -> str:
    method = config.get("method", "")
    if config.get("settings", {}).get("ensemble") is False and method == "bossnas":
        return "BossNAS without its ensemble: each block learns without labels, each path towards its own target"
    return METHODS.get(method, method)


def _space_fact(record: RunRecord) -> str:
    name, space = _space_name(record), record.space
    if space is None:
        return name
    layers = [len(path) for path in space.split(space.sample(random.Random(0)))]
    blocks = f"{len(layers)} blocks ({' + '.join(map(str, layers))})"
    return f"{name}: {space.count():,} architectures of {sum(layers)} layers, in {blocks}"


def _images_fact(record: RunRecord) -> str:
    split = record.table.meta.get("split") if record.table else None
    data = record.demo.get("data")
    parts = [record.config.get("data", "")]
    if split:
        parts += [f"{split['search_train']:,} to learn from", f"{split['rated_on']:,} to rate on"]
        parts += [f"divided {split['drawn']}"] if "drawn" in split else []
    if data:
        parts += [f"{data['test']:,} to test on", f"{data['classes']} classes"]
    return ", ".join(parts)


def _training_fact(settings: dict[str, Any]) -> str:
    if not {"epochs", "num_paths", "global_batch", "resolution"} <= settings.keys():
        return ""
    method = settings.get("method", "")
    return (
        f"{settings['epochs']} epoch{'s' * (settings['epochs'] > 1)} {'in all' if method == 'unnas' else 'a block'}; "
        f"{drawn_in_a_step(method, settings['num_paths'])} and {settings['global_batch']} images "
        f"of {settings['resolution']} pixels a step"
    )


def _rank_figures(record: RunRecord) -> list[tuple[str, Markup | None]]:
    if not record.ranking:
        return []
    return [
        ("Score and true accuracy", draw_points(record.ranking, record.lower_is_better)),
        ("Ratings and baselines", draw_intervals(record.ranking)),
        ("While the supernet learned", draw_epochs(record.ranking)),
    ]


def _commands(record: RunRecord) -> list[tuple[str, str]]:
    """What to type next: what the demo says, or what the state of the run suggests."""
    if commands := record.demo.get("commands"):
        return [(what, command) for what, command in commands]
    program = program_for(record.config["space"])
    if record.finished_table is None:
        return [("Go on where it stopped", f"{program} search --resume {record.folder}")]
    ratings = record.folder / "ratings.json"
    commands = [("Every worthwhile trade-off of score and cost", f"{program} solve --ratings {ratings} --pareto")]
    if record.architectures:
        assert record.space is not None
        most = record.architectures[0]["madds"]
        if budget := _budget_between(pareto(record.space, record.finished_table)[-1].cost.madds, most):
            command = f"{program} solve --ratings {ratings} --max-madds {budget} --top 5"
            commands.append(("The best that take less arithmetic: half-way down to the least", command))
    return commands


def _budget_between(least: int, most: int) -> str:
    """An amount half-way between two costs, in few digits if they leave room; nothing where there is none below."""
    if least >= most:
        return ""
    amount = format_count((least + most) / 2).replace(" ", "")
    rounded = parse_amount(amount, "--max-madds") or 0
    return amount if least <= rounded < most else str((least + most) // 2)


# --- how figures are written


def colored(architecture: object, space: str) -> Markup:
    """The written form of an architecture or a path of that space, its layers in the colours of the drawing."""
    text = str(architecture)
    try:
        nodes = iter(diagram(text, space).layers)
    except ArchitectureError:
        return escape(text)
    node = next(nodes, None)
    parts = []
    for character in text:
        if node is not None and character == node.mark:
            parts.append(Markup('<span class="layer-{}">{}</span>').format(node.kind, character))
            node = next(nodes, None)
        else:
            parts.append(escape(character))
    return Markup("").join(parts)


def format_count(number: float) -> str:
    """`3.44 G`, `403 M`, `62.1 k`: three digits and a unit."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:#.3g}".rstrip(".") + unit
    return f"{number:.0f}"


def format_percent(percent: float) -> str:
    return f"{percent:.2f}%"


def format_duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_size(num_bytes: int) -> str:
    """`512 bytes`, `1.9 MB`."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} bytes"


_WRITERS = {"top1": format_percent, "madds": format_count, "params": format_count}
