"""Latency tables: their layers, their sums, files of them, and the solver under them against brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from drawn import draw_ratings
from typer.testing import CliRunner

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search.cli_solve import app
from bossnet_zoo.search.latency import (
    LatencyTable,
    Operation,
    all_layers,
    head_of,
    latency_from_json,
    layers_of,
    read_latency,
)
from bossnet_zoo.search.rating_table import RatingTable
from bossnet_zoo.search.solver import pareto, path_latency_ms, solve
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace, Space

SHORT_HYTRA = HyTraSpace(block_layers=(2, 2, 2), base_width=8)  # 1,067 architectures
SMALL_MBCONV = MBConvSpace(block_layers=(1, 1, 1, 2, 1))  # 4,096
SMALL_NATS = NatsSpace(dataset="cifar100", widths=(8, 24, 40, 64))  # 1,024
SPACES = pytest.mark.parametrize("space", [SHORT_HYTRA, SMALL_MBCONV, SMALL_NATS], ids=lambda space: space.name)


def make_latency(space: Space, seed: int = 0, **fields) -> LatencyTable:
    """A table in which every layer is an operation of its own, of 0.1 to 1 ms."""
    generator = random.Random(seed)
    layers = {key: f"operation of {key}" for key in all_layers(space)}
    table = LatencyTable(
        space=space,
        resolution=space.default_resolution,
        batch=1,
        runtime="torch",
        versions={"torch": "2.9"},
        device="abacus",
        threads=1,
        date="2026-01-01",
        operations={name: Operation(generator.uniform(0.1, 1), 0.02, 7) for name in layers.values()},
        layers=layers,
    )
    return replace(table, **fields)


def make_ratings(space: Space, seed: int = 0) -> RatingTable:
    """Ratings of every path, of its own from every entry."""
    return replace(draw_ratings(space, seed), meta={"space_options": json.loads(json.dumps(vars(space)))})


def architectures(space: Space, block: int = 0, entry=None, paths: tuple = ()):
    """All of them, by walking the chain of blocks."""
    if block == space.num_blocks:
        yield space.join(paths)
        return
    for path in space.paths(block, entry):
        yield from architectures(space, block + 1, space.exit(block, entry, path), (*paths, path))


def by_hand(table: LatencyTable, arch) -> float:
    """Milliseconds of an architecture, layer by layer, with nothing but the table's own figures."""
    layers = layers_of(table.space, arch)
    return table.scale * sum(table.operations[table.layers[layer]].ms for layer in layers) + table.offset_ms


# --- layers


@SPACES
def test_the_layers_of_a_space_are_those_of_its_architectures(space):
    archs = list(architectures(space))
    assert len(archs) == space.count()
    found = set(itertools.chain.from_iterable(layers_of(space, arch) for arch in archs))
    assert set(all_layers(space)) == found
    assert {len(layers_of(space, arch)) for arch in archs} == {2 + sum(space.block_layers)}


@SPACES
def test_every_layer_comes_with_an_architecture_that_has_it(space):
    for layer, paths in all_layers(space).items():
        assert layer in layers_of(space, space.join(paths))


def test_layers_are_written_as_the_documentation_says():
    arch = SHORT_HYTRA.parse("8c-16ac-32aaa")
    expected = ["stem 8c", "1.1 any 8c", "1.2 8 16a", "2.1 16 16c", "2.2 16 32a", "3.1 32 32a", "3.2 32 32a", "head 32"]
    assert layers_of(SHORT_HYTRA, arch) == expected


# --- sums


@SPACES
def test_the_latency_of_an_architecture_is_the_scaled_sum_of_its_layers(space):
    table = make_latency(space, scale=1.1, offset_ms=-0.3)
    for arch in itertools.islice(architectures(space), 0, None, 97):
        assert path_latency_ms(space, arch, table) == pytest.approx(by_hand(table, arch), abs=1e-5)


