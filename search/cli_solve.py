"""Commands on ratings: solve and rank, and latency, which measures what solve may be bounded by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bossnet_zoo import console
from bossnet_zoo.commands import (
    SEARCH_EXAMPLE,
    AsJson,
    check_seed,
    command,
    complete_space,
    one_of,
    parse_amount,
    parse_options,
)
from bossnet_zoo.console import print_json
from bossnet_zoo.errors import UsageError

from .cli_latency import app as latency_app

if TYPE_CHECKING:
    from bossnet_zoo.spaces import Space

    from .latency import LatencyTable
    from .ranking import Agreement, Ranking
    from .rating_table import RatingTable
    from .solver import Solution
    from .truth_table import TruthTable

RANK_EXAMPLE = rf"""
{SEARCH_EXAMPLE}
bossnet truth --space nats --space-option "widths=[8,16,24,32]" \
  --data digits --sample 4 --smoke --epochs 1 --out runs/truth
bossnet rank --ratings runs/nats/ratings.json --truth runs/truth/truth.json
"""

_MOST_DIGITS = 9  # of a score
FEW = 10  # architectures whose rank correlation says little

app = typer.Typer()
app.add_typer(latency_app, name="latency")

Ratings = Annotated[Path, typer.Option(help="A search's folder or its ratings.json, or one table of paths per block.")]
RatedSpace = Annotated[
    str | None,
    typer.Option("--space", help="The space, where the file does not say it.", autocompletion=complete_space),
]
RatedSpaceOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the space: se=false.")
]


def _open(ratings: Path, space: str | None, options: list[str] | None) -> tuple[Space, RatingTable]:
    """The ratings and their space."""
    from .rating_table import read_ratings

    table = read_ratings(ratings, space)
    if space is not None and space != table.space:
        raise UsageError(f"{ratings} holds ratings of space {table.space!r}; leave out --space {space}")
    return table.make_space(**parse_options(options)), table


@command(app, f"{SEARCH_EXAMPLE}\nbossnet solve --ratings runs/nats/ratings.json --top 3")
def solve(
    ratings: Ratings,
    space: RatedSpace = None,
    option: RatedSpaceOptions = None,
    max_madds: Annotated[str | None, typer.Option(metavar="AMOUNT", help="Most multiply-adds: 475M or 3.5G.")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="AMOUNT", help="Most parameters: 25M.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="Most milliseconds.")] = None,
    latency_table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Latencies that bossnet latency build measured.")
    ] = None,
    lambdas: Annotated[
        str | None,
        typer.Option("--lambda", metavar="A,B,...", help="Weights of the blocks; or a truth file, to fit them to."),
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pixels at which multiply-adds count.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the best.")] = 1,
    pareto: Annotated[bool, typer.Option("--pareto", help="The best at every cost instead.")] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="That cost: madds, params or latency; by default madds.",
            autocompletion=one_of("madds", "params", "latency"),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The best architectures of the whole space, under bounds.

    They are found exactly: no other architecture that keeps the bounds has a better score.
    """
    from bossnet_zoo.spaces import describe_in_words

    from . import solver

    if against and not pareto:
        raise UsageError("--against names the cost of --pareto; type that too, or leave it out")
    searched, table = _open(ratings, space, option)
    asked: dict[str, Any] = {
        "max_madds": parse_amount(max_madds, "--max-madds"),
        "max_params": parse_amount(max_params, "--max-params"),
        "max_latency_ms": max_latency_ms,
        "latency": _latency(latency_table, searched, resolution, max_latency_ms, pareto and against == "latency"),
        "lambdas": _lambdas(lambdas, searched, table),
        "resolution": resolution,
    }
    if pareto:
        if top != 1:
            raise UsageError("--pareto gives one architecture for every cost; leave out --top")
        solutions = solver.pareto(searched, table, against or "madds", **asked)
    else:
        solutions = solver.solve(searched, table, top=top, **asked)
    covered = f"the ratings cover {100 * coverage:.3g} % of them" if (coverage := table.coverage(searched)) < 1 else ""
    console.note(f"searched {describe_in_words(searched)}{covered and '; '}{covered}")
    if as_json:
        print_json([solution.to_json() for solution in solutions])
    else:
        _print_solutions(solutions)
        console.note(f"MAdds are counted at {resolution or searched.default_resolution} px")
        console.note(f"a {'lower' if table.lower_is_better else 'higher'} score is better")


