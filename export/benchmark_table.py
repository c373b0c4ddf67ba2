"""Rows of a benchmark as tables: Markdown that fits a terminal of 80 columns, and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Callable, Sequence

from .benchmark import Row

WIDTH = 80


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# By heading: what stands in the cell. Times are milliseconds for one batch.
COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "runtime": lambda row: f"{row.runtime} {row.precision}",
    "batch": lambda row: None if row.batch is None else str(row.batch),
    "median": lambda row: None if row.median_ms is None else _three_digits(row.median_ms),
    "p90": lambda row: None if row.p90_ms is None else _three_digits(row.p90_ms),
    "img/s": lambda row: None if row.images_per_second is None else _three_digits(row.images_per_second),
    "MB": lambda row: None if row.megabytes is None else _three_digits(row.megabytes),
    "differ": lambda row: None if row.max_rel is None else f"{row.max_rel:.1e}",
    "top-1": lambda row: None if row.top1_agreement is None else f"{row.top1_agreement:.1%}",
}
LEGEND = (
    "median, p90: milliseconds for one batch; differ: largest difference to PyTorch in float32, divided by its largest "
    "output; top-1: images with PyTorch's best class."
)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each model, with what ran, what did not, and why, below."""
    models = list(dict.fromkeys(row.model for row in rows))
    return "\n\n".join(_section(model, [row for row in rows if row.model == model]) for model in models)


def _section(model: str, rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.median_ms is not None]
    parts = [f"### {model}"]
    if measured:
        compared = any(row.max_rel is not None for row in measured)
        parts += [_table(measured), _wrap(LEGEND if compared else LEGEND.partition(";")[0] + ".")]
    parts += [_wrap(f"{who}: {note}") for note, who in _by_note(measured).items()]
    missing = [row for row in rows if row.median_ms is None]
    parts += [_wrap(f"Not measured: {who}: {note}") for note, who in _by_note(missing).items()]
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    columns = {heading: [cell(row) for row in rows] for heading, cell in COLUMNS.items()}
    shown = {heading: cells for heading, cells in columns.items() if any(cell is not None for cell in cells)}
    widths = {heading: max(len(heading), *(len(cell or "") for cell in cells)) for heading, cells in shown.items()}

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths.values(), strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if number else "-") for number, width in enumerate(widths.values()))
    body = [line([cell or "" for cell in cells]) for cells in zip(*shown.values(), strict=True)]
    return "\n".join([line(list(shown)), f"{rule}|", *body])


def _by_note(rows: Sequence[Row]) -> dict[str, str]:
    """`{note: "onnx fp32, fp16; trt int8"}`: who has each note."""
    grouped: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        what = row.precision if row.median_ms is not None or row.batch is None else f"{row.precision} batch {row.batch}"
        grouped.setdefault(row.note, {}).setdefault(row.runtime, {})[what] = None
    return {
        note: "; ".join(f"{runtime} {', '.join(precisions)}" for runtime, precisions in who.items())
        for note, who in grouped.items()
    }


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def comma_separated(rows: Sequence[Row]) -> str:
    """The rows as CSV, unrounded, with the attributes of `Row` as headings."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()
