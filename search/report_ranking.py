"""The report's answer to "is the rating any good?": figures of what `bossnet rank` left in `ranking.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from . import svg
from .plots import NARROW, Curve, draw_curves
from .svg import Axes, add

NAMES = {"ratings": "ratings", "params": "parameters", "madds": "multiply-adds", "log_width": "log-width"}
MOST_DOTS = 200  # drawn one by one, with their names; more become a cloud
MOST_POINTS = 1500


class RankRow(NamedTuple):
    """How well one thing predicts accuracy: its correlations (see `rank_rows`), each with its interval."""

    name: str
    correlations: tuple[tuple[str, str], ...]
    regret: str


def rank_rows(ranking: Mapping[str, Any]) -> list[RankRow]:
    """Kendall's, Spearman's and Pearson's correlation of the ratings, and of the trivial baselines beside them."""
    rows = []
    for name, agreement in _agreements(ranking).items():
        correlations = tuple(_interval(agreement[key]) for key in ("kendall", "spearman", "pearson"))
        rows.append(RankRow(NAMES.get(name, name), correlations, f"{agreement['regret']:.3g}"))
    return rows


def _agreements(ranking: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"ratings": ranking, **ranking["baselines"]}


def _interval(estimate: Mapping[str, float] | None) -> tuple[str, str]:
    return (
        (f"{estimate['value']:.2f}", "{low:.2f} to {high:.2f}".format_map(estimate)) if estimate else ("undefined", "")
    )


def draw_points(ranking: Mapping[str, Any], lower_is_better: bool) -> Markup:
    """Score against true accuracy, a dot for each architecture; what the rating prefers is on the right."""
    points = ranking["points"]
    points = points[:: -(-len(points) // MOST_POINTS)]
    scores, accuracies = [point["score"] for point in points], [point["accuracy"] for point in points]
    low, high = svg.padded(scores)
    picture = svg.figure(NARROW, 300, "score and true accuracy of architectures")
    x_range = (high, low) if lower_is_better else (low, high)
    axes = Axes(picture, 44, 24, NARROW - 10, 254, x_range, svg.padded(accuracies))
    axes.y_axis("true accuracy")
    axes.x_axis("score, better to the right", count=4)
    if len(points) > MOST_DOTS:
        dots = "".join(f"M{axes.x(x):.1f} {axes.y(y):.1f}h0" for x, y in zip(scores, accuracies, strict=True))
        add(picture, "path", "cloud tone-0", d=dots)
        return svg.render(picture)
    for point, x, y in zip(points, scores, accuracies, strict=True):
        tip = f"{point['architecture']}: score {x:.4g}, accuracy {y:.4g}"
        add(picture, "circle", "dot tone-0", tip=tip, cx=axes.x(x), cy=axes.y(y), r=3.5)
    return svg.render(picture)


def draw_intervals(ranking: Mapping[str, Any]) -> Markup:
    """Kendall's tau-b of the ratings and of each baseline, with 95 % intervals."""
    estimates = {name: found["kendall"] for name, found in _agreements(ranking).items() if found["kendall"]}
    ends = [estimate[key] for estimate in estimates.values() for key in ("low", "high")]
    picture = svg.figure(NARROW, 56 + 44 * len(estimates), "Kendall's tau of ratings and baselines")
    axes = Axes(picture, 12, 4, NARROW - 12, 10 + 44 * len(estimates), svg.padded([0.0, *ends]))
    axes.x_axis("Kendall tau, 95% interval")
    add(picture, "line", "guide", x1=axes.x(0), x2=axes.x(0), y1=axes.top, y2=axes.bottom)
    for row, (name, estimate) in enumerate(estimates.items()):
        tone, y = ("tone-0" if name == "ratings" else "tone-1"), 32.0 + 44 * row
        low, middle, high = (axes.x(estimate[key]) for key in ("low", "value", "high"))
        add(picture, "line", f"curve {tone}", x1=low, x2=high, y1=y, y2=y)
        add(picture, "circle", f"dot {tone}", cx=middle, cy=y, r=5)
        label = f"{NAMES.get(name, name)} {estimate['value']:.2f}"
        half = 3.2 * len(label)
        x = min(max(middle, axes.left + half), axes.right - half)
        add(picture, "text", f"strong {tone}", text=label, x=x, y=y - 10, text_anchor="middle")
    return svg.render(picture)


def draw_epochs(ranking: Mapping[str, Any]) -> Markup | None:
    """The three correlations over the epochs of the supernet (figures 7 and 9 of the paper)."""
    epochs = ranking.get("epochs", [])
    if len(epochs) < 2:
        return None
    curves = [
        Curve(name.title(), tuple((float(record["epoch"]), record[name]) for record in epochs), tone)
        for name, tone in (("kendall", 0), ("spearman", 2), ("pearson", 3))
    ]
    return draw_curves("Rank correlation with true accuracy over epochs", curves, "correlation")