@SPACES
@pytest.mark.parametrize("offset_ms", [0.0, -0.7, 5.0])
def test_the_best_seven_under_a_latency_equal_brute_force(space, offset_ms):
    table, ratings = make_latency(space, scale=0.9, offset_ms=offset_ms), make_ratings(space, seed=2)
    known = {arch: by_hand(table, arch) for arch in architectures(space)}
    slower = sorted(known.values())[len(known) // 8 :]
    bound = next(ms + 1e-4 for ms, following in itertools.pairwise(slower) if following - ms > 2e-4)  # beyond rounding
    within = [arch for arch, ms in known.items() if ms <= bound]
    expected = sorted(within, key=lambda arch: ratings.score(space, arch))[:7]
    found = solve(space, ratings, top=7, max_latency_ms=bound, latency=table)
    assert [solution.arch for solution in found] == expected
    assert expected != sorted(known, key=lambda arch: ratings.score(space, arch))[:7]  # the bound does bind
    assert [s.latency_ms for s in found] == pytest.approx([known[arch] for arch in expected], abs=1e-5)


@SPACES
def test_the_front_of_score_and_latency_equals_brute_force(space):
    table, ratings = make_latency(space, seed=1), make_ratings(space, seed=1)
    known = {arch: path_latency_ms(space, arch, table) for arch in architectures(space)}
    front, least = [], math.inf
    for arch in sorted(known, key=lambda arch: (ratings.score(space, arch), known[arch])):
        if known[arch] < least:
            front.append(arch)
            least = known[arch]
    assert len(front) > 3
    assert [solution.arch for solution in pareto(space, ratings, "latency", latency=table)] == front


def test_a_bound_in_microseconds_is_met_by_exactly_as_many():
    """1.001 ms are 1,001,000 ns, though their product in binary is less."""
    one = Operation(1.001, 0.0, 1)
    nothing = Operation(0.0, 0.0, 1)
    layers = {key: "one" if key.startswith("stem") else "nothing" for key in all_layers(SMALL_NATS)}
    table = replace(make_latency(SMALL_NATS), operations={"one": one, "nothing": nothing}, layers=layers)
    ratings = make_ratings(SMALL_NATS)
    assert solve(SMALL_NATS, ratings, max_latency_ms=1.001, latency=table)[0].latency_ms == 1.001
    with pytest.raises(
        UsageError, match=r"the smallest possible is 1\.001 ms, so type --max-latency-ms 1\.001 or more"
    ):
        solve(SMALL_NATS, ratings, max_latency_ms=1.0009, latency=table)


# --- files


@SPACES
def test_a_table_is_read_as_it_was_written(tmp_path, space):
    check = {"mean_relative_error": 0.02, "networks": []}
    table = make_latency(space, scale=1.25, offset_ms=-0.5, check=check)
    table.write(tmp_path / "latency.json")
    assert read_latency(tmp_path / "latency.json") == table


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"format": 2}, r"its format is 2, and this version reads 1"),
        ({"layers": {}}, r"it lacks \d+ layers, '1\.1 any 24' among them"),
        ({"operations": {"x": {"ms": 1.0}}}, "operation 'x' is not ms, spread and timings"),
        ({"operations": {"x": {"ms": -1.0, "spread": 0.0, "timings": 1}}}, "which is no time"),
        ({"operations": {"x": {"ms": "1", "spread": 0.0, "timings": 1}}}, "which is no time"),
        ({"scale": float("nan")}, "'scale' is nan"),
        ({"offset_ms": None}, "'offset_ms' is missing, or of the wrong kind"),
        ({"resolution": True}, "'resolution' is missing, or of the wrong kind"),
        ({"space": "hytar"}, "did you mean hytra"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(damage, message):
    value = json.loads(json.dumps(make_latency(SMALL_NATS).to_json()))
    with pytest.raises(UsageError, match=message):
        latency_from_json({**value, **damage})


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match=r"list\.json is no latency table: it is no JSON object; make one with"):
        read_latency(tmp_path / "list.json")
    (tmp_path / "cut.json").write_text('{"format": 1, "spa')
    with pytest.raises(BossNetError, match=r"cut\.json is not valid JSON"):
        read_latency(tmp_path / "cut.json")


# --- bossnet solve and bossnet latency show


@pytest.fixture
def files(tmp_path):
    """Options of `bossnet solve` that name ratings and a table."""
    make_ratings(SMALL_NATS).write(tmp_path / "ratings.json")
    make_latency(SMALL_NATS).write(tmp_path / "latency.json")
    return [f"--ratings={tmp_path / 'ratings.json'}", f"--latency-table={tmp_path / 'latency.json'}"]


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


def test_latency_is_stated_where_a_table_is_given_and_only_there(files):
    with_table = json.loads(run("solve", *files, "--json"))
    assert set(with_table[0]) == {"architecture", "score", "madds", "params", "latency_ms"}
    without = json.loads(run("solve", files[0], "--json"))
    assert set(without[0]) == {"architecture", "score", "madds", "params"}
    assert with_table[0]["architecture"] == without[0]["architecture"]
    assert run("solve", *files).splitlines()[0].split()[-1] == "ms"
    assert run("solve", files[0]).splitlines()[0].split()[-1] == "params"


