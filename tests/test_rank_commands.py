"""`bossnet rank` and `bossnet solve` as they are typed."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from ranked import SPACE, make_table, make_truth
from typer.testing import CliRunner

from bossnet_zoo.cli import whole_app
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search.cli_solve import _write_scores, app


@pytest.fixture
def files(tmp_path):
    make_table().write(tmp_path / "ratings.json")
    truth = make_truth(lambda arch: sum(arch.widths) / 200 - make_table().score(SPACE, arch))
    (tmp_path / "truth.json").write_text(json.dumps({"space": "nats", "accuracy": dict(truth.accuracy)}))
    return [f"--ratings={tmp_path / 'ratings.json'}", f"--truth={tmp_path / 'truth.json'}"]


def run(*arguments: str):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_rank_prints_json_with_the_documented_keys(files):
    result = run("rank", *files, "--json")
    document = json.loads(result.stdout)
    assert document["n"] == 40
    for figures in (document, *document["baselines"].values()):
        for name in ("kendall", "spearman", "pearson"):
            assert set(figures[name]) == {"value", "low", "high"}
    assert set(document["baselines"]) == {"params", "madds", "log_width"}
    assert all(set(figures["advantage"]) == {"value", "low", "high"} for figures in document["baselines"].values())
    assert document["repeatability"] is None


def test_rank_prints_tables_that_fit_eighty_columns(files, tmp_path):
    lines = run("rank", *files, f"--plot={tmp_path / 'ranking.png'}").stdout.splitlines()
    assert lines[0].startswith("40 architectures")
    assert any(line.startswith("log-width") for line in lines)
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "ranking.png").exists()


def test_rank_keeps_its_figures_in_the_folder_of_a_search(files, tmp_path):
    run("rank", *files)
    assert not (tmp_path / "ranking.json").exists()
    (tmp_path / "metrics.jsonl").write_text("")
    run("rank", *files)
    assert (tmp_path / "ranking.json").exists()


def test_an_architecture_outside_a_narrowed_space_is_refused_as_such(files, tmp_path):
    narrow = {"8:8": 1.0, "16:16": 2.0}
    ratings = {"space": "nats", "space_options": {"widths": [8, 16]}, "blocks": [narrow, narrow, {"8": 1.0}]}
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    (tmp_path / "truth.json").write_text(json.dumps({"space": "nats", "accuracy": {"64:8:8:8:8": 1.0}}))
    shown = r"width 64 is not allowed; .*; the rule and examples: bossnet (space nats --option 'widths=\[8,16\]')$"
    with pytest.raises(UsageError, match=shown) as error:
        run("rank", *files)
    command = shlex.split(re.search(shown, str(error.value))[1])
    printed = CliRunner().invoke(whole_app(), command, catch_exceptions=False).stdout
    assert printed.startswith(
        "nats: 32 architectures, 32 px\nwith widths=[8,16] (32,768 architectures without options)"
    )
    assert "5 layers, each of width 8 or 16" in printed
    narrow["64:8"] = 1.0
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    with pytest.raises(UsageError, match=r"'64:8' is no path that .*: bossnet space nats --option 'widths=\[8,16\]'$"):
        run("rank", *files)


def test_solve_says_which_space_it_searched(files, tmp_path):
    assert "searched nats: 32,768 architectures\n" in run("solve", files[0]).stderr
    ratings = {"space": "nats", "space_options": {"widths": [8]}, "blocks": [{"8:8": 1.0}, {"8:8": 1.0}, {"8": 1.0}]}
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    said = "searched nats: 1 architecture, with widths=[8] (32,768 architectures without options)"
    assert said in run("solve", files[0]).stderr


def test_rank_says_that_few_architectures_say_little(files, tmp_path):
    assert "say little" not in run("rank", *files).stderr
    truth = json.loads((tmp_path / "truth.json").read_text())
    truth["accuracy"] = dict(list(truth["accuracy"].items())[:5])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert "5 architectures say little, however narrow an interval is" in " ".join(run("rank", *files).stderr.split())


def test_rank_wants_one_truth(files):
    with pytest.raises(UsageError, match="--truth FILE or --nats-bench FOLDER"):
        run("rank", files[0])
    with pytest.raises(UsageError, match="--truth FILE or --nats-bench FOLDER"):
        run("rank", *files, "--nats-bench=somewhere")


def test_solve_prints_json_with_the_documented_keys(files):
    document = json.loads(run("solve", files[0], "--max-params", "100k", "--top=2", "--json").stdout)
    assert [set(row) for row in document] == [{"architecture", "score", "madds", "params"}] * 2
    assert all(row["params"] <= 100_000 for row in document)


def test_solve_prints_a_table_that_fits_eighty_columns(files):
    lines = run("solve", files[0], "--pareto", "--against=params").stdout.splitlines()
    assert lines[0].split() == ["architecture", "score", "MAdds", "params"]
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("scores", "written"),
    [
        ([2.21498, 2.2155296], ["2.2150", "2.2155"]),
        ([2.21498, 2.2155296, 2.2155301], ["2.2149800", "2.2155296", "2.2155301"]),
        ([-310.5, -2.25], ["-310.50", "-2.25"]),
        ([1.0, 1.0 + 1e-12], ["1.0000", "1.0000"]),
        ([0.0], ["0.0000"]),
        ([0.00012345, 0.5], ["0.00012", "0.50000"]),
        ([123456.0, 123457.0], ["123456", "123457"]),
        ([1e50, 2.0], ["1.00000000e+50", "2.00000000e+00"]),
        ([3e-20], ["3.00000000e-20"]),
    ],
)
def test_scores_in_a_table_have_as_many_decimals_as_tell_them_apart(scores, written):
    assert _write_scores(scores) == written


def test_solve_aligns_the_decimal_points_of_scores(files):
    lines = run("solve", files[0], "--top=9").stdout.splitlines()[1:]
    assert len({line.index(".") for line in lines}) == 1
    assert len({len(line.split()[1].partition(".")[2]) for line in lines}) == 1


def test_rank_and_solve_take_the_folder_of_a_search(files, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert run("solve", f"--ratings={tmp_path}").stdout == run("solve", files[0]).stdout
    assert f"bossnet report {tmp_path}\n" in run("rank", f"--ratings={tmp_path}", files[1]).stderr
    assert (tmp_path / "ranking.json").exists()


def test_solve_says_at_how_many_pixels_it_counts(files):
    assert "MAdds are counted at 32 px" in run("solve", files[0]).stderr
    assert "MAdds are counted at 64 px" in run("solve", files[0], "--resolution=64").stderr


def test_a_bound_beyond_all_costs_is_none(files):
    (best,) = json.loads(run("solve", files[0], "--json").stdout)
    for bound in ("--max-madds=1e30", "--max-params=99999999999999999999G"):
        assert json.loads(run("solve", files[0], bound, "--json").stdout) == [best]


def test_the_space_is_told_where_the_file_does_not_say_it(files, tmp_path):
    ratings = json.loads((tmp_path / "ratings.json").read_text())
    expected = run("solve", files[0], "--json").stdout
    del ratings["space"]
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    with pytest.raises(UsageError, match='"space" is no name'):
        run("solve", files[0])
    assert run("solve", files[0], "--space=nats", "--json").stdout == expected


def test_options_that_nothing_would_honour_are_refused(files, tmp_path):
    for command, option, message in (
        ("solve", "--against=params", "type that too, or leave it out"),
        ("rank", "--dataset=cifar100", "--dataset is NATS-Bench's; leave it out"),
        ("rank", f"--plot={tmp_path / 'a.svg'}", r"is written as PNG; type .*a\.png"),
    ):
        with pytest.raises(UsageError, match=message):
            run(command, *files[: 1 + (command == "rank")], option)


def test_solve_takes_weights_or_fits_them(files, tmp_path):
    plain = json.loads(run("solve", files[0], "--lambda=0,0,1", "--json").stdout)
    assert plain[0]["score"] == min(make_table().blocks[2]["any"].values())
    assert run("solve", files[0], f"--lambda={tmp_path / 'truth.json'}", "--json").exit_code == 0
    with pytest.raises(UsageError, match="as in 1,1,1"):
        run("solve", files[0], "--lambda=one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top=2", "--pareto"), "leave out --top"),
        (("--max-madds=much",), "475M"),
        (("--space=hytra",), "leave out --space hytra"),
        (("--option=depth=3",), "depth"),
        (("--max-params=10",), "the smallest possible is .* so type --max-params"),
    ],
)
def test_solve_refuses_in_one_sentence(files, arguments, message):
    with pytest.raises(BossNetError, match=message):
        run("solve", files[0], *arguments)
