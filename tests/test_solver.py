"""The solver against brute force, the published ratings, and requests that cannot be met."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bossnet_zoo.errors import UsageError
from bossnet_zoo.search.rating_table import RatingTable, read_ratings
from bossnet_zoo.search.solver import Solution, pareto, solve
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace, Space

PUBLISHED = Path(__file__).parents[1] / ".." / "shared" / "data" / "mbconv_path_ratings.json"

SHORT_HYTRA = HyTraSpace(block_layers=(2, 2, 2), base_width=8)  # 1,067 architectures
SMALL_MBCONV = MBConvSpace(block_layers=(1, 1, 1, 2, 1))  # 4,096
SMALL_NATS = NatsSpace(dataset="cifar100", widths=(8, 24, 40, 64))  # 1,024
SPACES = pytest.mark.parametrize("space", [SHORT_HYTRA, SMALL_MBCONV, SMALL_NATS], ids=lambda space: space.name)


def make_table(space: Space, seed: int = 0, rate=None, entries: bool = True, lower_is_better: bool = True):
    """Ratings of every path: from every entry on its own, or (`entries` False) the same for all."""
    generator = random.Random(seed)
    rate = rate or (lambda: generator.gauss(0, 1))
    blocks = []
    for block in range(space.num_blocks):
        states = space.entries(block)
        paths = {
            space.entry_text(state): {space.path_text(p): rate() for p in space.paths(block, state)} for state in states
        }
        if not entries:
            paths = {"any": {path: rating for ratings in paths.values() for path, rating in ratings.items()}}
        blocks.append(paths)
    return RatingTable(space.name, tuple(blocks), lower_is_better)


def everything(space: Space, table: RatingTable) -> list[Solution]:
    """Every architecture that has a score, in the space's own order."""

    def walk(block: int, entry, paths: tuple) -> Iterator[tuple]:
        if block == space.num_blocks:
            yield paths
            return
        for path in space.paths(block, entry):
            yield from walk(block + 1, space.exit(block, entry, path), (*paths, path))

    archs = [space.join(paths) for paths in walk(0, None, ())]
    scores = [table.score(space, arch) for arch in archs]
    return [Solution(arch, s, space.cost(arch)) for arch, s in zip(archs, scores, strict=True) if s is not None]


