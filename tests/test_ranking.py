"""Rank correlation: the published figures, scipy's own, orientation, ties, intervals, truth files, the commands."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats_bench_files import write_benchmark
from PIL import Image
from ranked import SPACE, make_table, make_truth
from scipy import stats
from typer.testing import CliRunner

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search.cli_solve import app
from bossnet_zoo.search.correlation import advantage, agree, kendall_of_draws, pearson_of_draws, spearman_of_draws
from bossnet_zoo.search.ranking import fit_lambdas, keep_for_report, log_width, over_epochs, rank
from bossnet_zoo.search.ranking_plot import plot_ranking
from bossnet_zoo.search.rating_table import RatingTable, read_ratings
from bossnet_zoo.search.truth_table import TruthTable, read_nats_bench, read_truth, truth_from_json
from bossnet_zoo.spaces import get_space

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
NATS_BENCH = DATA / "NATS-sss-v1_0-50262-simple"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the published data are not part of this repository")

# --- the published figures


@needs_data
def test_published_ratings_reach_the_published_correlations():
    table = read_ratings(DATA / "mbconv_path_ratings.json")
    ranking = rank(table.make_space(), table, read_truth(DATA / "mbconv_true_accuracy.json"))
    found = ranking.agreement
    assert len(ranking.points) == 23
    assert [round(found.kendall.value, 3), round(found.spearman.value, 3)] == [0.644, 0.777]
    assert round(found.pearson.value, 3) == 0.847
    # Nothing trained does as well on these 23 networks: expansions alone order them better.
    assert round(ranking.baselines["madds"].kendall.value, 3) == 0.755
    assert round(ranking.baselines["log_width"].kendall.value, 3) == 0.786


@needs_data
@pytest.mark.parametrize(
    ("dataset", "accuracies"), [("cifar10", [79.79, 85.77, 89.51]), ("cifar100", [32.3, 53.68, 62.7])]
)
def test_nats_bench_is_read_through_its_package(dataset, accuracies):
    pytest.importorskip("nats_bench")
    truth = read_nats_bench(NATS_BENCH, dataset)
    assert list(truth.accuracy) == ["8:8:8:8:8", "8:8:8:16:32", "8:8:40:32:40"]
    assert list(truth.accuracy.values()) == pytest.approx(accuracies, abs=1e-4)
    assert rank(SPACE, make_table(), truth).baselines["params"].kendall.value == 1


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> tuple[Path, Path]:
    """Accuracies that fall with the first width, of four of five architectures, in the benchmark's own two forms."""
    pytest.importorskip("nats_bench")
    archs = [f"{width}:8:8:8:{width}" for width in (8, 16, 24, 32, 64)]
    accuracies = {arch: {"cifar10": 90.0 - index, "cifar100": 60.0 + index} for index, arch in enumerate(archs[1:])}
    return write_benchmark(tmp_path_factory.mktemp("benchmark"), archs, accuracies)


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize(("dataset", "accuracies"), [("cifar10", [90, 89, 88, 87]), ("cifar100", [60, 61, 62, 63])])
def test_nats_bench_is_read_in_both_its_forms(benchmark, form, dataset, accuracies):
    truth = read_nats_bench(benchmark[0] if form == "folder" else benchmark[1], dataset)
    assert list(truth.accuracy) == ["16:8:8:8:16", "24:8:8:8:24", "32:8:8:8:32", "64:8:8:8:64"]
    assert list(truth.accuracy.values()) == accuracies  # the mean over seeds, of the last of 90 epochs
    sign = -1 if dataset == "cifar10" else 1
    assert rank(SPACE, make_table(), truth).baselines["log_width"].kendall.value == pytest.approx(sign)