def test_solve_under_a_latency_is_the_solver_under_it(files):
    table, ratings = make_latency(SMALL_NATS), make_ratings(SMALL_NATS)
    expected = solve(SMALL_NATS, ratings, top=3, max_latency_ms=3.2, latency=table)
    answer = json.loads(run("solve", *files, "--max-latency-ms=3.2", "--top=3", "--json"))
    assert answer == [solution.to_json() for solution in expected]
    assert all(solution["latency_ms"] <= 3.2 for solution in answer)
    front = json.loads(run("solve", *files, "--pareto", "--against=latency", "--json"))
    assert front == [solution.to_json() for solution in pareto(SMALL_NATS, ratings, "latency", latency=table)]


def test_the_table_of_solutions_fits_eighty_columns(files):
    assert max(map(len, run("solve", *files, "--top=20").splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--max-latency-ms=0.001"],
            r"at most 0\.001 ms; the smallest possible is [\d.]+ ms, so type --max-latency-ms",
        ),
        (["--max-latency-ms=0"], "--max-latency-ms 0 is not possible"),
        (["--max-latency-ms=nan"], "--max-latency-ms nan is not possible"),
        (["--resolution=64"], r"for 32 px, and 64 px were asked for; type --resolution 32, or measure another"),
        (["--option=dataset=cifar10"], "is of nats with dataset=cifar100.*the ratings are of dataset=cifar10"),
    ],
)
def test_solve_refuses_in_one_sentence(files, arguments, message):
    with pytest.raises(UsageError, match=message):
        run("solve", *files, *arguments)


@pytest.mark.parametrize("asked", [["--max-latency-ms=3"], ["--pareto", "--against=latency"]])
def test_a_latency_without_a_table_says_how_to_measure_one(files, asked):
    with pytest.raises(
        UsageError, match="type --latency-table FILE, which bossnet latency build nats --out FILE measures"
    ):
        run("solve", files[0], *asked)


def test_the_table_of_another_space_is_refused(files, tmp_path):
    make_latency(SHORT_HYTRA).write(tmp_path / "hytra.json")
    with pytest.raises(UsageError, match=r"of space 'hytra', and the ratings are of 'nats'; measure theirs with"):
        run("solve", files[0], f"--latency-table={tmp_path / 'hytra.json'}")


def test_tables_state_their_own_pixels():
    """The space's default is no option that ratings and table must share."""
    table = make_latency(replace(SMALL_NATS, default_resolution=16))
    table.require(SMALL_NATS, 16)
    with pytest.raises(UsageError, match="for 16 px, and 32 px were asked for"):
        table.require(SMALL_NATS)


def test_show_fits_eighty_columns_and_says_what_was_measured(tmp_path):
    operations = {"16a 512x28 > 1024x14": Operation(12.3456, 0.034, 120), "stem 3x224 > 64x56": Operation(1, 0, 1)}
    layers = dict.fromkeys(all_layers(SHORT_HYTRA), "16a 512x28 > 1024x14")
    network = {"architecture": "4cccccc", "measured_ms": 20.0, "table_ms": 21.0, "sum_ms": 22.0, "spread": 0.01}
    check = {"mean_relative_error": 0.0213, "largest_relative_error": 0.05, "kendall": 0.9, "spearman": None}
    table = make_latency(SHORT_HYTRA, layers=layers, operations=operations, check={**check, "networks": [network]})
    table.write(tmp_path / "latency.json")
    printed = run("latency", "show", str(tmp_path / "latency.json"))
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "torch 2.9, abacus, 1 thread; 2026-01-01" in lines
    assert ["16a", "512x28", "1024x14", "12.346", "3.4", "%", "120"] in [line.split() for line in lines]
    assert "mean relative error 2.13 %" in printed
    assert "Kendall tau 0.900" in printed
    assert "Spearman" not in printed
    assert "a network takes 1.000 x the sum, and 0.000 ms" in lines
    unchecked = replace(table, check=None, offset_ms=-0.732)
    unchecked.write(tmp_path / "latency.json")
    again = run("latency", "show", str(tmp_path / "latency.json"))
    assert "x the sum, less 0.732 ms\nnot checked" in again
    assert json.loads(run("latency", "show", str(tmp_path / "latency.json"), "--json"))["check"] is None


def test_the_head_is_that_of_the_last_state():
    table = make_latency(SMALL_NATS)
    ms = table.operations[table.layers[head_of(SMALL_NATS, 24)]].ms
    assert table.fixed_ns(24) == round(ms * 1e6)