def middle(values) -> int:
    return sorted(values)[len(values) // 3]


@SPACES
@pytest.mark.parametrize("bounded", [(), ("madds",), ("params",), ("madds", "params")], ids="+".join)
@pytest.mark.parametrize("entries", [True, False], ids=["by entry", "any"])
def test_best_seven_equal_brute_force(space, bounded, entries):
    table = make_table(space, entries=entries)
    known = everything(space, table)
    assert len(known) == space.count()
    bounds = {name: middle([getattr(s.cost, name) for s in known]) for name in bounded}
    within = [s for s in known if all(getattr(s.cost, name) <= bound for name, bound in bounds.items())]
    expected = sorted(within, key=lambda s: s.score)[:7]
    found = solve(space, table, top=7, **{f"max_{name}": bound for name, bound in bounds.items()})
    assert found == expected


@SPACES
@pytest.mark.parametrize("against", ["madds", "params"])
def test_pareto_front_equals_brute_force(space, against):
    table = make_table(space, seed=1)
    front, least = [], float("inf")
    for solution in sorted(everything(space, table), key=lambda s: (s.score, getattr(s.cost, against))):
        if getattr(solution.cost, against) < least:
            front.append(solution)
            least = getattr(solution.cost, against)
    assert pareto(space, table, against) == front


def test_pareto_front_respects_other_bounds():
    table = make_table(SMALL_NATS, seed=2)
    most = middle([s.cost.params for s in everything(SMALL_NATS, table)])
    front = pareto(SMALL_NATS, table, "madds", max_params=most)
    assert front[0] == solve(SMALL_NATS, table, max_params=most)[0]
    assert len(front) > 1
    assert all(solution.cost.params <= most for solution in front)


@SPACES
def test_of_equal_scores_the_first_in_the_order_of_the_space_wins(space):
    generator = random.Random(3)
    table = make_table(space, rate=lambda: float(generator.randrange(2)))
    known = everything(space, table)
    bound = middle([s.cost.madds for s in known])
    expected = sorted((s for s in known if s.cost.madds <= bound), key=lambda s: s.score)[:20]  # a stable sort
    assert len({s.score for s in expected}) < 5
    assert solve(space, table, max_madds=bound, top=20) == expected


def test_high_ratings_win_where_the_file_says_so():
    low = make_table(SMALL_NATS, seed=4)
    negated = tuple(
        {entry: {p: -r for p, r in ratings.items()} for entry, ratings in tables.items()} for tables in low.blocks
    )
    high = RatingTable("nats", negated, lower_is_better=False)
    expected = [(s.arch, -s.score) for s in solve(SMALL_NATS, low, top=5, max_params=50_000)]
    assert [(s.arch, s.score) for s in solve(SMALL_NATS, high, top=5, max_params=50_000)] == expected


def test_lambdas_weigh_the_blocks():
    table = make_table(SMALL_NATS, seed=5)
    weights = (0.0, 2.0, 0.5)
    known = everything(SMALL_NATS, table)
    expected = min(known, key=lambda s: table.score(SMALL_NATS, s.arch, weights))
    found = solve(SMALL_NATS, table, lambdas=weights)[0]
    assert found.score == table.score(SMALL_NATS, expected.arch, weights)
    assert found.score != solve(SMALL_NATS, table)[0].score


class ByHand:
    """Latency of NATS-Bench networks: 1 ms, and 10 us per channel of each layer."""

    def path_ns(self, block, entry, path):
        return 10_000 * sum(path)

    def fixed_ns(self, exit):
        return 1_000_000


def test_latency_is_bounded_and_stated():
    table = make_table(SMALL_NATS, seed=6)
    known = everything(SMALL_NATS, table)
    expected = min((s for s in known if sum(s.arch.widths) <= 120), key=lambda s: s.score)
    found = solve(SMALL_NATS, table, max_latency_ms=2.2, latency=ByHand())[0]
    assert found.arch == expected.arch
    assert found.latency_ms == pytest.approx(1 + 0.01 * sum(found.arch.widths))
    assert found.to_json()["latency_ms"] == found.latency_ms
    fronts = pareto(SMALL_NATS, table, "latency", latency=ByHand())
    assert fronts[-1].latency_ms == pytest.approx(1.4)  # the narrowest network


def test_three_bounds_at_once_equal_brute_force():
    table = make_table(SMALL_NATS, seed=7)
    known = everything(SMALL_NATS, table)
    madds, params = (middle([getattr(s.cost, name) for s in known]) for name in ("madds", "params"))
    within = [s for s in known if s.cost.madds <= madds and s.cost.params <= params and sum(s.arch.widths) <= 130]
    expected = sorted(within, key=lambda s: s.score)[:50]
    limits = {"max_madds": madds, "max_params": params, "max_latency_ms": 2.3, "latency": ByHand()}
    assert [s.arch for s in solve(SMALL_NATS, table, top=50, **limits)] == [s.arch for s in expected]


def test_architectures_without_ratings_are_left_out():
    """A greedy search rates blocks from one entry only."""
    full = make_table(SHORT_HYTRA, seed=8)
    kept = ({"any": full.blocks[0]["any"]}, {"8": full.blocks[1]["8"]}, {"16": full.blocks[2]["16"]})
    table = RatingTable("hytra", kept)
    known = everything(SHORT_HYTRA, table)
    assert table.coverage(SHORT_HYTRA) == pytest.approx(len(known) / SHORT_HYTRA.count())
    assert 0 < table.coverage(SHORT_HYTRA) < 1
    assert solve(SHORT_HYTRA, table, top=len(known) + 5) == sorted(known, key=lambda s: s.score)


@pytest.mark.parametrize("space", [NatsSpace(), NatsSpace(dataset="cifar100")], ids=lambda space: space.dataset)
def test_all_of_nats_bench_equals_brute_force(space):
    table = make_table(space, seed=9)
    costs = {arch: space.cost(arch).madds for arch in map(space.parse, map(":".join, _widths()))}
    assert len(costs) == 32_768
    bound = middle(list(costs.values()))
    scores = {arch: table.score(space, arch) for arch, madds in costs.items() if madds <= bound}
    expected = sorted(scores, key=scores.__getitem__)[:3]
    assert [s.arch for s in solve(space, table, max_madds=bound, top=3)] == expected


def _widths():
    return itertools.product(map(str, range(8, 65, 8)), repeat=5)


@pytest.mark.parametrize("bounded", [False, True])
def test_all_of_hytra_equals_brute_force(bounded):
    """2,818,103 architectures with additive scores, in plain loops."""
    space = HyTraSpace()
    table = make_table(space, seed=10)
    bound = 3_500_000_000 if bounded else 10**15
    steps = [
        {
            entry: [
                (
                    table.rating(block, space.entry_text(entry), space.path_text(path)),
                    space.path_cost(block, entry, path, 224).madds,
                    space.exit(block, entry, path),
                    path,
                )
                for path in space.paths(block, entry)
            ]
            for entry in space.entries(block)
        }
        for block in range(4)
    ]
    fixed = {scale: space.fixed_cost(scale, 224).madds for scale in range(4)}
    best, seen = (float("inf"), None), 0
    for a, madds_a, exit_a, path_a in steps[0][None]:
        for b, madds_b, exit_b, path_b in steps[1][exit_a]:
            for c, madds_c, exit_c, path_c in steps[2][exit_b]:
                head, madds = a + b + c, madds_a + madds_b + madds_c
                for d, madds_d, exit_d, path_d in steps[3][exit_c]:
                    seen += 1
                    if head + d < best[0] and madds + madds_d + fixed[exit_d] <= bound:
                        best = head + d, (path_a, path_b, path_c, path_d)
    assert seen == space.count() == 2_818_103
    found = solve(space, table, max_madds=bound if bounded else None)[0]
    assert (found.score, found.arch) == (best[0], space.join(best[1]))


# --- the authors' published ratings


@pytest.fixture(scope="module")
def published() -> RatingTable:
    if not PUBLISHED.exists():
        pytest.skip("the authors' published ratings are not part of this repository")
    return read_ratings(PUBLISHED)


@pytest.mark.parametrize("se", [True, False])
def test_published_ratings_give_bossnet_m1(published, se):
    assert published.coverage(MBConvSpace(se=se)) == 1
    best = solve(MBConvSpace(se=se), published)[0]
    assert str(best.arch) == "11-0110-0111-1100-0110"
    assert round(best.cost.madds / 1e6, 1) == (480.2 if se else 479.5)


def test_published_ratings_under_403_4_million_madds_give_bossnet_m2(published):
    best = solve(MBConvSpace(), published, max_madds=403_400_000)[0]  # with squeeze-excite, the default
    assert str(best.arch) == "11-0110-0111-1320-2332"
    assert round(best.cost.madds / 1e6, 1) == 403.4


def test_69_billion_architectures_under_bounds_take_less_than_two_seconds(published):
    begin = time.process_time()
    solve(MBConvSpace(), published, max_madds=400_000_000, max_params=4_700_000, top=10)
    assert time.process_time() - begin < 2


# --- requests that cannot be met


def test_infeasible_budget_states_the_smallest_possible_cost():
    table = make_table(SMALL_NATS)
    smallest = min(s.cost.params for s in everything(SMALL_NATS, table))
    with pytest.raises(
        UsageError, match=rf"at most 1,000 parameters; the smallest possible is {smallest:,} parameters"
    ):
        solve(SMALL_NATS, table, max_params=1000)
    assert solve(SMALL_NATS, table, max_params=smallest)[0].cost.params == smallest


def test_smallest_possible_cost_is_that_of_rated_architectures():
    full = make_table(SMALL_NATS)
    wide = {path: r for path, r in full.blocks[0]["any"].items() if path.startswith("64")}
    table = RatingTable("nats", ({"any": wide}, *full.blocks[1:]))
    smallest = min(s.cost.madds for s in everything(SMALL_NATS, table))
    with pytest.raises(UsageError, match=rf"at most 1 MAdds at 32 px; the smallest possible is {smallest:,} MAdds"):
        solve(SMALL_NATS, table, max_madds=1)
    with pytest.raises(UsageError, match="at most 1 MAdds at 64 px"):
        solve(SMALL_NATS, table, max_madds=1, resolution=64)


def test_contradicting_bounds_say_what_one_leaves_of_the_other():
    table = make_table(SMALL_MBCONV)
    known = everything(SMALL_MBCONV, table)
    quick = [s for s in known if SlowWhenNarrow.latency_ms(s.arch) <= 2]
    params = min(s.cost.params for s in quick)
    assert params > min(s.cost.params for s in known)
    message = (
        rf"at most {params - 1:,} parameters and 2 ms; with at most 2 ms the smallest possible is {params:,} param"
    )
    with pytest.raises(UsageError, match=message):
        solve(SMALL_MBCONV, table, max_params=params - 1, max_latency_ms=2, latency=SlowWhenNarrow())


class SlowWhenNarrow:
    """Latency of MBConv networks on an imaginary device: 1 ms for every layer that expands by 3 only."""

    def path_ns(self, block, entry, path):
        return 1_000_000 * sum(choice >= 2 for choice in path)

    def fixed_ns(self, exit):
        return 0

    @staticmethod
    def latency_ms(arch):
        return sum(choice >= 2 for path in arch.blocks for choice in path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top 0"),
        ({"top": 100_001}, r"top 100,001 is more than one answer lists; type 100000 or less"),
        ({"lambdas": (1.0, 1e308, 1.0)}, r"lambda 1e\+308 is too large to weigh ratings with; type 1e\+100 or less"),
        ({"lambdas": (1.0, 2.0)}, "type 3 numbers"),
        ({"lambdas": (1.0, 2.0, -1.0)}, "none of them negative"),
        ({"max_latency_ms": 3.0}, "needs measured latencies"),
    ],
)
def test_impossible_request_is_one_sentence(options, message):
    with pytest.raises(UsageError, match=message):
        solve(SMALL_NATS, make_table(SMALL_NATS), **options)


def test_the_largest_weights_and_ratings_still_find_the_best():
    generator = random.Random(0)
    table = make_table(SMALL_NATS, rate=lambda: generator.uniform(-9.9e99, 9.9e99))
    best = min(everything(SMALL_NATS, table), key=lambda solution: solution.score)
    assert solve(SMALL_NATS, table, lambdas=(1e100, 1e100, 1e100))[0].arch == best.arch


def test_front_against_an_unknown_cost_names_the_known_ones():
    with pytest.raises(UsageError, match="madds"):
        pareto(SMALL_NATS, make_table(SMALL_NATS), "flops")
    with pytest.raises(UsageError, match="needs measured latencies"):
        pareto(SMALL_NATS, make_table(SMALL_NATS), "latency")


def test_ratings_that_connect_to_no_whole_architecture_are_an_error():
    full = make_table(SHORT_HYTRA)
    with pytest.raises(UsageError, match="no whole architecture"):
        solve(SHORT_HYTRA, RatingTable("hytra", (full.blocks[0], {"4": {}}, full.blocks[2])))