def test_a_damaged_file_of_nats_bench_is_named(benchmark, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(benchmark[0], folder)
    damaged = folder / "000003.pickle.pbz2"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(BossNetError, match=r"000003\.pickle\.pbz2 is damaged"):
        read_nats_bench(folder, "cifar10")
    for file in folder.glob("0*.pbz2"):
        file.unlink()
    with pytest.raises(UsageError, match="holds no architectures"):
        read_nats_bench(folder, "cifar10")


def test_rank_takes_nats_bench_as_its_truth(benchmark, tmp_path):
    make_table().write(tmp_path / "table.json")
    command = ["rank", "--ratings", str(tmp_path / "table.json"), "--nats-bench", str(benchmark[0])]

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout

    found = [json.loads(run(*command, "--dataset", name, "--json")) for name in ("cifar10", "cifar100")]
    assert [document["baselines"]["log_width"]["kendall"]["value"] for document in found] == [
        pytest.approx(-1),
        pytest.approx(1),
    ]


def test_of_nats_bench_the_architectures_of_a_narrowed_space_count(benchmark, tmp_path):
    """Those of the others have no ratings, and could have none."""
    blocks = [{"8:8": 1.0, "16:8": 2.0, "24:8": 3.0, "32:8": 4.0}, {"8:8": 0.0}, {"16": 0.5, "24": 0.5, "32": 0.5}]
    options = {"widths": [8, 16, 24, 32]}
    (tmp_path / "narrow.json").write_text(json.dumps({"space": "nats", "space_options": options, "blocks": blocks}))
    command = ["rank", "--ratings", str(tmp_path / "narrow.json"), "--nats-bench", str(benchmark[0]), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(result.stdout)["n"] == 3
    assert "left out: 1 of NATS-Bench's 4, outside nats: 1,024 architectures, with widths=[8,16,24" in result.stderr
    with pytest.raises(
        UsageError, match=r"none of the 4 architectures with an accuracy is one of nats: 1 architecture"
    ):
        read_nats_bench(benchmark[0], "cifar10").within(get_space("nats", widths=[40]))


def test_a_folder_without_nats_bench_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no meta\.pickle\.pbz2"):
        read_nats_bench(tmp_path, "cifar10")
    with pytest.raises(UsageError, match="cifar100"):
        read_nats_bench(tmp_path, "imagenet")


# --- figures


@pytest.fixture(params=["continuous", "with ties", "many"])
def pairs(request):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 1200 if request.param == "many" else 30))
    y += x
    if request.param == "with ties":
        x, y = np.round(x), np.round(2 * y)
    return x, y, generator.integers(0, len(x), (6, len(x)))


@pytest.mark.parametrize(
    ("measure", "reference"),
    [(kendall_of_draws, stats.kendalltau), (spearman_of_draws, stats.spearmanr), (pearson_of_draws, stats.pearsonr)],
)
def test_correlations_of_resamples_are_those_of_scipy(pairs, measure, reference):
    x, y, draws = pairs
    expected = [reference(x[draw], y[draw]).statistic for draw in draws]
    np.testing.assert_allclose(measure(x, y, draws), expected, atol=1e-12)


def test_resamples_of_equal_values_are_undefined_and_do_not_count():
    x, y = np.array([0.1, 0.1, 0.1, 0.3]), np.array([1.0, 2.0, 3.0, 4.0])
    draws = np.array([[0, 1, 2, 0], [0, 1, 2, 3]])
    for measure in (kendall_of_draws, spearman_of_draws, pearson_of_draws):
        assert np.isnan(measure(x, y, draws)).tolist() == [True, False]
    assert agree(x, y, draws).kendall.low == agree(x, y, draws).kendall.high


def test_intervals_contain_the_value_and_follow_the_seed():
    truth = make_truth(lambda arch: math.log(sum(arch.widths)))
    first, again, other = (rank(SPACE, make_table(), truth, seed=seed).agreement for seed in (0, 0, 1))
    assert first == again != other
    for estimate in (first.kendall, first.spearman, first.pearson):
        assert -1 <= estimate.low < estimate.value < estimate.high <= 1


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    rho, hits = 0.6, 0
    for _ in range(100):
        x, noise = generator.normal(size=(2, 60))
        found = agree(x, rho * x + math.sqrt(1 - rho**2) * noise, generator.integers(0, 60, (200, 60)))
        hits += found.kendall.low <= 2 / math.pi * math.asin(rho) <= found.kendall.high
    assert 85 <= hits <= 99


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_a_perfect_rating_is_positive_in_either_orientation(lower_is_better):
    table = make_table(lower_is_better=lower_is_better)
    sign = -1 if lower_is_better else 1
    truth = make_truth(lambda arch: sign * table.score(SPACE, arch))
    agreement = rank(SPACE, table, truth).agreement
    assert agreement.kendall == agreement.spearman == (1, 1, 1)
    assert agreement.pearson.value == pytest.approx(1)
    assert agreement.regret == 0
    assert set(agreement.precision_at.values()) == {1.0}


def test_whatever_is_as_accurate_as_the_best_counts_for_precision():
    accuracy = np.array([90.0, 90, 80, 70, 60, 50])
    found = agree(np.array([1.0, 2, 0, 0, 0, 0]), accuracy, np.arange(6)[None])
    assert (found.precision_at[1], found.regret) == (1.0, 0.0)


