"""Figures of a search: SVG that needs nothing else, coloured by the page's palette (light and dark).

Each function returns text to put into an HTML page; `svg.standalone` turns it into a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from bossnet_zoo.drawing import Diagram, diagram
from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.spaces.nats import WIDTHS

from . import svg
from .rating_table import ANY
from .svg import Axes, Element, Point, add

WIDE, NARROW = 760, 330  # pixels; narrow figures are readable on a phone
CHARACTER = 6.4  # pixels that a character of a label takes, on average


# --- an architecture on its scales


def draw_architecture(architecture: object, block_layers: Sequence[int] = (), widths: Sequence[int] = WIDTHS) -> Markup:
    """The way of an architecture through its space: layers from left to right, choices from top to bottom.

    HyTra is drawn like figure 10 of the paper: four scales, ResConv blue, ResAtt red. Grey squares are the stem and,
    where an architecture begins below stride 4, its downsampling module.

    Args:
        architecture: an architecture of any of the three spaces, or its written form.
        block_layers: layers of each block of the supernet, to mark where blocks end.
        widths: those that a layer of a nats space can choose.

    Raises:
        ArchitectureError: the written form is that of no space.
    """
    drawing = diagram(architecture, widths=widths)
    deep = len(drawing.layers) > 10  # scaled down on a phone, where its labels grow
    grid = _Grid(
        left=20 + (10 if deep else 8.6) * max(map(len, drawing.rows)) + (40 if drawing.lead_in else 0),
        top=52 if block_layers else 26,
        pitch=40,
        row_height=46 if len(drawing.rows) <= 4 else 30,
    )
    height = grid.y(len(drawing.rows) - 0.4)
    width = grid.x(len(drawing.layers) - 0.4)
    picture = svg.figure(width, height, f"architecture {architecture}", "architecture deep" if deep else "architecture")
    picture.set("style", f"max-width: {1.4 * width:.0f}px")  # small networks are not blown up
    _draw_block_edges(picture, grid, block_layers, height)
    for row, label in enumerate(drawing.rows):
        add(picture, "text", text=label, x=0, y=grid.y(row) + 5)
        for column in range(len(drawing.layers)):
            add(picture, "circle", "lattice", cx=grid.x(column), cy=grid.y(row), r=3.5)
    _draw_layers(picture, grid, drawing)
    return svg.render(picture)


class _Grid(NamedTuple):
    """Pixels of the middle of (column, row), from those of (0, 0)."""

    left: float
    top: float
    pitch: float
    row_height: float

    def x(self, column: float) -> float:
        return self.left + self.pitch * column

    def y(self, row: float) -> float:
        return self.top + self.row_height * row


def _draw_block_edges(picture: Element, grid: _Grid, block_layers: Sequence[int], height: float) -> None:
    ends = list(itertools.accumulate(block_layers))
    for number, (size, end) in enumerate(zip(block_layers, ends, strict=True), start=1):
        label = f"block {number}" if size > 1 else str(number)
        add(picture, "text", text=label, x=grid.x(end - size / 2 - 0.5), y=16, text_anchor="middle")
        if end != ends[-1]:
            add(picture, "line", "block-edge", x1=grid.x(end - 0.5), x2=grid.x(end - 0.5), y1=2, y2=height)


def _draw_layers(picture: Element, grid: _Grid, drawing: Diagram) -> None:
    stops = [(grid.x(-1), grid.y(row)) for row in drawing.lead_in]
    stops += [(grid.x(column), grid.y(node.row)) for column, node in enumerate(drawing.layers)]
    add(picture, "polyline", "wire", points=" ".join(f"{x:g},{y:g}" for x, y in stops))
    for row in drawing.lead_in:
        tip = "stem: 7x7 convolution and pooling" if row == 0 else "downsampling module: 3x3 convolution of stride 2"
        add(picture, "rect", "stem", tip=tip, x=grid.x(-1) - 7, y=grid.y(row) - 7, width=14, height=14, rx=3)
    radius = min(14.0, grid.row_height / 2 - 2)
    for column, node in enumerate(drawing.layers):
        tip = f"layer {column + 1}: {node.mark}, {drawing.rows[node.row]}"
        x, y = grid.x(column), grid.y(node.row)
        add(picture, "circle", f"kind-{node.kind}", tip=tip, cx=x, cy=y, r=radius)
        add(picture, "text", "mark", text=node.mark, x=x, y=y + 4.5, text_anchor="middle", pointer_events="none")


# --- curves: losses, accuracies, rank correlation over epochs


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        label: written at its end; may be empty.
        points: (epoch, value), in order.
        tone: 0 for what the figure is about, 1 for what it is compared with, 2 to 4 for others.
        style: `` for a plain line, `faint` for single steps behind it, `dashed` for a variant of it.
    """

    label: str
    points: tuple[Point, ...]
    tone: int = 0
    style: str = ""


