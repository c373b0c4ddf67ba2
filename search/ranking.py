"""Is a rating any good? Its rank correlation with true accuracy, beside what trivial baselines reach.

Orientation: a good method is positive. Scores are negated where low ratings are good, and the baselines say that more
is better: parameters, MAdds, and log-width, the sum over choice layers of the logarithm of their inner channels.

What is counted: the architectures that have both a true accuracy and ratings of all their paths. Ties: Kendall's tau-b
and Spearman's average ranks allow for them; among equals, precision and regret take the architecture first that
comes first in alphabetical order. Intervals are the central 95 % of the bootstrap: architectures drawn with
replacement, the same draws for every figure; draws in which a correlation is undefined (all equal) do not count.

Shapes: n architectures, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from bossnet_zoo.checkpoint import read_jsonl, save_json
from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Arch, HyTraArch, MBConvArch, NatsArch, Space
from bossnet_zoo.spaces.mbconv import CANDIDATES

from .rating_table import RatingTable
from .truth_table import TruthTable

PRECISION_AT = (1, 5, 10, 50, 100)
_MANY = 1000  # up to so many architectures, tau of all resamples is three products of matrices


class Estimate(NamedTuple):
    """A correlation and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How well values (of ratings, or of a baseline) predict true accuracy.

    Attributes:
        kendall, spearman, pearson: correlations; None where undefined, because all values are equal.
        precision_at: for each k, the fraction of the k truly best architectures among the k predicted to be best.
        regret: true accuracy of the best architecture minus that of the one predicted to be best.
    """

    kendall: Estimate | None
    spearman: Estimate | None
    pearson: Estimate | None
    precision_at: Mapping[int, float]
    regret: float

    def to_json(self) -> dict[str, Any]:
        correlations = {name: getattr(self, name) for name in ("kendall", "spearman", "pearson")}
        return {
            **{name: estimate and estimate._asdict() for name, estimate in correlations.items()},
            "precision_at": {str(k): precision for k, precision in self.precision_at.items()},
            "regret": self.regret,
        }


class Point(NamedTuple):
    """An architecture with its score, in the orientation of the ratings file, and its true accuracy."""

    architecture: str
    score: float
    accuracy: float


@dataclass(frozen=True)
class Ranking:
    """What `rank` finds.

    Attributes:
        agreement: of the ratings with the truth.
        baselines: the same by name of the baseline: `params`, `madds` and, in the three spaces, `log_width`.
        points: the architectures that count.
        num_unrated: how many architectures have a true accuracy but no score.
        lower_is_better: orientation of the scores in `points`.
    """

    agreement: Agreement
    baselines: Mapping[str, Agreement]
    points: tuple[Point, ...]
    num_unrated: int
    lower_is_better: bool

    def to_json(self) -> dict[str, Any]:
        """Keys `n`, `unrated`, those of `Agreement.to_json`, and `baselines`."""
        baselines = {name: agreement.to_json() for name, agreement in self.baselines.items()}
        head = {"n": len(self.points), "unrated": self.num_unrated}
        return {**head, **self.agreement.to_json(), "baselines": baselines}


def rank(
    space: Space,
    table: RatingTable,
    truth: TruthTable,
    *,
    lambdas: Sequence[float] | None = None,
    resamples: int | None = None,
    seed: int = 0,
) -> Ranking:
    """Compare ratings with true accuracies.

    Args:
        lambdas: weight of each block's rating; 1 by default.
        resamples: draws of the bootstrap, from `seed`; by default 1000, or 200 of more than a thousand architectures,
            where intervals are narrow and each draw takes milliseconds.

    Raises:
        UsageError: ratings or accuracies of another space, fewer than three architectures with both, or ratings or
            accuracies that are all equal.
    """
    table.check(space)
    scored, num_unrated = _scored(space, table, truth, lambdas)
    archs = sorted(scored, key=str)
    scores, accuracy = np.array([scored[arch] for arch in archs]).T
    for what, values in (("scores", scores), ("accuracies", accuracy)):
        if np.ptp(values) == 0:
            raise UsageError(
                f"the {what} of all {len(archs)} architectures are equal, so nothing can be ranked by them"
            )
    resamples = resamples or (1000 if len(archs) <= _MANY else 200)
    draws = np.random.default_rng(seed).integers(0, len(archs), (resamples, len(archs)))
    baselines = {name: np.array(values) for name, values in _baselines(space, archs).items()}
    return Ranking(
        agreement=agree(-scores if table.lower_is_better else scores, accuracy, draws),
        baselines={name: agree(values, accuracy, draws) for name, values in baselines.items()},
        points=tuple(Point(str(arch), *scored[arch]) for arch in archs),
        num_unrated=num_unrated,
        lower_is_better=table.lower_is_better,
    )


def _scored(
    space: Space, table: RatingTable, truth: TruthTable, lambdas: Sequence[float] | None
) -> tuple[dict[Arch, tuple[float, float]], int]:
    """Score and accuracy of every architecture that has both, and how many have no score."""
    accuracies = truth.architectures(space)
    scores = {arch: table.score(space, arch, lambdas) for arch in accuracies}
    scored = {arch: (score, accuracies[arch]) for arch, score in scores.items() if score is not None}
    if len(scored) < 3:
        raise UsageError(
            f"{len(scored)} of {len(accuracies)} architectures with a true accuracy are rated; "
            f"a ranking needs 3 or more: measure others with bossnet truth, or search with --coverage full"
        )
    return scored, len(accuracies) - len(scored)


def _baselines(space: Space, archs: Sequence[Arch]) -> dict[str, list[float]]:
    costs = [space.cost(arch) for arch in archs]
    widths = [log_width(arch) for arch in archs]
    values = {"params": [float(cost.params) for cost in costs], "madds": [float(cost.madds) for cost in costs]}
    return values if None in widths else {**values, "log_width": widths}  # type: ignore[dict-item]


def log_width(arch: Arch) -> float | None:
    """Sum over choice layers of the logarithm of their inner channels, up to a constant; None in other spaces."""
    match arch:
        case NatsArch(widths):
            return sum(map(math.log, widths))
        case HyTraArch(layers):
            return math.log(2) * sum(layer.scale for layer in layers)
        case MBConvArch(blocks):
            return sum(math.log(CANDIDATES[choice].expansion) for path in blocks for choice in path)
    return None


def over_epochs(
    space: Space, table: RatingTable, records: Iterable[Mapping[str, Any]], truth: TruthTable
) -> list[dict[str, float]]:
    """Correlations at every epoch in which all rated blocks were rated (figures 7 and 9 of the paper).

    Args:
        table: the final ratings; says what was rated.
        records: those of kind `rating` in a search's `metrics.jsonl`.

    Returns:
        `{"epoch", "kendall", "spearman", "pearson"}` by epoch, without intervals; epochs in which they are undefined
        are left out.
    """
    rated: dict[int, dict[tuple[int, str], Mapping[str, float]]] = {}
    for record in records:
        rated.setdefault(record["epoch"], {})[record["block"], record["entry"]] = record["ratings"]
    stages = {(block, entry) for block, entries in enumerate(table.blocks) for entry in entries}
    curve: list[dict[str, float]] = []
    for epoch, ratings in sorted(rated.items()):
        if stages <= ratings.keys():
            blocks = tuple(
                {entry: ratings[block, entry] for entry in entries} for block, entries in enumerate(table.blocks)
            )
            scored, _ = _scored(space, replace(table, blocks=blocks), truth, None)
            scores, accuracy = np.array(list(scored.values())).T
            agreement = agree(-scores if table.lower_is_better else scores, accuracy, np.arange(len(scores))[None])
            if agreement.kendall and agreement.spearman and agreement.pearson:
                values = {name: getattr(agreement, name).value for name in ("kendall", "spearman", "pearson")}
                curve.append({"epoch": epoch, **values})
    return curve


def keep_for_report(run: Path, ranking: Ranking, space: Space, table: RatingTable, truth: TruthTable) -> None:
    """Write `ranking.json` to the folder of a search: `Ranking.to_json`, its points, and correlations over epochs."""
    records = [record for record in read_jsonl(run / "metrics.jsonl") if record.get("kind") == "rating"]
    content = {
        **ranking.to_json(),
        "truth": dict(truth.meta),
        "points": [point._asdict() for point in ranking.points],
        "epochs": over_epochs(space, table, records, truth),
    }
    save_json(run / "ranking.json", content)


def fit_lambdas(space: Space, table: RatingTable, truth: TruthTable) -> tuple[float, ...]:
    """Weights of the blocks' ratings that explain a few measured accuracies best; none is negative, their mean is 1.

    Non-negative least squares of accuracy = constant - sum_k lambda_k rating_k (plus, where high ratings are good).

    Raises:
        UsageError: as `rank`, no more accuracies than blocks, or ratings that explain nothing of them.
    """
    table.check(space)
    units = np.eye(space.num_blocks)
    scored = [_scored(space, table, truth, tuple(unit))[0] for unit in units]  # each block's ratings on their own
    if len(scored[0]) <= space.num_blocks:
        raise UsageError(
            f"{len(scored[0])} accuracies are too few to fit the weights of {space.num_blocks} blocks; "
            f"measure at least {space.num_blocks + 1}, or leave out --lambda"
        )
    ratings = np.array([[score for score, _ in column.values()] for column in scored]).T
    accuracy = np.array([accuracy for _, accuracy in scored[0].values()])
    ratings = -ratings if table.lower_is_better else ratings
    weights, _ = nnls(ratings - ratings.mean(axis=0), accuracy - accuracy.mean())
    if not weights.any():
        raise UsageError("the ratings do not explain the accuracies at all: every fitted weight is 0; check both files")
    return tuple((weights / weights.mean()).tolist())


# --- figures


def agree(values: np.ndarray, accuracy: np.ndarray, draws: np.ndarray) -> Agreement:
    """How well `values` (n,), where more is better, predict `accuracy` (n,); `draws` (R, n) are the resamples."""
    measures = {"kendall": kendall_of_draws, "spearman": spearman_of_draws, "pearson": pearson_of_draws}
    everything = np.arange(len(values))[None]
    estimates: dict[str, Estimate | None] = dict.fromkeys(measures)
    if np.ptp(values):
        for name, measure in measures.items():
            low, high = np.nanquantile(measure(values, accuracy, draws), (0.025, 0.975))
            estimates[name] = Estimate(float(measure(values, accuracy, everything)[0]), float(low), float(high))
    predicted, best = (np.argsort(-column, kind="stable") for column in (values, accuracy))
    precision_at = {k: len(set(predicted[:k]) & set(best[:k])) / k for k in PRECISION_AT if k < len(values)}
    regret = float(accuracy[best[0]] - accuracy[predicted[0]])
    return Agreement(**estimates, precision_at=precision_at, regret=regret)


def pearson_of_draws(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Pearson's R of each resample: (R,), NaN where undefined."""
    return _in_parts(lambda part: _pearson(x[part], y[part]), draws)


