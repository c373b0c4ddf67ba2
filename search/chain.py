"""Exact search over a chain of blocks, by dynamic programming with Pareto pruning.

Everything that a block needs to know of the blocks before it is the state in which it is entered. Of all beginnings
that end in one state, only those can become optimal that no other one beats: in score, and in every cost that has a
bound. The others are dropped, and with them those that even the cheapest continuation takes over a bound. Both are
exact: the same continuation, added to two beginnings, preserves their order, rounding of the scores included.

That alone is fast where one cost has a bound. With several, or where many next best are wanted, too many beginnings
would survive. So `ScoredChain.best` also drops those that cannot end in a score as good as one already found: with a
price on every cost, the best priced continuation gives a lower bound of the score at the end (Lagrangian relaxation).

Lower scores are better. Of equal scores the one is better that comes first in the space's own order: `Space.paths`,
block by block. Costs are integers, so their sums are exact.

Shapes: N beginnings or paths, K costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize

from bossnet_zoo.spaces import Arch, Entry, Path, Space

UNBOUNDED = np.iinfo(np.int64).max // 4  # sums of such numbers stay in range

_MAX_PATHS = 2**24  # of one block from one state; ranks stay below 2^63 up to 2^39 beginnings
_CHUNK = 512  # rows compared with each other at once: a few MB of booleans
_WIDTH = 256  # beginnings per state when a good architecture is looked for first


@dataclass(frozen=True)
class Links:
    """Paths of a block between two states: index in `Space.paths` (N,), scores (N,), costs (N, K)."""

    indices: np.ndarray
    scores: np.ndarray
    costs: np.ndarray

    def unbeaten(self, top: int) -> Links:
        """Without those that `top` others between the same states beat, whatever comes before or after them."""
        rows = _unbeaten_rows(self.indices, self.scores, self.costs, top)
        return Links(self.indices[rows], self.scores[rows], self.costs[rows])


@dataclass(frozen=True)
class Beginnings:
    """Beginnings of architectures, or whole ones.

    Attributes:
        indices: (N, blocks so far) of their paths in `Space.paths`.
        ranks: (N,) where they stand in the space's order, among all beginnings of as many blocks.
        scores, costs: (N,) and (N, K).
    """

    indices: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    costs: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Beginnings:
        return Beginnings(self.indices[rows], self.ranks[rows], self.scores[rows], self.costs[rows])

    @staticmethod
    def empty(number: int, num_costs: int) -> Beginnings:
        """So many beginnings (0 or 1) of no blocks at all."""
        nothing = np.zeros((number, 0), dtype=np.int32)
        costs = np.zeros((number, num_costs), dtype=np.int64)
        return Beginnings(nothing, np.zeros(number, dtype=np.int64), np.zeros(number), costs)

    @staticmethod
    def concatenate(parts: Sequence[Beginnings]) -> Beginnings:
        names = ("indices", "ranks", "scores", "costs")
        return Beginnings(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def extend(self, links: Links, most: np.ndarray) -> Beginnings:
        """Every beginning continued by every path, except where a cost exceeds `most` (K,)."""
        costs = self.costs[:, None] + links.costs  # (N, paths, K)
        row, column = np.nonzero((costs <= most).all(axis=2))
        index = links.indices[column]
        return Beginnings(
            np.column_stack((self.indices[row], index)),
            self.ranks[row] * _MAX_PATHS + index,
            self.scores[row] + links.scores[column],
            costs[row, column],
        )

    def unbeaten(self, top: int) -> Beginnings:
        """Without those that `top` others in the same state beat, whatever comes after them."""
        return self[_unbeaten_rows(self.ranks, self.scores, self.costs, top)]


def _unbeaten_rows(ranks: np.ndarray, scores: np.ndarray, costs: np.ndarray, top: int) -> np.ndarray:
    """Rows that fewer than `top` others beat in score (or rank, where equal) and equal or undercut in every cost.

    A row that is still there when `top` fronts have been peeled off stands behind a chain of `top` better ones.
    """
    order = np.lexsort((ranks, scores))
    if not costs.shape[1]:
        return order[:top]
    fronts = [order[:0]]
    while order.size and len(fronts) <= top:
        unbeaten = find_unbeaten(costs[order])
        fronts.append(order[unbeaten])
        order = order[~unbeaten]
    return np.concatenate(fronts)


def find_unbeaten(costs: np.ndarray) -> np.ndarray:
    """Which rows (N, K), sorted from best to worst, no earlier row equals or undercuts in every cost: (N,) of bool."""
    num_rows, num_costs = costs.shape
    unbeaten = np.zeros(num_rows, dtype=bool)
    unbeaten[:1] = True
    if num_costs == 1:
        unbeaten[1:] = costs[1:, 0] < np.minimum.accumulate(costs[:-1, 0])
    elif num_costs > 1:
        front = costs[:0]
        for start in range(0, num_rows, _CHUNK):
            rows = start + np.flatnonzero(~_undercuts(front, costs[start : start + _CHUNK]).any(axis=0))
            rows = rows[~np.triu(_undercuts(costs[rows], costs[rows]), k=1).any(axis=0)]
            unbeaten[rows] = True
            front = np.concatenate((front, costs[rows]))
    return unbeaten


def _undercuts(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Whether each of `these` (N, K) equals or undercuts each of `those` (M, K) in every cost: (N, M) of bool."""
    result = these[:, None, 0] <= those[None, :, 0]
    for cost in range(1, these.shape[1]):
        result &= these[:, None, cost] <= those[None, :, cost]
    return result


