"""A ranking as a picture: scores against true accuracies, and the rank correlation beside its baselines."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bossnet_zoo.checkpoint import write_atomically

from .ranking import Agreement, Ranking

NAMES = {"ratings": "ratings", "params": "parameters", "madds": "multiply-adds", "log_width": "log-width"}
_BLUE, _GREY = "#1f6fb4", "#8a8f98"


def plot_ranking(ranking: Ranking, path: Path) -> None:
    """Write the picture as PNG: left every architecture, right Kendall's tau of ratings and baselines with intervals.

    Raises:
        BossNetError: the file cannot be written.
    """
    figure = Figure(figsize=(9.6, 4.4), dpi=150, layout="constrained")
    scatter, intervals = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_points(scatter, ranking)
    _draw_intervals(intervals, {"ratings": ranking.agreement, **ranking.baselines})
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_points(axes: Axes, ranking: Ranking) -> None:
    _, scores, accuracies = zip(*ranking.points, strict=True)
    size = 24 if len(scores) <= 200 else 3
    axes.scatter(scores, accuracies, s=size, color=_BLUE, alpha=0.8 if len(scores) <= 200 else 0.3, linewidths=0)
    axes.set_ylabel("true accuracy")
    axes.set_xlabel(f"score ({'lower' if ranking.lower_is_better else 'higher'} is better, better to the right)")
    if ranking.lower_is_better:
        axes.invert_xaxis()
    axes.locator_params(axis="x", nbins=5)
    correlations = {name: getattr(ranking.agreement, name) for name in ("kendall", "spearman", "pearson")}
    figures = ", ".join(f"{name.title()} {estimate.value:.2f}" for name, estimate in correlations.items() if estimate)
    axes.set_title(f"{figures} (n = {len(scores):,})", fontsize=10)


def _draw_intervals(axes: Axes, agreements: dict[str, Agreement]) -> None:
    for row, (name, agreement) in enumerate(agreements.items()):
        if agreement.kendall:
            value, low, high = agreement.kendall
            color = _BLUE if name == "ratings" else _GREY
            axes.plot((low, high), (row, row), color=color, linewidth=2)
            axes.plot(value, row, "o", color=color)
            axes.annotate(f"{value:.2f}", (value, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yticks(range(len(agreements)), [NAMES[name] for name in agreements])
    axes.set_ylim(len(agreements) - 0.5, -0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_title("Kendall's tau-b, 95 % interval", fontsize=10)
