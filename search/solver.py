"""From ratings to architectures, exactly: the best, the next best and the Pareto front of a whole search space.

An architecture's score is the sum of its paths' ratings, each weighted with its block's lambda (section 3.3 of the
paper); its costs are sums over the same paths. `search.chain` searches such sums. Architectures with a path that has no
rating are left out: `RatingTable.coverage` tells how many are not.

Of equal scores the architecture comes first that comes first in the space's own order: `Space.paths`, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bossnet_zoo.errors import UsageError, unknown
from bossnet_zoo.spaces import Arch, Cost, Entry, Path, Space

from .chain import UNBOUNDED, ScoredChain, find_unbeaten
from .rating_table import LARGEST, RatingTable


class PathLatency(Protocol):
    """Latency as a sum over blocks, in nanoseconds, from the caller's own measurements."""

    def path_ns(self, block: int, entry: Entry, path: Path) -> int: ...

    def fixed_ns(self, exit: Entry) -> int: ...


@dataclass(frozen=True)
class Solution:
    """One architecture of a solver's answer.

    Attributes:
        arch: the architecture; `str(arch)` is its written form.
        score: weighted sum of its ratings, in the orientation of the ratings file.
        cost: MAdds and parameters.
        latency_ms: sum of the latency table's entries, where one was given.
    """

    arch: Arch
    score: float
    cost: Cost
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """`{"architecture", "score", "madds", "params"}`, and `latency_ms` where known."""
        known = {
            "architecture": str(self.arch),
            "score": self.score,
            "madds": self.cost.madds,
            "params": self.cost.params,
        }
        return known if self.latency_ms is None else {**known, "latency_ms": self.latency_ms}


COSTS = ("madds", "params", "latency")
MOST = 100_000  # architectures of one answer
NS_PER_MS = 1_000_000


def solve(
    space: Space,
    table: RatingTable,
    *,
    max_madds: int | None = None,
    max_params: int | None = None,
    max_latency_ms: float | None = None,
    latency: PathLatency | None = None,
    lambdas: Sequence[float] | None = None,
    top: int = 1,
    resolution: int | None = None,
) -> list[Solution]:
    """The `top` best architectures of the whole space under the given upper bounds, best first.

    There are fewer than `top` where fewer meet the bounds.

    Args:
        latency: latency of the space's paths, for `max_latency_ms`; solutions then state theirs.
        lambdas: weight of each block's rating; 1 by default.
        resolution: pixels at which MAdds are counted; by default the space's own.

    Raises:
        UsageError: ratings, weights or bounds that do not fit the space, or bounds that no rated architecture meets;
            the message then states the smallest possible cost.
    """
    if top < 1:
        raise UsageError(f"top {top} is not possible; type 1 or more")
    if top > MOST:
        raise UsageError(f"top {top:,} is more than one answer lists; type {MOST} or less, or --pareto for every cost")
    bounds = _bounds(max_madds, max_params, max_latency_ms, latency)
    question = _Question(space, table, _weights(space, lambdas), latency, resolution or space.default_resolution)
    chain = question.chain(question.score, bounds)
    question.check_each(chain, bounds)
    ends = chain.best(list(bounds.values()), top)
    if not ends.scores.size:
        raise question.contradiction(bounds)
    return [question.solution(chain.arch(indices)) for indices in ends.indices]


def pareto(
    space: Space,
    table: RatingTable,
    against: str = "madds",
    *,
    max_madds: int | None = None,
    max_params: int | None = None,
    max_latency_ms: float | None = None,
    latency: PathLatency | None = None,
    lambdas: Sequence[float] | None = None,
    resolution: int | None = None,
) -> list[Solution]:
    """The Pareto front of score and one cost, best score first: whoever wants less of the cost has to take a worse one.

    Args:
        against: `madds`, `params` or `latency`.
        others: as in `solve`.

    Raises:
        UsageError: as `solve`.
    """
    if against not in COSTS:
        raise unknown("cost", against, COSTS)
    if against == "latency" and latency is None:
        raise UsageError("a Pareto front of latency needs measured latencies; pass them as `latency`")
    bounds = {against: UNBOUNDED, **_bounds(max_madds, max_params, max_latency_ms, latency)}
    question = _Question(space, table, _weights(space, lambdas), latency, resolution or space.default_resolution)
    chain = question.chain(question.score, bounds)
    question.check_each(chain, bounds)
    ends = chain.front(list(bounds.values()))
    if not ends.scores.size:
        raise question.contradiction(bounds)
    costs = ends.costs[:, list(bounds).index(against)]
    order = np.lexsort((ends.ranks, costs, ends.scores))
    front = order[find_unbeaten(costs[order, None])]
    return [question.solution(chain.arch(ends.indices[row])) for row in front]


def _bounds(
    max_madds: int | None, max_params: int | None, max_latency_ms: float | None, latency: PathLatency | None
) -> dict[str, int]:
    """Upper bounds by name of the cost, latency in nanoseconds."""
    if max_latency_ms is not None and latency is None:
        raise UsageError("a bound on latency needs measured latencies; pass them as `latency`")
    # 1.001 ms are 1,001,000 ns, and 1000999.9999 after a multiplication in binary.
    max_ns = None if max_latency_ms is None else math.floor(round(max_latency_ms * NS_PER_MS, 3))
    given = {"madds": max_madds, "params": max_params, "latency": max_ns}
    return {name: min(bound, UNBOUNDED) for name, bound in given.items() if bound is not None}


