"""An architecture as a drawing: one column per layer, one row per thing that a layer may choose. No torch.

A `Diagram` says what stands where; `architecture_text` puts it on a terminal, `bossnet_zoo.search.plots` on a page.
Both draw the path of an architecture through the grid of everything its space would have allowed, as figures 5 and 10
of the BossNAS paper do for HyTra: layers from left to right, scales from top to bottom, ResConv blue, ResAtt red.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.text import Text

from .errors import ArchitectureError
from .spaces.hytra import STRIDES, check_layers, read_layers
from .spaces.mbconv import CANDIDATES, check_choices, read_path
from .spaces.nats import REDUCTIONS, WIDTHS, check_widths, read_widths

KINDS = {  # what the two colours mean, by space
    "hytra": ("ResConv", "ResAtt"),
    "mbconv": ("3x3 kernels", "5x5 kernels"),
    "nats": ("cells", "reduction blocks"),
}
TERMINAL_STYLES = ("bold bright_blue", "bold bright_red")  # by kind


class Node(NamedTuple):
    """One layer. `mark` is the character that stands for its choice, `kind` an index of its space's `KINDS`."""

    row: int
    mark: str
    kind: int


@dataclass(frozen=True)
class Diagram:
    """Where an architecture, or a path through one block, runs.

    Attributes:
        rows: labels of the rows, top to bottom.
        layers: one node per layer, in order.
        lead_in: rows passed before the first layer: HyTra's stem, and the convolutions of its downsampling module.
    """

    rows: tuple[str, ...]
    layers: tuple[Node, ...]
    lead_in: tuple[int, ...] = ()

    @property
    def second_kind_share(self) -> float:
        """Share of the layers that are of the second kind, 0..1: of a HyTra network, how much of it is attention."""
        return sum(node.kind for node in self.layers) / len(self.layers)


def diagram(architecture: object, space: str | None = None, widths: Sequence[int] = WIDTHS) -> Diagram:
    """The diagram of an architecture, or of a path through one block.

    Args:
        architecture: of any of the three spaces, or its written form.
        space: name of its space; by default the written form decides, as it can for all but the shortest paths.
        widths: those that a layer of a nats space can choose.

    Raises:
        ArchitectureError: the written form is that of no space, or of another one than `space`.
    """
    text = str(architecture)
    if space is None:
        space = "nats" if ":" in text else "hytra" if any(map(str.isalpha, text)) else "mbconv"
    if space not in _DIAGRAMS:
        known = ", ".join(_DIAGRAMS)
        raise ArchitectureError(f"{text!r} is of space {space!r}, which has no drawing; these have one: {known}")
    return _nats(text, widths) if space == "nats" else _DIAGRAMS[space](text)


def _hytra(text: str) -> Diagram:
    layers = read_layers(text)
    check_layers(layers)
    return Diagram(
        rows=tuple(f"stride {stride}" for stride in STRIDES),
        layers=tuple(Node(scale, operation, int(operation == "a")) for scale, operation in layers),
        lead_in=tuple(range(layers[0].scale + 1)),
    )


def _mbconv(text: str) -> Diagram:
    choices = [choice for part in text.split("-") for choice in read_path(part)]
    check_choices(choices, what=f"architecture {text!r}")
    return Diagram(
        rows=tuple(f"MB{candidate.expansion} {candidate.kernel}x{candidate.kernel}" for candidate in CANDIDATES),
        layers=tuple(Node(choice, str(choice), int(CANDIDATES[choice].kernel == 5)) for choice in choices),
    )


def _nats(text: str, allowed: Sequence[int] = WIDTHS) -> Diagram:
    widths = read_widths(text, what="architecture")
    check_widths(widths, what=f"architecture {text!r}", allowed=allowed)
    # Which layers reduce is known of a whole network only.
    reductions = REDUCTIONS if len(widths) == len(REDUCTIONS) else (False,) * len(widths)
    rows = tuple(sorted(allowed, reverse=True))
    return Diagram(
        rows=tuple(f"{width} channels" for width in rows),
        layers=tuple(
            Node(rows.index(width), "r" if reduction else "c", int(reduction))
            for width, reduction in zip(widths, reductions, strict=True)
        ),
    )


_DIAGRAMS = {"hytra": _hytra, "mbconv": _mbconv, "nats": _nats}


def architecture_text(architecture: object) -> Text:
    """The drawing for a terminal, at most 80 columns wide, coloured where the terminal has colours.

    >>> print(architecture_text("4c-8c-16cc-32aa"))
     stride 4  ▪─c─╮
     stride 8      ╰─c─╮
    stride 16          ╰─c───c─╮
    stride 32                  ╰─a───a
    """
    drawing = diagram(architecture)
    label_width = max(map(len, drawing.rows))
    pitch = min(4, max(2, (76 - label_width) // len(drawing.layers)))  # characters per layer
    cells = dict.fromkeys(((row, 0) for row in drawing.lead_in), ("▪", "dim"))
    if drawing.lead_in:
        cells[drawing.lead_in[-1], 1] = ("─", "dim")
    for index, node in enumerate(drawing.layers):
        cells[node.row, 2 + pitch * index] = (node.mark, TERMINAL_STYLES[node.kind])
    for index, (before, after) in enumerate(itertools.pairwise(drawing.layers)):
        _connect(cells, range(3 + pitch * index, 2 + pitch * (index + 1)), before.row, after.row)
    num_columns = 3 + pitch * len(drawing.layers)
    lines = []
    for row, label in enumerate(drawing.rows):
        line = Text(label.rjust(label_width) + "  ")
        for column in range(num_columns):
            line.append(*cells.get((row, column), (" ", "")))
        line.rstrip()
        lines.append(line)
    return Text("\n").join(lines)


def _connect(cells: dict[tuple[int, int], tuple[str, str]], columns: range, start: int, end: int) -> None:
    """Draw a line from row `start` to row `end` through the free `columns` between two nodes."""
    turn = columns[len(columns) // 2]
    for column in columns:
        cells[start if column < turn else end, column] = ("─", "dim")
    if start == end:
        return
    down = end > start
    cells[start, turn] = ("╮" if down else "╯", "dim")
    cells[end, turn] = ("╰" if down else "╭", "dim")
    for row in range(min(start, end) + 1, max(start, end)):
        cells[row, turn] = ("│", "dim")