@dataclass(frozen=True)
class ScoredChain:
    """A space's blocks with the scores and costs of their paths.

    Attributes:
        links: for each block, by entry and exit, the scored paths between them.
        rest: for each block, by entry, the smallest costs (K,) from there to the end, each cost on its own; entries
            from which no path leads to the end are absent. The last one is of the end itself.
    """

    space: Space
    links: tuple[Mapping[Entry, Mapping[Entry, Links]], ...]
    rest: tuple[Mapping[Entry, np.ndarray], ...]

    @classmethod
    def build(
        cls,
        space: Space,
        score: Callable[[int, Entry, Path], float | None],
        cost: Callable[[int, Entry, Path], Sequence[int]],
        fixed_cost: Callable[[Entry], Sequence[int]],
    ) -> ScoredChain:
        """The chain of `space`, from functions of (block, entry, path) and of the last exit; no score, no such path."""
        links = tuple(
            {entry: _group_by_exit(space, block, entry, score, cost) for entry in space.entries(block)}
            for block in range(space.num_blocks)
        )
        ends = {exit: fixed_cost(exit) for by_exit in links[-1].values() for exit in by_exit}
        fixed = {exit: np.array(costs, dtype=np.int64) for exit, costs in ends.items()}
        return cls(space, links, _smallest_rest(links, fixed, lambda path: path.costs.min(axis=0)))

    @property
    def smallest(self) -> np.ndarray | None:
        """Smallest costs (K,) of an architecture, each on its own; None where no architecture has a score."""
        return self.rest[0].get(None)

    def front(self, bounds: Sequence[int]) -> Beginnings:
        """The architectures within `bounds` (K,) that no other beats in score and in every cost, in no order."""
        return self._pruned(1)._search(bounds, 1)

    def best(self, bounds: Sequence[int], top: int) -> Beginnings:
        """The `top` best architectures within `bounds` (K,), best first; fewer where fewer are within them."""
        chain = self._pruned(top)
        prices = find_prices(chain, bounds)
        sample = chain._search(bounds, top, lambda *state: prices.promising(*state, width=max(_WIDTH, top)))
        limit = np.sort(sample.scores)[top - 1] + prices.slack if len(sample.scores) >= top else math.inf
        ends = chain._search(bounds, top, lambda *state: prices.promising(*state, limit=limit))
        return ends[np.lexsort((ends.ranks, ends.scores))[:top]]

    def arch(self, indices: Sequence[int]) -> Arch:
        """The architecture whose paths have these indices."""
        paths, entry = [], None  # type: tuple[list[Path], Entry]
        for block, index in enumerate(indices):
            paths.append(self.space.paths(block, entry)[index])
            entry = self.space.exit(block, entry, paths[-1])
        return self.space.join(paths)

    def _pruned(self, top: int) -> ScoredChain:
        links = tuple(
            {
                entry: {exit: paths.unbeaten(top) for exit, paths in by_exit.items() if exit in after}
                for entry, by_exit in block.items()
            }
            for block, after in zip(self.links, self.rest[1:], strict=True)
        )
        return ScoredChain(self.space, links, self.rest)

    def _search(
        self, bounds: Sequence[int], top: int, keep: Callable[[Beginnings, int, Entry], Beginnings] | None = None
    ) -> Beginnings:
        """Architectures within `bounds` (K,) that fewer than `top` others beat.

        `keep` thins out the beginnings that (block, exit) gives, before they are compared with each other.
        """
        most = np.array(bounds, dtype=np.int64)
        states: dict[Entry, Beginnings] = {None: Beginnings.empty(1, len(bounds))}
        for block, links in enumerate(self.links):
            reached: dict[Entry, list[Beginnings]] = {}
            for entry, beginnings in states.items():
                for exit, paths in links[entry].items():
                    extended = beginnings.extend(paths, most - self.rest[block + 1][exit])
                    reached.setdefault(exit, []).append(keep(extended, block, exit) if keep else extended)
            states = {exit: Beginnings.concatenate(parts).unbeaten(top) for exit, parts in reached.items()}
            states = _renumber(states)
        ends = [replace(b, costs=b.costs + self.rest[-1][exit]) for exit, b in states.items()]
        return Beginnings.concatenate(ends).unbeaten(top) if ends else Beginnings.empty(0, len(bounds))