def _latency(
    file: Path | None, space: Space, resolution: int | None, most: float | None, against: bool
) -> LatencyTable | None:
    """The table in `file`, where it is of the networks asked about."""
    if most is not None and not (0 < most < math.inf):
        raise UsageError(f"--max-latency-ms {most:g} is not possible; type milliseconds, such as 25")
    if file is None:
        if most is not None or against:
            raise UsageError(
                f"{'--max-latency-ms' if most is not None else '--against latency'} needs latencies of your device; "
                f"type --latency-table FILE, which bossnet latency build {space.name} --out FILE measures"
            )
        return None
    from .latency import read_latency

    table = read_latency(file)
    table.require(space, resolution)
    return table


def _lambdas(text: str | None, space: Space, table: RatingTable) -> tuple[float, ...] | None:
    """Numbers as they are; weights fitted to the accuracies of a truth file."""
    if text is None:
        return None
    if Path(text).suffix == ".json":
        from .ranking import fit_lambdas
        from .truth_table import read_truth

        fitted = fit_lambdas(space, table, read_truth(Path(text)))
        console.note(f"fitted --lambda {','.join(f'{weight:.3g}' for weight in fitted)}")
        return fitted
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--lambda {text!r} is no list of numbers; type one for each block, as in "
            f"{','.join(['1'] * space.num_blocks)}, or a truth file that ends in .json"
        ) from None


def _print_solutions(solutions: list[Solution]) -> None:
    header = ["architecture", "score", "MAdds", "params"]
    scores = _write_scores([s.score for s in solutions])
    rows = [
        [str(s.arch), score, f"{s.cost.madds / 1e6:,.1f} M", f"{s.cost.params / 1e6:,.3f} M"]
        for s, score in zip(solutions, scores, strict=True)
    ]
    if solutions[0].latency_ms is not None:
        header.append("ms")
        rows = [[*row, f"{s.latency_ms:.3f}"] for row, s in zip(rows, solutions, strict=True)]
    console.print_table([header, *rows])


def _write_scores(scores: list[float]) -> list[str]:
    """All with the same number of decimals: five digits of the largest, or as many as tell different scores apart.

    At most nine digits, for ratings are float32, and rounding alone makes their sums differ beyond.

    >>> _write_scores([2.21498, 2.2155296, 2.2155301])
    ['2.2149800', '2.2155296', '2.2155301']
    """
    largest = max(map(abs, scores))
    digits = math.floor(math.log10(largest)) + 1 if largest else 1  # in front of the point
    if not -_MOST_DIGITS < digits <= _MOST_DIGITS:
        return [f"{score:.{_MOST_DIGITS - 1}e}" for score in scores]
    decimals = range(max(5 - digits, 0), _MOST_DIGITS - digits + 1)
    columns = [[f"{score:.{number}f}" for score in scores] for number in decimals]
    return next(column for column in columns if len(set(column)) == len(set(columns[-1])))


