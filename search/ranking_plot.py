"""A ranking as a picture: scores against true accuracies, rank correlation beside its baselines and over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bossnet_zoo.checkpoint import write_atomically

from .correlation import Agreement
from .ranking import Ranking

NAMES = {"ratings": "ratings", "params": "parameters", "madds": "multiply-adds", "log_width": "log-width"}
_BLUE, _GREY, _ORANGE, _GREEN = "#1f6fb4", "#8a8f98", "#d9822b", "#3f8f4f"
_CORRELATIONS = {
    "kendall": ("Kendall", _BLUE, "o-"),
    "spearman": ("Spearman", _ORANGE, "s--"),
    "pearson": ("Pearson", _GREEN, "^:"),
}


def plot_ranking(ranking: Ranking, path: Path, epochs: Sequence[Mapping[str, float]] = ()) -> None:
    """Write the picture as PNG.

    Left every architecture, then Kendall's tau of ratings and baselines with intervals; on the right, where a search
    rated its paths more than once, the correlations over its epochs (figures 7 and 9 of the paper).

    Args:
        epochs: as `over_epochs` gives them.

    Raises:
        BossNetError: the file cannot be written.
    """
    widths = (3, 2.2, 2.4) if len(epochs) > 1 else (3, 2.2)
    figure = Figure(figsize=(2 * sum(widths), 4.4), dpi=150, layout="constrained")
    scatter, intervals, *rest = figure.subplots(1, len(widths), width_ratios=widths)
    _draw_points(scatter, ranking)
    _draw_intervals(intervals, ranking)
    for axes in rest:
        _draw_epochs(axes, epochs)
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
    correlations = {name: getattr(ranking.agreement, name) for name in _CORRELATIONS}
    figures = ", ".join(
        f"{_CORRELATIONS[name][0]} {estimate.value:.2f}" for name, estimate in correlations.items() if estimate
    )
    axes.set_title(f"{figures} (n = {len(scores):,})", fontsize=10)


def _draw_intervals(axes: Axes, ranking: Ranking) -> None:
    agreements: dict[str, Agreement] = {"ratings": ranking.agreement, **ranking.baselines}
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
    if ranking.repeatability:
        axes.axvline(ranking.repeatability.value, color=_GREY, linewidth=1, linestyle="--")
        axes.set_xlabel("dashed: one training against another", fontsize=9)
    axes.set_title("Kendall's tau-b, 95 % interval", fontsize=10)


def _draw_epochs(axes: Axes, epochs: Sequence[Mapping[str, float]]) -> None:
    numbers = [record["epoch"] for record in epochs]
    values = [record[name] for record in epochs for name in _CORRELATIONS]
    for name, (label, color, style) in _CORRELATIONS.items():
        axes.plot(numbers, [record[name] for record in epochs], style, color=color, markersize=4, label=label)
    low, high = min(0.0, *values), max(0.0, *values)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))  # room for the legend
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(numbers if len(numbers) <= 8 else numbers[:: -(-len(numbers) // 8)])
    axes.set_xlabel("epochs of each block")
    axes.set_title("Correlation over epochs", fontsize=10)
    axes.legend(loc="upper center", ncols=3, fontsize=8, frameon=False, columnspacing=1, handlelength=1.8)