def draw_curves(title: str, curves: Sequence[Curve], y_label: str, *, width: int = NARROW) -> Markup:
    """Lines over epochs, each with its name at its end. There must be at least one point."""
    labels = [curve for curve in curves if curve.label]
    right = 14 + CHARACTER * max((len(curve.label) for curve in labels), default=0)
    picture = svg.figure(width, 230, title)
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
    axes = Axes(picture, left=44, top=24, right=width - right, bottom=188, x_range=x_range, y_range=svg.padded(ys))
    axes.y_axis(y_label)
    axes.x_axis("epoch", whole=True, count=width // 70)
    for curve in curves:
        axes.curve(curve.points, f"curve tone-{curve.tone} {curve.style}".strip(), tip=curve.label)
        if len(curve.points) == 1:  # a line of one point is invisible
            x, y = curve.points[0]
            add(picture, "circle", f"dot tone-{curve.tone}", cx=axes.x(x), cy=axes.y(y), r=3.5)
    heights = svg.spread([axes.y(curve.points[-1][1]) for curve in labels], gap=14)
    for curve, height in zip(labels, heights, strict=True):
        add(picture, "text", f"tone-{curve.tone}", text=curve.label, x=width - right + 7, y=height + 4)
    return svg.render(picture)


# --- ratings of a block's paths


def draw_ratings(
    title: str,
    entries: Mapping[str, Mapping[str, float]],
    *,
    space: str,
    chosen: tuple[str, str] | None,
    lower_is_better: bool = True,
) -> Markup:
    """All rated paths of a block, the best and the chosen one named: a row for each entry, on a scale of its own.

    Ratings compare within an entry, for each has a population centre of its own.

    A dot is blue to red with its path's share of layers of the second kind: in HyTra, of attention.

    Args:
        entries: ratings by path, by entry; at least one.
        space: name of the search space.
        chosen: entry and path by which the chosen architecture goes through this block.
    """
    width, left = NARROW + 20.0, 10.0
    rated = {entry: ratings for entry, ratings in entries.items() if ratings}
    scales = {entry: svg.padded([*ratings.values()]) for entry, ratings in rated.items()}
    swarms = {entry: _Swarm.of(ratings, scales[entry], width - 2 * left) for entry, ratings in rated.items()}
    named = 0.0 if ANY in rated else 22.0  # of a row: for the entry's name
    axis = 30.0 if len(rated) > 1 else 0.0  # for ticks between rows
    heights = [named + swarm.height + 48 + axis for swarm in swarms.values()]
    picture = svg.figure(width, sum(heights) - axis + 44, title)
    top, last = 0.0, list(swarms)[-1]
    for (entry, swarm), height in zip(swarms.items(), heights, strict=True):
        axes = Axes(picture, left, top, width - left, top + height - axis, x_range=scales[entry])
        label = "rating: " + ("lower is better" if lower_is_better else "higher is better")
        axes.x_axis(label if entry == last else "", count=3 if axis else 5)
        if entry != ANY:
            add(picture, "text", text=f"entered at {entry}", x=left, y=top + 12)
        middle = top + named + 28 + swarm.height / 2
        best = swarm.dots[0 if lower_is_better else -1]
        path = chosen[1] if chosen and chosen[0] == entry else None
        _draw_dots(axes, swarm, middle, space, path)
        _name_dots(axes, swarm, middle, best, path)
        top += height
    return svg.render(picture)


class Dot(NamedTuple):
    """A path in a swarm: its rating gives the place on the scale, `offset` is in pixels across it."""

    path: str
    rating: float
    offset: float


class _Swarm(NamedTuple):
    """Dots that evade each other, from the lowest rating to the highest."""

    dots: tuple[Dot, ...]
    height: float

    @classmethod
    def of(cls, ratings: Mapping[str, float], scale: tuple[float, float], width: float, size: float = 7.5) -> _Swarm:
        placed: list[Point] = []
        dots = []
        for path, rating in sorted(ratings.items(), key=lambda item: (item[1], item[0])):
            x = (rating - scale[0]) / (scale[1] - scale[0]) * width
            near = [(x - px, y) for px, y in placed if x - px < size]
            y = _nearest_gap(near, size)
            placed.append((x, y))
            dots.append(Dot(path, rating, y))
        reach = max(abs(dot.offset) for dot in dots)
        shrink = min(1.0, 56 / reach) if reach else 1.0  # crowded swarms overlap rather than fill the page
        return cls(tuple(dot._replace(offset=dot.offset * shrink) for dot in dots), 2 * reach * shrink + size)


def _nearest_gap(near: Sequence[Point], size: float) -> float:
    """The offset nearest to 0 at which a dot touches none of those `near`, given as (distance along, offset)."""
    edges = [offset + sign * (size**2 - distance**2) ** 0.5 for distance, offset in near for sign in (-1, 1)]
    for candidate in sorted([0.0, *edges], key=abs):
        if all(distance**2 + (candidate - offset) ** 2 >= size**2 - 1e-6 for distance, offset in near):
            return candidate
    raise AssertionError("the outermost edge is always free")


def _draw_dots(axes: Axes, swarm: _Swarm, middle: float, space: str, chosen: str | None) -> None:
    for path, rating, offset in swarm.dots:
        x, y = axes.x(rating), middle + offset
        tip = f"{path}: {rating:.4f}"
        add(axes.svg, "circle", "dot", style=_share_color(path, space), tip=tip, cx=x, cy=y, r=3.3)
        if path == chosen:
            add(axes.svg, "circle", "ring", cx=x, cy=y, r=6.5)


def _name_dots(axes: Axes, swarm: _Swarm, middle: float, best: Dot, chosen: str | None) -> None:
    """Write the best path above the swarm and, if it is another one, the chosen path below."""
    above, below = middle - swarm.height / 2 - 10, middle + swarm.height / 2 + 14
    _name_dot(axes, best, middle, above, "best and chosen" if best.path == chosen else "best")
    for dot in swarm.dots:
        if dot.path == chosen != best.path:
            _name_dot(axes, dot, middle, below, "chosen")


def _name_dot(axes: Axes, dot: Dot, middle: float, y: float, role: str) -> None:
    x, text = axes.x(dot.rating), f"{dot.path} {role}"
    end = y + 4 if y < middle else y - 10
    start = middle + dot.offset + (-8 if y < middle else 8)
    add(axes.svg, "line", "guide", x1=x, x2=x, y1=start, y2=end)
    half = len(text) * CHARACTER / 2
    x = min(max(x, axes.left + half), axes.right - half)
    add(axes.svg, "text", "path-name", text=text, x=x, y=y, text_anchor="middle")


def _share_color(path: str, space: str) -> str:
    try:
        share = diagram(path, space).second_kind_share
    except ArchitectureError:  # a space of the user's own has no drawing
        return "fill: var(--muted)"
    return f"fill: color-mix(in oklab, var(--att) {share:.0%}, var(--conv))"


# --- score against cost


@dataclass(frozen=True)
class Mark:
    """One architecture in the plane of cost and score. Labelled ones are drawn large."""

    madds: float
    score: float
    tip: str = ""
    label: str = ""
    tone: int = 0


def draw_front(
    front: Sequence[Mark],
    cloud: Sequence[Point],
    named: Sequence[Mark],
    *,
    budget: float | None = None,
    lower_is_better: bool = True,
    width: int = WIDE,
) -> Markup:
    """The Pareto front of MAdds and score before a cloud of other architectures.

    Args:
        front: the front, in any order.
        cloud: (MAdds, score) of a sample of the space.
        named: the chosen architecture and those to compare it with.
        budget: upper bound on MAdds, if one was set.
    """
    unit, symbol = (1e9, "G") if max(mark.madds for mark in front) >= 2e9 else (1e6, "M")
    points = [*cloud, *((mark.madds, mark.score) for mark in (*front, *named))]
    xs = [x / unit for x, _ in points] + ([budget / unit] if budget else [])
    height = 380 if width == WIDE else 300
    picture = svg.figure(width, height, "Pareto front of score and multiply-adds")
    axes = Axes(picture, 52, 26, width - 10, height - 46, svg.padded(xs), svg.padded([y for _, y in points]))
    axes.y_axis("score: lower is better" if lower_is_better else "score: higher is better", count=5)
    axes.x_axis(f"multiply-adds ({symbol})", count=width // 90)
    add(picture, "path", "cloud", d="".join(f"M{axes.x(x / unit):.1f} {axes.y(y):.1f}h0" for x, y in cloud) or "M0 0")
    if budget:
        x = axes.x(budget / unit)
        add(picture, "line", "guide", x1=x, x2=x, y1=axes.top, y2=axes.bottom)
        add(picture, "text", text="budget", x=x - 6, y=axes.top + 12, text_anchor="end")
    stairs = _stairs(sorted((mark.madds / unit, mark.score) for mark in front), axes.x_range[1])
    axes.curve(stairs, "curve tone-0")
    for mark in front:
        add(picture, "circle", "dot tone-0", tip=mark.tip, cx=axes.x(mark.madds / unit), cy=axes.y(mark.score), r=3)
    for mark in named:
        _draw_named(axes, mark, axes.x(mark.madds / unit), axes.y(mark.score))
    return svg.render(picture)


def _stairs(points: Sequence[Point], end: float) -> list[Point]:
    """The edge of what is reachable: from each point level until the next one's cost can be paid."""
    stairs = [points[0]]
    for (_, y), (x, next_y) in itertools.pairwise(points):
        stairs += [(x, y), (x, next_y)]
    return [*stairs, (end, points[-1][1])]


def _draw_named(axes: Axes, mark: Mark, x: float, y: float) -> None:
    add(axes.svg, "circle", f"dot tone-{mark.tone}", tip=mark.tip, cx=x, cy=y, r=5)
    if mark.tone == 0:
        add(axes.svg, "circle", "ring", cx=x, cy=y, r=9)
    at_right = x + 14 + len(mark.label) * CHARACTER < axes.right
    add(
        axes.svg,
        "text",
        f"strong tone-{mark.tone}",
        text=mark.label,
        x=x + (10 if at_right else -10),
        y=y - 9,
        text_anchor="start" if at_right else "end",
    )