def _group_by_exit(space: Space, block: int, entry: Entry, score, cost) -> dict[Entry, Links]:
    """The block's scored paths from `entry`, by the state in which they end."""
    groups: dict[Entry, list[tuple[int, float, Sequence[int]]]] = {}
    for index, path in enumerate(space.paths(block, entry)):
        value = score(block, entry, path)
        if value is not None:
            exit = space.exit(block, entry, path)
            groups.setdefault(exit, []).append((index, value, cost(block, entry, path)))
    links = {}
    for exit, group in groups.items():
        indices, scores, costs = zip(*group, strict=True)
        table = np.array(costs, np.int64).reshape(len(group), -1)
        links[exit] = Links(np.array(indices, np.int32), np.array(scores), table)
    return links


def _smallest_rest(
    links, end: Mapping[Entry, Any], smallest: Callable[[Links], Any]
) -> tuple[Mapping[Entry, Any], ...]:
    """From the end backwards, the smallest sum from each state of each block, `smallest` being that of one step."""
    rest = [end]
    for block in reversed(links):
        after = rest[0]
        sums = {
            entry: [smallest(paths) + after[exit] for exit, paths in by_exit.items() if exit in after]
            for entry, by_exit in block.items()
        }
        rest.insert(0, {entry: np.min(options, axis=0) for entry, options in sums.items() if options})
    return tuple(rest)


def _renumber(states: Mapping[Entry, Beginnings]) -> dict[Entry, Beginnings]:
    """The same with ranks 0, 1, 2, ... over all states, so that they never outgrow an integer."""
    if not states:
        return {}
    ranks = np.sort(np.concatenate([beginnings.ranks for beginnings in states.values()]))
    return {exit: replace(b, ranks=np.searchsorted(ranks, b.ranks)) for exit, b in states.items()}


# --- a lower bound of the score at the end


@dataclass(frozen=True)
class Prices:
    """A price on every cost, and what the rest of an architecture comes to at these prices.

    Attributes:
        prices: (K,), none negative: score per unit of cost.
        rest: for each block, by entry, the smallest score plus priced costs from there to the end, minus the price of
            the bounds. Added to score and priced costs so far, it is a lower bound of the score of every architecture
            within the bounds.
        slack: more than rounding can make of such sums.
    """

    prices: np.ndarray
    rest: tuple[Mapping[Entry, float], ...]
    slack: float = 0.0

    def promising(
        self, beginnings: Beginnings, block: int, exit: Entry, *, limit: float = math.inf, width: int | None = None
    ) -> Beginnings:
        """Of beginnings that end in `exit` of `block`, the `width` most promising that may stay at or below `limit`."""
        lowest = beginnings.scores + beginnings.costs @ self.prices + self.rest[block + 1][exit]
        rows = np.flatnonzero(lowest <= limit)
        return beginnings[rows if width is None else rows[np.argsort(lowest[rows], kind="stable")[:width]]]


def find_prices(chain: ScoredChain, bounds: Sequence[int]) -> Prices:
    """Prices that bring the lower bound of the best score within `bounds` (K,) about as high as possible.

    Any prices give a lower bound; how close to the maximum these come only makes a difference in speed.
    """
    most = np.maximum(np.array(bounds, dtype=float), 1.0)
    scores = [[paths.scores for by_exit in block.values() for paths in by_exit.values()] for block in chain.links]
    spread = sum(np.ptp(np.concatenate(block)) for block in scores)

    def priced(share: np.ndarray) -> Prices:
        prices = np.maximum(share, 0.0) / most
        end = {exit: float(costs @ prices - most @ prices) for exit, costs in chain.rest[-1].items()}
        return Prices(
            prices, _smallest_rest(chain.links, end, lambda paths: (paths.scores + paths.costs @ prices).min())
        )

    share = np.zeros(len(bounds))
    if share.size and spread:
        corners = np.concatenate((share[None], np.diag(share + spread)))
        options = {"initial_simplex": corners, "maxiter": 60 * share.size, "fatol": 1e-6 * spread}
        share = minimize(lambda share: -priced(share).rest[0][None], share, method="Nelder-Mead", options=options).x
    largest = sum(np.abs(np.concatenate(block)).max() for block in scores) + np.maximum(share, 0.0).sum()
    return replace(priced(share), slack=1e-12 * largest)