def _weights(space: Space, lambdas: Sequence[float] | None) -> tuple[float, ...]:
    if lambdas is None:
        return (1.0,) * space.num_blocks
    if len(lambdas) != space.num_blocks or not all(math.isfinite(weight) and weight >= 0 for weight in lambdas):
        raise UsageError(
            f"lambdas {', '.join(map(str, lambdas))} do not fit space {space.name!r}; "
            f"type {space.num_blocks} numbers, one for each block, none of them negative"
        )
    if max(lambdas) > LARGEST:  # so are the ratings, and products of the two can be added up
        raise UsageError(f"lambda {max(lambdas):g} is too large to weigh ratings with; type {LARGEST:g} or less")
    return tuple(map(float, lambdas))


@dataclass(frozen=True)
class _Question:
    """A space with its scores and costs. Scores are negated inside where a high rating is a good one."""

    space: Space
    table: RatingTable
    lambdas: tuple[float, ...]
    latency: PathLatency | None
    resolution: int

    def __post_init__(self) -> None:
        self.table.check(self.space)

    def check_each(self, chain: ScoredChain, bounds: Mapping[str, int]) -> None:
        """Raise `UsageError` where a bound cannot be met even on its own."""
        if chain.smallest is None:
            raise UsageError("the ratings cover no whole architecture: in some block, no path within reach is rated")
        for smallest, (name, bound) in zip(chain.smallest, bounds.items(), strict=True):
            if smallest > bound:
                raise UsageError(
                    f"no rated architecture has at most {self.amount(name, bound)}; "
                    f"the smallest possible is {_amount(name, smallest)}, so type {_option(name, smallest)} or more"
                )

    def contradiction(self, bounds: Mapping[str, int]) -> UsageError:
        """The error for bounds of which each can be met, but not all at once."""
        bounds = {name: bound for name, bound in bounds.items() if bound < UNBOUNDED}
        rated = self.chain(lambda *path: None if self.score(*path) is None else 0.0, bounds)
        message = f"no rated architecture has at most {self.amounts(bounds)}"
        for cost, name in enumerate(bounds):
            ends = rated.front(list({**bounds, name: UNBOUNDED}.values()))
            if ends.scores.size:
                others = self.amounts({other: bound for other, bound in bounds.items() if other != name})
                smallest = _amount(name, ends.costs[:, cost].min())
                return UsageError(f"{message}; with at most {others} the smallest possible is {smallest}")
        return UsageError(f"{message}; no two of these bounds can be met together, so drop or raise two of them")

    def amount(self, name: str, value: int) -> str:
        """`_amount`, with the pixels at which multiply-adds are counted."""
        return _amount(name, value) + (f" at {self.resolution} px" if name == "madds" else "")

    def amounts(self, bounds: Mapping[str, int]) -> str:
        return " and ".join(self.amount(name, bound) for name, bound in bounds.items())

    def chain(self, score: Callable[[int, Entry, Path], float | None], costs: Iterable[str]) -> ScoredChain:
        """The space's blocks with the named costs."""
        costs = tuple(costs)

        def path_cost(block: int, entry: Entry, path: Path) -> list[int]:
            cost = self.space.path_cost(block, entry, path, self.resolution)
            latency = self.latency.path_ns(block, entry, path) if self.latency else 0
            return [latency if name == "latency" else getattr(cost, name) for name in costs]

        def fixed_cost(exit: Entry) -> list[int]:
            cost = self.space.fixed_cost(exit, self.resolution)
            latency = self.latency.fixed_ns(exit) if self.latency else 0
            return [latency if name == "latency" else getattr(cost, name) for name in costs]

        return ScoredChain.build(self.space, score, path_cost, fixed_cost)

    def score(self, block: int, entry: Entry, path: Path) -> float | None:
        rating = self.table.rating(block, self.space.entry_text(entry), self.space.path_text(path))
        if rating is None:
            return None
        return self.lambdas[block] * (rating if self.table.lower_is_better else -rating)

    def solution(self, arch: Arch) -> Solution:
        score = self.table.score(self.space, arch, self.lambdas)
        assert score is not None
        latency_ms = path_latency_ms(self.space, arch, self.latency) if self.latency else None
        return Solution(arch, score, self.space.cost(arch, self.resolution), latency_ms)


def path_latency_ms(space: Space, arch: Arch, latency: PathLatency) -> float:
    """Latency of an architecture: the sum over its paths, in milliseconds."""
    total, entry = 0, None  # type: tuple[int, Entry]
    for block, path in enumerate(space.split(arch)):
        total += latency.path_ns(block, entry, path)
        entry = space.exit(block, entry, path)
    return (total + latency.fixed_ns(entry)) / NS_PER_MS


def _amount(name: str, value: int) -> str:
    """`475,000,000 MAdds`, exact."""
    if name == "latency":
        return f"{value / NS_PER_MS:.6g} ms"
    return f"{value:,} {'MAdds' if name == 'madds' else 'parameters'}"


def _option(name: str, value: int) -> str:
    """`--max-madds 475000000`, exact; of latencies rounded up to microseconds."""
    if name == "latency":
        return f"--max-latency-ms {math.ceil(value / 1e3) / 1e3:.12g}"
    return f"--max-{name} {value}"
