"""Exact search over a chain of blocks, by dynamic programming with Pareto pruning.

Everything that a block needs to know of the blocks before it is the state in which it is entered. Of all beginnings
that end in one state, only those can become optimal that no other one beats: in score, and in every cost that has a
bound. The others are dropped, and with them those that even the cheapest continuation takes over a bound. Both are
exact: the same continuation, added to two beginnings, preserves their order, rounding of the scores included.

Lower scores are better. Of equal scores the one is better that comes first in the space's own order: `Space.paths`,
block by block. Costs are integers, so their sums are exact.

Shapes: N beginnings or paths, K costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bossnet_zoo.spaces import Arch, Entry, Path, Space

UNBOUNDED = np.iinfo(np.int64).max // 4  # sums of such numbers stay in range

_MAX_PATHS = 2**24  # of one block from one state; ranks stay below 2^63 up to 2^39 beginnings
_CHUNK = 512


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
class Chain:
    """A space's blocks with the scores and costs of their paths.

    Attributes:
        links: for each block, by entry and exit, the paths between them that have a score.
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
    ) -> Chain:
        """The chain of `space`, from functions of (block, entry, path) and of the last exit; no score, no such path."""
        links = [
            {entry: _group_by_exit(space, block, entry, score, cost) for entry in space.entries(block)}
            for block in range(space.num_blocks)
        ]
        ends = {exit for by_exit in links[-1].values() for exit in by_exit}
        rest = [{exit: np.array(fixed_cost(exit), dtype=np.int64) for exit in ends}]
        for block in reversed(links):
            after = rest[0]
            smallest = {
                entry: [path.costs.min(axis=0) + after[exit] for exit, path in by_exit.items() if exit in after]
                for entry, by_exit in block.items()
            }
            rest.insert(0, {entry: np.min(costs, axis=0) for entry, costs in smallest.items() if costs})
        return cls(space, tuple(links), tuple(rest))

    @property
    def smallest(self) -> np.ndarray | None:
        """Smallest costs (K,) of an architecture, each on its own; None where no architecture has a score."""
        return self.rest[0].get(None)

    def search(self, bounds: Sequence[int], top: int = 1) -> Beginnings:
        """All architectures within `bounds` (K,) that fewer than `top` others beat, in no particular order.

        Among them are the `top` best and, for `top` 1, the whole Pareto front of score and costs.
        """
        start = Beginnings(
            np.zeros((1, 0), np.int32), np.zeros(1, np.int64), np.zeros(1), np.zeros((1, len(bounds)), np.int64)
        )
        states: dict[Entry, Beginnings] = {None: start}
        for block, after in zip(self.links, self.rest[1:], strict=True):
            reached: dict[Entry, list[Beginnings]] = {}
            for entry, beginnings in states.items():
                for exit, links in block[entry].items():
                    if exit in after:
                        most = np.array(bounds, np.int64) - after[exit]
                        reached.setdefault(exit, []).append(beginnings.extend(links.unbeaten(top), most))
            states = _renumber({exit: Beginnings.concatenate(parts).unbeaten(top) for exit, parts in reached.items()})
        ends = [Beginnings(b.indices, b.ranks, b.scores, b.costs + self.rest[-1][exit]) for exit, b in states.items()]
        return Beginnings.concatenate(ends).unbeaten(top) if ends else start[np.zeros(0, dtype=np.int64)]

    def arch(self, indices: Sequence[int]) -> Arch:
        """The architecture whose paths have these indices."""
        paths, entry = [], None  # type: tuple[list[Path], Entry]
        for block, index in enumerate(indices):
            paths.append(self.space.paths(block, entry)[index])
            entry = self.space.exit(block, entry, paths[-1])
        return self.space.join(paths)


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


def _renumber(states: dict[Entry, Beginnings]) -> dict[Entry, Beginnings]:
    """The same with ranks 0, 1, 2, ... over all states, so that they never grow out of an integer."""
    if not states:
        return {}
    ranks = np.sort(np.concatenate([beginnings.ranks for beginnings in states.values()]))
    return {
        exit: Beginnings(b.indices, np.searchsorted(ranks, b.ranks), b.scores, b.costs) for exit, b in states.items()
    }