@command(app, RANK_EXAMPLE)
def rank(
    ratings: Ratings,
    truth: Annotated[Path | None, typer.Option(help="True accuracies, as bossnet truth writes them.")] = None,
    nats_bench: Annotated[Path | None, typer.Option(metavar="FOLDER", help="NATS-Bench, as the truth.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Of NATS-Bench: cifar10, the default, or cifar100.", autocompletion=one_of("cifar10", "cifar100")
        ),
    ] = None,
    space: RatedSpace = None,
    option: RatedSpaceOptions = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw scores against accuracies.")] = None,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """How well ratings agree with true accuracies.

    Beside them stand trivial baselines: parameters, multiply-adds, and log-width, the sum over all layers of the
    logarithm of their inner channels. Positive is good.

    Counted are the architectures that have both an accuracy and ratings of all their paths. Ties: Kendall's tau-b and
    average ranks allow for them; precision counts whatever is as accurate as the k-th best; of architectures with equal
    scores, precision and regret take the first in alphabetical order.
    """
    from bossnet_zoo.spaces import program_for

    from .ranking import epochs_of_search, keep_for_report
    from .ranking import rank as compare

    if (truth is None) == (nats_bench is None):
        raise UsageError("ratings are compared with one truth; type either --truth FILE or --nats-bench FOLDER")
    if dataset and truth:
        raise UsageError("--dataset is NATS-Bench's; leave it out, or type --nats-bench instead of --truth")
    if plot and plot.suffix != ".png":
        raise UsageError(f"--plot {plot} is written as PNG; type {plot.with_suffix('.png')}")
    ratings = ratings / "ratings.json" if ratings.is_dir() else ratings
    searched, table = _open(ratings, space, option)
    accuracies = _accuracies(truth, nats_bench, dataset, searched)
    ranking = compare(searched, table, accuracies, seed=seed)
    in_search = ratings.name == "ratings.json" and (ratings.parent / "metrics.jsonl").exists()
    epochs = epochs_of_search(ratings.parent, searched, table, accuracies) if in_search else []
    if plot:
        from .ranking_plot import plot_ranking

        plot_ranking(ranking, plot, epochs)
        console.note(f"drawn: {plot}")
    if in_search:
        keep_for_report(ratings.parent, ranking, accuracies, epochs)
        console.note(f"next, with the ranking in it: {program_for(table.space)} report {ratings.parent}")
    if (number := len(ranking.points)) < FEW:
        console.note(
            f"{number} architectures say little, however narrow an interval is: they are drawn from these {number} "
            "alone; measure more with bossnet truth"
        )
    if as_json:
        print_json(ranking.to_json())
    else:
        _print_ranking(ranking)


def _accuracies(truth: Path | None, nats_bench: Path | None, dataset: str | None, space: Space) -> TruthTable:
    """Of a truth file everything, of NATS-Bench what lies in the rated space."""
    from bossnet_zoo.spaces import describe_in_words

    from .truth_table import read_nats_bench, read_truth

    if truth:
        return read_truth(truth)
    assert nats_bench is not None
    everything = read_nats_bench(nats_bench, dataset or "cifar10")
    inside, number = everything.within(space), len(everything.accuracy)
    if outside := number - len(inside.accuracy):
        console.note(f"left out: {outside:,} of NATS-Bench's {number:,}, outside {describe_in_words(space)}")
    return inside


def _print_ranking(ranking: Ranking) -> None:
    agreements: dict[str, Agreement] = {"ratings": ranking.agreement, **ranking.baselines}
    names = {"log_width": "log-width", "madds": "MAdds", "params": "parameters"}
    unrated = f"; {ranking.num_unrated} without ratings left out" if ranking.num_unrated else ""
    print(f"{len(ranking.points):,} architectures{unrated}; 95 % bootstrap intervals; positive is good\n")
    rows: list[tuple[str, ...]] = [("", "Kendall tau-b", "Spearman", "Pearson")]
    for name, agreement in agreements.items():
        figures = (agreement.kendall, agreement.spearman, agreement.pearson)
        cells = (f"{f.value:.3f} [{f.low:5.2f}, {f.high:5.2f}]" if f else "undefined" for f in figures)
        rows.append((names.get(name, name), *cells))
    console.print_table(rows)
    gained = [
        (names.get(name, name), f"{gain.value:.3f} [{gain.low:5.2f}, {gain.high:5.2f}]" if gain else "undefined")
        for name, gain in ranking.advantages.items()
    ]
    print("\nKendall tau-b of the ratings minus the baseline's; better if all above 0")
    console.print_table(gained)
    if ranking.repeatability:
        again = ranking.repeatability
        print(f"\none training against another: tau-b {again.value:.3f} [{again.low:.2f}, {again.high:.2f}]")
    print("\nprecision at k; regret of the top choice, in accuracy")
    ks = list(ranking.agreement.precision_at)
    table: list[tuple[str, ...]] = [("", *(f"k = {k}" for k in ks), "regret")]
    for name, agreement in agreements.items():
        precisions = (f"{agreement.precision_at[k]:.2f}" for k in ks)
        table.append((names.get(name, name), *precisions, f"{agreement.regret:.3g}"))
    console.print_table(table)
