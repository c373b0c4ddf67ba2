"""Drawing SVG for the report: elements, axes and the palette that every figure shares.

Figures are trees of `xml.etree`, which closes every tag and escapes every text. They carry classes instead of colours;
the page (or `standalone`, for a file) brings the palette, so that one figure is right in light and in dark.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element
Point = tuple[float, float]

MARGIN = 12  # pixels around a figure that stands alone
PALETTE = """
:root { color-scheme: light dark; --paper: #faf9f5; --card: #ffffff; --ink: #1c1e22; --muted: #666b73; --line: #e2e0d8;
  --conv: #2a66c8; --att: #cc3b45; --accent: #0c7d63; --second: #8a4fbf; --third: #a8680a; --on-color: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #131518; --card: #1b1e22; --ink: #ebeae5; --muted: #9ba2ab;
  --line: #30343a; --conv: #74a9ff; --att: #ff8083; --accent: #52d0ab; --second: #c79bf2; --third: #e5ae55;
  --on-color: #131518; } }
"""

FIGURE_STYLE = """
.figure { display: block; width: 100%; height: auto; overflow: visible; }
.figure text { font: 11.5px ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted);
  font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--card); stroke-width: 3px;
  stroke-linejoin: round; }
.figure .strong { fill: var(--ink); font-weight: 600; }
.figure .path-name { fill: var(--ink); font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.figure .grid { stroke: var(--line); stroke-width: 1; }
.figure .guide { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 4 3; fill: none; }
.figure .curve { fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.figure .faint { stroke-width: 1; opacity: .35; }
.figure .dashed { stroke-dasharray: 5 4; stroke-width: 1.5; opacity: .75; }
.figure .tone-0 { --tone: var(--accent); } .figure .tone-1 { --tone: var(--muted); }
.figure .tone-2 { --tone: var(--second); } .figure .tone-3 { --tone: var(--third); }
.figure .tone-4 { --tone: var(--conv); }
.figure text[class*="tone"], .figure .dot { fill: var(--tone); }
.figure .cloud { fill: none; stroke: var(--tone, var(--muted)); stroke-width: 3; stroke-linecap: round; opacity: .28; }
.figure .ring { fill: none; stroke: var(--accent); stroke-width: 2.5; }
.figure .lattice { fill: var(--line); }
.figure .wire { fill: none; stroke: var(--ink); stroke-width: 2; opacity: .55; }
.figure .kind-0 { fill: var(--conv); } .figure .kind-1 { fill: var(--att); }
.figure .stem { fill: var(--muted); }
.figure text.mark { fill: var(--on-color); font-weight: 700; font-size: 13px; stroke: none; }
.figure .block-edge { stroke: var(--line); stroke-width: 1; stroke-dasharray: 2 4; }
.architecture text { font-size: 13px; }
@media (max-width: 640px) { .deep text { font-size: 20px; } .deep text.mark { display: none; } }
"""


def figure(width: float, height: float, title: str, extra_class: str = "") -> Element:
    """An empty figure; `title` is what a screen reader says."""
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": f"figure {extra_class}".strip(),
        "viewBox": f"0 0 {_number(width)} {_number(height)}",
        "role": "img",
        "aria-label": _printable(title),
    }
    return ElementTree.Element("svg", attributes)


def add(parent: Element, tag: str, css_class: str = "", text: str = "", tip: str = "", **attributes: object) -> Element:
    """Append an element. Numbers are rounded; `text_anchor` becomes `text-anchor`; `tip` appears on hovering."""
    written = {
        name.replace("_", "-"): _number(value) if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    element = ElementTree.SubElement(parent, tag, {**({"class": css_class} if css_class else {}), **written})
    element.text = _printable(text) or None
    if tip:
        ElementTree.SubElement(element, "title").text = _printable(tip)
    return element


def render(svg: Element) -> Markup:
    """The figure as text that can stand in an HTML page."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def standalone(svg: Markup) -> str:
    """The figure as a file of its own, for a README or a slide: with its palette inside, and a background to fit it."""
    head, _, rest = str(svg).partition(">")
    (found,) = re.findall(r'viewBox="0 0 (\S+) (\S+)"', head)
    width, height = map(float, found)
    corner, size = f"{-MARGIN} {-MARGIN}", f"{_number(width + 2 * MARGIN)} {_number(height + 2 * MARGIN)}"
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="{corner} {size}"', head)
    # Light figures are drawn for a light page, and dark ones for a dark page: a page of the other kind would hide them.
    background = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" fill="var(--card)"/>'
    return f"{head}><style>{PALETTE}{FIGURE_STYLE}</style>{background}{rest}\n"


def _printable(text: str) -> str:
    """`text` without control characters, which XML forbids."""
    return "".join(character for character in text if character.isprintable())


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Axes:
    """A rectangle of a figure with scales: `x` and `y` turn values into pixels.

    Attributes:
        svg: the figure drawn into.
        left, top, right, bottom: the rectangle in pixels.
        x_range, y_range: values at its left and right, and at its bottom and top; x may fall.
    """

    svg: Element
    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float] = (0.0, 1.0)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def curve(self, points: Iterable[Point], css_class: str, tip: str = "") -> None:
        """A line through `points`."""
        pixels = " ".join(f"{_number(self.x(x))},{_number(self.y(y))}" for x, y in points)
        add(self.svg, "polyline", css_class, tip=tip, points=pixels)

    def x_axis(self, label: str, *, whole: bool = False, count: int = 5) -> None:
        """Ticks and a label below; `whole` for numbers of epochs and the like."""
        for value, text in ticks(min(self.x_range), max(self.x_range), count, whole=whole):
            add(self.svg, "line", "grid", x1=self.x(value), x2=self.x(value), y1=self.bottom, y2=self.bottom + 4)
            add(self.svg, "text", text=text, x=self.x(value), y=self.bottom + 17, text_anchor="middle")
        add(self.svg, "line", "grid", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom)
        middle = (self.left + self.right) / 2
        add(self.svg, "text", text=label, x=middle, y=self.bottom + 33, text_anchor="middle")

    def y_axis(self, label: str, count: int = 4) -> None:
        """Horizontal lines with their values at the left, and a label above them."""
        for value, text in ticks(*self.y_range, count):
            add(self.svg, "line", "grid", x1=self.left, x2=self.right, y1=self.y(value), y2=self.y(value))
            add(self.svg, "text", text=text, x=self.left - 7, y=self.y(value) + 4, text_anchor="end")
        add(self.svg, "text", text=label, x=0, y=11)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Up to `count + 1` round values between `low` and `high`, with their texts."""
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(count, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    step = values[1] - values[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, decimals + 1):  # steps of 2.5
        decimals += 1
    tolerance = 1e-9 * (high - low)
    return [(float(v), f"{v:.{decimals}f}") for v in values if low - tolerance <= v <= high + tolerance]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """A range a little wider than `values`, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """`positions` moved apart just enough that none is nearer than `gap` to the next; labels are placed with it."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    shift = (sum(moved) - sum(positions)) / max(1, len(positions))
    return [position - shift for position in moved]