def spearman_of_draws(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Spearman's rho of each resample: (R,), NaN where undefined."""
    return _in_parts(lambda part: _pearson(stats.rankdata(x[part], axis=1), stats.rankdata(y[part], axis=1)), draws)


def kendall_of_draws(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each resample: (R,), NaN where undefined."""
    if len(x) > _MANY:
        return np.array([stats.kendalltau(x[draw], y[draw]).statistic for draw in draws])
    order_x, order_y = (np.sign(v[:, None] - v[None, :]) for v in (x, y))  # of each pair
    times = np.zeros(draws.shape)  # how often a resample holds each architecture
    np.add.at(times, (np.arange(len(draws))[:, None], draws), 1)

    def over_pairs(matrix: np.ndarray) -> np.ndarray:
        return ((times @ matrix) * times).sum(axis=1)

    untied = over_pairs(np.abs(order_x)) * over_pairs(np.abs(order_y))
    return _divide(over_pairs(order_x * order_y), np.sqrt(untied))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    varied = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    return _divide((x * y).sum(axis=1), varied * np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(b, np.nan), where=b > 0)


def _in_parts(measure, draws: np.ndarray) -> np.ndarray:
    """`measure` of all draws, as many at a time as make some megabytes."""
    num_parts = math.ceil(draws.size / 2**20)
    return np.concatenate([measure(part) for part in np.array_split(draws, num_parts)])
