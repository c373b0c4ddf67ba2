"""Is a rating any good? Its rank correlation with true accuracy, beside what trivial baselines reach.

Orientation: a good method is positive. Scores are negated where low ratings are good, and the baselines say that more
is better: parameters, MAdds, and log-width, the sum over choice layers of the logarithm of their inner channels.

What is counted: the architectures that have both a true accuracy and ratings of all their paths, in alphabetical order,
by which ties are broken. Intervals are the central 95 % of the bootstrap: architectures drawn with replacement, the
same draws for every figure, so that a rating and a baseline can be compared draw by draw.

Shapes: n architectures, R resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from bossnet_zoo.checkpoint import read_jsonl, save_json
from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Arch, HyTraArch, MBConvArch, NatsArch, Space
from bossnet_zoo.spaces.mbconv import CANDIDATES

from .correlation import MANY, Agreement, Estimate, advantage, agree, kendall_of_draws
from .rating_table import RatingTable
from .truth_table import TruthTable


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
        advantages: by name of the baseline, how much higher Kendall's tau of the ratings is, with its own interval.
        repeatability: Kendall's tau between two trainings of the same architectures, where the truth has several: a
            rating that knew everything but the luck of a training would agree about as well with one of them.
        points: the architectures that count.
        num_unrated: how many architectures have a true accuracy but no score.
        lower_is_better: orientation of the scores in `points`.
    """

    agreement: Agreement
    baselines: Mapping[str, Agreement]
    advantages: Mapping[str, Estimate | None]
    repeatability: Estimate | None
    points: tuple[Point, ...]
    num_unrated: int
    lower_is_better: bool

    def to_json(self) -> dict[str, Any]:
        """Keys `n`, `unrated`, `repeatability`, those of `Agreement.to_json`, `baselines`; these with `advantage`."""

        def plain(estimate: Estimate | None) -> dict[str, float] | None:
            return estimate and estimate._asdict()

        baselines = {
            name: {**agreement.to_json(), "advantage": plain(self.advantages[name])}
            for name, agreement in self.baselines.items()
        }
        head = {"n": len(self.points), "unrated": self.num_unrated, "repeatability": plain(self.repeatability)}
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
    resamples = resamples or (1000 if len(archs) <= MANY else 200)
    draws = np.random.default_rng(seed).integers(0, len(archs), (resamples, len(archs)))
    baselines = {name: np.array(values) for name, values in _baselines(space, archs).items()}
    goodness = -scores if table.lower_is_better else scores
    return Ranking(
        agreement=agree(goodness, accuracy, draws),
        baselines={name: agree(values, accuracy, draws) for name, values in baselines.items()},
        advantages={name: advantage(goodness, values, accuracy, draws) for name, values in baselines.items()},
        repeatability=_repeatability(truth, archs, draws),
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
        rate_more = ", or search with --coverage full" if len(scored) < len(accuracies) else ""
        raise UsageError(
            f"{len(scored)} of {len(accuracies)} architectures with a true accuracy are rated; "
            f"a ranking needs 3 or more: measure others with bossnet truth{rate_more}"
        )
    return scored, len(accuracies) - len(scored)


def _repeatability(truth: TruthTable, archs: Sequence[Arch], draws: np.ndarray) -> Estimate | None:
    """Kendall's tau between trainings, mean over their pairs; None where the truth does not have several of each."""
    runs: Mapping[str, Sequence[float]] = truth.meta.get("runs") or {}
    rows = [runs.get(str(arch), ()) for arch in archs]
    if len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return None
    pairs = list(itertools.combinations(np.array(rows).T, 2))
    everything = np.arange(len(archs))[None]
    value, resampled = (
        np.mean([kendall_of_draws(one, other, chosen) for one, other in pairs], axis=0)
        for chosen in (everything, draws)
    )
    return Estimate(float(value[0]), *map(float, np.nanquantile(resampled, (0.025, 0.975))))


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


def epochs_of_search(run: Path, space: Space, table: RatingTable, truth: TruthTable) -> list[dict[str, float]]:
    """`over_epochs` of what a search with --rating-every left in its folder."""
    records = [record for record in read_jsonl(run / "metrics.jsonl") if record.get("kind") == "rating"]
    return over_epochs(space, table, records, truth)


def keep_for_report(run: Path, ranking: Ranking, truth: TruthTable, epochs: Sequence[Mapping[str, float]] = ()) -> None:
    """Write `ranking.json` to the folder of a search: `Ranking.to_json`, its points, and correlations over epochs."""
    content = {
        **ranking.to_json(),
        "truth": dict(truth.meta),
        "points": [point._asdict() for point in ranking.points],
        "epochs": list(epochs),
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