def test_precision_and_regret_by_hand():
    values, accuracy = np.arange(12.0), np.array([5, 90, 80, 1, 2, 3, 4, 0, 70, 60, 50, 55.0])
    found = agree(values, accuracy, np.arange(12)[None])
    assert found.regret == 90 - 55
    assert found.precision_at == {1: 0.0, 5: 3 / 5, 10: 8 / 10}  # 8, 9, 11; all but 0, 1 of ten


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_what_the_ratings_gain_over_a_baseline_is_a_paired_difference(lower_is_better):
    table = make_table(lower_is_better=lower_is_better)
    sign = -1 if lower_is_better else 1
    ranking = rank(SPACE, table, make_truth(lambda arch: sign * table.score(SPACE, arch)))
    for name, gain in ranking.advantages.items():
        baseline = ranking.baselines[name].kendall
        assert gain.value == pytest.approx(1 - baseline.value)
        assert (gain.low, gain.high) == pytest.approx((1 - baseline.high, 1 - baseline.low))  # the ratings' tau is 1
    worthless = rank(SPACE, table, make_truth(lambda arch: math.log(math.prod(arch.widths))))
    assert worthless.advantages["log_width"].high < 0


def test_a_paired_difference_is_narrower_than_what_it_is_the_difference_of():
    generator = np.random.default_rng(0)
    accuracy, noise = generator.normal(size=(2, 60))
    values = accuracy + noise
    others = values + 0.05 * generator.normal(size=60)  # nearly the same predictor
    draws = generator.integers(0, 60, (500, 60))
    gain, alone = advantage(values, others, accuracy, draws), agree(values, accuracy, draws).kendall
    assert gain.high - gain.low < (alone.high - alone.low) / 2
    assert advantage(values, np.ones(60), accuracy, draws) is None


def test_the_truth_of_several_trainings_says_how_far_they_agree():
    table, generator = make_table(), random.Random(3)
    truth = make_truth(lambda arch: sum(arch.widths))
    assert rank(SPACE, table, truth).repeatability is None
    runs = {arch: [accuracy + generator.gauss(0, 40) for _ in range(3)] for arch, accuracy in truth.accuracy.items()}
    found = rank(SPACE, table, replace(truth, meta={"runs": runs})).repeatability
    columns = list(zip(*(runs[arch] for arch in sorted(runs)), strict=True))
    expected = np.mean([stats.kendalltau(columns[i], columns[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))])
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high < 1
    del runs[min(runs)]
    assert rank(SPACE, table, replace(truth, meta={"runs": runs})).repeatability is None


def test_baselines_say_that_more_is_better():
    truth = make_truth(lambda arch: sum(map(math.log, arch.widths)))
    ranking = rank(SPACE, make_table(), truth)
    assert ranking.baselines["log_width"].kendall.value == pytest.approx(1)
    assert ranking.baselines["params"].kendall.value > 0.5
    assert ranking.baselines["madds"].kendall.value > 0.3


@pytest.mark.parametrize(
    ("space", "narrow", "wide"),
    [
        ("nats", "8:8:8:8:8", "8:8:16:8:8"),
        ("hytra", "4cccccccccccccccc", "4ccccccccccccccc-8c"),
        ("mbconv", "22-2222-2222-2222-2222", "22-2222-2222-2222-2220"),
    ],
)
def test_log_width_grows_by_log_two_where_a_layer_doubles(space, narrow, wide):
    parse = get_space(space).parse
    assert log_width(parse(wide)) - log_width(parse(narrow)) == pytest.approx(math.log(2))


def test_unrated_architectures_are_counted_and_left_out():
    table = make_table()
    first = {path: rating for path, rating in table.blocks[0]["any"].items() if not path.startswith("8:")}
    narrowed = RatingTable("nats", ({"any": first}, *table.blocks[1:]))
    truth = make_truth(lambda arch: sum(arch.widths))
    unrated = sum(text.startswith("8:") for text in truth.accuracy)
    ranking = rank(SPACE, narrowed, truth)
    assert unrated > 0
    assert (ranking.num_unrated, len(ranking.points)) == (unrated, len(truth.accuracy) - unrated)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (TruthTable("mbconv", {"11-1111-1101-1011-1101": 75.0}), "of space 'mbconv', the ratings of 'nats'"),
        (TruthTable("nats", {"8:8:8:8:9": 75.0}), "width 9 is not allowed"),
        (TruthTable("nats", {"8:8:8:8:8": 75.0, "8:8:8:8:08": 74.0}), "'8:8:8:8:08' is not made of numbers"),
        (TruthTable("nats", {"8:8:8:8:8": 75.0, "8:8:8:8:16": 74.0}), "2 of 2 .* needs 3 or more"),
        (TruthTable("nats", {f"8:8:8:8:{width}": 75.0 for width in (8, 16, 24)}), "accuracies of all 3 .* are equal"),
    ],
)
def test_truth_that_cannot_be_used_is_one_sentence(truth, message):
    with pytest.raises(UsageError, match=message):
        rank(SPACE, make_table(), truth)


