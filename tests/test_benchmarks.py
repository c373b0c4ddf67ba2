"""README shows what was measured, missed bars and failed scripts included; the new benchmarks run, in small."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import bench_data
import bench_gpu
import bench_scaling
import pytest
import reliability
import run_all
import table
from bench_solver import lower_quartile
from drawn import draw_ratings
from PIL import Image

from bossnet_zoo.search.solver import solve
from bossnet_zoo.spaces import HyTraSpace

BENCHMARKS = Path(run_all.__file__).parent


@pytest.fixture
def results() -> dict:
    return json.loads(run_all.RESULTS.read_text(encoding="utf-8"))


# --- the table


def test_readme_shows_the_measured_table(results):
    text = run_all.README.read_text(encoding="utf-8")
    assert table.with_table(text, results) == text, "type: make bench"


def test_readme_shows_what_make_stress_counted():
    counts = json.loads(reliability.COUNTS.read_text(encoding="utf-8"))
    text = reliability.README.read_text(encoding="utf-8")
    assert reliability.with_table(text, counts) == text, "type: python benchmarks/reliability.py runs/stress.json"
    assert all(row["tried"] == row["survived"] + row["lost"] > 0 for row in counts["faults"])
    worse = {**counts, "faults": [{"fault": "x", "tried": 2, "survived": 1, "lost": 1}], "failed_tests": 1}
    assert "| x | 2 | 1 | **1** |" in reliability.markdown(worse)
    assert "1 of its tests failed" in reliability.markdown(worse)


def test_every_script_is_run_and_has_rows(results):
    scripts = {path.stem for path in BENCHMARKS.glob("bench_*.py")} - {"bench_gpu"}
    assert scripts == set(run_all.SCRIPTS) == set(table.ROWS) == set(results["scripts"])
    for script, outcome in results["scripts"].items():
        assert len(list(table.ROWS[script](outcome["result"]))) >= 2


def test_every_bar_is_in_the_table(results):
    text = table.markdown(results)
    bars = ("2.2x", "2.4x", "3.0x", "8.0x", "4.5x", "1.6x", "1.3x", "1.0x", "1.15x", "2 s")
    assert [bar for bar in bars if f" {bar}: " not in text] == []
    assert text.count("≥ 8.0x: ") == 2
    assert text.count("< 2 s: ") == 2


def test_a_missed_bar_is_said(results):
    worse = copy.deepcopy(results)
    worse["scripts"]["bench_step"]["result"]["spaces"]["nats"]["geometric_mean"] = 2.99
    before, after = table.rows_of(results), table.rows_of(worse)
    (changed,) = [row for row, old in zip(after, before, strict=True) if row != old]
    assert str(changed) == "| supernet step, NATS-Bench blocks 2-3 | 2.99x | naive step | ≥ 3.0x: **missed** | 1 core |"
    assert not changed.met


def test_a_failed_script_is_said(results):
    results["scripts"]["bench_data"] = {"error": "exit code 1, MemoryError"}
    text = table.markdown(results)
    assert "| `bench_data.py` | **failed**: exit code 1, MemoryError |" in text
    assert not all(row.met for row in table.rows_of(results))


def test_a_text_without_marks_is_refused(results):
    with pytest.raises(ValueError, match="no <!-- benchmarks -->"):
        table.with_table("# README\n", results)


# --- running scripts

FATES = {
    "good": "import sys; print('{\"arguments\": %d}' % (len(sys.argv) - 1)); sys.exit(1)",  # a bar was missed
    "broken": "raise MemoryError('of a | kind')",
    "silent": "pass",
    "slow": "import time; time.sleep(60)",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", {"result": {"arguments": 3}}),
        ("broken", {"error": "exit code 1, MemoryError: of a / kind"}),
        ("silent", {"error": "exit code 0, no output"}),
        ("slow", {"error": "took longer than 1 s"}),
    ],
)
def test_what_becomes_of_a_script(tmp_path, monkeypatch, name, expected):
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    (tmp_path / f"{name}.py").write_text(FATES[name])
    outcome = run_all.run_script(name, ("--plot", str(tmp_path / "picture.png")), limit=1 if name == "slow" else 60)
    assert outcome.pop("seconds") < 60
    assert outcome == {"arguments": ["--plot", f"{tmp_path.name}/picture.png", "--json"], **expected}


# --- the benchmarks themselves


def test_exponents_are_slopes_and_the_picture_is_drawn(tmp_path):
    sizes = [1, 10, 100, 1000]
    curves = [
        bench_scaling.Curve(task, space, form, sizes, [0.3 * size**exponent for size in sizes])
        for task in (bench_scaling.RATING, bench_scaling.SOLVING)
        for space, form, exponent in (("HyTra", "ours", 0.5), ("MBConv", "naive", 1.25))
    ]
    assert [curve.exponent for curve in curves] == pytest.approx([0.5, 1.25] * 2)
    bench_scaling.plot(curves, tmp_path / "scaling.png")
    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.size == (1560, 690)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_cases_grow_and_their_ratings_are_compared_with_the_naive_loop():
    assert [len(case.paths) for case in bench_scaling.hytra_cases(3)] == [3, 11, 35]
    assert [len(case.paths) for case in bench_scaling.mbconv_cases(2)] == [4, 16]
    ours, naive = bench_scaling.rating_curves("MBConv", bench_scaling.mbconv_cases(2), repeats=1)
    assert (ours.form, naive.form) == ("ours", "naive loop")
    assert ours.sizes == naive.sizes == [4, 16]


def test_scoring_every_architecture_finds_what_the_solver_finds():
    space = next(bench_scaling.hytra_spaces(1))
    assert isinstance(space, HyTraSpace)
    assert len({str(arch) for arch in bench_scaling.every_architecture(space)}) == space.count() == 131
    ratings, bound = draw_ratings(space), lower_quartile(space, "madds")
    assert bench_scaling.brute_force(space, ratings, bound) == str(solve(space, ratings, max_madds=bound)[0].arch)


def test_views_are_loaded_in_both_ways(monkeypatch):
    monkeypatch.setattr(bench_data, "BATCH", 2)
    result = bench_data.run("cpu", workers=0, digit_batches=1, photograph_batches=1)
    for name, rates in result["images_per_second"].items():
        assert rates.keys() == {"workers", "device"}
        assert result["device_to_workers"][name] == pytest.approx(rates["device"] / rates["workers"])


def test_generated_photographs_are_as_large_as_real_ones(tmp_path):
    bench_data.write_photographs(tmp_path, 2)
    for path in tmp_path.iterdir():
        assert 90_000 < path.stat().st_size < 130_000
        with Image.open(path) as image:
            assert image.size == (500, 375)


def test_the_gpu_benchmark_runs_on_a_cpu():
    small = {"device": "cpu", "batch": 2, "resolution": 32, "base_width": 8, "blocks": 1, "steps": 2, "workers": 0}
    result = bench_gpu.run(argparse.Namespace(**small, compile=False, peak_tflops=0.01))
    (block,) = result["blocks"]
    assert block["mfu"] > 0
    assert 0 <= block["data_stall_share"] < 1
    assert block["images_per_second"] > 0
    assert block["peak_memory_gib"] is None