# --- fitted weights, epochs


def test_fitted_lambdas_recover_the_weights_behind_the_accuracies():
    table, weights = make_table(), (0.5, 2.0, 0.5)
    truth = make_truth(lambda arch: 80 - 3 * table.score(SPACE, arch, weights), number=8)
    assert fit_lambdas(SPACE, table, truth) == pytest.approx(weights)


def test_fitted_lambdas_are_never_negative():
    table = make_table()
    truth = make_truth(lambda arch: -table.score(SPACE, arch, (1.0, 1.0, -1.0)), number=30)
    fitted = fit_lambdas(SPACE, table, truth)
    assert fitted[2] == 0
    assert sum(fitted) == pytest.approx(3)
    against = make_truth(lambda arch: table.score(SPACE, arch))
    with pytest.raises(UsageError, match="do not explain"):
        fit_lambdas(SPACE, table, against)


def test_too_few_accuracies_to_fit_are_refused():
    with pytest.raises(UsageError, match=r"3 accuracies are too few .* at least 4"):
        fit_lambdas(SPACE, make_table(), make_truth(lambda arch: sum(arch.widths), number=3))


def test_correlation_over_epochs_counts_epochs_in_which_all_blocks_were_rated():
    early, late = make_table(seed=2), make_table(seed=3)
    truth = make_truth(lambda arch: -late.score(SPACE, arch))
    records = [
        {"kind": "rating", "block": block, "entry": "any", "epoch": epoch, "ratings": table.blocks[block]["any"]}
        for epoch, table in ((5, early), (10, late))
        for block in range(3)
    ]
    curve = over_epochs(SPACE, late, records[1:], truth)
    assert [point["epoch"] for point in curve] == [10]
    curve = over_epochs(SPACE, late, records, truth)
    assert [point["epoch"] for point in curve] == [5, 10]
    assert curve[1]["kendall"] == 1 > curve[0]["kendall"]


def test_a_ranking_is_kept_for_the_report(tmp_path):
    table, truth = make_table(), make_truth(lambda arch: sum(arch.widths))
    ranking = rank(SPACE, table, truth)
    keep_for_report(tmp_path, ranking, truth)
    kept = json.loads((tmp_path / "ranking.json").read_text())
    assert len(kept["points"]) == kept["n"]
    assert kept["kendall"]["value"] == ranking.agreement.kendall.value
    assert kept["epochs"] == []


def test_the_picture_is_a_png(tmp_path):
    ranking = rank(SPACE, make_table(), make_truth(lambda arch: sum(arch.widths)))
    plot_ranking(ranking, tmp_path / "ranking.png")
    with Image.open(tmp_path / "ranking.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(maxcolors=100_000)) > 20
        width = picture.width
    curve = [{"epoch": epoch, "kendall": epoch / 10, "spearman": 0.5, "pearson": -0.2} for epoch in (2, 4)]
    plot_ranking(ranking, tmp_path / "over-epochs.png", curve)
    with Image.open(tmp_path / "over-epochs.png") as picture:
        assert picture.width > 1.3 * width  # a third panel


# --- truth files


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no JSON object"),
        ({"space": 1, "accuracy": {"a": 1}}, '"space"'),
        ({"space": "nats"}, '"accuracy"'),
        ({"space": "nats", "accuracy": {}}, '"accuracy"'),
        ({"space": "nats", "accuracy": {"8:8:8:8:8": "high"}}, "'8:8:8:8:8': 'high' is no finite number"),
        ({"space": "nats", "accuracy": {"8:8:8:8:8": math.inf}}, "inf is no finite number"),
    ],
)
def test_a_malformed_truth_file_is_one_sentence(value, message):
    with pytest.raises(UsageError, match=message):
        truth_from_json(value)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(ANY_JSON | st.fixed_dictionaries({"space": st.just("nats"), "accuracy": ANY_JSON}))
def test_whatever_a_truth_file_holds_it_is_accuracies_or_one_sentence(value):
    accuracy, message = {}, ""
    try:
        accuracy = truth_from_json(value).accuracy
    except UsageError as error:
        message = str(error)
    assert bool(accuracy) != bool(message)
    assert "\n" not in message
    assert all(map(math.isfinite, accuracy.values()))
